//! The limits that every server keeps.

use std::num::NonZero;
use std::time::Duration;

use crate::Capacity;

/// Size of the read buffer, in bytes: the most that a server reads at once. It is the same for all models. A larger
/// buffer needs fewer system calls for a peer that pipelines, and more memory per peer in models where each peer has a
/// buffer of its own.
pub const READ_BUFFER: usize = 16 * 1024;

/// How long a connection that was refused with an error reply is kept open, so that the peer can read the reply (see
/// [`protocol::CloseReason::Refused`]).
pub const LINGER: Duration = Duration::from_secs(1);

/// Smallest stack that can hold a conversation, in bytes: the read buffer lies on it, and so do the frames of the
/// functions that the conversation calls.
pub const LEAST_STACK: usize = 64 * 1024;

/// The limits that a server keeps.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time without progress after which a connection is closed: no byte arrived while the server wanted to read, or
    /// the peer took no byte while the server wanted to write. One byte is progress.
    pub idle_timeout: Duration,
    /// Maximum number of connections that are served at the same time. Further connections wait in the kernel's
    /// backlog.
    pub max_connections: usize,
    /// Time after a stop in which replies that are under way may be completed. Connections that remain then are cut.
    pub drain: Duration,
    /// Number of threads or processes that serve, for the models that can choose; [`Capacity::workers`] is the default.
    /// The number is set here and never left to a runtime, because the defaults differ widely (smol's global executor
    /// has one thread, tokio one per CPU).
    pub workers: NonZero<usize>,
    /// Number of connections that the kernel completes ahead of accept(2), for models that open more listeners.
    pub backlog: u32,
    /// Size of the stack of each thread or coroutine that holds a conversation, in bytes; `None`: the default of the
    /// model. A stack smaller than [`LEAST_STACK`] is too small for a conversation.
    pub stack: Option<usize>,
    /// Whether work that occupies a thread moves to the threads that the model has for it; see
    /// [`Offload`](crate::Offload).
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
