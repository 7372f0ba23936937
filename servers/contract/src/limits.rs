//! What every server keeps to.

use std::num::NonZero;
use std::time::Duration;

use crate::Capacity;

/// How much a server reads at once, in bytes. The same for all: a larger buffer means fewer calls for a pipelining
/// peer, and memory for every peer where each has a buffer of its own.
pub const READ_BUFFER: usize = 16 * 1024;

/// How long a connection that was refused with an explanation is kept open for the peer to read it
/// (see [`protocol::CloseReason::Refused`]).
pub const LINGER: Duration = Duration::from_secs(1);

/// The smallest stack that holds a conversation, in bytes: the read buffer lies on it, and what is called from there.
pub const LEAST_STACK: usize = 64 * 1024;

/// What a server keeps to.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A connection without progress for this long is closed: no byte came while the server wanted to read, or none
    /// was taken while it wanted to write. One byte is progress.
    pub idle_timeout: Duration,
    /// Connections served at the same time. Whoever comes later waits in the kernel's backlog.
    pub max_connections: usize,
    /// After a stop, how long a reply that is under way may still take. What is left then is cut.
    pub drain: Duration,
    /// Threads or processes that serve, for the models that can choose; see [`Capacity::workers`]. Told, and never left
    /// to a runtime, because defaults differ wildly (smol's global executor has one thread, tokio one per CPU).
    pub workers: NonZero<usize>,
    /// Connections that the kernel completes ahead of accept(2), for models that open more listeners themselves.
    pub backlog: u32,
    /// The stack of each thread or coroutine that holds a conversation, in bytes; `None`: what its model thinks fit.
    /// Less than [`LEAST_STACK`] does not hold one.
    pub stack: Option<usize>,
    /// Whether work that keeps a thread is moved to where the model has threads for it; see [`Offload`](crate::Offload).
    pub offload: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            idle_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            drain: Duration::from_secs(5),
            workers: Capacity::Limit.workers(),
            backlog: 4096,
            stack: None,
            offload: false,
        }
    }
}
