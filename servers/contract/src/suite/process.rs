//! A server in a process of its own, for what can only be measured per process: CPU time, descriptors, threads.
//!
//! The process is this test binary, which runs the same test once more; there [`ServerProcess::start`] serves instead
//! of starting. So it needs no other program, and every limit that the check sets in the code holds there too.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::client::Client;
use super::server::BACKLOG;
use super::{GUARD, Subject, eventually};
use crate::{Limits, Service, Stop, Tally, listen};

/// Where the process finds the test that started it.
const CONTROL: &str = "SAMEWIRE_SUITE_CONTROL";

/// What the line with the tally begins with.
const TALLY: &str = "tally: ";

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

impl ServerProcess {
    /// Starts the process and waits until it listens. `None` in the process itself, when it has served.
    pub(super) fn start(
        subject: &Subject,
        service: Service,
        limits: Limits,
    ) -> Option<ServerProcess> {
        if let Ok(control) = env::var(CONTROL) {
            serve(&control, subject, service, limits);
            return None;
        }
        let control = TcpListener::bind("127.0.0.1:0").expect("no control");
        let address = control.local_addr().expect("no address");
        let (_crate, test) = subject.test.split_once("::").expect("no module path");
        let mut child = Command::new(env::current_exe().expect("no test binary"))
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(CONTROL, address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("no server process");
        control.set_nonblocking(true).expect("not non-blocking");
        let mut accepted = None;
        eventually("the server process starts", || {
            let ended = child.try_wait().expect("no child");
            assert!(ended.is_none(), "the server process ended: {ended:?}");
            accepted = control.accept().ok();
            accepted.is_some()
        });
        let (control, _) = accepted.expect("just accepted");
        control.set_nonblocking(false).expect("not blocking");
        control.set_read_timeout(Some(GUARD)).expect("no time-out");
        let mut process = ServerProcess {
            child,
            control: BufReader::new(control),
            address,
        };
        process.address = parse(&process.line());
        Some(process)
    }

    #[track_caller]
    pub(super) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Tells the server to stop, and goes on at once.
    pub(super) fn tell_to_stop(&self) {
        let _ = self.control.get_ref().shutdown(Shutdown::Write);
    }

    /// Tells the server to stop, and gives its account.
    #[track_caller]
    pub(super) fn stop(mut self) -> Account {
        self.tell_to_stop();
        let tally = self.line_with(TALLY).replace(TALLY, "");
        let [threads, sockets] = [self.line(), self.line()];
        let status = self.child.wait().expect("no child");
        assert!(status.success(), "the server process ended with {status}");
        let numbers: Vec<u64> = tally.split(' ').map(parse).collect();
        let tally = Tally {
            accepted: numbers[0],
            served: numbers[1],
            refused: numbers[2],
            timed_out: numbers[3],
            reset: numbers[4],
            cut: numbers[5],
            failed: numbers[6],
            accept_errors: numbers[7],
        };
        assert!(tally.adds_up(), "{tally}");
        let threads = threads.split(',').filter(|name| !name.is_empty());
        Account {
            tally,
            threads_left: threads.map(ToString::to_string).collect(),
            sockets_left: parse(&sockets),
        }
    }

    /// Waits until the server logs that accept(2) failed.
    #[track_caller]
    pub(super) fn wait_for_accept_error(&mut self) {
        self.line_with(" accept: ");
    }

    /// The CPU time that it uses while `what` runs.
    pub(super) fn cpu_during(&self, what: impl FnOnce()) -> Duration {
        let before = self.cpu();
        what();
        self.cpu().saturating_sub(before)
    }

    fn cpu(&self) -> Duration {
        let stat = self.proc().stat().expect("no /proc/PID/stat");
        let ticks = stat.utime + stat.stime;
        Duration::from_secs(ticks) / u32::try_from(procfs::ticks_per_second()).expect("few ticks")
    }

    /// How many descriptors it has open.
    pub(super) fn descriptors(&self) -> usize {
        self.proc().fd_count().expect("no /proc/PID/fd")
    }

    /// How many threads it has.
    pub(super) fn threads(&self) -> usize {
        let stat = self.proc().stat().expect("no /proc/PID/stat");
        usize::try_from(stat.num_threads).expect("some threads")
    }

    /// The numbers of its descriptors, seen to be the same for a while: a runtime that has just started may have a file
    /// open for a moment (the standard library reads the CPU quota from one), and who counts that in counts wrong.
    fn open_descriptors(&self) -> Vec<u64> {
        let look = || -> Vec<u64> {
            fs::read_dir(format!("/proc/{}/fd", self.child.id()))
                .expect("no /proc/PID/fd")
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .collect()
        };
        let mut open = look();
        let mut same = 0;
        while same < 20 {
            thread::sleep(Duration::from_millis(1));
            let now = look();
            same = if now == open { same + 1 } else { 0 };
            open = now;
        }
        open
    }

    /// Lets it open `more` descriptors than it has now; gives what limited it before, and how many it will then have
    /// when it can open no more.
    pub(super) fn limit_descriptors(&self, more: usize) -> (Rlimit, usize) {
        let open = self.open_descriptors();
        // The limit is on the number of a descriptor, not on how many there are: the free numbers below count too.
        let mut free = (0..).filter(|number| !open.contains(number));
        let current = free.nth(more).unwrap_or(0);
        let before = rustix::process::getrlimit(Resource::Nofile);
        let limit = Rlimit {
            current: Some(current),
            maximum: before.maximum,
        };
        let before = prlimit(self.pid(), Resource::Nofile, limit).expect("no limit set");
        (before, open.len() + more)
    }

    /// Takes the limit back.
    pub(super) fn restore_descriptors(&self, limit: Rlimit) {
        prlimit(self.pid(), Resource::Nofile, limit).expect("no limit set");
    }

    fn pid(&self) -> Option<Pid> {
        Some(Pid::from_child(&self.child))
    }

    fn proc(&self) -> procfs::process::Process {
        let pid = i32::try_from(self.child.id()).expect("a process number");
        procfs::process::Process::new(pid).expect("no /proc/PID")
    }

    /// The next line that has `mark` in it; what is logged before that is passed over.
    #[track_caller]
    fn line_with(&mut self, mark: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(mark) {
                return line;
            }
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
        // Nothing to kill after `stop`; after a failed check, nobody else would.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn parse<T: FromStr>(text: &str) -> T {
    let parsed = text.parse().ok();
    parsed.unwrap_or_else(|| panic!("the server process said \"{text}\""))
}

/// The server process' life.
fn serve(control: &str, subject: &Subject, service: Service, limits: Limits) {
    let mut control = TcpStream::connect(control).expect("no control");
    let (stopper, stop) = Stop::channel().expect("no stop");
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), BACKLOG).expect("not listening");
    let address = listener.local_addr().expect("no address");
    let mut told = control.try_clone().expect("no descriptor");
    // Before a thread is started that will be gone by the end: a new one has its starter's name.
    let threads = threads();
    let waiting = thread::spawn(move || {
        let _ = told.read(&mut [0]);
        drop(stopper);
    });
    writeln!(control, "{address}").expect("nobody asked");
    // What the server logs goes the same way, so that the test can wait for it.
    let log = Mutex::new(control.try_clone().expect("no descriptor"));
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(log)
        .init();

    // The listener, the stop's two ends and the second descriptor for `control`: all gone by then.
    let sockets = sockets() - 4;
    let tally = (subject.model.serve)(listener, service, limits, stop).expect("the server failed");
    waiting.join().expect("it has nothing to panic about");

    let left = left(&threads);
    let Tally {
        accepted,
        served,
        refused,
        timed_out,
        reset,
        cut,
        failed,
        accept_errors,
    } = tally;
    writeln!(
        control,
        "{TALLY}{accepted} {served} {refused} {timed_out} {reset} {cut} {failed} {accept_errors}\n{}\n{}",
        left.join(","),
        self::sockets() - sockets
    )
    .expect("nobody asked");
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
