//! What a server process used in the measured window, for the benches that compare.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::bail;
use client::Watch;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Reads a server's CPU clocks at the edges of the measured window.
pub(crate) struct Meter {
    root: Pid,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The server, and what it has forked by the beginning of the window: everybody is connected then.
    processes: Vec<Pid>,
    readings: Vec<Duration>,
}

impl Meter {
    pub(crate) fn new(root: Pid) -> Meter {
        Meter {
            root,
            seen: Mutex::default(),
        }
    }

    /// CPU time of all its processes in the window.
    pub(crate) fn used(self) -> anyhow::Result<Duration> {
        let readings = self.seen.into_inner().unwrap_or_default().readings;
        let [before, after] = readings[..] else {
            bail!("the server's CPU time could not be read")
        };
        Ok(after.saturating_sub(before))
    }

    fn read(&self) {
        let Ok(mut seen) = self.seen.lock() else {
            return;
        };
        if seen.processes.is_empty() {
            seen.processes = processes(self.root);
        }
        // The clock of a whole process: with the threads that have ended.
        let clock = |process: &Pid| clock_getcpuclockid(*process).and_then(ClockId::now);
        let clocks: Result<Vec<_>, _> = seen.processes.iter().map(clock).collect();
        if let Ok(clocks) = clocks {
            seen.readings
                .push(clocks.into_iter().map(Duration::from).sum());
        }
    }
}

/// A server and its children.
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

/// Sorts, and gives the middle.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}
