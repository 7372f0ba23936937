//! The limit on the descriptors that a process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit on open descriptors (RLIMIT_NOFILE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Number of descriptors that this process may have open now; `None`: no limit.
    pub now: Option<u64>,
    /// Number to which this process may raise the limit by itself; `None`: no limit.
    pub most: Option<u64>,
}

impl Descriptors {
    /// Number of descriptors that a process needs in addition to its connections: for its terminal, polls and pipes.
    pub const SPARE: u64 = 16;

    /// Returns true if `count` connections and [`SPARE`](Self::SPARE) more descriptors are within the limit.
    pub fn allow(&self, count: usize) -> bool {
        self.now
            .is_none_or(|now| (count as u64).saturating_add(Self::SPARE) <= now)
    }
}

/// Raises the limit on open descriptors as far as this process may, and returns the limit after that. Shells set 1,024
/// by default, with which a load of a thousand connections ends in errors that have nothing to do with the server.
pub fn raise_descriptor_limit() -> Descriptors {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    // If setrlimit(2) fails, the limit stays as it was, and the returned value shows that.
    let _ = setrlimit(Resource::Nofile, raised);
    let after = getrlimit(Resource::Nofile);
    Descriptors {
        now: after.current,
        most: after.maximum,
    }
}
