//! `fork`: a process per connection.
//!
//! ```text
//!   accept ──┬──► process: converse ──► exit ─┐
//!            ├──► process: converse ──► …     │
//!            └──► process: converse ──► …     │
//!   reap ◄───────────────────────────────────┘
//! ```
//!
//! The conversation is the one of `serial`, word for word; a copy of the whole server holds it. So nothing that goes
//! wrong in it, not even a kill, can reach another peer: no model separates them better, and none pays more for it.
//!
//! A process that has ended stays in the system's table until somebody asks how (a *zombie*). Its parent does, and the
//! answer is the peer's line in the tally.

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

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "fork",
    summary: "a process per connection",
    lineage: "Stevens' UNP, server 1; inetd, sshd, PostgreSQL",
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
    // Descriptors, memory or processes are lacking: nobody is accepted before then.
    let mut resume: Option<Instant> = None;

    let ended = loop {
        reap(&mut children, &mut tally, Ending::Failed);
        let now = Instant::now();
        resume = resume.filter(|at| *at > now);
        let room = resume.is_none() && children.len() < limits.max_connections;
        let wanted = [Some(stop.as_fd()), room.then(|| listener.as_fd())];
        let [stopped, waiting] = children.wait(wanted, resume.map(|at| at - now))?;
        if stopped {
            break Ok(());
        }
        if !waiting {
            continue;
        }
        let pause = match listener.accept() {
            Ok((stream, _)) => {
                tally.accepted += 1;
                converse(stream, &service, &limits, tally.accepted, &mut children).map_or_else(
                    |error| {
                        tracing::warn!("no process for a peer: {error}");
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
            Ok(pause) => resume = pause.map(|pause| now + pause),
            Err(broken) => break Err(broken),
        }
    };

    // Closing would not do: every child has the listener too.
    let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
    children.tell_to_end_input();
    let drained_by = Instant::now() + limits.drain;
    let mut killed = Ending::Failed;
    loop {
        reap(&mut children, &mut tally, killed);
        if children.is_empty() {
            return ended.map(|()| tally);
        }
        let left = drained_by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            children.tell(Signal::SIGKILL);
            killed = Ending::Cut;
        }
        children.wait([], (!left.is_zero()).then_some(left))?;
    }
}

/// Holds the conversation in a process of its own.
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
        let told_to_end = || conversation.told_to_end();
        blocking::converse(&stream, session.as_mut(), limits.idle_timeout, told_to_end).code()
    })?;
    // The parent's copy of the connection is closed here: as long as anybody has it open, the peer sees no end.
    Ok(())
}

/// Accounts for the children that have ended; `killed` is what it means for those that were.
fn reap(children: &mut Children, tally: &mut Tally, killed: Ending) {
    while let Some((child, end)) = children.reap() {
        let ending = match end {
            ChildExit::Exited(code) => Ending::of_code(code).unwrap_or(Ending::Failed),
            ChildExit::Killed(signal) => {
                tracing::warn!("process {child}, which served a peer, was ended by {signal}");
                killed
            }
        };
        tally.count(ending);
    }
}
