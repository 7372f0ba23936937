//! The server of one launch: a process of its own, from `listening on` to its tally.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use contract::Tally;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// How long a server may take until it listens: it has nothing to load.
const START: Duration = Duration::from_secs(10);

/// What a server is told with `--drain`; its clients have left already.
pub(super) const DRAIN: &str = "1s";

/// From SIGTERM to SIGKILL: the drain, and time for ten thousand threads to end.
const END: Duration = Duration::from_secs(10);

/// From SIGKILL to the end of what a server that has ended had forked.
const ORPHANS: Duration = Duration::from_secs(2);

/// As much of the server's complaints is kept.
const MOST_COMPLAINTS: u64 = 64 * 1024;

/// Makes this process the one that is given what a server leaves behind, so that it can wait for that. Where there is no
/// such thing, the first process of the system is given it, and sees to it in its own time.
#[cfg(target_os = "linux")]
pub(super) fn adopt_orphans() {
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

#[cfg(not(target_os = "linux"))]
pub(super) fn adopt_orphans() {}

/// A running server. Dropped, it is killed and waited for.
pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddr,
    lines: Receiver<String>,
    readers: Vec<JoinHandle<()>>,
    complaints: Receiver<String>,
    reaped: bool,
}

/// What became of it.
pub(super) struct End {
    pub(super) exit: String,
    pub(super) tally: Option<Tally>,
    /// What was wrong with its end.
    pub(super) problems: Vec<String>,
}

impl Server {
    /// Starts this program as a server, and waits until it listens.
    ///
    /// To be called on a thread that lives longer than the server: the kernel ends the server together with the
    /// *thread* that started it.
    pub(super) fn start(arguments: &[String]) -> anyhow::Result<Server> {
        // The program that is running, also if somebody builds a new one meanwhile: half of a comparison must not be
        // measured with another build.
        let program = if cfg!(target_os = "linux") {
            "/proc/self/exe".into()
        } else {
            std::env::current_exe().context("cannot tell where this program is")?
        };
        let mut child = Command::new(program)
            .arg("serve")
            .args(arguments)
            .args(["--die-with-parent", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C is for us, who then end it in order. And what it forked can be killed with it.
            .process_group(0)
            .spawn()
            .context("cannot start a server process")?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (line, lines) = mpsc::channel();
        let (complaint, complaints) = mpsc::channel();
        // Both sleep while the server serves: it says nothing meanwhile.
        let listen = move || {
            for text in stdout
                .into_iter()
                .flat_map(|out| BufReader::new(out).lines())
            {
                let Ok(text) = text else { return };
                let _ = line.send(text);
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
        let mut server = Server {
            child,
            // Not known yet.
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            lines,
            readers: Vec::new(),
            complaints,
            reaped: false,
        };
        let no_thread = "cannot start a thread that reads what the server says";
        let reader = thread::Builder::new().spawn(listen).context(no_thread)?;
        server.readers.push(reader);
        let reader = thread::Builder::new().spawn(hear_complaints);
        server.readers.push(reader.context(no_thread)?);
        let first = server.lines.recv_timeout(START);
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
            Err(RecvTimeoutError::Disconnected) => {
                let end = server.wait(Duration::from_secs(1));
                let complaints = server.complaints();
                match end {
                    Some(status) => bail!("the server did not start ({status}){complaints}"),
                    None => bail!("the server said nothing{complaints}"),
                }
            }
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Tells it to stop, and takes its account.
    pub(super) fn stop(mut self) -> End {
        let mut problems = Vec::new();
        if let Err(error) = kill(Pid::from_raw(self.pid()), Signal::SIGTERM) {
            problems.push(format!("the server could not be told to stop: {error}"));
        }
        let status = self.wait(END);
        if status.is_none() {
            problems.push(format!(
                "the server did not stop within {END:?}, and was killed"
            ));
            self.kill();
        }
        let exit = match status {
            Some(status) => status.to_string(),
            None => "killed".to_string(),
        };
        // Its output ends with it, so this ends too.
        let last = self.lines.iter().last();
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
            (Some(_), None) => problems.push(format!(
                "the server gave no tally, but {}",
                last.map_or("nothing".to_string(), |line| format!("\"{line}\""))
            )),
            (_, Some(tally)) if !tally.adds_up() => {
                problems.push(format!("the server's tally does not add up: {tally:?}"));
            }
            (_, Some(tally)) if tally.failed > 0 => {
                problems.push(format!("sessions panicked in the server: {}", tally.failed));
            }
            _ => {}
        }
        End {
            exit,
            tally,
            problems,
        }
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let ended = waitid(Id::Pid(Pid::from_raw(self.pid())), flags);
            if ended.is_ok_and(|status| status != WaitStatus::StillAlive) {
                return self.bury();
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
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

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}
