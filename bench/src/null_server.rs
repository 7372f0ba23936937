//! The null server: the cheapest server that answers. One thread, epoll(7), no limits, no time-outs, no tally.
//!
//! It is measured beside the models. The replies that it sends take as long as any reply takes on this machine, and the
//! requests per second that it reaches are the most that the client can reach.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use clap::Args;
use contract::cli::parse_protocol;
use protocol::Protocol;

use crate::child::{self, ChildServer};
use crate::target;

/// Options of `null-server`, a hidden command.
#[derive(Debug, Args)]
pub(crate) struct NullServerArgs {
    /// Port to listen on, on 127.0.0.1
    #[arg(long)]
    port: u16,

    /// Protocol to speak
    #[arg(long, value_parser = parse_protocol)]
    protocol: &'static Protocol,
}

/// Returns whether the null server speaks a protocol: one of small messages on connections that stay open.
pub(crate) fn speaks(protocol: &Protocol) -> bool {
    cfg!(target_os = "linux") && protocol.requests_per_connection.is_none()
}

/// Starts a null server as a process of its own, on these CPUs, and waits until it listens. Call this on a thread that
/// lives longer than the server.
///
/// # Errors
///
/// Returns an error if no port is free, or if the process does not start.
pub(crate) fn start(protocol: &Protocol, cpus: &[usize]) -> anyhow::Result<ChildServer> {
    let port = target::free_port()?;
    let program = child::this_program()?;
    let mut command = Command::new(&program);
    command.args(["exec", "--die-with-parent", &std::process::id().to_string()]);
    if !cpus.is_empty() {
        command.args(["--cpus", &target::list(cpus)]);
    }
    // `exec` replaces itself by this program, whose path is its own.
    command.arg("--").arg(program);
    command.args(["null-server", "--protocol", protocol.name]);
    command.args(["--port", &port.to_string()]);
    ChildServer::start_external(command, port)
}

/// Serves until the process is ended.
///
/// # Errors
///
/// Returns an error if the port can't be used, or if epoll(7) fails.
pub(crate) fn run(args: &NullServerArgs) -> anyhow::Result<std::process::ExitCode> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    match serve(address, args.protocol)? {}
}

#[cfg(target_os = "linux")]
fn serve(
    address: SocketAddr,
    protocol: &'static Protocol,
) -> anyhow::Result<std::convert::Infallible> {
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;

    use anyhow::Context;
    use protocol::{Session, SessionOptions, Step};
    use rustix::event::epoll;
    use socket2::{Domain, Socket, Type};

    const LISTENER: u64 = u64::MAX;
    const BACKLOG: i32 = 4096;

    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_reuse_address(true)?;
    listener
        .bind(&address.into())
        .with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    listener.listen(BACKLOG)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let interest = epoll::EventFlags::IN;
    epoll::add(
        &poll,
        &listener,
        epoll::EventData::new_u64(LISTENER),
        interest,
    )?;
    let mut peers: Vec<Option<(TcpStream, Box<dyn Session>)>> = Vec::new();
    let mut events = Vec::with_capacity(1024);
    let mut buffer = vec![0; contract::READ_BUFFER];
    loop {
        events.clear();
        match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("waiting for events failed"),
        }
        for event in &events {
            let number = event.data.u64();
            if number == LISTENER {
                while let Ok((socket, _)) = listener.accept() {
                    let stream = TcpStream::from(socket);
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let data = epoll::EventData::new_u64(peers.len() as u64);
                    epoll::add(&poll, &stream, data, interest)?;
                    peers.push(Some((stream, (protocol.open)(&SessionOptions::default()))));
                }
                continue;
            }
            let slot = &mut peers[number as usize];
            let Some((stream, session)) = slot else {
                continue;
            };
            let open = match stream.read(&mut buffer) {
                Ok(0) => false,
                Ok(count) => {
                    session.receive(&buffer[..count]);
                    loop {
                        match session.step() {
                            Step::Read => break true,
                            // A reply of a few lines fits into the buffer of the socket.
                            Step::Write(bytes) => match stream.write(bytes) {
                                Ok(count) => session.sent(count),
                                Err(_) => break false,
                            },
                            _ => break false,
                        }
                    }
                }
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
            if !open {
                *slot = None;
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn serve(_: SocketAddr, _: &'static Protocol) -> anyhow::Result<std::convert::Infallible> {
    anyhow::bail!("the null server needs epoll(7), which only Linux has")
}
