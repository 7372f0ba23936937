//! A server in a process of its own: for what can only be measured per process, such as CPU time, descriptors and
//! threads, and for models that fork.
//!
//! The process is this test binary, which runs [`serve`] as a test. So it needs no other program, and what the check
//! sets in the code holds there too.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use procfs::process::{Process, Schedstat};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::client::TestClient;
use super::server::BACKLOG;
use super::serving::{Orders, Serving};
use super::{GUARD, ModelUnderTest, eventually};
use crate::{Limits, Stop, Tally, listen};

/// Where the process finds the test that started it.
const CONTROL: &str = "SAMEWIRE_SUITE_CONTROL";

/// What it is to do.
const ORDERS: &str = "SAMEWIRE_SUITE_ORDERS";

/// What the line with the tally begins with.
const TALLY: &str = "tally: ";

/// What the line with the error begins with, if the server failed.
const FAILED: &str = "failed: ";

/// Threads that belong to a process, not to a server: runtimes start them once and keep them.
const GLOBAL_THREADS: &[&str] = &["async-io", "async-global-ex"];

/// A server process. Killed when dropped.
#[derive(Debug)]
pub(super) struct ServerProcess {
    child: Child,
    control: BufReader<TcpStream>,
    address: SocketAddr,
}

/// What a server process says when `serve` has returned.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) tally: Tally,
    /// Threads that were not there before, by name.
    pub(super) threads_left: Vec<String>,
    /// Sockets that were not there before.
    pub(super) sockets_left: i64,
}

/// The limits on descriptors that a server's processes had.
pub(super) type Before = Vec<(Pid, Rlimit)>;

impl ServerProcess {
    /// Starts the process and waits until it listens.
    #[track_caller]
    pub(super) fn start(
        target: &ModelUnderTest,
        serving: Serving,
        limits: Limits,
    ) -> ServerProcess {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = listen(anywhere, BACKLOG, target.model.needs).expect("not listening");
        ServerProcess::start_on(listener, target, serving, limits, false)
    }

    /// Starts the process on a listener; `stopped`: told to stop before that.
    #[track_caller]
    pub(super) fn start_on(
        listener: TcpListener,
        target: &ModelUnderTest,
        serving: Serving,
        limits: Limits,
        stopped: bool,
    ) -> ServerProcess {
        let address = listener.local_addr().expect("no address");
        let orders = Orders {
            serving,
            idle_timeout: limits.idle_timeout,
            max_connections: limits.max_connections,
            drain: limits.drain,
            workers: limits.workers,
            backlog: limits.backlog,
            offload: limits.offload,
            stopped,
        };
        let orders = serde_json::to_string(&orders).expect("plain data");
        let door = TcpListener::bind("127.0.0.1:0").expect("no control");
        let control = door.local_addr().expect("no address");
        let test = format!("{}::server_process", target.name());
        let mut child = Command::new(env::current_exe().expect("no test binary"))
            .args([&test, "--exact", "--ignored"])
            .args(["--nocapture", "--test-threads=1"])
            .env(CONTROL, control.to_string())
            .env(ORDERS, orders)
            // Handed over as inetd does.
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .spawn()
            .expect("no server process");
        door.set_nonblocking(true).expect("not non-blocking");
        let mut accepted = None;
        eventually("the server process starts", || {
            let ended = child.try_wait().expect("no child");
            // In this order: it may have called, and ended.
            accepted = door.accept().ok();
            let is_here = accepted.is_some();
            assert!(is_here || ended.is_none(), "it ended: {ended:?}");
            is_here
        });
        let (control, _) = accepted.expect("just accepted");
        control.set_nonblocking(false).expect("not blocking");
        control.set_read_timeout(Some(GUARD)).expect("no time-out");
        ServerProcess {
            child,
            control: BufReader::new(control),
            address,
        }
    }

    #[track_caller]
    pub(super) fn connect(&self) -> TestClient {
        TestClient::connect(self.address)
    }

    /// Tells the server to stop, and goes on at once.
    pub(super) fn tell_to_stop(&self) {
        let _ = self.control.get_ref().shutdown(Shutdown::Write);
    }

    /// Tells the server to stop, and gives its account.
    #[track_caller]
    pub(super) fn stop(self) -> Account {
        self.tell_to_stop();
        let account = self.ended().expect("the server failed");
        assert!(account.tally.adds_up(), "{}", account.tally);
        account
    }

    /// Waits until the server ends, told or of its own accord, and gives its account.
    #[track_caller]
    pub(super) fn ended(mut self) -> io::Result<Account> {
        // What is logged before that is passed over.
        let end = loop {
            let line = self.line();
            if let Some(error) = line.strip_prefix(FAILED) {
                return Err(io::Error::other(error.to_string()));
            }
            if let Some(tally) = line.strip_prefix(TALLY) {
                break serde_json::from_str(tally).expect("a tally");
            }
        };
        let [threads, sockets] = [self.line(), self.line()];
        let status = self.child.wait().expect("no child");
        assert!(status.success(), "the server process ended with {status}");
        let threads = threads.split(',').filter(|name| !name.is_empty());
        Ok(Account {
            tally: end,
            threads_left: threads.map(ToString::to_string).collect(),
            sockets_left: parse(&sockets),
        })
    }

    /// Waits until the server logs that accept(2) failed.
    #[track_caller]
    pub(super) fn wait_for_accept_error(&mut self) {
        while !self.line().contains(" accept: ") {}
    }

    /// For how long its threads ran while `what` did, or could have run and waited for a CPU: so it tells who is busy
    /// from who sleeps on a busy machine too. Of all threads in all processes.
    pub(super) fn busy_during(&self, what: impl FnOnce()) -> Duration {
        // Whoever has not begun yet is waiting for the CPU since before.
        eventually("all threads have begun", || {
            self.times().iter().all(|times| times.pcount > 0)
        });
        let before = self.busy();
        what();
        self.busy().saturating_sub(before)
    }

    fn busy(&self) -> Duration {
        let times = self.times().into_iter();
        times
            .map(|times| Duration::from_nanos(times.sum_exec_runtime + times.run_delay))
            .sum()
    }

    fn times(&self) -> Vec<Schedstat> {
        let tasks = self
            .processes()
            .into_iter()
            .filter_map(|(process, _)| process.tasks().ok())
            .flatten()
            .flatten();
        // Of one that has ended meanwhile nothing is known.
        tasks.filter_map(|task| task.schedstat().ok()).collect()
    }

    /// How many descriptors it has open, in all its processes.
    pub(super) fn descriptors(&self) -> usize {
        let processes = self.processes().into_iter();
        processes.map(|(process, _)| open(&process).len()).sum()
    }

    /// How many threads it has, in all its processes. One that has ended and that nobody waits for is one still.
    pub(super) fn threads(&self) -> usize {
        let stats = self.processes().into_iter().map(|(_, stat)| stat);
        let threads: i64 = stats.map(|stat| stat.num_threads.max(1)).sum();
        usize::try_from(threads).expect("some threads")
    }

    /// Its processes other than the first.
    pub(super) fn children(&self) -> Vec<Pid> {
        let processes = self.processes().into_iter().skip(1);
        processes
            .filter_map(|(process, _)| Pid::from_raw(process.pid))
            .collect()
    }

    /// The process and whatever it has forked.
    fn processes(&self) -> Vec<(Process, procfs::process::Stat)> {
        let all = procfs::process::all_processes().expect("no /proc");
        let mut others: Vec<_> = all
            .filter_map(|process| {
                let process = process.ok()?;
                let stat = process.stat().ok()?;
                Some((process, stat))
            })
            .collect();
        let root = i32::try_from(self.child.id()).expect("a process number");
        let mut tree: Vec<(Process, procfs::process::Stat)> = Vec::new();
        loop {
            let (found, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(|(_, stat)| {
                stat.pid == root || tree.iter().any(|(_, parent)| parent.pid == stat.ppid)
            });
            if found.is_empty() {
                return tree;
            }
            tree.extend(found);
            others = rest;
        }
    }

    /// The numbers of a process' descriptors, seen to be the same for a while: a runtime that has just started may have
    /// a file open for a moment (the standard library reads the CPU quota from one), and who counts that in counts
    /// wrong.
    fn open_at_rest(process: &Process) -> Vec<u64> {
        let mut now = open(process);
        let mut same = 0;
        while same < 20 {
            thread::sleep(Duration::from_millis(1));
            let next = open(process);
            same = if next == now { same + 1 } else { 0 };
            now = next;
        }
        now
    }

    /// Lets each of its processes open `more` descriptors than it has now; gives what limited them before, and how many
    /// there will be in all when they can open no more.
    pub(super) fn limit_descriptors(&self, more: usize) -> (Before, usize) {
        let mut before = Vec::new();
        let mut most = 0;
        for (process, _) in self.processes() {
            let open = Self::open_at_rest(&process);
            // The limit is on the number of a descriptor, not on how many there are: the free numbers below count too.
            let mut free = (0..).filter(|number| !open.contains(number));
            let limit = Rlimit {
                current: Some(free.nth(more).unwrap_or(0)),
                maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
            };
            let pid = Pid::from_raw(process.pid).expect("a process number");
            before.push((
                pid,
                prlimit(Some(pid), Resource::Nofile, limit).expect("no limit set"),
            ));
            most += open.len() + more;
        }
        (before, most)
    }

    /// Takes the limits back.
    pub(super) fn restore_descriptors(&self, before: Before) {
        for (pid, limit) in before {
            prlimit(Some(pid), Resource::Nofile, limit).expect("no limit set");
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.control
            .read_line(&mut line)
            .expect("the server process says nothing");
        assert!(line.ends_with('\n'), "the server process ended early");
        line.trim_end().to_string()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Nothing to kill after its end; after a failed check, nobody else would.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The numbers of a process' descriptors; none, if it has ended.
fn open(process: &Process) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{}/fd", process.pid));
    let entries = entries.into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[track_caller]
fn parse<T: FromStr>(text: &str) -> T {
    let parsed = text.parse().ok();
    parsed.unwrap_or_else(|| panic!("the server process said \"{text}\""))
}

/// The server process' life: does as it is told, says how it ended.
pub fn serve(target: &ModelUnderTest) {
    // Whoever runs ignored tests by hand has no orders.
    let (Ok(control), Ok(orders)) = (env::var(CONTROL), env::var(ORDERS)) else {
        return;
    };
    let orders: Orders = serde_json::from_str(&orders).expect("orders");
    // Before the first thread is started that will be gone by the end: a new one has its starter's name.
    let threads = threads();
    let mut control = TcpStream::connect(control).expect("no control");
    let (stopper, stop) = Stop::channel().expect("no stop");
    let listener = rustix::io::dup(io::stdin()).expect("no descriptor");
    // Or the port would not be free when the server has closed its listener.
    let nothing = fs::File::open("/dev/null").expect("no /dev/null");
    rustix::stdio::dup2_stdin(nothing).expect("no descriptor");
    let listener = TcpListener::from(listener);
    let service = orders.serving.service();
    let limits = Limits {
        idle_timeout: orders.idle_timeout,
        max_connections: orders.max_connections,
        drain: orders.drain,
        workers: orders.workers,
        backlog: orders.backlog,
        stack: None,
        offload: orders.offload,
    };
    let mut told = control.try_clone().expect("no descriptor");
    let waiting = if orders.stopped {
        drop((told, stopper));
        None
    } else {
        Some(thread::spawn(move || {
            let _ = told.read(&mut [0]);
            drop(stopper);
        }))
    };
    // What the server logs goes the same way, so that the test can wait for it.
    let log = Mutex::new(control.try_clone().expect("no descriptor"));
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(log)
        .init();

    // The service's are its own; the listener, the stop's end and the second descriptor for `control` will be gone.
    let before = sockets() - if orders.stopped { 2 } else { 4 };
    let ended = (target.model.serve)(listener, service.clone(), limits, stop);
    let end = match ended {
        Ok(tally) => {
            if let Some(waiting) = waiting {
                waiting.join().expect("it has nothing to panic about");
            }
            let left = left(&threads).join(",");
            let sockets = sockets() - before;
            let tally = serde_json::to_string(&tally).expect("plain data");
            format!("{TALLY}{tally}\n{left}\n{sockets}")
        }
        Err(error) => format!("{FAILED}{error}"),
    };
    writeln!(control, "{end}").expect("nobody asked");
}

/// Threads by name that were not there `before`, and are not the process' own. A joined thread may be seen for a
/// moment longer, since the kernel wakes who waits for it first; so this looks again before it complains.
fn left(before: &BTreeMap<String, usize>) -> Vec<String> {
    let look = || -> Vec<String> {
        threads()
            .into_iter()
            .filter(|(name, count)| *count > before.get(name).copied().unwrap_or(0))
            .map(|(name, _)| name)
            .filter(|name| !GLOBAL_THREADS.iter().any(|global| name.starts_with(global)))
            .collect()
    };
    for _ in 0..100 {
        if look().is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    look()
}

fn threads() -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("no /proc").flatten() {
        if let Ok(name) = fs::read_to_string(task.path().join("comm")) {
            *names.entry(name.trim_end().to_string()).or_insert(0) += 1;
        }
    }
    names
}

fn sockets() -> i64 {
    let descriptors = fs::read_dir("/proc/self/fd").expect("no /proc").flatten();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    let sockets = targets.filter(|target| target.to_string_lossy().starts_with("socket:"));
    i64::try_from(sockets.count()).unwrap_or(i64::MAX)
}
