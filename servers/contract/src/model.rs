//! The description of a server: its model, its capacity, and the guarantees that it does not keep.

use std::io;
use std::net::TcpListener;
use std::num::NonZero;
use std::thread;

use crate::{Limits, Service, Stop, Tally};

/// A concurrency model: one way to serve many peers. `samewire list` shows these fields.
#[derive(Debug)]
pub struct Model {
    /// Name on the command line and in tables, such as `threads`.
    pub name: &'static str,
    /// The model in one line: which thread, task or process serves a connection.
    pub summary: &'static str,
    /// Origin of the model, and the programs that are known for it.
    pub lineage: &'static str,
    /// Path of the server's main file, relative to the root of the repository. It reads top to bottom.
    pub source: &'static str,
    /// Function that serves until the stop.
    pub serve: Serve,
    /// Function that returns `Ok` if the model can run on this machine, and otherwise the unavailable reason in one
    /// sentence.
    pub available: fn() -> Result<(), String>,
    /// Bound on the number of peers that the model serves at a time.
    pub capacity: Capacity,
    /// Threads to which the model moves blocking calls and computations with `--offload`.
    pub offload: Offload,
    /// Requirements on the process and the listener.
    pub needs: Needs,
    /// Guarantees that the model does not keep, by design. The tests check that exactly the declared thing happens.
    pub deviations: &'static [Deviation],
}

/// Serves the peers of a listener (made by [`listen`](crate::listen)) until the [`Stop`], and returns the [`Tally`] of
/// their connections.
///
/// # Errors
///
/// Errors after which no server can continue: accept(2) fails for good, or there was no thread or no epoll instance to
/// begin with. An error of a single connection is counted in the [`Tally`] and never returned.
pub type Serve = fn(TcpListener, Service, Limits, Stop) -> io::Result<Tally>;

/// Bound on the number of peers that a model serves at a time. Further peers wait without a reply, and without any harm
/// to their connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// [`Limits::max_connections`], and nothing else.
    Limit,
    /// [`Limits::max_connections`], and the descriptor numbers below this value. Other descriptors that the process has
    /// open use some of these numbers, so a few connections less fit.
    Descriptors(usize),
    /// [`Limits::max_connections`], divided among the event loops. A peer waits for the loop that the kernel has chosen
    /// for it, even if another loop has a free slot.
    Shares,
    /// [`Limits::workers`]: a peer occupies a worker until the peer has left.
    Workers,
    /// One peer at a time.
    One,
}

impl Capacity {
    /// Returns the default of [`Limits::workers`].
    ///
    /// If a worker serves many peers, the default is one worker for each CPU that this process may use. If a peer
    /// occupies a worker, the default is 200: such a worker sleeps most of the time, and there must be as many workers
    /// as peers are expected (Tomcat has 200 threads, Apache's prefork 256 processes).
    pub fn workers(self) -> NonZero<usize> {
        const OCCUPIED: NonZero<usize> = NonZero::new(200).unwrap();
        match self {
            Capacity::Workers => OCCUPIED,
            // Counts the CPUs that this process may use, not all CPUs of the machine: `--cpus 1` means one worker.
            _ => thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
        }
    }
}

/// Destination of the work that [`Limits::offload`] moves: work that occupies a thread, which is
/// [`Work::Block`](protocol::Work::Block) and [`Work::Compute`](protocol::Work::Compute). `samewire list` prints the
/// text of each variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// The work moves to these threads.
    To(&'static str),
    /// Offloading changes nothing, because the work keeps no other peer from being served. The text is the reason.
    Needless(&'static str),
    /// The model has no threads to move the work to, and refuses `--offload`. The text says what it has instead.
    Nowhere(&'static str),
}

/// Requirements of a model on its process, its listener and a load that measures it. Most models have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// True if the model forks. It must then have a process of its own, with no thread beside the one that serves: of a
    /// process with more threads fork(2) copies one, and every lock that another thread held stays locked in the copy.
    pub own_process: bool,
    /// True if the model opens more listeners on the same port. The first listener must allow that (SO_REUSEPORT).
    pub shared_port: bool,
    /// True if a request costs much more after a pause of the load than under a load that goes on. Such a model is
    /// measured under a load without pauses.
    pub load_without_pauses: bool,
}

impl Needs {
    /// No requirements: the model runs in any process and with any listener, and any load measures it.
    pub const NOTHING: Needs = Needs {
        own_process: false,
        shared_port: false,
        load_without_pauses: false,
    };
}

/// A guarantee that a model does not keep, and the reason why it can't.
#[derive(Debug, Clone, Copy)]
pub struct Deviation {
    /// Guarantee that is not kept.
    pub guarantee: Guarantee,
    /// One sentence that says what happens instead, and why. `samewire list` and the report of `samewire check` print
    /// it.
    pub reason: &'static str,
}

/// A guarantee that every server keeps, unless its [`Model`] declares a [`Deviation`]. The order is that of the table
/// in docs/src/architecture.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guarantee {
    /// `exact`: Replies are exact, however the bytes are split or joined on the way.
    Exact = 1,
    /// `half-close`: After a FIN the server sends everything that it owes the peer, and then closes. An RST ends that
    /// connection and nothing else.
    HalfClose = 2,
    /// `idle`: A connection that is idle for too long is closed and counted. No other connection is affected.
    Idle = 3,
    /// `limit`: At the connection limit new peers wait in the backlog, and are served when a slot is free.
    Limit = 4,
    /// `accept`: Errors of accept(2) are sorted. The server never spins, and recovers when resources come back.
    Accept = 5,
    /// `memory`: A peer that sends and never reads costs bounded memory, and delays only itself.
    Memory = 6,
    /// `bad-input`: Over-long input gets a clear error and a close. Garbage never causes a panic.
    BadInput = 7,
    /// `stop`: After a stop the server finishes the requests that it has received, closes idle connections, and cuts
    /// the remaining connections at the drain deadline.
    Stop = 8,
    /// `panic`: A panic while serving one connection ends that connection alone.
    Panic = 9,
    /// `tally`: The tally adds up (see [`Tally::adds_up`]).
    Tally = 10,
    /// `isolation`: Peers that misbehave, in any way, do not keep other peers from being served.
    Isolation = 11,
    /// `leaks`: Nothing leaks. After thousands of connections the server uses the resources that it used before.
    Leaks = 12,
    /// `restart`: After its end the server can be started again on the same port at once.
    Restart = 13,
}

impl Guarantee {
    /// All guarantees, in their order.
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

    /// Returns the short name, which is used in `list`, `check`, the docs and the code.
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

/// Returns `Ok`: the [`Model::available`] of models that run wherever this workspace builds.
///
/// # Errors
///
/// Never fails.
pub fn always_available() -> Result<(), String> {
    Ok(())
}
