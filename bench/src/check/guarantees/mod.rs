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
        summary: "replies are correct to the byte, however requests are cut or joined on the way",
        check: exact::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::HalfClose,
        summary: "after FIN from a client, all its replies are still sent; after RST, only that connection ends",
        check: half_close::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Idle,
        summary: "a connection without progress is closed, not before the time-out and at most 3 s after it",
        check: idle::check,
        runs_beside: RunsBeside::Quiet,
    },
    Check {
        guarantee: Guarantee::Limit,
        summary: "at the connection limit, further peers wait and are served later; meanwhile the server sleeps, unless it declares under accept that it never does",
        check: limit::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Accept,
        summary: "without free descriptors the server stays up and sleeps; when descriptors come free, waiting peers are served",
        check: accept::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Memory,
        summary: "a peer that sends and never reads costs bounded memory, and delays no other peer",
        check: memory::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::BadInput,
        summary: "over-long input gets an error reply and a close; garbage gets any correct reply or an error, and affects no other peer",
        check: bad_input::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Stop,
        summary: "requests that have arrived are answered, half a request is cut at once, unread replies are cut at --drain, exit status 0; a second signal ends the server at once",
        check: stop::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Panic,
        summary: "a panic in one session ends that connection alone; all other connections keep working",
        check: panic::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Tally,
        summary: "the counts that the server prints at its end cover every connection once",
        check: tally::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Isolation,
        summary: "well-behaved clients are served beside every kind of misbehaving clients",
        check: isolation::check,
        runs_beside: RunsBeside::None,
    },
    Check {
        guarantee: Guarantee::Leaks,
        summary: "after 20,000 connections (--quick: 2,000) the server has no more descriptors, threads and processes than before, and at most 5 MiB more memory",
        check: leaks::check,
        runs_beside: RunsBeside::Any,
    },
    Check {
        guarantee: Guarantee::Restart,
        summary: "after its end the server can be started again at once on the same port",
        check: restart::check,
        runs_beside: RunsBeside::Any,
    },
];
