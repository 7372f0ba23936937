//! `poll`: one thread that waits for all connections by poll(2).
//!
//! ```text
//!   ┌─► list all sockets in an array ──► wait ──► look at every entry ──► advance each that is ready ──┐
//!   └── accept peers that wait in the backlog ◄── close each that is overdue ◄─────────────────────────┘
//! ```
//!
//! The kernel keeps nothing between two waits: every time it gets the whole array, checks every socket in it, and
//! returns it. So the cost of a wait grows with the number of peers, even if only one of them has sent something.
//! *Level-triggered* means that poll(2) reports a condition for as long as it holds, not only when it begins: a socket
//! that is not handled is reported again. So no event can be missed, but a socket that can't be handled now must be
//! left out of the array, or the loop spins.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use contract::nonblocking::{Connections, Interest};
use contract::{
    Capacity, Limits, Model, Needs, Offload, Service, Stop, Tally, accept, always_available,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "poll",
    summary: "one thread that waits for all connections by poll(2)",
    lineage: "System V; Stevens, UNIX Network Programming, chapter 6; the \"C10K problem\"",
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

/// Most peers that are accepted in one round of the loop, so that the connected peers need not wait for long.
const ACCEPT_BATCH: usize = 64;

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let mut listener = Some(listener);

    let drain = limits.drain;
    // Reason for the end: a stop, or a broken listener. In both cases the connections are drained.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    // Set while descriptors or memory are lacking: no peer is accepted before this time.
    let mut paused_until: Option<Instant> = None;
    let mut connections: Connections<TcpStream> = Connections::new(limits);
    let mut ready: Vec<usize> = Vec::new();
    // Token of each entry of the array, in the array's order.
    let mut tokens: Vec<usize> = Vec::new();

    loop {
        ready.clear();
        tokens.clear();
        // Built anew for every wait, because it borrows the sockets: no socket can be closed, and its number reused for
        // another, while it is in the array.
        let mut wanted = Vec::with_capacity(connections.len() + 2);
        for (key, stream, interest) in connections.waiting() {
            let events = match interest {
                Interest::Read => PollFlags::IN,
                Interest::Write => PollFlags::OUT,
                // This connection has more to do, even if its socket is not ready.
                Interest::Turn => {
                    ready.push(key);
                    continue;
                }
                // With no event requested, poll(2) still reports a peer that breaks off.
                Interest::Time => PollFlags::empty(),
            };
            tokens.push(key);
            wanted.push(PollFd::new(stream, events));
        }
        if let Some(open) = &listener {
            tokens.push(STOP);
            wanted.push(PollFd::new(&stop, PollFlags::IN));
            if paused_until.is_none() && !connections.is_full() {
                tokens.push(LISTENER);
                wanted.push(PollFd::new(open, PollFlags::IN));
            }
        }
        let limit = if !ready.is_empty() {
            Some(Duration::ZERO)
        } else {
            let due = [connections.next_deadline(), drained_by, paused_until];
            let due = due.into_iter().flatten().min();
            // `now` is too old for this: the work that was done since may have taken a while.
            due.map(|at| at.saturating_duration_since(Instant::now()))
        };
        // A time that is too long for the kernel's type counts as no limit.
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
                key => ready.push(key),
            }
        }
        for &key in &ready {
            connections.advance(key, now);
        }
        // The result is not needed: `waiting` reports which of these connections have more to do.
        connections.expire(now);

        if paused_until.is_some_and(|until| until <= now) {
            paused_until = None;
        }
        for _ in 0..ACCEPT_BATCH {
            let Some(open) = &listener else { break };
            if !backlog || paused_until.is_some() || connections.is_full() || ended.is_some() {
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
                    Ok(Some(pause)) => paused_until = Some(now + pause),
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
