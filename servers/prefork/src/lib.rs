//! `prefork`: processes that share a listener, each with one connection at a time.
//!
//! ```text
//!            fork ──► process: accept ──► converse ──► accept ──► …   ─┐
//!   parent ──fork ──► process: accept ──► converse ──► …               ├──► reports
//!      ▲     fork ──► process: accept ──► …   (killed: replaced)       │
//!      └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! Each process serves its peers exactly as `serial` does. There are as many processes as peers can be served at a
//! time, and they exist before the first peer comes: the cost that `fork` has for every connection arises once. All
//! processes sleep in accept(2) on the same listener, which their parent opened before it forked; for each peer the
//! kernel wakes one process.
//!
//! The parent serves no peer. The processes report every event at once, because a killed process can't report any more;
//! the parent counts the reports, and replaces every process that has died.

use std::collections::HashSet;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process;
use std::time::{Duration, Instant};

use contract::blocking::Acceptor;
use contract::process::{ChildExit, Children};
use contract::{
    Capacity, Deviation, Ending, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally,
    accept, always_available,
};
use nix::sys::signal::Signal;

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "prefork",
    summary: "--workers processes that share a listener, each with one connection at a time",
    lineage: "Stevens, UNIX Network Programming, server 2 (preforked); Apache's prefork, gunicorn",
    source: "servers/prefork/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Workers,
    needs: Needs {
        own_process: true,
        ..Needs::NOTHING
    },
    offload: Offload::Needless("each peer that is served has a process of its own"),
    deviations: &[
        Deviation {
            guarantee: Guarantee::Limit,
            reason: "at most --workers peers are served at a time, even if --max-connections is larger: a peer occupies a worker until it leaves, also while it is idle, and all other peers wait without a reply",
        },
        Deviation {
            guarantee: Guarantee::Memory,
            reason: "a peer that never reads occupies the worker that waits for it: as many such peers as --workers delay all other peers",
        },
        Deviation {
            guarantee: Guarantee::Isolation,
            reason: "peers that stay connected and complete no request, such as 250 that begin one and never finish it, occupy all workers, and peers that come later wait",
        },
    ],
}];

/// Code that a process reports when it has accepted a peer. When the conversation has ended, the process reports the
/// code of its [`Ending`].
const ACCEPTED: u8 = 100;
/// Code that a process reports at its end, once for each error of accept(2).
const ACCEPT_ERROR: u8 = 101;

/// Exit status of a process that could not serve because a resource was lacking, which may be available again later.
const REPLACE_ME: u8 = u8::MAX;

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let mut children = Children::new()?;
    let (reports, report) = io::pipe()?;
    let mut reported = ReportedTally::new(reports)?;
    // The processes have a stop of their own, so that the parent can end them for other reasons than its own stop.
    let (stopper, child_stop) = Stop::channel()?;
    let workers = limits.workers.get().min(limits.max_connections);
    // Set when a process has died or could not be started: none is started before this time. Otherwise a process that
    // dies at once would be replaced as fast as the machine can fork.
    let mut paused_until: Option<Instant> = None;
    let mut started: u64 = 0;

    let ended = loop {
        let now = Instant::now();
        match reported.update(&mut children, Ending::Failed) {
            Ok(0) => paused_until = paused_until.filter(|at| *at > now),
            Ok(_) => paused_until = Some(now + accept::PAUSE),
            Err(broken) => break Err(broken),
        }
        while paused_until.is_none() && children.len() < workers {
            started += 1;
            let serve_peers = || {
                service.number_from(started << 32);
                work(&listener, &service, &limits, &child_stop, &report)
            };
            if let Err(error) = children.fork(serve_peers) {
                tracing::warn!("cannot start a process: {error}");
                paused_until = Some(now + accept::PAUSE);
            }
        }
        let wanted = [Some(stop.as_fd()), Some(reported.reports.as_fd())];
        let [stopped, _] = children.wait(wanted, paused_until.map(|at| at - now))?;
        if stopped {
            break Ok(());
        }
    };

    drop(stopper);
    // At the drain deadline the processes themselves cut the connections that are left. A process that is still there a
    // second later does not react to the stop.
    let drained_by = Instant::now() + limits.drain + Duration::from_secs(1);
    let mut ending_if_killed = Ending::Failed;
    loop {
        // An error here is ignored: the first reason for the end counts.
        let _ = reported.update(&mut children, ending_if_killed);
        if children.is_empty() {
            return ended.map(|()| reported.tally);
        }
        let left = drained_by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            children.send_signal(Signal::SIGKILL);
            ending_if_killed = Ending::Cut;
        }
        let wanted = [Some(reported.reports.as_fd())];
        children.wait(wanted, (!left.is_zero()).then_some(left))?;
    }
}

/// Serves peers in a process as `serial` does, with reports for every peer. Returns the exit status.
fn work(
    listener: &TcpListener,
    service: &Service,
    limits: &Limits,
    stop: &Stop,
    report: &PipeWriter,
) -> u8 {
    let send = |code: u8| {
        let mut line = [code; REPORT];
        line[1..].copy_from_slice(&process::id().to_ne_bytes());
        // A write of this size is never split (PIPE_BUF in pipe(7)). It may fail if the parent has died, and then the
        // report is not needed.
        let _ = (&*report).write_all(&line);
    };
    let acceptor = listener.try_clone().and_then(|listener| {
        Acceptor::new(listener, service.clone(), limits.clone(), stop.clone())
    });
    let mut acceptor = match acceptor {
        Ok(acceptor) => acceptor,
        Err(error) => {
            tracing::warn!("process {} cannot serve: {error}", process::id());
            return REPLACE_ME;
        }
    };
    let status = loop {
        match acceptor.accept() {
            Ok(Some(connection)) => {
                send(ACCEPTED);
                send(connection.converse().code());
            }
            Ok(None) => break 0,
            Err(broken) => {
                break broken
                    .raw_os_error()
                    .map_or(REPLACE_ME, |errno| errno as u8);
            }
        }
    };
    for _ in 0..acceptor.finish().accept_errors {
        send(ACCEPT_ERROR);
    }
    status
}

/// Size of a report in bytes: a code, and the number of the process.
const REPORT: usize = 1 + size_of::<u32>();

/// The tally that the parent keeps, and the pipe from which it reads the reports.
struct ReportedTally {
    reports: PipeReader,
    /// Numbers of the processes that are serving a peer.
    busy: HashSet<u32>,
    tally: Tally,
}

impl ReportedTally {
    fn new(reports: PipeReader) -> io::Result<ReportedTally> {
        rustix::io::ioctl_fionbio(&reports, true)?;
        Ok(ReportedTally {
            reports,
            busy: HashSet::new(),
            tally: Tally::default(),
        })
    }

    /// Reads the reports that have come, reaps the children that have ended, and returns the number of these children.
    /// A peer whose process ended without reporting its end is counted as `ending_if_killed`.
    ///
    /// # Errors
    ///
    /// A child has ended because the listener is broken.
    fn update(&mut self, children: &mut Children, ending_if_killed: Ending) -> io::Result<usize> {
        let mut ended = Ok(0);
        self.read_reports();
        while let Some((child, exit)) = children.reap() {
            ended = ended.map(|count| count + 1);
            // The child's last report may have come after the reports were read.
            self.read_reports();
            if exit != ChildExit::Exited(0) {
                tracing::warn!("process {child} has ended: {exit:?}");
            }
            if self.busy.remove(&child.as_raw().unsigned_abs()) {
                self.tally.count(ending_if_killed);
            }
            if let ChildExit::Exited(errno) = exit
                && errno != 0
                && errno != REPLACE_ME
            {
                ended = Err(io::Error::from_raw_os_error(errno.into()));
            }
        }
        ended
    }

    fn read_reports(&mut self) {
        let mut buffer = [0; 100 * REPORT];
        while let Ok(count) = self.reports.read(&mut buffer) {
            for report in buffer[..count].chunks_exact(REPORT) {
                let &[code, a, b, c, d] = report else {
                    continue;
                };
                let from = u32::from_ne_bytes([a, b, c, d]);
                match Ending::of_code(code) {
                    Some(ending) => {
                        self.busy.remove(&from);
                        self.tally.count(ending);
                    }
                    None if code == ACCEPTED => {
                        self.busy.insert(from);
                        self.tally.accepted += 1;
                    }
                    None => self.tally.accept_errors += 1,
                }
            }
        }
    }
}
