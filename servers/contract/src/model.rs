//! How a server presents itself.

use std::io;
use std::net::TcpListener;
use std::num::NonZero;
use std::thread;

use crate::{Limits, Service, Stop, Tally};

/// A concurrency model: one way to answer many peers.
#[derive(Debug)]
pub struct Model {
    /// What the command line calls it.
    pub name: &'static str,
    /// Who answers, in one line.
    pub summary: &'static str,
    /// Where the idea comes from, and who is known for it.
    pub lineage: &'static str,
    /// The file that tells its story, from the root of the repository.
    pub source: &'static str,
    /// Serves until told to stop.
    pub serve: Serve,
    /// Whether it can run here; if not, why, in one sentence.
    pub available: fn() -> Result<(), String>,
    /// How many peers it converses with at a time.
    pub capacity: Capacity,
    /// Where it can move blocking calls and computations to.
    pub offload: Offload,
    /// What it takes for granted about its process and its listener.
    pub needs: Needs,
    /// Guarantees that it does not keep, by design.
    pub deviations: &'static [Deviation],
}

/// Serves the peers of a listener (made by [`listen`](crate::listen)) until [`Stop`], and accounts for them.
///
/// # Errors
///
/// What no server can go on after: accept(2) failing for good, no thread or no epoll instance to begin with. What
/// concerns one connection alone is in the [`Tally`], and never an error.
pub type Serve = fn(TcpListener, Service, Limits, Stop) -> io::Result<Tally>;

/// What bounds the peers that a model converses with at a time. Those beyond wait, without harm and without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// [`Limits::max_connections`], and nothing else.
    Limit,
    /// [`Limits::max_connections`], and what fits into descriptor numbers below this: with everything else that the
    /// process has open, a few less.
    Descriptors(usize),
    /// Each event loop has its share of [`Limits::max_connections`], and a peer waits for the loop that the kernel chose
    /// for it.
    Shares,
    /// [`Limits::workers`]: each is held by one peer until that has left.
    Workers,
    /// One.
    One,
}

impl Capacity {
    /// [`Limits::workers`], if nobody says how many: a worker that serves many peers is one for each CPU that this
    /// process may use; one that is held by a peer sleeps most of the time, and there must be as many as peers are
    /// expected (Tomcat has 200 threads, Apache's prefork 256 processes).
    pub fn workers(self) -> NonZero<usize> {
        const HELD: NonZero<usize> = NonZero::new(200).unwrap();
        match self {
            Capacity::Workers => HELD,
            // Counts the CPUs that this process may use, not those of the machine: `--cpus 1` means one worker.
            _ => thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
        }
    }
}

/// Where [`Limits::offload`] moves work that would keep a thread ([`Work::Block`](protocol::Work::Block),
/// [`Work::Compute`](protocol::Work::Compute)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// There.
    To(&'static str),
    /// Whoever it would keep from being served is not kept, so it changes nothing; this is why.
    Needless(&'static str),
    /// There is nothing to move it to; this is what there is instead.
    Nowhere(&'static str),
}

/// What a model takes for granted. Most take nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// It forks: the process must be its own, with no thread beside the one that serves. Of a process with more threads
    /// fork(2) copies one, and every lock that another one held stays locked in the copy.
    pub own_process: bool,
    /// It opens more listeners on the same port, and the first must allow that (SO_REUSEPORT).
    pub shared_port: bool,
}

impl Needs {
    /// It runs anywhere.
    pub const NOTHING: Needs = Needs {
        own_process: false,
        shared_port: false,
    };
}

/// A guarantee that a model does not keep, and why it can't.
#[derive(Debug, Clone, Copy)]
pub struct Deviation {
    /// The guarantee.
    pub guarantee: Guarantee,
    /// What happens instead, and why, in one sentence.
    pub reason: &'static str,
}

/// What every server keeps, unless its [`Model`] declares otherwise. The numbers are those of docs/architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guarantee {
    /// 1. Replies are exact, however the bytes are cut or joined on the way.
    Exact = 1,
    /// 2. FIN: everything owed is sent, then closed. RST: that connection dies, nothing else.
    HalfClose = 2,
    /// 3. Idle too long: closed and counted, and nobody else notices.
    Idle = 3,
    /// 4. At the connection limit new peers wait in the backlog, and are served when a place is free.
    Limit = 4,
    /// 5. Errors of accept(2) are sorted; the server never spins and recovers when resources come back.
    Accept = 5,
    /// 6. A peer that sends and never reads costs bounded memory, and delays only itself.
    Memory = 6,
    /// 7. Over-long input gets a clear error and a close; garbage never panics.
    BadInput = 7,
    /// 8. Stop: what was asked is finished, idle peers are closed, the rest is cut at the drain deadline.
    Stop = 8,
    /// 9. A panic while serving one connection ends that connection alone.
    Panic = 9,
    /// 10. The tally adds up.
    Tally = 10,
    /// 11. Peers that misbehave, in whatever way, do not keep the others from being served.
    Isolation = 11,
    /// 12. Nothing leaks: after thousands of connections the server has what it had before.
    Leaks = 12,
    /// 13. After its end it can be started again on the same port at once.
    Restart = 13,
}

impl Guarantee {
    /// All of them, in the order of their numbers.
    pub const ALL: [Guarantee; 13] = [
        Guarantee::Exact,
        Guarantee::HalfClose,
        Guarantee::Idle,
        Guarantee::Limit,
        Guarantee::Accept,
        Guarantee::Memory,
        Guarantee::BadInput,
        Guarantee::Stop,
        Guarantee::Panic,
        Guarantee::Tally,
        Guarantee::Isolation,
        Guarantee::Leaks,
        Guarantee::Restart,
    ];

    /// What tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Guarantee::Exact => "exact",
            Guarantee::HalfClose => "half-close",
            Guarantee::Idle => "idle",
            Guarantee::Limit => "limit",
            Guarantee::Accept => "accept",
            Guarantee::Memory => "memory",
            Guarantee::BadInput => "bad-input",
            Guarantee::Stop => "stop",
            Guarantee::Panic => "panic",
            Guarantee::Tally => "tally",
            Guarantee::Isolation => "isolation",
            Guarantee::Leaks => "leaks",
            Guarantee::Restart => "restart",
        }
    }
}

/// For models that run wherever this workspace builds.
///
/// # Errors
///
/// Never.
pub fn always_available() -> Result<(), String> {
    Ok(())
}
