//! `mio`: one thread that waits for everybody, by edge-triggered readiness (epoll, kqueue).
//!
//! ```text
//!   ┌─► wait ──► advance each that is ready, until it would block ──┐
//!   └── accept who waits in the backlog ◄── close who is overdue ◄──┘
//! ```
//!
//! *Edge-triggered* means that the kernel reports a change once: new input has come, room for output has come back.
//! Whoever does not go on until the socket says "would block" waits for a report that never comes. In return the
//! interest never changes: all directions are registered once, and a connection that does not wait for room hears
//! nothing of it.

use std::io;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use contract::nonblocking::{Connections, Interest};
use contract::{
    Capacity, Limits, Model, Needs, Offload, Service, Stop, Tally, accept, always_available,
};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Poll, Token};

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "mio",
    summary: "one thread waits for all, by edge-triggered readiness",
    lineage: "select, poll, epoll; nginx, Redis, Node.js",
    source: "servers/mio/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("one thread does everything"),
    deviations: &[],
}];

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);

/// Input, room for output and, where the system reports it, urgent data.
const EVERYTHING: mio::Interest = {
    let both = mio::Interest::READABLE.add(mio::Interest::WRITABLE);
    #[cfg(target_os = "linux")]
    let both = both.add(mio::Interest::PRIORITY);
    both
};

/// Peers accepted in one go, before those who are connected have their turn again.
const ACCEPT_TURN: usize = 64;

/// Whether peers wait in the backlog.
#[derive(Clone, Copy, PartialEq)]
enum Backlog {
    /// accept(2) said "would block": the next edge will tell.
    Empty,
    /// Perhaps: an edge came, and accept(2) has not said "would block" since.
    Waiting,
    /// Yes, but descriptors or memory are lacking: not before then.
    Paused(Instant),
}

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let mut poll = Poll::new()?;
    let registry = poll.registry().try_clone()?;
    let mut events = Events::with_capacity(1024);
    let mut listener = Some(mio::net::TcpListener::from_std(listener));
    if let Some(listener) = &mut listener {
        registry.register(listener, LISTENER, mio::Interest::READABLE)?;
    }
    let stop = stop.as_fd().as_raw_fd();
    registry.register(&mut SourceFd(&stop), STOP, mio::Interest::READABLE)?;

    let drain = limits.drain;
    // How it ended: by a stop, or because the listener is broken. Either way those who are here are served to the end.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    let mut backlog = Backlog::Empty;
    let mut connections: Connections<TcpStream> = Connections::new(limits);
    // Those that had their turn and have more to do: for what is already there, no edge will come.
    let mut again: Vec<usize> = Vec::new();
    let mut turns: Vec<usize> = Vec::new();

    loop {
        let limit = if !again.is_empty() || backlog == Backlog::Waiting && !connections.is_full() {
            Some(Duration::ZERO)
        } else {
            let resume = match backlog {
                Backlog::Paused(until) => Some(until),
                _ => None,
            };
            let due = [connections.next_deadline(), drained_by, resume];
            let due = due.into_iter().flatten().min();
            // (Not by `now`: what was done since may have taken a while.)
            due.map(|at| at.saturating_duration_since(Instant::now()))
        };
        let now = match poll.poll(&mut events, limit) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => Instant::now(),
        };

        turns.clear();
        mem::swap(&mut turns, &mut again);
        let more_to_do = turns.len();
        for event in &events {
            match event.token() {
                LISTENER => backlog = Backlog::Waiting,
                STOP => _ = ended.get_or_insert(Ok(())),
                Token(key) => {
                    // Behind what a short read gives there may be more: the end of the input, or what follows urgent
                    // data, which a read never reaches across.
                    if event.is_read_closed() || event.is_priority() {
                        connections.hung_up(key);
                    }
                    turns.push(key);
                }
            }
        }
        if more_to_do > 0 {
            // Some of them had an edge as well: one turn each, or the busiest would get more and more.
            turns.sort_unstable();
            turns.dedup();
        }
        for &key in &turns {
            if connections.advance(key, now) == Some(Interest::Turn) {
                again.push(key);
            }
        }
        again.extend(connections.expire(now));

        if let Backlog::Paused(until) = backlog
            && until <= now
        {
            backlog = Backlog::Waiting;
        }
        for _ in 0..ACCEPT_TURN {
            let Some(open) = &listener else { break };
            if backlog != Backlog::Waiting || connections.is_full() || ended.is_some() {
                break;
            }
            match open.accept() {
                Ok((mut stream, _)) => {
                    let token = Token(connections.next_key());
                    match registry.register(&mut stream, token, EVERYTHING) {
                        Ok(()) => _ = connections.insert(stream, service.open(), now),
                        Err(_) => connections.refuse(),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => backlog = Backlog::Empty,
                Err(error) => match accept::on_error(error, connections.tally_mut()) {
                    Ok(None) => {}
                    Ok(Some(pause)) => backlog = Backlog::Paused(now + pause),
                    Err(broken) => ended = Some(Err(broken)),
                },
            }
        }

        if ended.is_some() && listener.is_some() {
            listener = None;
            // Nobody will be accepted any more: to look for them again and again would burn a CPU during the drain.
            backlog = Backlog::Empty;
            drained_by = Some(now + drain);
            again = connections.stop(now + drain);
        }
        if drained_by.is_some_and(|end| end <= now || connections.is_empty()) {
            return ended.unwrap_or(Ok(())).map(|()| connections.finish());
        }
    }
}
