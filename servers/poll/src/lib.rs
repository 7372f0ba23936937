//! `poll`: one thread that waits for everybody, by poll(2).
//!
//! ```text
//!   ┌─► write everybody down ──► wait ──► look through all of it ──► advance each that is ready ──┐
//!   └── accept who waits in the backlog ◄── close who is overdue ◄────────────────────────────────┘
//! ```
//!
//! The kernel keeps nothing between two waits: it is handed the whole array every time, asks every socket in it, and
//! hands it back. So a wait costs more the more peers there are, also if only one of them has something to say.
//! *Level-triggered* means that it reports what is so, not what has changed: what is not dealt with is reported again.
//! Nobody can miss anything, and whoever can't be dealt with must be left out, or the loop spins.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use contract::nonblocking::{Connections, Interest};
use contract::{
    Capacity, Limits, Model, Needs, Offload, Service, Stop, Tally, accept, always_available,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "poll",
    summary: "one thread waits for all, by poll(2)",
    lineage: "System V; Stevens' UNP, chapter 6; the \"C10K problem\"",
    source: "servers/poll/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("one thread does everything"),
    deviations: &[],
}];

const LISTENER: usize = usize::MAX;
const STOP: usize = usize::MAX - 1;

/// Peers accepted in one go, before those who are connected have their turn again.
const ACCEPT_TURN: usize = 64;

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let mut listener = Some(listener);

    let drain = limits.drain;
    // How it ended: by a stop, or because the listener is broken. Either way those who are here are served to the end.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    // Descriptors or memory are lacking: nobody is accepted before then.
    let mut paused: Option<Instant> = None;
    let mut connections: Connections<TcpStream> = Connections::new(limits);
    let mut turns: Vec<usize> = Vec::new();
    // Who is in the array, in its order.
    let mut tokens: Vec<usize> = Vec::new();

    loop {
        turns.clear();
        tokens.clear();
        // Made anew for every wait, since it borrows the sockets: none can be closed, and its number given to another,
        // while it is in here.
        let mut wanted = Vec::with_capacity(connections.len() + 2);
        for (key, stream, waits) in connections.waiting() {
            let events = match waits {
                Interest::Read => PollFlags::IN,
                Interest::Write => PollFlags::OUT,
                // It has more to do, whatever its socket says.
                Interest::Turn => {
                    turns.push(key);
                    continue;
                }
                // Of a peer that breaks off poll(2) tells in any case.
                Interest::Time => PollFlags::empty(),
            };
            tokens.push(key);
            wanted.push(PollFd::new(stream, events));
        }
        if let Some(open) = &listener {
            tokens.push(STOP);
            wanted.push(PollFd::new(&stop, PollFlags::IN));
            if paused.is_none() && !connections.is_full() {
                tokens.push(LISTENER);
                wanted.push(PollFd::new(open, PollFlags::IN));
            }
        }
        let limit = if !turns.is_empty() {
            Some(Duration::ZERO)
        } else {
            let due = [connections.next_deadline(), drained_by, paused];
            let due = due.into_iter().flatten().min();
            // (Not by `now`: what was done since may have taken a while.)
            due.map(|at| at.saturating_duration_since(Instant::now()))
        };
        // (What is too long for the kernel is as good as for ever.)
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let now = match poll(&mut wanted, limit.as_ref()) {
            Err(error) if error != Errno::INTR => return Err(error.into()),
            _ => Instant::now(),
        };

        let mut backlog = false;
        for (&token, wanted) in tokens.iter().zip(&wanted) {
            if wanted.revents().is_empty() {
                continue;
            }
            match token {
                LISTENER => backlog = true,
                STOP => _ = ended.get_or_insert(Ok(())),
                key => turns.push(key),
            }
        }
        for &key in &turns {
            connections.advance(key, now);
        }
        // (Who wants a turn says so in `waiting`.)
        connections.expire(now);

        if paused.is_some_and(|until| until <= now) {
            paused = None;
        }
        for _ in 0..ACCEPT_TURN {
            let Some(open) = &listener else { break };
            if !backlog || paused.is_some() || connections.is_full() || ended.is_some() {
                break;
            }
            match open.accept() {
                Ok((stream, _)) => match stream.set_nonblocking(true) {
                    Ok(()) => _ = connections.insert(stream, service.open(), now),
                    Err(_) => connections.refuse(),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => backlog = false,
                Err(error) => match accept::on_error(error, connections.tally_mut()) {
                    Ok(None) => {}
                    Ok(Some(pause)) => paused = Some(now + pause),
                    Err(broken) => ended = Some(Err(broken)),
                },
            }
        }

        if ended.is_some() && listener.is_some() {
            listener = None;
            drained_by = Some(now + drain);
            connections.stop(now + drain);
        }
        if drained_by.is_some_and(|end| end <= now || connections.is_empty()) {
            return ended.unwrap_or(Ok(())).map(|()| connections.finish());
        }
    }
}
