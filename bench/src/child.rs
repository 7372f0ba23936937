//! A server in a process of its own, from `listening on` to its tally: one of ours, or anybody's.

use std::ffi::OsStr;
#[cfg(target_os = "linux")]
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use contract::Tally;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::interrupt;

/// How long a server may take until it listens: it has nothing to load.
const START: Duration = Duration::from_secs(10);

/// The same for somebody else's, which may be a virtual machine that starts while others are being measured or checked.
const START_OUTSIDE: Duration = Duration::from_secs(20);

/// What a server is told with `--drain`; its clients have left already.
pub(crate) const DRAIN: &str = "1s";

/// From SIGTERM to SIGKILL: the drain, and time for ten thousand threads to end.
const END: Duration = Duration::from_secs(10);

/// From SIGKILL to the end of what a server that has ended had forked.
const ORPHANS: Duration = Duration::from_secs(2);

/// As much as a server still has to end by itself, after Ctrl-C.
const IN_A_HURRY: Duration = Duration::from_secs(1);

/// How long the processes of a server that has ended may take to end too.
const STRAGGLERS: Duration = Duration::from_millis(500);

/// How long what it said last may take to come through the pipe.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// In the environment of servers that are not ours.
const MARK: &str = "SAMEWIRE_SERVER";

/// What is longer is cut.
const LONGEST_LINE: u64 = 64 * 1024;

/// As much of the server's complaints is kept.
const MOST_COMPLAINTS: u64 = 64 * 1024;

/// Makes this process the one that is given what a server leaves behind, so that it can wait for that. Where there is no
/// such thing, the first process of the system is given it, and sees to it in its own time.
#[cfg(target_os = "linux")]
pub(crate) fn adopt_orphans() {
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn adopt_orphans() {}

/// The program that is running, also if somebody builds a new one meanwhile: half of a comparison must not be measured
/// with another build.
pub(crate) fn this_program() -> anyhow::Result<PathBuf> {
    if cfg!(target_os = "linux") {
        Ok("/proc/self/exe".into())
    } else {
        std::env::current_exe().context("cannot tell where this program is")
    }
}

/// A running server. Dropped, it is killed and waited for.
pub(crate) struct ChildServer {
    child: Child,
    pub(crate) address: SocketAddr,
    /// One of ours, which ends with its tally.
    ours: bool,
    /// The first line that it said.
    first: Receiver<String>,
    /// The last one, when nobody has its output open any more.
    last: Receiver<String>,
    complaints: Receiver<String>,
    /// Who reads both.
    readers: Vec<JoinHandle<()>>,
    /// What its processes have in their environment, wherever they went: of servers that are not ours.
    mark: Option<String>,
    reaped: bool,
}

/// What became of it.
pub(crate) struct ServerExit {
    pub(crate) exit: String,
    /// `None`: it was killed.
    pub(crate) status: Option<ExitStatus>,
    /// The last line that it said;
    pub(crate) last: Option<String>,
    /// and the same, if that is one.
    pub(crate) tally: Option<Tally>,
    /// Processes of it that were still there when it had ended. They were killed.
    pub(crate) left_behind: usize,
    /// What was wrong with its end.
    pub(crate) problems: Vec<String>,
}

impl ServerExit {
    /// Whether SIGTERM ended it, since it had not learned to stop by itself: a program that is told nothing else dies of
    /// it, and some say so in the manner of shells.
    pub(crate) fn by_the_signal(&self) -> bool {
        let signal = Signal::SIGTERM as i32;
        self.status.is_some_and(|status| {
            status.signal() == Some(signal) || status.code() == Some(128 + signal)
        })
    }
}

impl ChildServer {
    /// Starts this program as a server, and waits until it listens.
    ///
    /// To be called on a thread that lives longer than the server: the kernel ends the server together with the
    /// *thread* that started it.
    pub(crate) fn start(arguments: &[String]) -> anyhow::Result<ChildServer> {
        let mut command = Command::new(this_program()?);
        command
            .arg("serve")
            .args(arguments)
            .args(["--die-with-parent", &std::process::id().to_string()]);
        let mut server = ChildServer::spawn(command, true)?;
        let first = server.first.recv_timeout(START);
        let address = first
            .as_ref()
            .ok()
            .and_then(|line| line.strip_prefix("listening on ")?.parse().ok());
        if let Some(address) = address {
            server.address = address;
            return Ok(server);
        }
        match first {
            Err(RecvTimeoutError::Timeout) => bail!("the server did not listen within {START:?}"),
            Ok(line) => bail!("the server began with \"{line}\" instead of \"listening on ADDR\""),
            Err(RecvTimeoutError::Disconnected) => Err(server.did_not_start()),
        }
    }

    /// Starts any program as a server, and waits until somebody listens on the port that it was told.
    ///
    /// Whether somebody does is read from the kernel's table: a connection to find out would be one more peer than the
    /// server is asked to serve.
    pub(crate) fn start_external(command: Command, port: u16) -> anyhow::Result<ChildServer> {
        let mut server = ChildServer::spawn(command, false)?;
        server.address.set_port(port);
        let deadline = Instant::now() + START_OUTSIDE;
        while !listens(server.address)? {
            if server.has_ended() {
                return Err(server.did_not_start());
            }
            if interrupt::caught() {
                bail!("interrupted while it started");
            }
            if Instant::now() >= deadline {
                bail!(
                    "it did not listen on {} within {START_OUTSIDE:?}; is {{port}} where it takes its port?",
                    server.address
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }

    fn did_not_start(&mut self) -> anyhow::Error {
        let end = self.wait(Duration::from_secs(1));
        let complaints = self.complaints();
        match end {
            Some(status) if status.success() && !self.ours => anyhow!(
                "it ended at once, with status 0; if it goes into the background, tell it to stay in the foreground{complaints}"
            ),
            Some(status) => anyhow!("the server did not start ({status}){complaints}"),
            None => anyhow!("the server said nothing{complaints}"),
        }
    }

    /// Starts the process, and whoever reads what it says.
    fn spawn(mut command: Command, ours: bool) -> anyhow::Result<ChildServer> {
        let program = command.get_program().to_string_lossy().into_owned();
        // Whoever leaves the group, to go into the background, is found by this all the same.
        let mark = (!ours).then(|| format!("{}-{:x}", std::process::id(), fastrand::u64(..)));
        if let Some(mark) = &mark {
            command.env(MARK, mark);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C is for us, who then end it in order. And what it forked can be killed with it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (line, first) = mpsc::channel();
        let (end, last) = mpsc::channel();
        let (complaint, complaints) = mpsc::channel();
        // Both sleep while the server serves: ours say nothing meanwhile. What others say must go somewhere.
        let listen = move || {
            let Some(stdout) = stdout else { return };
            let mut out = BufReader::new(stdout);
            let mut last: Option<String> = None;
            let mut said = Vec::new();
            while let Ok(1..) = out.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut said) {
                let text = String::from_utf8_lossy(&said).trim_end().to_string();
                if last.is_none() {
                    let _ = line.send(text.clone());
                }
                last = Some(text);
                said.clear();
            }
            if let Some(last) = last {
                let _ = end.send(last);
            }
        };
        let hear_complaints = move || {
            let Some(mut stderr) = stderr else { return };
            let mut kept = Vec::new();
            let _ = stderr.by_ref().take(MOST_COMPLAINTS).read_to_end(&mut kept);
            // The rest must go somewhere: a full pipe would stop the server.
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            let _ = complaint.send(String::from_utf8_lossy(&kept).into_owned());
        };
        let mut server = ChildServer {
            child,
            // Not known yet.
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            ours,
            first,
            last,
            complaints,
            readers: Vec::new(),
            mark,
            reaped: false,
        };
        let no_thread = "cannot start a thread that reads what the server says";
        let reader = thread::Builder::new().spawn(listen).context(no_thread)?;
        server.readers.push(reader);
        let reader = thread::Builder::new().spawn(hear_complaints);
        server.readers.push(reader.context(no_thread)?);
        Ok(server)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Tells it to stop, and takes its account.
    pub(crate) fn stop(self) -> ServerExit {
        match self.signal(Signal::SIGTERM) {
            Ok(()) => self.end(END),
            Err(error) => {
                let mut end = self.end(Duration::ZERO);
                let problem = format!("the server could not be told to stop: {error}");
                end.problems.insert(0, problem);
                end
            }
        }
    }

    /// Sends it a signal; not to what it forked.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        kill(Pid::from_raw(self.pid()), signal)
    }

    /// Waits for its end, and kills it if that has not come by the limit.
    pub(crate) fn end(mut self, limit: Duration) -> ServerExit {
        let mut problems = Vec::new();
        let left_behind = if self.wait_until_it_has_ended(limit) {
            self.left_behind()
        } else {
            0
        };
        let status = self.wait(Duration::ZERO);
        if left_behind > 0 {
            problems.push(format!(
                "{left_behind} of the server's processes were still there when it had ended"
            ));
        }
        if status.is_none() {
            problems.push(format!(
                "the server did not stop within {limit:?}, and was killed"
            ));
            self.kill();
        }
        let exit = match status {
            Some(status) => status.to_string(),
            None => "killed".to_string(),
        };
        // Its output ends with it, unless somebody else has it open.
        let last = self.last.recv_timeout(LAST_WORDS).ok();
        let tally = last
            .as_deref()
            .and_then(|line| serde_json::from_str::<Tally>(line).ok());
        match (&status, &tally) {
            (Some(status), _) if !status.success() => {
                problems.push(format!(
                    "the server ended with {status}{}",
                    self.complaints()
                ));
            }
            (Some(_), None) if self.ours => problems.push(format!(
                "the server gave no tally, but {}",
                last.as_ref()
                    .map_or("nothing".to_string(), |line| format!("\"{line}\""))
            )),
            (_, Some(tally)) if !tally.adds_up() => {
                problems.push(format!("the server's tally does not add up: {tally:?}"));
            }
            (_, Some(tally)) if tally.failed > 0 => {
                problems.push(format!("sessions panicked in the server: {}", tally.failed));
            }
            _ => {}
        }
        ServerExit {
            exit,
            status,
            last,
            tally,
            left_behind,
            problems,
        }
    }

    /// Whether it has ended by itself. It is still to be waited for.
    pub(crate) fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let ended = waitid(Id::Pid(Pid::from_raw(self.pid())), flags);
        ended.is_ok_and(|status| status != WaitStatus::StillAlive)
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.wait_until_it_has_ended(limit) {
            return self.bury();
        }
        None
    }

    fn wait_until_it_has_ended(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut hurry: Option<Instant> = None;
        while !self.has_ended() {
            if interrupt::caught() {
                hurry.get_or_insert_with(|| Instant::now() + IN_A_HURRY);
            }
            if Instant::now() >= deadline || hurry.is_some_and(|hurry| Instant::now() >= hurry) {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// How many of its processes are there though it has ended, and it has not been waited for yet. Those that are just
    /// ending have a moment.
    fn left_behind(&self) -> usize {
        let deadline = Instant::now() + STRAGGLERS;
        loop {
            let left = self.processes().len();
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its processes beside the first, those that have ended and are only to be waited for left out.
    fn processes(&self) -> Vec<Pid> {
        let root = self.pid();
        let all = procfs::process::all_processes().into_iter().flatten();
        let theirs = all.filter_map(|process| {
            let process = process.ok()?;
            let stat = process.stat().ok()?;
            if stat.pid == root || matches!(stat.state, 'Z' | 'X') {
                return None;
            }
            // (The environment of somebody else's process can't be read.)
            let marked = || {
                let mark = self.mark.as_ref()?;
                let environment = process.environ().ok()?;
                (environment.get(OsStr::new(MARK))?.to_str() == Some(mark)).then_some(())
            };
            (stat.pgrp == root || marked().is_some()).then_some(Pid::from_raw(stat.pid))
        });
        theirs.collect()
    }

    fn kill(&mut self) {
        if !self.reaped {
            self.bury();
        }
    }

    /// Kills what is left of it, and waits for that: a hundred processes that are still ending would be measured with
    /// the next server.
    fn bury(&mut self) -> Option<ExitStatus> {
        // What it forked holds the pipes open, and would outlive it. The group's number is still its own: it is waited
        // for only now.
        let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        if self.mark.is_some() {
            // (Once more, for those who were made meanwhile.)
            for _ in 0..2 {
                for process in self.processes() {
                    let _ = kill(process, Signal::SIGKILL);
                }
            }
        }
        let status = self.child.wait().ok();
        self.reaped = true;
        let group = Pid::from_raw(-self.pid());
        let deadline = Instant::now() + ORPHANS;
        while let Ok(one) = waitpid(group, Some(WaitPidFlag::WNOHANG)) {
            if one == WaitStatus::StillAlive {
                if Instant::now() >= deadline {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        status
    }

    /// The last things it said, in one line. Only once it has ended.
    fn complaints(&mut self) -> String {
        let said = self
            .complaints
            .recv_timeout(Duration::from_secs(1))
            .unwrap_or_default();
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let last = &lines[lines.len().saturating_sub(3)..];
        if last.is_empty() {
            String::new()
        } else {
            format!(": {}", last.join("; "))
        }
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        self.kill();
        // They end with the pipes. Whoever is kept by somebody that could not be killed is left to end with him: to wait
        // for that would be to wait for ever.
        let deadline = Instant::now() + LAST_WORDS;
        while !self.readers.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        for reader in self.readers.drain(..) {
            if reader.is_finished() {
                let _ = reader.join();
            }
        }
    }
}

/// Whether anybody accepts connections at that port, by this address or by all.
///
/// Those who listen are the first in the kernel's tables. Behind them come tens of thousands that have ended a minute ago,
/// after a check with many clients: to read them all would take longer than most servers take to start.
#[cfg(target_os = "linux")]
fn listens(address: SocketAddr) -> anyhow::Result<bool> {
    const LISTENS: &str = "0A";
    // 127.0.0.1, all of IPv4, all of both, 127.0.0.1 as IPv6 writes it; each as this machine lays it out.
    const LOOPBACK_OR_ALL: [&str; 4] = if cfg!(target_endian = "little") {
        [
            "0100007F",
            "00000000",
            "00000000000000000000000000000000",
            "0000000000000000FFFF00000100007F",
        ]
    } else {
        [
            "7F000001",
            "00000000",
            "00000000000000000000000000000000",
            "00000000000000000000FFFF7F000001",
        ]
    };
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let file = match File::open(table) {
            Ok(file) => file,
            // Without IPv6 there is no such table.
            Err(_) if table.ends_with('6') => continue,
            Err(why) => return Err(why).with_context(|| format!("cannot read {table}")),
        };
        for line in BufReader::new(file).lines().skip(1) {
            let line = line.with_context(|| format!("cannot read {table}"))?;
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (local, state) = (fields.next(), fields.nth(1));
            if state != Some(LISTENS) {
                break;
            }
            let Some((host, port)) = local.and_then(|local| local.rsplit_once(':')) else {
                continue;
            };
            if LOOPBACK_OR_ALL.contains(&host)
                && u16::from_str_radix(port, 16) == Ok(address.port())
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
fn listens(address: SocketAddr) -> anyhow::Result<bool> {
    Ok(std::net::TcpStream::connect(address).is_ok())
}
