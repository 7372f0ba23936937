//! What a server process uses, from /proc and its CPU clock, over its whole process tree.
//!
//! Reading /proc takes time on a CPU of the client's, and a late client looks like a slow server. A CPU clock takes a
//! microsecond, and the counters of a thread ten: `cell` reads them when it harms least.

use std::fs;
use std::time::{Duration, Instant};

use contract::CpuList;

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use procfs::process::{Process, all_processes};
use procfs::{CpuTime, CurrentSI, KernelStats};

/// A server and what it forked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    root: i32,
    processes: Vec<i32>,
}

/// CPU time used until a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuReading {
    pub(super) at: Instant,
    pub(super) used: Option<Duration>,
}

/// How long some CPUs had nothing to do, and how long this process ran, until a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostReading {
    at: Instant,
    idle: Duration,
    own: Duration,
}

impl HostReading {
    /// Of these CPUs; of all, if none are named.
    pub(super) fn take(cpus: &[usize]) -> Option<HostReading> {
        let at = Instant::now();
        let kernel = KernelStats::current().ok()?;
        let idle = |cpu: &CpuTime| Some(cpu.idle_duration() + cpu.iowait_duration()?);
        Some(HostReading {
            at,
            idle: if cpus.is_empty() {
                idle(&kernel.total)?
            } else {
                // /proc/stat has a line for each CPU that is online, and procfs gives them without their numbers.
                let online = online()?;
                cpus.iter()
                    .map(|cpu| {
                        let line = online.iter().position(|online| online == cpu)?;
                        idle(kernel.cpu_time.get(line)?)
                    })
                    .sum::<Option<Duration>>()?
            },
            own: ClockId::CLOCK_PROCESS_CPUTIME_ID.now().ok()?.into(),
        })
    }

    /// The share of the CPUs' time since `before` that went neither to this process nor to the server (which took
    /// `server`) nor was idle: to other programs, to interrupts, or to a virtual machine's neighbours.
    pub(super) fn others(
        &self,
        before: &HostReading,
        server: Duration,
        cpus: usize,
    ) -> Option<f64> {
        let all = (self.at - before.at).as_secs_f64() * cpus as f64;
        let known =
            (self.idle.saturating_sub(before.idle) + self.own.saturating_sub(before.own) + server)
                .as_secs_f64();
        // Idle time comes in ticks of 10 ms, so the difference may be slightly negative.
        (all > 0.0).then(|| ((all - known) / all).max(0.0))
    }
}

/// The numbers of the CPUs that are online.
fn online() -> Option<Vec<usize>> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    let list: CpuList = list.trim().parse().ok()?;
    Some(list.0)
}

/// Everything else, at a moment. `None`: it could not be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    pub(super) at: Instant,
    pub(super) processes: u64,
    pub(super) threads: Option<u64>,
    pub(super) user: Option<Duration>,
    pub(super) system: Option<Duration>,
    pub(super) voluntary_switches: Option<u64>,
    pub(super) involuntary_switches: Option<u64>,
    /// In bytes.
    pub(super) rss: Option<u64>,
    /// In bytes.
    pub(super) peak_rss: Option<u64>,
}

/// Towards the client's threads on the same CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Courtesy {
    /// For an open loop: it has a request to send every few hundred microseconds, and little to do meanwhile.
    Yield,
    /// For a closed loop: it never has nothing to do, and would not give the CPU back for milliseconds.
    None,
}

impl Tree {
    /// The process and all its descendants now.
    pub(super) fn of(root: i32) -> Tree {
        // By way of all processes: /proc/PID/task/TID/children is not in every kernel.
        let parents: Vec<(i32, i32)> = all_processes()
            .into_iter()
            .flatten()
            .filter_map(|process| process.ok()?.stat().ok())
            .map(|stat| (stat.pid, stat.ppid))
            .collect();
        Tree {
            root,
            processes: descendants(root, &parents),
        }
    }

    /// The CPU time used until now, ended threads and reaped processes included.
    pub(super) fn cpu(&self) -> CpuReading {
        let at = Instant::now();
        let mut used = cpu_clock(self.root);
        // Of one process without children the clock is all there is.
        if self.processes.len() > 1 {
            for &process in &self.processes {
                // One that has ended meanwhile is in what its parent reaped.
                let clock = (process != self.root).then(|| cpu_clock(process)).flatten();
                let reaped = Process::new(process)
                    .and_then(|process| process.stat())
                    .ok();
                let reaped = reaped.map(|stat| ticks((stat.cutime + stat.cstime).unsigned_abs()));
                used =
                    used.map(|used| used + clock.unwrap_or_default() + reaped.unwrap_or_default());
            }
        }
        CpuReading { at, used }
    }

    /// Reads the counters; between two threads it lets others have the CPU if they want it.
    pub(super) fn counters(&self, courtesy: Courtesy) -> Counters {
        let mut sum = Counters {
            at: Instant::now(),
            processes: 0,
            threads: Some(0),
            user: Some(Duration::ZERO),
            system: Some(Duration::ZERO),
            voluntary_switches: Some(0),
            involuntary_switches: Some(0),
            rss: Some(0),
            peak_rss: Some(0),
        };
        for &process in &self.processes {
            match Process::new(process).and_then(|process| one(&process, courtesy)) {
                Ok(counters) => sum.add(&counters),
                // It has ended meanwhile; only without the server itself nothing is known.
                Err(_) if process != self.root => {}
                Err(_) => sum.forget(),
            }
        }
        sum
    }
}

impl Counters {
    fn add(&mut self, other: &Counters) {
        fn plus<T: std::ops::Add<Output = T>>(mine: &mut Option<T>, others: Option<T>) {
            *mine = mine.take().zip(others).map(|(mine, others)| mine + others);
        }
        self.processes += other.processes;
        plus(&mut self.threads, other.threads);
        plus(&mut self.user, other.user);
        plus(&mut self.system, other.system);
        plus(&mut self.voluntary_switches, other.voluntary_switches);
        plus(&mut self.involuntary_switches, other.involuntary_switches);
        plus(&mut self.rss, other.rss);
        plus(&mut self.peak_rss, other.peak_rss);
    }

    fn forget(&mut self) {
        self.threads = None;
        self.user = None;
        self.system = None;
        self.voluntary_switches = None;
        self.involuntary_switches = None;
        self.rss = None;
        self.peak_rss = None;
    }
}

fn one(process: &Process, courtesy: Courtesy) -> procfs::ProcResult<Counters> {
    let stat = process.stat()?;
    let status = process.status()?;
    // A thread that ends between two readings takes its switches with it: this is a lower bound where threads come
    // and go. (Those of a process are only told to its parent, and only at its end.)
    let mut switches = Some((0, 0));
    for task in process.tasks()?.flatten() {
        let Ok(status) = task.status() else { continue };
        if courtesy == Courtesy::Yield {
            std::thread::yield_now();
        }
        switches = switches
            .zip(
                status
                    .voluntary_ctxt_switches
                    .zip(status.nonvoluntary_ctxt_switches),
            )
            .map(|(sum, one)| (sum.0 + one.0, sum.1 + one.1));
    }
    Ok(Counters {
        at: Instant::now(),
        processes: 1,
        threads: u64::try_from(stat.num_threads).ok(),
        user: Some(ticks(stat.utime + stat.cutime.unsigned_abs())),
        system: Some(ticks(stat.stime + stat.cstime.unsigned_abs())),
        voluntary_switches: switches.map(|sum| sum.0),
        involuntary_switches: switches.map(|sum| sum.1),
        rss: status.vmrss.map(|kib| kib * 1024),
        peak_rss: status.vmhwm.map(|kib| kib * 1024),
    })
}

fn cpu_clock(process: i32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(process)).ok()?;
    Some(clock.now().ok()?.into())
}

fn ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second().max(1) as f64)
}

fn descendants(root: i32, parents: &[(i32, i32)]) -> Vec<i32> {
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(
            parents
                .iter()
                .filter(|pair| pair.1 == parent)
                .map(|pair| pair.0),
        );
        next += 1;
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_at_any_depth_and_strangers_are_not() {
        let parents = [(2, 1), (7, 5), (3, 2), (5, 1), (4, 3), (9, 8), (1, 0)];
        assert_eq!(descendants(2, &parents), [2, 3, 4]);
        assert_eq!(descendants(9, &parents), [9]);
    }

    #[test]
    fn this_process_is_seen_to_work() {
        let tree = Tree::of(std::process::id() as i32);
        let before = tree.cpu();
        // Until the clock has moved: it counts nanoseconds, so this is soon.
        while tree.cpu().used <= before.used {}
        assert!(before.used.is_some());
        let counters = tree.counters(Courtesy::None);
        assert!(counters.processes >= 1);
        assert!(counters.threads >= Some(1));
        assert!(counters.rss > Some(0));
        assert!(counters.peak_rss >= counters.rss);
        assert!(counters.voluntary_switches.is_some());
    }

    #[test]
    fn time_that_nobody_accounts_for_went_to_others() {
        let before = HostReading {
            at: Instant::now(),
            idle: Duration::from_secs(100),
            own: Duration::from_secs(1),
        };
        let after = HostReading {
            at: before.at + Duration::from_secs(10),
            idle: Duration::from_secs(108),
            own: Duration::from_secs(5),
        };
        // 20 s of two CPUs: 8 idle, 4 ours, 6 the server's.
        let others = after.others(&before, Duration::from_secs(6), 2);
        assert!((others.unwrap() - 0.1).abs() < 1e-9, "{others:?}");
        assert!(HostReading::take(&[]).is_some());
        assert!(HostReading::take(&[usize::MAX]).is_none());
    }

    #[test]
    fn what_cannot_be_read_is_not_zero() {
        // No process has this number: the kernel's limit is 2^22.
        let number = (1 << 22) + 1;
        let nobody = Tree {
            root: number,
            processes: vec![number],
        };
        assert_eq!(nobody.cpu().used, None);
        let counters = nobody.counters(Courtesy::None);
        assert_eq!((counters.threads, counters.rss), (None, None));
        assert_eq!(counters.voluntary_switches, None);
    }
}
