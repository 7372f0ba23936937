//! Resource usage of a server over its whole process tree, from /proc and the CPU clocks of its processes.
//!
//! Reading /proc takes time on a CPU of the client, and a late client looks like a slow server. Reading a CPU clock
//! takes a microsecond, and reading the counters of a thread ten. `compare` reads them at the moments at which they
//! disturb least.

use std::ffi::OsStr;
use std::fs;
use std::time::{Duration, Instant};

use contract::CpuList;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use procfs::process::{Process, Status, all_processes};

mod host;
mod socket;

pub(crate) use host::{HostChange, HostCounters, cpu_quota};
pub(crate) use socket::established;

/// A server process and the processes that it forked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessTree {
    root: i32,
    forks: bool,
    /// Value of [`MARK`] in the environment of all its processes; only of external servers.
    mark: Option<String>,
    forked: Vec<i32>,
}

/// Environment variable that marks the processes of an external server, wherever they went.
pub(crate) const MARK: &str = "SAMEWIRE_SERVER";

/// CPU clocks of all processes of a tree, to be read quickly and often.
#[derive(Debug, Clone)]
pub(crate) struct CpuClocks(Vec<ClockId>);

impl CpuClocks {
    /// Returns the clocks of the processes that were found at the last look; `None` if a process has ended since.
    pub(crate) fn of(tree: &ProcessTree) -> Option<CpuClocks> {
        let clocks = tree
            .processes()
            .map(|process| clock_getcpuclockid(Pid::from_raw(process)).ok());
        clocks.collect::<Option<Vec<_>>>().map(CpuClocks)
    }

    /// Returns the CPU time of all processes until now; `None` if one of them has ended.
    pub(crate) fn read(&self) -> Option<Duration> {
        let clocks = self
            .0
            .iter()
            .map(|clock| clock.now().ok().map(Duration::from));
        clocks.sum()
    }
}

/// Processes of a server that are stopped (SIGSTOP). They go on when this is dropped.
#[derive(Debug)]
pub(crate) struct StoppedTree(Vec<Pid>);

impl StoppedTree {
    /// Stops all processes.
    pub(crate) fn stop(tree: &ProcessTree) -> nix::Result<StoppedTree> {
        let processes: Vec<Pid> = tree.processes().map(Pid::from_raw).collect();
        let stopped = StoppedTree(processes);
        for process in &stopped.0 {
            // If one of them can't be stopped, those that were stopped go on.
            kill(*process, Signal::SIGSTOP)?;
        }
        Ok(stopped)
    }
}

impl Drop for StoppedTree {
    fn drop(&mut self) {
        for process in &self.0 {
            let _ = kill(*process, Signal::SIGCONT);
        }
    }
}

/// CPU time used until a moment; `used` is `None` if it could not be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuReading {
    pub(crate) at: Instant,
    pub(crate) used: Option<Duration>,
}

/// Returns the numbers of the CPUs that are online.
fn online() -> Option<Vec<usize>> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    let list: CpuList = list.trim().parse().ok()?;
    Some(list.0)
}

/// Counters of a process tree at a moment. `None` if a counter could not be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) at: Instant,
    pub(crate) processes: u64,
    pub(crate) threads: Option<u64>,
    pub(crate) user: Option<Duration>,
    pub(crate) system: Option<Duration>,
    pub(crate) voluntary_switches: Option<u64>,
    pub(crate) involuntary_switches: Option<u64>,
    /// Peak of the resident memory, in bytes; only of a server that does not fork.
    pub(crate) peak_rss: Option<u64>,
    /// CPU time of the whole tree by its CPU clocks; see [`ProcessTree::cpu`].
    pub(crate) cpu: Option<Duration>,
}

/// Time that a server's threads ran, and time that they ran or waited for a CPU, until a moment. A thread that never
/// sleeps wants the CPU all the time, on a busy machine too. A thread that sleeps hardly runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuDemand {
    pub(crate) ran: Duration,
    pub(crate) wanted: Duration,
}

/// Whether reading counters yields the CPU to the client's threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum YieldPolicy {
    /// Yields: the client's threads have little to do, and their delays count.
    Yield,
    /// Does not yield: the client's threads would not give the CPU back for milliseconds, or their delays do not count.
    None,
}

impl ProcessTree {
    /// Creates the tree of a server that leads its process group. If it `forks`, [`look`](ProcessTree::look) finds the
    /// processes that it forked.
    #[cfg(test)]
    pub(crate) fn new(root: i32, forks: bool) -> ProcessTree {
        ProcessTree::marked(root, forks, None)
    }

    /// Creates the tree of a server whose processes have a mark in their environment.
    pub(crate) fn marked(root: i32, forks: bool, mark: Option<String>) -> ProcessTree {
        let mut tree = ProcessTree {
            root,
            forks,
            mark,
            forked: Vec::new(),
        };
        tree.look();
        tree
    }

    /// Looks again for the processes that the server has forked. This reads every process of the machine, so it is only
    /// done for servers that fork.
    ///
    /// A process belongs to the server if it is in its process group, if its parent belongs to the server, or if it has
    /// the server's mark: a process that lost its parent still works for the server, and so does one that left the group
    /// (setsid(2)).
    pub(crate) fn look(&mut self) {
        if !self.forks {
            return;
        }
        let all: Vec<(i32, i32, bool)> = all_processes()
            .into_iter()
            .flatten()
            .filter_map(|process| {
                let process = process.ok()?;
                let stat = process.stat().ok()?;
                if matches!(stat.state, 'Z' | 'X') {
                    return None;
                }
                let ours = stat.pgrp == self.root || self.is_marked(&process);
                Some((stat.pid, stat.ppid, ours))
            })
            .collect();
        let mut found: Vec<i32> = all.iter().filter(|one| one.2).map(|one| one.0).collect();
        if !found.contains(&self.root) {
            found.push(self.root);
        }
        let mut next = 0;
        while let Some(&parent) = found.get(next) {
            for (pid, of, _) in &all {
                if *of == parent && !found.contains(pid) {
                    found.push(*pid);
                }
            }
            next += 1;
        }
        found.retain(|pid| *pid != self.root);
        self.forked = found;
    }

    /// Returns whether a process has the mark. The environment of another user's process can't be read.
    fn is_marked(&self, process: &Process) -> bool {
        let Some(mark) = &self.mark else {
            return false;
        };
        let environment = process.environ().ok();
        environment.is_some_and(|environment| {
            let value = environment.get(OsStr::new(MARK));
            value.is_some_and(|value| value.to_str() == Some(mark))
        })
    }

    /// Returns whether one of the processes has the socket that listens on a port; `None` if that can't be read.
    pub(crate) fn owns_listener(&self, port: u16) -> Option<bool> {
        let listeners = socket::listeners(port)?;
        let mut unknown = false;
        for process in self.processes() {
            let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else {
                // The process has ended, or belongs to another user.
                unknown = true;
                continue;
            };
            for descriptor in descriptors.flatten() {
                let target = fs::read_link(descriptor.path()).unwrap_or_default();
                let inode = target
                    .to_str()
                    .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
                if inode.is_some_and(|inode| {
                    inode
                        .parse()
                        .is_ok_and(|inode: u64| listeners.contains(&inode))
                }) {
                    return Some(true);
                }
            }
        }
        (!unknown).then_some(false)
    }

    /// Returns the CPUs on which threads of the server may run, ascending; `None` if they can't be read.
    #[cfg(target_os = "linux")]
    pub(crate) fn cpus(&self) -> Option<Vec<usize>> {
        use rustix::thread::{CpuSet, sched_getaffinity};
        let mut all = Vec::new();
        for process in self.processes() {
            let Ok(tasks) = Process::new(process).and_then(|process| process.tasks()) else {
                continue;
            };
            for task in tasks.flatten() {
                let Some(set) = rustix::process::Pid::from_raw(task.tid)
                    .and_then(|task| sched_getaffinity(Some(task)).ok())
                else {
                    continue;
                };
                all.extend((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)));
            }
            all.sort_unstable();
            all.dedup();
        }
        (!all.is_empty()).then_some(all)
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn cpus(&self) -> Option<Vec<usize>> {
        None
    }

    /// Waits until the numbers of processes and of threads no longer change, and there are at least `expected` threads;
    /// at most for `limit`. A server may listen before it has forked its workers.
    pub(crate) fn wait_until_steady(&mut self, expected: u64, limit: Duration) {
        const LOOKS: u32 = 3;
        const PAUSE: Duration = Duration::from_millis(10);
        let deadline = Instant::now() + limit;
        let mut last = None;
        let mut same = 0;
        while Instant::now() < deadline {
            self.look();
            let counters = self.counters(YieldPolicy::None);
            let now = (counters.processes, counters.threads);
            same = if last == Some(now) { same + 1 } else { 1 };
            last = Some(now);
            if same >= LOOKS && counters.threads.is_none_or(|threads| threads >= expected) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Returns the numbers of all processes, the server's first.
    fn processes(&self) -> impl Iterator<Item = i32> {
        [self.root].into_iter().chain(self.forked.iter().copied())
    }

    /// Returns the CPU time used until now. The time of running processes, with their ended threads, comes from their
    /// CPU clocks. The time of processes that the server has waited for comes from the server's counter, which the
    /// kernel reports in ticks. So if processes come and go, the difference of two readings may be off by two ticks (20
    /// ms).
    pub(crate) fn cpu(&self) -> CpuReading {
        let at = Instant::now();
        let mut used = cpu_clock(self.root);
        if self.forks {
            // A process that has ended meanwhile is in the time that its parent has waited for, or will be.
            let clocks = self.forked.iter().filter_map(|process| cpu_clock(*process));
            let running: Duration = clocks.sum();
            let ended_of = |process: i32| {
                let stat = Process::new(process).and_then(|process| process.stat());
                stat.map(|stat| ticks((stat.cutime + stat.cstime).unsigned_abs()))
            };
            // A wrapper may have a server that forks: any process may have waited for others.
            let ended_of_forked: Duration = match self.mark {
                Some(_) => self
                    .forked
                    .iter()
                    .filter_map(|one| ended_of(*one).ok())
                    .sum(),
                None => Duration::ZERO,
            };
            used = used
                .zip(ended_of(self.root).ok())
                .map(|(used, ended)| used + running + ended + ended_of_forked);
        }
        CpuReading { at, used }
    }

    /// Returns the CPU time used at the end of a window, with processes that were forked since the last look: on an
    /// overloaded CPU the last of them start late. The known clocks are read first, because the search takes
    /// milliseconds.
    pub(crate) fn cpu_with_newcomers(&mut self) -> CpuReading {
        let reading = self.cpu();
        let known = self.forked.clone();
        self.look();
        let newcomers = self
            .forked
            .iter()
            .filter(|process| !known.contains(process));
        let theirs: Duration = newcomers.filter_map(|process| cpu_clock(*process)).sum();
        CpuReading {
            used: reading.used.map(|used| used + theirs),
            ..reading
        }
    }

    /// Returns how much CPU time the threads have wanted until now. Nothing is known any more of threads that have
    /// ended, so this is for periods in which none ends. `None` if the kernel does not report it.
    pub(crate) fn demand(&self) -> Option<CpuDemand> {
        let mut sum = CpuDemand {
            ran: Duration::ZERO,
            wanted: Duration::ZERO,
        };
        for process in self.processes() {
            let tasks = match Process::new(process).and_then(|process| process.tasks()) {
                Ok(tasks) => tasks,
                // The process has ended meanwhile, and wants nothing.
                Err(_) if process != self.root => continue,
                Err(_) => return None,
            };
            for times in tasks.flatten().filter_map(|task| task.schedstat().ok()) {
                let ran = Duration::from_nanos(times.sum_exec_runtime);
                sum.ran += ran;
                sum.wanted += ran + Duration::from_nanos(times.run_delay);
            }
        }
        Some(sum)
    }

    /// Returns whether the server process exists and has not ended. (A zombie process can be read, and has no open
    /// descriptors.)
    pub(crate) fn is_alive(&self) -> bool {
        let stat = Process::new(self.root).and_then(|process| process.stat());
        stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
    }

    /// Returns the numbers of all processes, the server's first.
    pub(crate) fn numbers(&self) -> Vec<i32> {
        self.processes().collect()
    }

    /// Returns the number of open descriptors in all processes; `None` if it can't be read.
    pub(crate) fn descriptors(&self) -> Option<usize> {
        let mut sum = 0;
        for process in self.processes() {
            match open_descriptors(process) {
                Some(open) => sum += open.len(),
                // The process has ended meanwhile, and has no descriptors.
                None if process != self.root => {}
                None => return None,
            }
        }
        Some(sum)
    }

    /// Returns the server's own memory in bytes: resident anonymous and shared pages, each counted once for all
    /// processes that share it (Pss_Anon and Pss_Shmem). Pages of the program's file are not included, because the
    /// kernel holds them once for all servers and the client.
    ///
    /// The kernel walks through all page tables for this: do not call it during a measurement.
    pub(crate) fn memory(&self) -> Option<u64> {
        let mut sum = 0;
        for process in self.processes() {
            let rollup = Process::new(process).and_then(|process| process.smaps_rollup());
            match rollup {
                Ok(rollup) => {
                    let map = &rollup.memory_map_rollup.0.first()?.extension.map;
                    sum += map.get("Pss_Anon")? + map.get("Pss_Shmem")?;
                }
                // The process has ended meanwhile, and has no memory.
                Err(_) if process != self.root => {}
                Err(_) => return None,
            }
        }
        Some(sum)
    }

    /// Reads the counters. Between two threads it yields the CPU, if the policy says so.
    pub(crate) fn counters(&self, yield_policy: YieldPolicy) -> Counters {
        let mut sum = Counters {
            at: Instant::now(),
            processes: 0,
            threads: Some(0),
            user: Some(Duration::ZERO),
            system: Some(Duration::ZERO),
            voluntary_switches: Some(0),
            involuntary_switches: Some(0),
            peak_rss: Some(0),
            cpu: self.cpu().used,
        };
        for process in self.processes() {
            match Process::new(process).and_then(|process| read_counters(&process, yield_policy)) {
                Ok(counters) => sum.add(&counters),
                // The process has ended meanwhile. The counters are unknown only if the server process itself can't be
                // read.
                Err(_) if process != self.root => {}
                Err(_) => sum.set_unknown(),
            }
        }
        // Shared pages would be counted in each process, and the kernel keeps no peak that distinguishes them.
        sum.peak_rss = sum.peak_rss.filter(|_| !self.forks);
        sum
    }
}

/// Returns the numbers of the open descriptors of a process; `None` if they can't be read.
pub(crate) fn open_descriptors(process: i32) -> Option<Vec<u64>> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let numbers = entries.map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.collect()
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
        plus(&mut self.peak_rss, other.peak_rss);
    }

    fn set_unknown(&mut self) {
        self.threads = None;
        self.user = None;
        self.system = None;
        self.voluntary_switches = None;
        self.involuntary_switches = None;
        self.peak_rss = None;
    }
}

/// Reads the counters of one process.
fn read_counters(process: &Process, yield_policy: YieldPolicy) -> procfs::ProcResult<Counters> {
    let stat = process.stat()?;
    let status = process.status()?;
    // A thread that ends between two readings takes its context switches with it: this is a lower bound where threads
    // come and go. (The kernel reports the switches of a whole process only to its parent, and only when the process
    // has ended.)
    let of = |status: &Status| {
        let voluntary = status.voluntary_ctxt_switches;
        voluntary.zip(status.nonvoluntary_ctxt_switches)
    };
    let switches = if status.threads == 1 {
        of(&status)
    } else {
        let mut sum = Some((0, 0));
        for task in process.tasks()?.flatten() {
            let Ok(status) = task.status() else { continue };
            if yield_policy == YieldPolicy::Yield {
                std::thread::yield_now();
            }
            sum = sum
                .zip(of(&status))
                .map(|(sum, task)| (sum.0 + task.0, sum.1 + task.1));
        }
        sum
    };
    Ok(Counters {
        at: Instant::now(),
        processes: 1,
        threads: u64::try_from(stat.num_threads).ok(),
        user: Some(ticks(stat.utime + stat.cutime.unsigned_abs())),
        system: Some(ticks(stat.stime + stat.cstime.unsigned_abs())),
        voluntary_switches: switches.map(|sum| sum.0),
        involuntary_switches: switches.map(|sum| sum.1),
        peak_rss: status.vmhwm.map(|kib| kib * 1024),
        // Only the tree as a whole has it.
        cpu: None,
    })
}

/// Reads the CPU clock of a process; `None` if there is no such process.
fn cpu_clock(process: i32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(process)).ok()?;
    Some(clock.now().ok()?.into())
}

/// Converts clock ticks to a duration.
fn ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

    use nix::sys::signal::{Signal, killpg};

    use super::*;

    /// A shell that leads its process group, and the processes that it forked. All of them are killed when it is
    /// dropped.
    struct Shell {
        child: Child,
        input: Option<ChildStdin>,
        output: BufReader<ChildStdout>,
    }

    impl Shell {
        fn start(script: &str) -> Shell {
            let mut child = Command::new("sh")
                .args(["-c", script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
                .unwrap();
            Shell {
                input: child.stdin.take(),
                output: BufReader::new(child.stdout.take().unwrap()),
                child,
            }
        }

        fn line(&mut self) -> String {
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            line.trim().to_string()
        }

        fn pid(&self) -> i32 {
            self.child.id() as i32
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            drop(self.input.take());
            let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }

    #[test]
    fn cpu_time_includes_forked_processes() {
        let mut shell =
            Shell::start("(while :; do :; done) & (while :; do :; done) & echo forked; wait");
        assert_eq!(shell.line(), "forked");
        let tree = ProcessTree::new(shell.pid(), true);
        assert_eq!(tree.forked.len(), 2);
        assert_eq!(tree.counters(YieldPolicy::None).processes, 3);
        let before = tree.cpu().used.unwrap();
        let alone = cpu_clock(shell.pid()).unwrap();
        // The shell itself only waits. So only the time of its children is counted here.
        let deadline = Instant::now() + Duration::from_secs(60);
        while tree.cpu().used.unwrap() < before + Duration::from_millis(50) {
            assert!(
                Instant::now() < deadline,
                "the forked processes are not counted"
            );
        }
        assert!(cpu_clock(shell.pid()).unwrap() < alone + Duration::from_millis(10));
        // A tree without forked processes does not contain them.
        let root_only = ProcessTree::new(shell.pid(), false);
        assert_eq!(root_only.counters(YieldPolicy::None).processes, 1);
    }

    #[test]
    fn cpu_with_newcomers_includes_process_forked_since_last_look() {
        let mut shell =
            Shell::start("echo alone; read _; (while :; do :; done) & echo forked; read _");
        assert_eq!(shell.line(), "alone");
        let mut tree = ProcessTree::new(shell.pid(), true);
        let input = shell.input.as_mut().unwrap();
        input.write_all(b"1\n").unwrap();
        assert_eq!(shell.line(), "forked");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            // As after the creation: the tree has not looked since.
            tree.forked.clear();
            let known = tree.cpu().used.unwrap();
            let all = tree.cpu_with_newcomers().used.unwrap();
            assert_eq!(tree.forked.len(), 1);
            if all > known + Duration::from_millis(50) {
                return;
            }
            assert!(Instant::now() < deadline, "the new process is not counted");
        }
    }

    /// When a child is waited for, its time moves from its own clock to a counter of its parent. The sum may only
    /// shrink by the part that the ticks hide.
    #[test]
    fn cpu_time_includes_ended_processes() {
        let burn = "j=0; while [ $j -lt 60000 ]; do j=$((j+1)); done; echo worked; read _ <&3";
        let mut shell = Shell::start(&format!(
            "exec 3<&0; ({burn}) & ({burn}) & ({burn}) & wait; echo gone; read _"
        ));
        for _ in 0..3 {
            assert_eq!(shell.line(), "worked");
        }
        let tree = ProcessTree::new(shell.pid(), true);
        let running = tree.cpu().used.unwrap();
        let alone = cpu_clock(shell.pid()).unwrap();
        assert!(running > alone + Duration::from_millis(10), "{running:?}");
        shell
            .input
            .as_mut()
            .unwrap()
            .write_all(b"1\n2\n3\n")
            .unwrap();
        assert_eq!(shell.line(), "gone");
        let gone = tree.cpu().used.unwrap();
        assert!(gone + ticks(2) >= running, "{running:?} became {gone:?}");
        assert!(gone > alone + Duration::from_millis(10), "{gone:?}");
        assert_eq!(tree.counters(YieldPolicy::None).processes, 1);
    }

    #[test]
    fn memory_shared_by_processes_is_counted_once() {
        // 4 MiB, and five children that share a copy of it and write nothing there.
        let mut shell = Shell::start(
            "x=$(head -c 4194304 /dev/zero | tr '\\0' x); exec 3<&0; echo alone; read _ <&3
             for i in 1 2 3 4 5; do (echo here; read _ <&3) & done; wait",
        );
        assert_eq!(shell.line(), "alone");
        let mut tree = ProcessTree::new(shell.pid(), true);
        let alone = tree.memory().unwrap();
        assert!(alone >= 4 << 20, "{alone}");
        shell.input.as_mut().unwrap().write_all(b"\n").unwrap();
        for _ in 0..5 {
            assert_eq!(shell.line(), "here");
        }
        tree.look();
        assert_eq!(tree.forked.len(), 5);
        let together = tree.memory().unwrap();
        assert!(together > alone && together < 2 * alone, "{together}");
        assert_eq!(tree.counters(YieldPolicy::None).peak_rss, None);
    }

    #[test]
    fn tree_of_this_process_has_time_threads_and_memory() {
        let tree = ProcessTree::new(std::process::id() as i32, false);
        let before = tree.cpu();
        // Wait until the clock has moved. It counts nanoseconds, so this is soon.
        while tree.cpu().used <= before.used {}
        assert!(before.used.is_some());
        let counters = tree.counters(YieldPolicy::None);
        assert_eq!(counters.processes, 1);
        assert!(counters.threads >= Some(1));
        assert!(tree.memory() > Some(0));
        assert!(counters.peak_rss >= tree.memory());
        assert!(counters.voluntary_switches.is_some());
    }

    #[test]
    fn descriptors_and_demand_of_a_process_are_read() {
        let mut shell = Shell::start(
            "exec 3</dev/null; echo open; read _; (while :; do :; done) & echo works; read _",
        );
        assert_eq!(shell.line(), "open");
        let mut tree = ProcessTree::new(shell.pid(), true);
        let open = open_descriptors(shell.pid()).unwrap();
        assert!(open.contains(&3), "{open:?}");
        assert_eq!(tree.descriptors(), Some(open.len()));
        let idle = tree.demand().unwrap();
        shell.input.as_mut().unwrap().write_all(b"1\n").unwrap();
        assert_eq!(shell.line(), "works");
        tree.look();
        assert_eq!(tree.numbers().len(), 2);
        assert!(tree.descriptors() > Some(open.len()));
        let deadline = Instant::now() + Duration::from_secs(60);
        while tree.demand().unwrap().ran < idle.ran + Duration::from_millis(50) {
            assert!(Instant::now() < deadline, "the demand is not counted");
        }
        let demand = tree.demand().unwrap();
        assert!(demand.wanted >= demand.ran);
    }

    #[test]
    fn unreadable_counters_are_none() {
        // No process has this number: the kernel's limit is 2^22.
        let number = (1 << 22) + 1;
        let missing = ProcessTree::new(number, true);
        assert_eq!(missing.cpu().used, None);
        assert_eq!(missing.memory(), None);
        assert_eq!((missing.demand(), missing.descriptors()), (None, None));
        let counters = missing.counters(YieldPolicy::None);
        assert_eq!((counters.threads, counters.peak_rss), (None, None));
        assert_eq!(counters.voluntary_switches, None);
    }
}
