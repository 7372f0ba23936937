//! `mio-pool`: one event loop that waits for all connections, and workers that serve the ready ones.
//!
//! ```text
//!                             ┌──► worker: advance ──┐
//!   ┌─► wait ──► each that is ┼──► worker: advance ──┼──► moved back ──────────┐
//!   │            ready (moved)└──► worker: advance ──┘   (wakes the loop)      │
//!   └── accept peers that wait in the backlog ◄── close each that is overdue ◄─┘
//! ```
//!
//! The loop is that of `mio`, except that it advances no connection itself: a connection that is ready is moved to a
//! worker, and the worker moves it back when it would block. So work that takes long delays some peers and not all, at
//! the price of two hand-overs per request. Two workers can't have the same connection, because it is moved, not
//! shared. An edge that comes while a connection is with a worker is recorded; otherwise it would be lost.

use std::io;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use contract::nonblocking::{Connections, Interest, TakenOut};
use contract::{
    Capacity, Limits, Model, Needs, Offload, READ_BUFFER, Service, Stop, Tally, accept,
    always_available,
};
use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Poll, Token, Waker};

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "mio-pool",
    summary: "one thread that waits for all connections; --workers threads serve the ready ones",
    lineage: "reactor and workers: Half-Sync/Half-Async (Schmidt), Tomcat's NIO connector",
    source: "servers/mio-pool/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::Needless(
        "the workers do all work in any case, one piece of work per worker at a time",
    ),
    deviations: &[],
}];

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);
const BACK: Token = Token(usize::MAX - 2);

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

/// A connection that is on its way to a worker, with a worker, or on its way back.
type Out = TakenOut<TcpStream>;

/// The loop's ends of the queues to and from its workers. No queue is longer than the number of connections, because
/// each connection is in one place only.
struct Workers<'a> {
    jobs: Sender<Out>,
    /// The receiving end of `jobs`, for the connections that no worker has taken at the drain deadline.
    waiting: Receiver<Out>,
    returned: Receiver<Out>,
    /// True if the loop sleeps, or is about to: a worker that returns a connection must then wake it.
    asleep: &'a AtomicBool,
}

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), BACK)?;
    let asleep = AtomicBool::new(false);
    let (waker, asleep) = (&waker, &asleep);
    // The scope joins every worker. The workers end when the loop has ended and dropped its end of their queue.
    thread::scope(move |scope| {
        let (jobs, waiting) = unbounded();
        let (give_back, returned) = unbounded();
        for number in 0..limits.workers.get() {
            let (waiting, give_back) = (waiting.clone(), give_back.clone());
            let thread = thread::Builder::new().name(format!("worker {number}"));
            thread
                .spawn_scoped(scope, move || work(&waiting, &give_back, waker, asleep))
                .map_err(|error| no_thread(number, &error))?;
        }
        drop(give_back);
        let workers = Workers {
            jobs,
            waiting,
            returned,
            asleep,
        };
        run(poll, listener, service, limits, stop, workers)
    })
}

fn no_thread(number: usize, error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "cannot start a thread for worker {number}: {error}; try fewer --workers"
    ))
}

/// Runs a worker: advances each connection that is ready, and returns it to the loop.
fn work(waiting: &Receiver<Out>, give_back: &Sender<Out>, waker: &Waker, asleep: &AtomicBool) {
    let mut buffer = vec![0; READ_BUFFER];
    for mut connection in waiting {
        connection.advance(&mut buffer, Instant::now());
        // Sending fails only if the loop has failed: it then takes no connection back.
        let _ = give_back.send(connection);
        // Waking costs a system call, and one is enough for all connections that are returned while the loop wakes up.
        // Either this worker sees that the loop sleeps, or the loop sees the returned connection: the fences, here and
        // in the loop, ensure that.
        fence(Ordering::SeqCst);
        if asleep.load(Ordering::Relaxed) && asleep.swap(false, Ordering::Relaxed) {
            let _ = waker.wake();
        }
    }
}

/// Runs the loop. From here on it is that of `mio`, except that it advances no connection itself.
fn run(
    mut poll: Poll,
    listener: TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
    workers: Workers<'_>,
) -> io::Result<Tally> {
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
        let awake = !again.is_empty()
            || !workers.returned.is_empty()
            || backlog == Backlog::Waiting && !connections.is_full();
        // Set before the last check of the queue: a worker that returns a connection later wakes the loop, and a
        // connection that was returned earlier is found by the check.
        workers.asleep.store(!awake, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let limit = if awake || !workers.returned.is_empty() {
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
        workers.asleep.store(false, Ordering::Relaxed);

        ready.clear();
        mem::swap(&mut ready, &mut again);
        for connection in workers.returned.try_iter() {
            let key = connection.key();
            if connections.put_back(connection) == Some(Interest::Turn) {
                ready.push(key);
            }
        }
        let carried_over = ready.len();
        for event in &events {
            match event.token() {
                LISTENER => backlog = Backlog::Waiting,
                STOP => _ = ended.get_or_insert(Ok(())),
                BACK => {}
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
            // Some of these had an edge as well: hand each over once, because a second time would do nothing.
            ready.sort_unstable();
            ready.dedup();
        }
        for &key in &ready {
            if let Some(connection) = connections.take_out(key) {
                // Sending can't fail, because the loop itself has a receiver.
                let _ = workers.jobs.send(connection);
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
            // At the drain deadline a connection that still waits for a worker is cut. A connection that is with a
            // worker is returned first.
            workers.waiting.try_iter().for_each(drop);
            drop(workers.jobs);
            for connection in workers.returned {
                connections.put_back(connection);
            }
            return ended.unwrap_or(Ok(())).map(|()| connections.finish());
        }
    }
}
