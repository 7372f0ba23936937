//! A server as a child process, from `listening on` to its tally: one of our models, or an external server.

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
use crate::resources::{MARK, ProcessTree};

/// Time within which a server must listen: it has nothing to load.
const START: Duration = Duration::from_secs(10);

/// Time within which an external server must listen. It may be a virtual machine that starts while others are measured
/// or checked.
const START_EXTERNAL: Duration = Duration::from_secs(20);

/// Value of `--drain` for a server whose clients have left already.
pub(crate) const DRAIN: &str = "1s";

/// Time from SIGTERM to SIGKILL: the drain, and time for ten thousand threads to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Time from SIGKILL to the end of the processes that an ended server had forked.
const ORPHAN_LIMIT: Duration = Duration::from_secs(2);

/// Time that a server has to end by itself after Ctrl-C.
const AFTER_CTRL_C: Duration = Duration::from_secs(1);

/// Time within which the forked processes of a server must end after the server.
const STRAGGLER_LIMIT: Duration = Duration::from_millis(500);

/// Time that the last output of a server may take to arrive through the pipe.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Number of bytes of a line of output at most; longer lines are cut.
const MAX_LINE: u64 = 64 * 1024;

/// Number of bytes of a server's error output that are kept.
const MAX_ERROR_OUTPUT: u64 = 64 * 1024;

/// Makes this process the parent of the processes that a server leaves behind, so that it can wait for them. On systems
/// without this feature, the first process of the system becomes their parent and waits for them at some time.
#[cfg(target_os = "linux")]
pub(crate) fn adopt_orphans() {
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn adopt_orphans() {}

/// Returns a path of the running program. It stays valid when a new program is built meanwhile: half of a comparison
/// must not be measured with another build.
pub(crate) fn this_program() -> anyhow::Result<PathBuf> {
    if cfg!(target_os = "linux") {
        Ok("/proc/self/exe".into())
    } else {
        std::env::current_exe().context("cannot find the path of this program")
    }
}

/// A running server. It is killed and waited for when it is dropped.
pub(crate) struct ChildServer {
    child: Child,
    /// Address on which the server listens.
    pub(crate) address: SocketAddr,
    /// Whether it is one of our models, which ends with its tally.
    ours: bool,
    /// First line of its output.
    first: Receiver<String>,
    /// Last line of its output. It arrives when no process has the output open any more.
    last: Receiver<String>,
    /// Start of its error output.
    error_output: Receiver<String>,
    /// Threads that read the output and the error output.
    readers: Vec<JoinHandle<()>>,
    /// Value of the environment variable of its processes, wherever they went; only of external servers.
    mark: Option<String>,
    /// Whether the process has been waited for.
    reaped: bool,
}

/// End of a server.
pub(crate) struct ServerExit {
    /// Exit status in words.
    pub(crate) exit: String,
    /// Exit status; `None` if the server was killed.
    pub(crate) status: Option<ExitStatus>,
    /// Last line of the output.
    pub(crate) last: Option<String>,
    /// Tally, if the last line is one.
    pub(crate) tally: Option<Tally>,
    /// Number of processes that were still there when the server had ended. They were killed.
    pub(crate) left_behind: usize,
    /// Problems of this end, in words.
    pub(crate) problems: Vec<String>,
}

impl ServerExit {
    /// Returns whether SIGTERM itself ended the server. A program without a handler dies of the signal, and some
    /// programs report that in the exit status as a shell does.
    pub(crate) fn ended_by_sigterm(&self) -> bool {
        let signal = Signal::SIGTERM as i32;
        self.status.is_some_and(|status| {
            status.signal() == Some(signal) || status.code() == Some(128 + signal)
        })
    }
}

impl ChildServer {
    /// Starts this program as a server, and waits until it listens.
    ///
    /// Call this on a thread that lives longer than the server: the kernel kills the server when the *thread* that
    /// started it ends.
    pub(crate) fn start(arguments: &[String]) -> anyhow::Result<ChildServer> {
        ChildServer::start_build(this_program()?, arguments)
    }

    /// Starts a build of this program as a server, like [`start`](ChildServer::start).
    pub(crate) fn start_build(
        program: PathBuf,
        arguments: &[String],
    ) -> anyhow::Result<ChildServer> {
        let mut command = Command::new(program);
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
            Err(RecvTimeoutError::Timeout) => {
                bail!("the server did not listen within {START:?}")
            }
            Ok(line) => {
                bail!("the server printed \"{line}\" first, instead of \"listening on ADDR\"")
            }
            Err(RecvTimeoutError::Disconnected) => Err(server.did_not_start()),
        }
    }

    /// Starts any program as a server, and waits until a socket listens on its port.
    ///
    /// That is read from the kernel's table: a connection to find out would be one peer more than the server is to
    /// serve.
    pub(crate) fn start_external(command: Command, port: u16) -> anyhow::Result<ChildServer> {
        let mut server = ChildServer::spawn(command, false)?;
        server.address.set_port(port);
        let deadline = Instant::now() + START_EXTERNAL;
        while !listens(server.address)? {
            if server.has_ended() {
                return Err(server.did_not_start());
            }
            if interrupt::caught() {
                bail!("interrupted while the server started");
            }
            if Instant::now() >= deadline {
                bail!(
                    "the server did not listen on {} within {START_EXTERNAL:?}; check that {{port}} is where it takes its port",
                    server.address
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }

    /// Returns the error for a server that ended, or closed its output, before it listened.
    fn did_not_start(&mut self) -> anyhow::Error {
        let end = self.wait(Duration::from_secs(1));
        let error_output = self.error_output();
        match end {
            Some(status) if status.success() && !self.ours => anyhow!(
                "the server ended at once, with status 0; if it goes into the background, start it in the foreground{error_output}"
            ),
            Some(status) => anyhow!("the server did not start ({status}){error_output}"),
            None => anyhow!("the server printed nothing{error_output}"),
        }
    }

    /// Starts the process, and the threads that read its output.
    fn spawn(mut command: Command, ours: bool) -> anyhow::Result<ChildServer> {
        let program = command.get_program().to_string_lossy().into_owned();
        // Processes that leave the process group, to go into the background, are found by this mark.
        let mark = (!ours).then(|| format!("{}-{:x}", std::process::id(), fastrand::u64(..)));
        if let Some(mark) = &mark {
            command.env(MARK, mark);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A process group of its own: Ctrl-C only reaches this program, which then ends the server in order. And
            // the processes that the server forks can be killed with the group.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (first_sender, first) = mpsc::channel();
        let (last_sender, last) = mpsc::channel();
        let (error_sender, error_output) = mpsc::channel();
        // Both threads sleep while the server serves: our models print nothing meanwhile. The output of external
        // servers must be read.
        let read_output = move || {
            let Some(stdout) = stdout else { return };
            let mut out = BufReader::new(stdout);
            let mut last: Option<String> = None;
            let mut line = Vec::new();
            while let Ok(1..) = out.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                let text = String::from_utf8_lossy(&line).trim_end().to_string();
                if last.is_none() {
                    let _ = first_sender.send(text.clone());
                }
                last = Some(text);
                line.clear();
            }
            if let Some(last) = last {
                let _ = last_sender.send(last);
            }
        };
        let read_errors = move || {
            let Some(mut stderr) = stderr else { return };
            let mut bytes = Vec::new();
            let _ = stderr
                .by_ref()
                .take(MAX_ERROR_OUTPUT)
                .read_to_end(&mut bytes);
            // The remaining output must be read: a full pipe would stop the server.
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            let _ = error_sender.send(String::from_utf8_lossy(&bytes).into_owned());
        };
        let mut server = ChildServer {
            child,
            // The address is not known yet.
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            ours,
            first,
            last,
            error_output,
            readers: Vec::new(),
            mark,
            reaped: false,
        };
        let no_thread = "cannot start a thread that reads the output of the server";
        let reader = thread::Builder::new()
            .spawn(read_output)
            .context(no_thread)?;
        server.readers.push(reader);
        let reader = thread::Builder::new().spawn(read_errors);
        server.readers.push(reader.context(no_thread)?);
        Ok(server)
    }

    /// Returns the processes of the server. If it `forks`, those that it forked are among them.
    pub(crate) fn tree(&self, forks: bool) -> ProcessTree {
        ProcessTree::marked(self.pid(), forks, self.mark.clone())
    }

    /// Returns the process number of the server.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends SIGTERM, and waits for the end of the server.
    pub(crate) fn stop(self) -> ServerExit {
        match self.signal(Signal::SIGTERM) {
            Ok(()) => self.end(STOP_LIMIT),
            Err(error) => {
                let mut end = self.end(Duration::ZERO);
                let problem = format!("SIGTERM could not be sent to the server: {error}");
                end.problems.insert(0, problem);
                end
            }
        }
    }

    /// Sends a signal to the server, and not to the processes that it forked.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        kill(Pid::from_raw(self.pid()), signal)
    }

    /// Waits for the end of the server, and kills it if it has not ended by the limit.
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
                "after the server had ended, some of its processes were still running ({left_behind}); they were killed"
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
        // The output ends with the server, unless another process has it open.
        let last = self.last.recv_timeout(LAST_OUTPUT).ok();
        let tally = last
            .as_deref()
            .and_then(|line| serde_json::from_str::<Tally>(line).ok());
        match (&status, &tally) {
            (Some(status), _) if !status.success() => {
                problems.push(format!(
                    "the server ended with {status}{}",
                    self.error_output()
                ));
            }
            (Some(_), None) if self.ours => problems.push(format!(
                "the server printed no tally as its last line, but {}",
                last.as_ref()
                    .map_or("nothing".to_string(), |line| format!("\"{line}\""))
            )),
            (_, Some(tally)) if !tally.adds_up() => {
                problems.push(format!("the server's tally does not add up: {tally:?}"));
            }
            (_, Some(tally)) if tally.failed > 0 => {
                problems.push(format!("connections failed in the server (a panic, a dead process or a truncated file): {}", tally.failed));
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

    /// Returns whether the server has ended by itself. It must still be waited for.
    pub(crate) fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let ended = waitid(Id::Pid(Pid::from_raw(self.pid())), flags);
        ended.is_ok_and(|status| status != WaitStatus::StillAlive)
    }

    /// Waits for the end of the server, for at most `limit`. `None`: it has not ended.
    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.wait_until_it_has_ended(limit) {
            return self.kill_and_reap();
        }
        None
    }

    /// Waits until the server has ended, for at most `limit`. It must still be waited for. Returns whether it has ended.
    fn wait_until_it_has_ended(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut interrupt_deadline: Option<Instant> = None;
        while !self.has_ended() {
            if interrupt::caught() {
                interrupt_deadline.get_or_insert_with(|| Instant::now() + AFTER_CTRL_C);
            }
            if Instant::now() >= deadline
                || interrupt_deadline
                    .is_some_and(|interrupt_deadline| Instant::now() >= interrupt_deadline)
            {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Returns the number of processes that are left when the server has ended, and has not been waited for. Processes
    /// that are about to end have a moment to do so.
    fn left_behind(&self) -> usize {
        let deadline = Instant::now() + STRAGGLER_LIMIT;
        loop {
            let left = self.processes().len();
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the server's other processes, except for those that have ended and must only be waited for.
    fn processes(&self) -> Vec<Pid> {
        let root = self.pid();
        let all = procfs::process::all_processes().into_iter().flatten();
        let theirs = all.filter_map(|process| {
            let process = process.ok()?;
            let stat = process.stat().ok()?;
            if stat.pid == root || matches!(stat.state, 'Z' | 'X') {
                return None;
            }
            // The environment of another user's process can't be read.
            let marked = || {
                let mark = self.mark.as_ref()?;
                let environment = process.environ().ok()?;
                (environment.get(OsStr::new(MARK))?.to_str() == Some(mark)).then_some(())
            };
            (stat.pgrp == root || marked().is_some()).then_some(Pid::from_raw(stat.pid))
        });
        theirs.collect()
    }

    /// Kills the server, unless it has been waited for.
    fn kill(&mut self) {
        if !self.reaped {
            self.kill_and_reap();
        }
    }

    /// Kills all that is left of the server, and waits for it: a hundred processes that are still ending would be
    /// measured with the next server.
    fn kill_and_reap(&mut self) -> Option<ExitStatus> {
        // Forked processes hold the pipes open, and would outlive the server. The number of the group is still the
        // server's, because the server is waited for only below.
        let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        if self.mark.is_some() {
            // Twice, for processes that were forked meanwhile.
            for _ in 0..2 {
                for process in self.processes() {
                    let _ = kill(process, Signal::SIGKILL);
                }
            }
        }
        let status = self.child.wait().ok();
        self.reaped = true;
        let group = Pid::from_raw(-self.pid());
        let deadline = Instant::now() + ORPHAN_LIMIT;
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

    /// Returns the last lines of the error output in one line. Only for a server that has ended.
    fn error_output(&mut self) -> String {
        let output = self
            .error_output
            .recv_timeout(Duration::from_secs(1))
            .unwrap_or_default();
        let lines: Vec<&str> = output
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
        // The threads end with the pipes. If a process that could not be killed holds a pipe open, the thread is left
        // to end with it: waiting for that could take for ever.
        let deadline = Instant::now() + LAST_OUTPUT;
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

/// Returns whether a socket accepts connections on this port, on this address or on all.
///
/// Listening sockets come first in the kernel's tables. After them, when a check with many clients has ended, come tens
/// of thousands of connections that ended in the last minute: to read them all would take longer than most servers take
/// to start.
#[cfg(target_os = "linux")]
fn listens(address: SocketAddr) -> anyhow::Result<bool> {
    const LISTENS: &str = "0A";
    // 127.0.0.1; all of IPv4; all of both; 127.0.0.1 as IPv6 writes it; in the byte order of this machine.
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
