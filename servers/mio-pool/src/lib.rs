//! `mio-pool`: one event loop that waits, workers that converse.
//!
//! ```text
//!                             ┌──► worker: advance ──┐
//!   ┌─► wait ──► each that is ┼──► worker: advance ──┼──► given back ──┐
//!   │            ready (moved)└──► worker: advance ──┘   (wakes the loop)
//!   └── accept who waits in the backlog ◄── close who is overdue ◄─────┘
//! ```
//!
//! The loop is that of `mio`, except that it advances nobody itself: a connection that is ready is moved to a worker, and
//! the worker moves it back when it would block. So work that takes long delays some and not all, for the price of two
//! hand-overs per request. Two workers never have the same connection, because they can't: it is moved, not shared. An
//! edge that comes while it is away is noted, or it would be lost.

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

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "mio-pool",
    summary: "one thread waits for all, --workers threads converse",
    lineage: "reactor and workers: Half-Sync/Half-Async (Schmidt), Tomcat's NIO connector",
    source: "servers/mio-pool/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::Needless("its workers do it in any case, as many at a time as there are"),
    deviations: &[],
}];

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);
const BACK: Token = Token(usize::MAX - 2);

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

/// A connection on its way to a worker, with it, or on its way back.
type Out = TakenOut<TcpStream>;

/// The loop's side of the exchange with its workers. No queue is longer than there are connections, since each is in
/// one place only.
struct Workers<'a> {
    ready: Sender<Out>,
    waiting: Receiver<Out>,
    back: Receiver<Out>,
    /// The loop sleeps, or is about to: whoever gives back must wake it.
    asleep: &'a AtomicBool,
}

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), BACK)?;
    let asleep = AtomicBool::new(false);
    let (waker, asleep) = (&waker, &asleep);
    // The scope joins every worker: they end when the loop has, and nothing can be given to them any more.
    thread::scope(move |scope| {
        let (ready, waiting) = unbounded();
        let (give_back, back) = unbounded();
        for number in 0..limits.workers.get() {
            let (waiting, give_back) = (waiting.clone(), give_back.clone());
            let thread = thread::Builder::new().name(format!("worker {number}"));
            thread
                .spawn_scoped(scope, move || work(&waiting, &give_back, waker, asleep))
                .map_err(|error| no_thread(number, &error))?;
        }
        drop(give_back);
        let workers = Workers {
            ready,
            waiting,
            back,
            asleep,
        };
        run(poll, listener, service, limits, stop, workers)
    })
}

fn no_thread(number: usize, error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "no thread for worker {number}: {error}; try fewer --workers"
    ))
}

/// A worker's life: advance whoever is ready, and give it back.
fn work(waiting: &Receiver<Out>, back: &Sender<Out>, waker: &Waker, asleep: &AtomicBool) {
    let mut buffer = vec![0; READ_BUFFER];
    for mut connection in waiting {
        connection.advance(&mut buffer, Instant::now());
        // (A loop that has failed takes nobody back.)
        let _ = back.send(connection);
        // Waking costs a system call, and one is enough for all who come back while the loop gets up. Either this
        // sees that it sleeps, or the loop sees what was sent: that is what the fences are for, here and there.
        fence(Ordering::SeqCst);
        if asleep.load(Ordering::Relaxed) && asleep.swap(false, Ordering::Relaxed) {
            let _ = waker.wake();
        }
    }
}

/// The loop, from here on that of `mio`, except that it advances nobody itself.
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
    // How it ended: by a stop, or because the listener is broken. Either way those who are here are served to the end.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    let mut backlog = Backlog::Empty;
    let mut connections: Connections<TcpStream> = Connections::new(limits);
    // Those that have more to do though no edge will come: what they do it with is there already.
    let mut again: Vec<usize> = Vec::new();
    let mut turns: Vec<usize> = Vec::new();

    loop {
        let awake = !again.is_empty()
            || !workers.back.is_empty()
            || backlog == Backlog::Waiting && !connections.is_full();
        // Said before the last look: who gives back after it wakes the loop, and who did before is seen.
        workers.asleep.store(!awake, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let limit = if awake || !workers.back.is_empty() {
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
        workers.asleep.store(false, Ordering::Relaxed);

        turns.clear();
        mem::swap(&mut turns, &mut again);
        for connection in workers.back.try_iter() {
            let key = connection.key();
            if connections.put_back(connection) == Some(Interest::Turn) {
                turns.push(key);
            }
        }
        let more_to_do = turns.len();
        for event in &events {
            match event.token() {
                LISTENER => backlog = Backlog::Waiting,
                STOP => _ = ended.get_or_insert(Ok(())),
                BACK => {}
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
            // Some of them had an edge as well: one turn each, or the second would be for nothing.
            turns.sort_unstable();
            turns.dedup();
        }
        for &key in &turns {
            if let Some(connection) = connections.take_out(key) {
                // (The loop has a receiver itself.)
                let _ = workers.ready.send(connection);
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
            // At the deadline: who still waits for a worker is cut, and who is with one comes back first.
            workers.waiting.try_iter().for_each(drop);
            drop(workers.ready);
            for connection in workers.back {
                connections.put_back(connection);
            }
            return ended.unwrap_or(Ok(())).map(|()| connections.finish());
        }
    }
}
