//! What every server keeps to.

use std::num::NonZero;
use std::time::Duration;

/// How much a server reads at once, in bytes. The same for all: a larger buffer means fewer calls for a pipelining
/// peer, and memory for every peer where each has a buffer of its own.
pub const READ_BUFFER: usize = 16 * 1024;

/// How long a connection that was refused with an explanation is kept open for the peer to read it
/// (see [`protocol::Farewell::Refused`]).
pub const LINGER: Duration = Duration::from_secs(1);

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
    /// Threads that run tasks, for the models that can choose. All models get the same number, because defaults
    /// differ wildly (smol's global executor has one thread, tokio one per CPU).
    pub workers: NonZero<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            idle_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            drain: Duration::from_secs(5),
            // Counts the CPUs that this process may use, not those of the machine: `--cpus 1` means one worker.
            workers: std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
        }
    }
}
