//! CPU time of server processes in a round of slices, for the benches that compare.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::bail;
use client::{Edge, EdgeKind, Plan, Report, Slice, SlicedLoad, drive_slices};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Amount of measuring of one round.
#[derive(Clone, Copy)]
pub(crate) struct Amount {
    /// Time at the beginning of a slice that is not counted.
    pub(crate) lead: Duration,
    /// Counted part of a slice.
    pub(crate) slice: Duration,
    /// Number of slices of each server.
    pub(crate) slices: usize,
}

/// Measurements of one server in a round.
pub(crate) struct Measured {
    /// Measurements of the client.
    #[allow(dead_code, reason = "ratio compares the cost alone")]
    pub(crate) report: Report,
    /// CPU time of the server per reply, in seconds.
    pub(crate) cpu_per_reply: f64,
}

/// Server to load, and its load.
pub(crate) struct Loaded {
    pub(crate) process: Pid,
    pub(crate) plan: Plan,
    /// Whether the server never sleeps, so that it must be stopped while others are loaded.
    pub(crate) spins: bool,
}

/// CPU clocks of a server process and its children, and the time that they counted in the slices.
struct Clocks {
    root: Pid,
    spins: bool,
    clocks: Vec<ClockId>,
    begin: Duration,
    used: Duration,
}

impl Clocks {
    /// Looks for the processes that the server has forked. All clients are connected then.
    fn look(&mut self) {
        let all = procfs::process::all_processes().into_iter().flatten();
        let stats = all.filter_map(|process| process.ok()?.stat().ok());
        let children = stats.filter(|stat| stat.ppid == self.root.as_raw());
        let processes =
            std::iter::once(self.root).chain(children.map(|stat| Pid::from_raw(stat.pid)));
        // The clock of a whole process includes the threads that have ended.
        self.clocks = processes
            .filter_map(|process| clock_getcpuclockid(process).ok())
            .collect();
    }

    fn rest(&self) {
        if self.spins {
            let _ = kill(self.root, Signal::SIGSTOP);
        }
    }

    fn wake(&self) {
        if self.spins {
            let _ = kill(self.root, Signal::SIGCONT);
        }
    }

    fn read(&self) -> Duration {
        let clocks = self.clocks.iter().filter_map(|clock| clock.now().ok());
        clocks.map(Duration::from).sum()
    }
}

/// Loads the servers in slices, in a random order in each pass.
pub(crate) fn round(servers: Vec<Loaded>, amount: Amount) -> anyhow::Result<Vec<Measured>> {
    let mut clocks: Vec<Clocks> = servers
        .iter()
        .map(|server| Clocks {
            root: server.process,
            spins: server.spins,
            clocks: Vec::new(),
            begin: Duration::ZERO,
            used: Duration::ZERO,
        })
        .collect();
    let mut slices = Vec::new();
    let mut order: Vec<usize> = (0..servers.len()).collect();
    for _ in 0..amount.slices {
        fastrand::shuffle(&mut order);
        slices.extend(order.iter().map(|&server| Slice {
            server,
            lead: amount.lead,
            length: amount.slice,
            seed: 0,
        }));
    }
    let load = SlicedLoad {
        plans: servers.into_iter().map(|server| server.plan).collect(),
        slices,
    };
    let mut at_edge = |edge: Edge| {
        if edge.kind == EdgeKind::Wake && edge.slice == 0 {
            clocks.iter_mut().for_each(Clocks::look);
            clocks.iter().for_each(Clocks::rest);
        }
        let clocks = &mut clocks[edge.server];
        match edge.kind {
            EdgeKind::Begin => clocks.begin = clocks.read(),
            EdgeKind::End => clocks.used += clocks.read().saturating_sub(clocks.begin),
            EdgeKind::Wake => clocks.wake(),
            EdgeKind::Rest => clocks.rest(),
        }
    };
    let report = drive_slices(&load, &mut at_edge, &AtomicBool::new(false));
    // A server that is stopped must go on before it can end.
    clocks.iter().for_each(Clocks::wake);
    let report = report?;
    let mut all = Vec::new();
    for (report, clocks) in report.servers.into_iter().zip(&clocks) {
        if report.errors.total() > 0 || report.unanswered > 0 || report.completed == 0 {
            bail!(
                "not all requests were answered correctly: {} replies, {} unanswered, {:?} {:?}",
                report.completed,
                report.unanswered,
                report.errors,
                report.examples
            );
        }
        all.push(Measured {
            cpu_per_reply: clocks.used.as_secs_f64() / report.completed as f64,
            report,
        });
    }
    Ok(all)
}
