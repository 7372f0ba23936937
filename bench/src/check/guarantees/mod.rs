//! The guarantees: a check each.

use contract::Guarantee;

use super::case::{CheckCase, Verdict};

mod accept;
mod bad_input;
mod exact;
mod half_close;
mod idle;
mod isolation;
mod leaks;
mod limit;
mod memory;
mod panic;
mod parked_clients;
mod quiescence;
mod restart;
mod stop;
mod tally;

/// Beside what a check may run, on few CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunsBeside {
    /// Anything that does not mind.
    Any,
    /// Its own kind: it is mostly waiting, but tells when something happened.
    Quiet,
    /// Nothing: it measures how long replies take.
    None,
}

impl RunsBeside {
    /// All of them, in the order in which checks are done.
    pub(super) const ALL: [RunsBeside; 3] = [RunsBeside::Any, RunsBeside::Quiet, RunsBeside::None];
}

/// How a guarantee is checked.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) guarantee: Guarantee,
    /// What is looked for, in one line.
    pub(super) summary: &'static str,
    pub(super) check: fn(&CheckCase<'_>) -> Verdict,
    /// Beside what it may run.
    pub(super) runs_beside: RunsBeside,
}

/// All checks, in the order of their guarantees.
pub(super) const CHECKS: &[Check] = &[
    Check {
        guarantee: Guarantee::Exact,
        summary: "replies are exact, however the requests are cut or joined",
        check: exact::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::HalfClose,
        summary: "FIN: all that is owed is still sent; RST: that connection dies, nothing else",
        check: half_close::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Idle,
        summary: "idle peers are closed in time, neither early nor late",
        check: idle::check,
        runs_beside: RunsBeside::Quiet,
    },
    Check {
        guarantee: Guarantee::Limit,
        summary: "at the limit others wait, are served later, and nobody spins",
        check: limit::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Accept,
        summary: "without descriptors it lives, sleeps, and recovers when they come free",
        check: accept::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Memory,
        summary: "peers that never read cost bounded memory, and delay nobody else",
        check: memory::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::BadInput,
        summary: "over-long input gets an error and a close; garbage harms nobody",
        check: bad_input::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Stop,
        summary: "what is under way is finished, the rest cut at the deadline, status 0; a second signal ends it at once",
        check: stop::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Panic,
        summary: "a panic in one session leaves the others unharmed",
        check: panic::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Tally,
        summary: "the tally accounts for every connection",
        check: tally::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Isolation,
        summary: "well-behaved clients are served beside every kind of misbehaving ones; their p99 against undisturbed",
        check: isolation::check,
        runs_beside: RunsBeside::None,
    },
    Check {
        guarantee: Guarantee::Leaks,
        summary: "after 20,000 connections (--quick: 2,000) it has the descriptors, threads, processes and memory that it had",
        check: leaks::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Restart,
        summary: "it can be started again on the same port at once",
        check: restart::check,
        runs_beside: RunsBeside::Any,
    },
];
