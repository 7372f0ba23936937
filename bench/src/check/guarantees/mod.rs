//! The guarantees: a check each.

use contract::Guarantee;

use super::case::{Case, Verdict};

mod accept_errors;
mod backpressure;
mod bad_input;
mod connection_limit;
mod exact_replies;
mod graceful_stop;
mod half_close;
mod idle_timeout;
mod isolation;
mod no_leaks;
mod panic_isolation;
mod rest;
mod restart;
mod sitters;
mod tally;

/// Beside what a check may run, on few CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// Anything that does not mind.
    Any,
    /// Its own kind: it is mostly waiting, but tells when something happened.
    Quiet,
    /// Nothing: it measures how long replies take.
    None,
}

impl Company {
    /// All of them, in the order in which checks are done.
    pub(super) const ALL: [Company; 3] = [Company::Any, Company::Quiet, Company::None];
}

/// How a guarantee is checked.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) guarantee: Guarantee,
    /// What is looked for, in one line.
    pub(super) summary: &'static str,
    pub(super) check: fn(&Case<'_>) -> Verdict,
    /// Beside what it may run.
    pub(super) company: Company,
}

/// All checks, in the order of their guarantees.
pub(super) const CHECKS: &[Check] = &[
    Check {
        guarantee: Guarantee::Exact,
        summary: "replies are exact, however the requests are cut or joined",
        check: exact_replies::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::HalfClose,
        summary: "FIN: all that is owed is still sent; RST: that connection dies, nothing else",
        check: half_close::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::Idle,
        summary: "idle peers are closed in time, neither early nor late",
        check: idle_timeout::check,
        company: Company::Quiet,
    },
    Check {
        guarantee: Guarantee::Limit,
        summary: "at the limit others wait, are served later, and nobody spins",
        check: connection_limit::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::Accept,
        summary: "without descriptors it lives, sleeps, and recovers when they come free",
        check: accept_errors::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::Memory,
        summary: "peers that never read cost bounded memory, and delay nobody else",
        check: backpressure::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::BadInput,
        summary: "over-long input gets an error and a close; garbage harms nobody",
        check: bad_input::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::Stop,
        summary: "what is under way is finished, the rest cut at the deadline, status 0; a second signal ends it at once",
        check: graceful_stop::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::Panic,
        summary: "a panic in one session leaves the others unharmed",
        check: panic_isolation::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::Tally,
        summary: "the tally accounts for every connection",
        check: tally::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::Isolation,
        summary: "well-behaved clients are served beside every kind of misbehaving ones; their p99 against undisturbed",
        check: isolation::check,
        company: Company::None,
    },
    Check {
        guarantee: Guarantee::Leaks,
        summary: "after 20,000 connections (--quick: 2,000) it has the descriptors, threads, processes and memory that it had",
        check: no_leaks::check,
        company: Company::Any,
    },
    Check {
        guarantee: Guarantee::Restart,
        summary: "it can be started again on the same port at once",
        check: restart::check,
        company: Company::Any,
    },
];
