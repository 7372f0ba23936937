//! CPU time of a server process in the measured window, for the benches that compare.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::bail;
use client::Watch;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Reads a server's CPU clocks at the edges of the measured window.
pub(crate) struct Meter {
    root: Pid,
    readings: Mutex<Readings>,
}

#[derive(Default)]
struct Readings {
    /// The server, and the processes that it has forked by the beginning of the window: all clients are connected then.
    processes: Vec<Pid>,
    /// CPU time of all processes together, at each edge of the window.
    clocks: Vec<Duration>,
}

impl Meter {
    /// Returns a meter of the server process `root` and its children.
    pub(crate) fn new(root: Pid) -> Meter {
        Meter {
            root,
            readings: Mutex::default(),
        }
    }

    /// Returns the CPU time that all processes used in the window.
    ///
    /// # Errors
    ///
    /// A clock could not be read at one of the edges.
    pub(crate) fn used(self) -> anyhow::Result<Duration> {
        let clocks = self.readings.into_inner().unwrap_or_default().clocks;
        let [before, after] = clocks[..] else {
            bail!("the server's CPU time could not be read")
        };
        Ok(after.saturating_sub(before))
    }

    /// Reads the clocks of all processes.
    fn read(&self) {
        let Ok(mut readings) = self.readings.lock() else {
            return;
        };
        if readings.processes.is_empty() {
            readings.processes = processes(self.root);
        }
        // The clock of a whole process includes the threads that have ended.
        let clock = |process: &Pid| clock_getcpuclockid(*process).and_then(ClockId::now);
        let clocks: Result<Vec<_>, _> = readings.processes.iter().map(clock).collect();
        if let Ok(clocks) = clocks {
            readings
                .clocks
                .push(clocks.into_iter().map(Duration::from).sum());
        }
    }
}

/// Returns a server process and its children.
fn processes(root: Pid) -> Vec<Pid> {
    let all = procfs::process::all_processes().into_iter().flatten();
    let stats = all.filter_map(|process| process.ok()?.stat().ok());
    let children = stats.filter(|stat| stat.ppid == root.as_raw());
    std::iter::once(root)
        .chain(children.map(|stat| Pid::from_raw(stat.pid)))
        .collect()
}

impl Watch for Meter {
    fn measuring(&self) {
        self.read();
    }

    fn measured(&self) {
        self.read();
    }
}

/// Sorts the values, and returns their median.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}
