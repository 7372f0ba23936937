//! `sharded`: an event loop per CPU, each with a listener of its own.
//!
//! ```text
//!                ┌──► listener ──► loop 1: accept, wait, advance, … (those are its peers, for good)
//!   the kernel ──┼──► listener ──► loop 2: accept, wait, advance, …
//!   (a hash)     └──► listener ──► loop 3: accept, wait, advance, …
//! ```
//!
//! *Shared nothing*: each loop is the one of `mio`, and none knows of the others. All listen on the same port
//! (SO_REUSEPORT), and the kernel gives every peer to one of them, by a hash of both addresses. So there is no queue to
//! share and no lock to wait for; and nobody who would help when one loop has too much to do and another nothing.

use std::io;
use std::mem;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use contract::nonblocking::{Connections, Interest};
use contract::{
    Capacity, CpuList, Deviation, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally,
    accept, always_available, listen_beside, pin,
};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Poll, Token};

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "sharded",
    summary: "--workers event loops, each with its own listener and its own peers",
    lineage: "nginx (reuseport), Seastar, Envoy, HAProxy; \"one per CPU\"",
    source: "servers/sharded/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Shares,
    needs: Needs {
        shared_port: true,
        ..Needs::NOTHING
    },
    offload: Offload::Nowhere("each event loop is one thread that does everything"),
    deviations: &[Deviation {
        guarantee: Guarantee::Limit,
        reason: "--max-connections is divided among the event loops, and a peer waits for the loop that the kernel chose for it, though another may have room, or nobody to serve",
    }],
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
    // Not more than there are places: a loop that may serve nobody would leave those waiting whom the kernel sends to it.
    let loops = limits.workers.get().min(limits.max_connections).max(1);
    // All of them before the first loop starts. (Who connects before they are open is sent to the first all the same.)
    let mut listeners = vec![listener];
    while listeners.len() < loops {
        listeners.push(listen_beside(&listeners[0], limits.backlog)?);
    }
    let (one_ends, all_end) = UnixStream::pair()?;
    let tallies = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, listener) in listeners.into_iter().enumerate() {
            let service = service.clone();
            let one_more = usize::from(number < limits.max_connections % loops);
            let limits = Limits {
                max_connections: limits.max_connections / loops + one_more,
                ..limits.clone()
            };
            let stops = [stop.as_fd(), all_end.as_fd()];
            let ends_all = EndsAll(&one_ends);
            let thread = thread::Builder::new().name(format!("loop {number}"));
            let thread = thread.spawn_scoped(scope, move || {
                settle(number, loops);
                run(listener, service, limits, stops, ends_all)
            });
            threads.push(thread.map_err(|error| no_thread(number, &error))?);
        }
        let panicked = |_| Err(io::Error::other("a loop panicked"));
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        let ended = ended.map(|joined| joined.unwrap_or_else(panicked));
        ended.collect::<io::Result<Vec<Tally>>>()
    })?;
    let accepted: Vec<_> = tallies
        .iter()
        .map(|tally| tally.accepted.to_string())
        .collect();
    tracing::info!("accepted by loop: {}", accepted.join(", "));
    Ok(tallies.into_iter().sum())
}

/// What every loop has, and the first that ends drops, for whatever reason: the others end with it. They can't take over
/// what it leaves, and a server that goes on with a part of itself looks healthy and is not.
struct EndsAll<'a>(&'a UnixStream);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

fn no_thread(number: usize, error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "no thread for loop {number}: {error}; try fewer --workers"
    ))
}

/// Gives the calling loop a CPU of its own, if there are enough: a loop that moves finds none of its peers' data in the
/// new one's cache.
fn settle(number: usize, loops: usize) {
    let cpus = cpus();
    if loops > cpus.len() {
        tracing::info!(
            "loop {number} is not pinned: {loops} loops, {} CPUs",
            cpus.len()
        );
    } else if let Err(error) = pin(&CpuList(vec![cpus[number]])) {
        tracing::info!("loop {number} is not pinned: {error}");
    }
}

/// Those that the calling thread may use: what `--cpus` has left, or a container.
#[cfg(target_os = "linux")]
fn cpus() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let all = 0..CpuSet::MAX_CPU;
    all.filter(|cpu| allowed.is_set(*cpu)).collect()
}

/// [`pin`] knows only Linux.
#[cfg(not(target_os = "linux"))]
fn cpus() -> Vec<usize> {
    Vec::new()
}

/// One loop, from here on word for word that of `mio`, but for the two stops.
fn run(
    listener: TcpListener,
    service: Service,
    limits: Limits,
    stops: [BorrowedFd<'_>; 2],
    ends_all: EndsAll<'_>,
) -> io::Result<Tally> {
    let mut poll = Poll::new()?;
    let registry = poll.registry().try_clone()?;
    let mut events = Events::with_capacity(1024);
    let mut listener = Some(mio::net::TcpListener::from_std(listener));
    if let Some(listener) = &mut listener {
        registry.register(listener, LISTENER, mio::Interest::READABLE)?;
    }
    for stop in stops {
        let stop = stop.as_raw_fd();
        registry.register(&mut SourceFd(&stop), STOP, mio::Interest::READABLE)?;
    }

    let drain = limits.drain;
    let mut ends_all = Some(ends_all);
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
                // (Perhaps it is this loop that is broken, and hears of itself.)
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
            drop(ends_all.take());
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
