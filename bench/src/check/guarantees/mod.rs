//! The guarantees, with one check for each.

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

/// Checks that may run at the same time as a check, on few CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunsBeside {
    /// Any check whose results do not depend on the load of the machine.
    Any,
    /// Checks of the same kind: such a check mostly waits, but measures when something happens.
    Quiet,
    /// No other check: this check measures how long replies take.
    None,
}

impl RunsBeside {
    /// All values, in the order in which the checks run.
    pub(super) const ALL: [RunsBeside; 3] = [RunsBeside::Any, RunsBeside::Quiet, RunsBeside::None];
}

/// Check of one guarantee.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) guarantee: Guarantee,
    /// Guarantee as the check tests it, in one line.
    pub(super) summary: &'static str,
    pub(super) check: fn(&CheckCase<'_>) -> Verdict,
    /// Checks beside which it may run.
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
        summary: "FIN: all replies that are owed are still sent; RST: that connection ends, no other does",
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
        summary: "at the limit further peers wait and are served later, and the server sleeps meanwhile",
        check: limit::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Accept,
        summary: "without free descriptors the server stays up, sleeps, and recovers when descriptors come free",
        check: accept::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Memory,
        summary: "peers that never read cost bounded memory, and delay no other peer",
        check: memory::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::BadInput,
        summary: "over-long input gets an error and a close; garbage affects no other peer",
        check: bad_input::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Stop,
        summary: "requests under way are finished, the rest is cut at the deadline, status 0; a second signal ends the server at once",
        check: stop::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Panic,
        summary: "a panic in one session leaves all other sessions working",
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
        summary: "well-behaved clients are served beside every kind of misbehaving clients; figure: their p99 against undisturbed",
        check: isolation::check,
        runs_beside: RunsBeside::None,
    },
    Check {
        guarantee: Guarantee::Leaks,
        summary: "after 20,000 connections (--quick: 2,000) the server has the descriptors, threads, processes and memory that it had before",
        check: leaks::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Restart,
        summary: "after its end the server can be started again on the same port at once",
        check: restart::check,
        runs_beside: RunsBeside::Any,
    },
];
