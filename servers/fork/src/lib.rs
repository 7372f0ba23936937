//! `fork`: a process per connection.
//!
//! ```text
//!   accept ──┬──► process: converse ──► exit ─┐
//!            ├──► process: converse ──► …     │
//!            └──► process: converse ──► …     │
//!   reap ◄───────────────────────────────────┘
//! ```
//!
//! The conversation is the same function as in `serial`; here a copy of the whole server runs it, and waits in read(2)
//! for its peer. So nothing that goes wrong in a conversation, not even a kill, can reach another peer: no model
//! separates peers better, and none pays more for it.
//!
//! A process that has ended stays in the system's table (as a *zombie*) until its parent reads its exit status. The
//! parent here does that, and counts the peer in the tally by the exit status.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use contract::process::{ChildExit, Children, Conversation};
use contract::{
    Capacity, Ending, Limits, Model, Needs, Offload, Service, Stop, Tally, accept,
    always_available, blocking,
};
use nix::sys::signal::Signal;
use socket2::SockRef;

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "fork",
    summary: "a process per connection",
    lineage: "Stevens, UNIX Network Programming, server 1 (a fork per client); inetd, sshd, PostgreSQL",
    source: "servers/fork/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Limit,
    needs: Needs {
        own_process: true,
        ..Needs::NOTHING
    },
    offload: Offload::Needless("each peer has a process of its own"),
    deviations: &[],
}];

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let mut children = Children::new()?;
    let mut tally = Tally::default();
    // Set while descriptors, memory or processes are lacking: no peer is accepted before this time.
    let mut paused_until: Option<Instant> = None;

    let ended = loop {
        reap(&mut children, &mut tally, Ending::Failed);
        let now = Instant::now();
        paused_until = paused_until.filter(|at| *at > now);
        let may_accept = paused_until.is_none() && children.len() < limits.max_connections;
        let wanted = [Some(stop.as_fd()), may_accept.then(|| listener.as_fd())];
        let [stopped, peer_waits] = children.wait(wanted, paused_until.map(|at| at - now))?;
        if stopped {
            break Ok(());
        }
        if !peer_waits {
            continue;
        }
        let pause = match listener.accept() {
            Ok((stream, _)) => {
                tally.accepted += 1;
                converse(stream, &service, &limits, tally.accepted, &mut children).map_or_else(
                    |error| {
                        tracing::warn!(
                            "cannot start a process for a peer: {error}; the peer is refused"
                        );
                        tally.count(Ending::Refused);
                        Ok(Some(accept::PAUSE))
                    },
                    |()| Ok(None),
                )
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => accept::on_error(error, &mut tally),
        };
        match pause {
            Ok(pause) => paused_until = pause.map(|pause| now + pause),
            Err(broken) => break Err(broken),
        }
    };

    // Closing the listener would not be enough, because every child has a copy of it.
    let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
    children.end_input();
    let drained_by = Instant::now() + limits.drain;
    let mut ending_if_killed = Ending::Failed;
    loop {
        reap(&mut children, &mut tally, ending_if_killed);
        if children.is_empty() {
            return ended.map(|()| tally);
        }
        let left = drained_by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            children.send_signal(Signal::SIGKILL);
            ending_if_killed = Ending::Cut;
        }
        children.wait([], (!left.is_zero()).then_some(left))?;
    }
}

/// Forks a process that holds the conversation.
fn converse(
    stream: TcpStream,
    service: &Service,
    limits: &Limits,
    number: u64,
    children: &mut Children,
) -> io::Result<()> {
    let conversation = Conversation::over(&stream);
    children.fork(|| {
        service.number_from(number);
        let mut session = service.open();
        let input_ended_by_server = || conversation.input_ended_by_server();
        blocking::converse(
            &stream,
            session.as_mut(),
            limits.idle_timeout,
            input_ended_by_server,
        )
        .code()
    })?;
    // The parent's copy of the connection is closed here: the peer sees no end while any process has a copy open.
    Ok(())
}

/// Counts the peers of the children that have ended. A peer whose process was killed is counted as `ending_if_killed`.
fn reap(children: &mut Children, tally: &mut Tally, ending_if_killed: Ending) {
    while let Some((child, exit)) = children.reap() {
        let ending = match exit {
            ChildExit::Exited(code) => Ending::of_code(code).unwrap_or(Ending::Failed),
            ChildExit::Killed(signal) => {
                tracing::warn!("process {child}, which served a peer, was killed by {signal}");
                ending_if_killed
            }
        };
        tally.count(ending);
    }
}
