//! A server as a process of its own, for the benches: away from the client's CPU, ended when dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::thread::{CpuSet, sched_getaffinity};

/// The CPU of the client and that of the server: the first and the last that this process may use.
pub(crate) fn cpus() -> anyhow::Result<(usize, usize)> {
    let set = sched_getaffinity(None)?;
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
    let first = allowed.next().context("there is no CPU for this process")?;
    Ok((first, allowed.next_back().unwrap_or(first)))
}

/// The command that starts one of ours.
pub(crate) fn ours(model: &str, protocol: &str, cpu: usize) -> Command {
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
    /// Any that prints `listening on ADDR`.
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
                bail!("the server did not say where it listens, but {line:?}")
            }
        }
    }

    /// One that says nothing, at an address that it was told.
    #[allow(dead_code, reason = "one bench of several")]
    pub(crate) fn start_silently(
        mut command: Command,
        address: SocketAddr,
    ) -> anyhow::Result<Server> {
        let child = command.stdin(Stdio::null()).spawn()?;
        Ok(Server { child, address })
    }

    pub(crate) fn pid(&self) -> Pid {
        // The kernel's largest process number is far below.
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
