//! `sharded`: an event loop per CPU, each with a listener of its own.
//!
//! ```text
//!                ┌──► listener ──► loop 1: accept, wait, advance, … (these peers stay with loop 1)
//!   the kernel ──┼──► listener ──► loop 2: accept, wait, advance, …
//!   (a hash)     └──► listener ──► loop 3: accept, wait, advance, …
//! ```
//!
//! *Shared nothing*: each loop is that of `mio`, and has no contact with the other loops. All loops listen on the same
//! port (SO_REUSEPORT), and the kernel gives every peer to one of them, by a hash of both addresses. So the loops share
//! no queue and wait for no lock; but a loop that has nothing to do can't help a loop that has too much to do.

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

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "sharded",
    summary: "--workers event loops, each with its own listener and its own connections",
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
        reason: "--max-connections is divided among the event loops, and a peer waits for the loop that the kernel has chosen for it, even if another loop has free slots or serves no peer",
    }],
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
    // At most one loop for each slot: peers that the kernel sends to a loop without a slot would wait without end.
    let loops = limits.workers.get().min(limits.max_connections).max(1);
    // All listeners are opened before the first loop starts. Even so, a peer that connects before that is given to the
    // first loop.
    let mut listeners = vec![listener];
    while listeners.len() < loops {
        listeners.push(listen_beside(&listeners[0], limits.backlog)?);
    }
    let (end_all, all_end) = UnixStream::pair()?;
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
            let ends_all = EndsAll(&end_all);
            let thread = thread::Builder::new().name(format!("loop {number}"));
            let thread = thread.spawn_scoped(scope, move || {
                pin_loop(number, loops);
                run(listener, service, limits, stops, ends_all)
            });
            threads.push(thread.map_err(|error| no_thread(number, &error))?);
        }
        let panicked = |_| Err(io::Error::other("an event loop panicked"));
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        let ended = ended.map(|joined| joined.unwrap_or_else(panicked));
        ended.collect::<io::Result<Vec<Tally>>>()
    })?;
    let accepted: Vec<_> = tallies
        .iter()
        .map(|tally| tally.accepted.to_string())
        .collect();
    tracing::info!("peers accepted by each loop: {}", accepted.join(", "));
    Ok(tallies.into_iter().sum())
}

/// Guard that every loop has. When one loop ends, for whatever reason, its guard is dropped, and that ends all other
/// loops. They can't take over the peers of that loop, and a server that continues without one of its loops looks
/// healthy and is not.
struct EndsAll<'a>(&'a UnixStream);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

fn no_thread(number: usize, error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "cannot start a thread for loop {number}: {error}; try fewer --workers"
    ))
}

/// Pins the calling loop to a CPU of its own, if there are enough CPUs: a loop that moves to another CPU finds none of
/// its peers' data in that CPU's cache.
fn pin_loop(number: usize, loops: usize) {
    let cpus = cpus();
    if loops > cpus.len() {
        tracing::info!(
            "loop {number} is not pinned to a CPU: there are {loops} loops and {} CPUs",
            cpus.len()
        );
    } else if let Err(error) = pin(&CpuList(vec![cpus[number]])) {
        tracing::info!("loop {number} is not pinned to a CPU: {error}");
    }
}

/// Returns the CPUs that the calling thread may use, as `--cpus` or a container has limited them.
#[cfg(target_os = "linux")]
fn cpus() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let all = 0..CpuSet::MAX_CPU;
    all.filter(|cpu| allowed.is_set(*cpu)).collect()
}

/// Returns no CPUs, because [`pin`] works only on Linux.
#[cfg(not(target_os = "linux"))]
fn cpus() -> Vec<usize> {
    Vec::new()
}

/// Runs one loop. From here on it is exactly that of `mio`, but for the two stops.
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
                // If this loop itself is broken, the reason stays: the guard that it drops reports to it too.
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
            drop(ends_all.take());
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
