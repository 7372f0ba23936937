//! A server in a process of its own. It is used for measurements per process, such as CPU time, descriptors and
//! threads, and for models that fork.
//!
//! The process is this test binary, which runs [`serve`] as a test. So the suite needs no other program, and the server
//! process runs the same code as the check.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::str::FromStr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use procfs::process::{Process, Schedstat};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::client::TestClient;
use super::server::BACKLOG;
use super::serving::{Serving, Settings};
use super::{GUARD, ModelUnderTest, eventually};
use crate::accept::FAILED as ACCEPT_FAILED;
use crate::{Limits, Stop, Tally, listen};

/// Environment variable with the address of the test that started the server process.
const CONTROL: &str = "SAMEWIRE_SUITE_CONTROL";

/// Environment variable with the [`Settings`] as JSON.
const SETTINGS: &str = "SAMEWIRE_SUITE_SETTINGS";

/// Prefix of the line with the tally.
const TALLY: &str = "tally: ";

/// Prefix of the line with the error, if the server failed.
const FAILED: &str = "failed: ";

/// Name prefixes of threads that belong to the process and not to a server: runtimes start them once and keep them.
const GLOBAL_THREADS: &[&str] = &["async-io", "async-global-ex"];

/// Server process that is killed when this is dropped.
#[derive(Debug)]
pub(super) struct ServerProcess {
    child: Child,
    control: BufReader<TcpStream>,
    /// Other end of the stop of the server.
    stopper: UnixStream,
    address: SocketAddr,
}

/// Report that a server process sends when `serve` has returned.
#[derive(Debug)]
pub(super) struct ExitReport {
    pub(super) tally: Tally,
    /// Names of the threads that did not exist before.
    pub(super) threads_left: Vec<String>,
    /// Number of sockets that did not exist before.
    pub(super) sockets_left: i64,
}

/// Descriptor limits of a server's processes before the check lowered them.
pub(super) type DescriptorLimits = Vec<(Pid, Rlimit)>;

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

    /// Starts the process on a listener. If `stopped` is true, the stop is requested before the server starts.
    #[track_caller]
    pub(super) fn start_on(
        listener: TcpListener,
        target: &ModelUnderTest,
        serving: Serving,
        limits: Limits,
        stopped: bool,
    ) -> ServerProcess {
        let address = listener.local_addr().expect("no address");
        let settings = Settings {
            serving,
            idle_timeout: limits.idle_timeout,
            max_connections: limits.max_connections,
            drain: limits.drain,
            workers: limits.workers,
            backlog: limits.backlog,
            offload: limits.offload,
        };
        let (stopper, stop) = UnixStream::pair().expect("no stop");
        let settings = serde_json::to_string(&settings).expect("plain data");
        let control_listener = TcpListener::bind("127.0.0.1:0").expect("no control");
        let control = control_listener.local_addr().expect("no address");
        let test = format!("{}::server_process", target.name());
        if stopped {
            stopper.shutdown(Shutdown::Write).expect("no stop");
        }
        let mut child = Command::new(env::current_exe().expect("no test binary"))
            .args([&test, "--exact", "--ignored"])
            .args(["--nocapture", "--test-threads=1"])
            .env(CONTROL, control.to_string())
            .env(SETTINGS, settings)
            // The listener is passed as standard input, as inetd does, and the stop as standard output.
            .stdin(OwnedFd::from(listener))
            .stdout(OwnedFd::from(stop))
            .spawn()
            .expect("no server process");
        control_listener
            .set_nonblocking(true)
            .expect("not non-blocking");
        let mut accepted = None;
        eventually("the server process starts", || {
            let ended = child.try_wait().expect("no child");
            // The exit is read before the accept: the process may have connected and then ended.
            accepted = control_listener.accept().ok();
            let connected = accepted.is_some();
            assert!(
                connected || ended.is_none(),
                "the server process ended before it connected: {ended:?}"
            );
            connected
        });
        let (control, _) = accepted.expect("just accepted");
        control.set_nonblocking(false).expect("not blocking");
        control.set_read_timeout(Some(GUARD)).expect("no time-out");
        ServerProcess {
            child,
            control: BufReader::new(control),
            stopper,
            address,
        }
    }

    #[track_caller]
    pub(super) fn connect(&self) -> TestClient {
        TestClient::connect(self.address)
    }

    /// Requests the stop of the server and returns at once.
    pub(super) fn request_stop(&self) {
        let _ = self.stopper.shutdown(Shutdown::Write);
    }

    /// Stops the server and returns its report. Fails if the server failed or the tally does not add up.
    #[track_caller]
    pub(super) fn stop(self) -> ExitReport {
        self.request_stop();
        let report = self.wait_for_end().expect("the server failed");
        assert!(report.tally.adds_up(), "{}", report.tally);
        report
    }

    /// Waits until the server ends, by a stop or by an error, and returns its report.
    ///
    /// # Errors
    ///
    /// Returns the error of the server, if it failed.
    #[track_caller]
    pub(super) fn wait_for_end(mut self) -> io::Result<ExitReport> {
        // Log lines before the report are skipped.
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
        Ok(ExitReport {
            tally: end,
            threads_left: threads.map(ToString::to_string).collect(),
            sockets_left: parse(&sockets),
        })
    }

    /// Waits until the server logs that accept(2) failed, at most for [`GUARD`].
    #[track_caller]
    pub(super) fn wait_for_accept_error(&mut self) {
        let deadline = Instant::now() + GUARD;
        loop {
            let line = self.line();
            if line.contains(ACCEPT_FAILED) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the server process logged no line with \"{ACCEPT_FAILED}\" within {GUARD:?}; \
                 its last line is \"{line}\""
            );
        }
    }

    /// Returns the time for which the threads of all processes ran during `action`, or were ready to run and waited for
    /// a CPU. With the time spent waiting a busy server differs from a sleeping one on a busy machine, too.
    pub(super) fn busy_during(&self, action: impl FnOnce()) -> Duration {
        // A thread that has not run yet has waited for a CPU since before the action.
        eventually("all threads have run once", || {
            self.times().iter().all(|times| times.pcount > 0)
        });
        let before = self.busy();
        action();
        self.busy().saturating_sub(before)
    }

    /// Returns the sum over all threads of the time run and the time waited for a CPU.
    fn busy(&self) -> Duration {
        let times = self.times().into_iter();
        times
            .map(|times| Duration::from_nanos(times.sum_exec_runtime + times.run_delay))
            .sum()
    }

    /// Returns the scheduler's times of all threads in all processes.
    fn times(&self) -> Vec<Schedstat> {
        let tasks = self
            .processes()
            .into_iter()
            .filter_map(|(process, _)| process.tasks().ok())
            .flatten()
            .flatten();
        // A thread that has ended meanwhile is left out.
        tasks.filter_map(|task| task.schedstat().ok()).collect()
    }

    /// Returns the number of open descriptors in all processes of the server.
    pub(super) fn descriptors(&self) -> usize {
        let processes = self.processes().into_iter();
        processes
            .map(|(process, _)| open_descriptors(&process).len())
            .sum()
    }

    /// Returns the number of threads in all processes of the server. A process that has ended and has not been waited
    /// for counts as one thread.
    pub(super) fn threads(&self) -> usize {
        let stats = self.processes().into_iter().map(|(_, stat)| stat);
        let threads: i64 = stats.map(|stat| stat.num_threads.max(1)).sum();
        usize::try_from(threads).expect("the number of threads is negative")
    }

    /// Returns the processes of the server other than the first.
    pub(super) fn children(&self) -> Vec<Pid> {
        let processes = self.processes().into_iter().skip(1);
        processes
            .filter_map(|(process, _)| Pid::from_raw(process.pid))
            .collect()
    }

    /// Returns the server process and all its descendants.
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

    /// Returns the descriptor numbers of a process, once they have been the same for 20 looks in sequence. A runtime
    /// that has just started may have a file open for a moment (the standard library reads the CPU quota from one),
    /// which would make the count wrong.
    fn stable_descriptors(process: &Process) -> Vec<u64> {
        let mut now = open_descriptors(process);
        let mut same = 0;
        while same < 20 {
            thread::sleep(Duration::from_millis(1));
            let next = open_descriptors(process);
            same = if next == now { same + 1 } else { 0 };
            now = next;
        }
        now
    }

    /// Limits each process of the server to `more` descriptors in addition to those that are open. Returns the limits
    /// before, and the total number of descriptors at which the processes can open no more.
    pub(super) fn limit_descriptors(&self, more: usize) -> (DescriptorLimits, usize) {
        let mut before = Vec::new();
        let mut total = 0;
        for (process, _) in self.processes() {
            let open = Self::stable_descriptors(&process);
            // The limit bounds the number that a descriptor may have, not the count: free numbers below it count, too.
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
            total += open.len() + more;
        }
        (before, total)
    }

    /// Restores the limits.
    pub(super) fn restore_descriptors(&self, before: DescriptorLimits) {
        for (pid, limit) in before {
            prlimit(Some(pid), Resource::Nofile, limit).expect("no limit set");
        }
    }

    /// Reads the next line of the server process. Fails if no byte comes for [`GUARD`], the time-out of `control`.
    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        if let Err(error) = self.control.read_line(&mut line) {
            panic!(
                "no line from the server process within {GUARD:?}: {error}; read so far: \"{line}\""
            );
        }
        assert!(
            line.ends_with('\n'),
            "the server process ended in the middle of its output: \"{line}\""
        );
        line.trim_end().to_string()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // After a normal end there is nothing to kill; after a failed check this ends the process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the descriptor numbers of a process. The list is empty if the process has ended.
fn open_descriptors(process: &Process) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{}/fd", process.pid));
    let entries = entries.into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[track_caller]
fn parse<T: FromStr>(text: &str) -> T {
    let parsed = text.parse().ok();
    parsed.unwrap_or_else(|| panic!("the server process sent \"{text}\" instead of a number"))
}

/// Runs the server process: serves with the settings of the test and sends the report.
pub fn serve(target: &ModelUnderTest) {
    // There are no settings when this ignored test is run by hand.
    let (Ok(control), Ok(settings)) = (env::var(CONTROL), env::var(SETTINGS)) else {
        return;
    };
    let settings: Settings = serde_json::from_str(&settings).expect("settings");
    // This list is taken before any thread starts that ends with the server: a new thread first has the name of its
    // starter.
    let threads = threads();
    let mut control = TcpStream::connect(control).expect("no control");
    let listener = rustix::io::dup(io::stdin()).expect("no descriptor");
    let stop = rustix::io::dup(io::stdout()).expect("no descriptor");
    // Standard input is replaced, because otherwise the port would stay in use when the server has closed its listener.
    // Standard output is replaced, because the stop is not for text.
    let null = fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.expect("no /dev/null");
    rustix::stdio::dup2_stdin(&null).expect("no descriptor");
    rustix::stdio::dup2_stdout(&null).expect("no descriptor");
    let listener = TcpListener::from(listener);
    // No thread waits for the stop: a model that forks copies the locks of all threads, and a thread that starts or
    // ends holds one. In the copy it would stay locked.
    let stop = Stop::from_stream(UnixStream::from(stop)).expect("not non-blocking");
    let service = settings.serving.service();
    let limits = Limits {
        idle_timeout: settings.idle_timeout,
        max_connections: settings.max_connections,
        drain: settings.drain,
        workers: settings.workers,
        backlog: settings.backlog,
        stack: None,
        offload: settings.offload,
    };
    // The log goes to the same socket, so that the test can wait for a line of it.
    let log = Mutex::new(control.try_clone().expect("no descriptor"));
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(log)
        .init();

    // The sockets of the service stay. The listener and the stop will be closed.
    let before = sockets() - 2;
    let ended = (target.model.serve)(listener, service.clone(), limits, stop);
    let end = match ended {
        Ok(tally) => {
            let left = threads_left(&threads).join(",");
            let sockets = sockets() - before;
            let tally = serde_json::to_string(&tally).expect("plain data");
            format!("{TALLY}{tally}\n{left}\n{sockets}")
        }
        Err(error) => format!("{FAILED}{error}"),
    };
    writeln!(control, "{end}").expect("cannot send the report to the test");
}

/// Returns the names of threads that did not exist `before` and do not belong to the process. A joined thread may be
/// listed for a moment longer, since the kernel wakes the joining thread first; so this looks up to 100 times.
fn threads_left(before: &BTreeMap<String, usize>) -> Vec<String> {
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

/// Returns the number of threads of this process by thread name.
fn threads() -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("no /proc").flatten() {
        if let Ok(name) = fs::read_to_string(task.path().join("comm")) {
            *names.entry(name.trim_end().to_string()).or_insert(0) += 1;
        }
    }
    names
}

/// Returns the number of sockets that this process has open.
fn sockets() -> i64 {
    let descriptors = fs::read_dir("/proc/self/fd").expect("no /proc").flatten();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    let sockets = targets.filter(|target| target.to_string_lossy().starts_with("socket:"));
    i64::try_from(sockets.count()).unwrap_or(i64::MAX)
}
