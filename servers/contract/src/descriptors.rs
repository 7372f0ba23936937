//! How many descriptors a process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit on open descriptors (RLIMIT_NOFILE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// What this process may have open; `None`: no limit.
    pub now: Option<u64>,
    /// What it could raise that to by itself; `None`: no limit.
    pub most: Option<u64>,
}

impl Descriptors {
    /// What a process needs beside its connections: its terminal, its polls, its pipes.
    pub const SPARE: u64 = 16;

    /// Whether `count` connections fit, with some descriptors to spare for everything else.
    pub fn allow(&self, count: usize) -> bool {
        self.now
            .is_none_or(|now| (count as u64).saturating_add(Self::SPARE) <= now)
    }
}

/// Raises the limit on open descriptors as far as this process may. Shells give 1,024 by default, which ends a load
/// of a thousand connections in errors that have nothing to do with the server.
pub fn raise_descriptor_limit() -> Descriptors {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    // A refusal leaves the limit as it was, which is what is reported.
    let _ = setrlimit(Resource::Nofile, raised);
    let after = getrlimit(Resource::Nofile);
    Descriptors {
        now: after.current,
        most: after.maximum,
    }
}
