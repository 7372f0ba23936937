//! `mio`: one thread that waits for all connections by edge-triggered readiness (epoll, kqueue).
//!
//! ```text
//!   ┌─► wait ──► advance each that is ready, until it would block ────────────┐
//!   └── accept peers that wait in the backlog ◄── close each that is overdue ◄┘
//! ```
//!
//! *Edge-triggered* means that the kernel reports a change once: new input has come, or there is room for output again.
//! A loop that does not continue until the socket returns "would block" waits for a report that never comes. In return
//! the registration never changes: each socket is registered once for all directions, and a connection that does not
//! wait for room gets no reports of room.

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

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "mio",
    summary: "one thread that waits for all connections by edge-triggered readiness (epoll, kqueue)",
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

/// All events of a connection: input, room for output and, where the system reports it, urgent data.
const ALL_EVENTS: mio::Interest = {
    let both = mio::Interest::READABLE.add(mio::Interest::WRITABLE);
    #[cfg(target_os = "linux")]
    let both = both.add(mio::Interest::PRIORITY);
    both
};

/// Most peers that are accepted in one round of the loop, so that the connected peers need not wait for long.
const ACCEPT_BATCH: usize = 64;

/// Whether peers wait in the backlog.
#[derive(Clone, Copy, PartialEq)]
enum Backlog {
    /// No peers wait: accept(2) returned "would block". The next edge reports new peers.
    Empty,
    /// Peers may wait: an edge came, and accept(2) has not returned "would block" since.
    Waiting,
    /// Peers wait, but descriptors or memory are lacking: no peer is accepted before this time.
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
    // Reason for the end: a stop, or a broken listener. In both cases the connections are drained.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    let mut backlog = Backlog::Empty;
    let mut connections: Connections<TcpStream> = Connections::new(limits);
    // Connections to advance in the next round without an edge: no edge comes for input that is already there.
    let mut again: Vec<usize> = Vec::new();
    let mut ready: Vec<usize> = Vec::new();

    loop {
        let limit = if !again.is_empty() || backlog == Backlog::Waiting && !connections.is_full() {
            Some(Duration::ZERO)
        } else {
            let paused_until = match backlog {
                Backlog::Paused(until) => Some(until),
                _ => None,
            };
            let due = [connections.next_deadline(), drained_by, paused_until];
            let due = due.into_iter().flatten().min();
            // `now` is too old for this: the work that was done since may have taken a while.
            due.map(|at| at.saturating_duration_since(Instant::now()))
        };
        let now = match poll.poll(&mut events, limit) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => Instant::now(),
        };

        ready.clear();
        mem::swap(&mut ready, &mut again);
        let carried_over = ready.len();
        for event in &events {
            match event.token() {
                LISTENER => backlog = Backlog::Waiting,
                STOP => _ = ended.get_or_insert(Ok(())),
                Token(key) => {
                    // From now on a short read does not mean that the socket is empty: the end of the input may follow,
                    // or input behind urgent data, where every read ends.
                    if event.is_read_closed() || event.is_priority() {
                        connections.hung_up(key);
                    }
                    ready.push(key);
                }
            }
        }
        if carried_over > 0 {
            // Some of these had an edge as well: advance each once, or the busiest would get an ever larger share.
            ready.sort_unstable();
            ready.dedup();
        }
        for &key in &ready {
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
        for _ in 0..ACCEPT_BATCH {
            let Some(open) = &listener else { break };
            if backlog != Backlog::Waiting || connections.is_full() || ended.is_some() {
                break;
            }
            match open.accept() {
                Ok((mut stream, _)) => {
                    let token = Token(connections.next_key());
                    match registry.register(&mut stream, token, ALL_EVENTS) {
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
            // No more peers are accepted. In any other state the loop would keep trying, and burn a CPU during the
            // drain.
            backlog = Backlog::Empty;
            drained_by = Some(now + drain);
            again = connections.stop(now + drain);
        }
        if drained_by.is_some_and(|end| end <= now || connections.is_empty()) {
            return ended.unwrap_or(Ok(())).map(|()| connections.finish());
        }
    }
}
