//! A server as a child process, for the benches: on another CPU than the client, and ended when dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::thread::{CpuSet, sched_getaffinity};

/// Returns the CPU of the client and that of the server: the first and the last that this process may use.
pub(crate) fn cpus() -> anyhow::Result<(usize, usize)> {
    let set = sched_getaffinity(None)?;
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
    let first = allowed.next().context("there is no CPU for this process")?;
    Ok((first, allowed.next_back().unwrap_or(first)))
}

/// Returns the command that starts a model of this build.
pub(crate) fn serve_command(model: &str, protocol: &str, cpu: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_samewire"));
    command
        .args(["serve", model, "--protocol", protocol])
        .args(["--listen", "127.0.0.1:0", "--cpus", &cpu.to_string()]);
    command
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a server that prints `listening on ADDR`, and waits for this line.
    pub(crate) fn start(mut command: Command) -> anyhow::Result<Server> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("the server has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on ");
        match address.and_then(|address| address.parse().ok()) {
            Some(address) => Ok(Server { child, address }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the server did not print its address, but {line:?}")
            }
        }
    }

    /// Starts a server that prints nothing, and listens on a known address.
    #[allow(dead_code, reason = "used by one of several benches")]
    pub(crate) fn start_at(mut command: Command, address: SocketAddr) -> anyhow::Result<Server> {
        let child = command.stdin(Stdio::null()).spawn()?;
        Ok(Server { child, address })
    }

    /// Returns the process number.
    pub(crate) fn pid(&self) -> Pid {
        // The cast loses nothing: the kernel's largest process number is far below 2^31.
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
