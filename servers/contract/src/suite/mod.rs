//! The contract as tests: what every server promises, checked on real sockets.
//!
//! A server crate runs all of it over its models with one line in `tests/contract.rs`:
//!
//! ```ignore
//! contract::suite! { mio: server_mio::MODELS[0] }
//! ```
//!
//! Every check becomes a `#[test]` of its own, and its name tells model, promise and check:
//! `mio::half_close::reset_in_mid_reply`. Where a model declares a [deviation](crate::Deviation), the check is that
//! exactly the declared thing happens.
//!
//! How the checks are made:
//!
//! * **Events are waited for, never time.** Clients block in read(2) until what they expect is there, or until
//!   [`GUARD`] says that it will not come. Where time is looked at, a slow machine can't make a check fail: only *too
//!   early* is wrong.
//! * **The protocol is its own oracle.** What a server must reply is what the [`Session`](protocol::Session) says when
//!   a test drives it by hand; so the suite knows no protocol, and a new one is checked without a new line.
//! * **Every account is exact.** A check ends with the whole [`Tally`](crate::Tally), not with the one field that it is
//!   about.
//! * What is measured per process (CPU, descriptors, threads) runs in a process of its own.

use std::num::NonZero;
use std::thread;
use std::time::{Duration, Instant};

use crate::{Limits, Model, Promise};

pub mod accept_errors;
pub mod backpressure;
pub mod bad_input;
mod client;
pub mod connection_limit;
pub mod exact_replies;
pub mod graceful_stop;
pub mod half_close;
pub mod idle_timeout;
mod oracle;
pub mod panic_isolation;
mod probe;
#[cfg(target_os = "linux")]
mod process;
mod server;
pub mod tally;

/// How long a client waits for what must come, before the test is given up. Never a measure of anything.
pub const GUARD: Duration = Duration::from_secs(20);

/// What a check is about: a model, and the name under which the check runs.
#[derive(Debug)]
pub struct Subject {
    /// The model.
    pub model: &'static Model,
    /// The test's full name with the crate's in front, to run it once more as a process of its own.
    pub test: &'static str,
}

impl Subject {
    /// Whether the model serves one peer at a time, by design. "Others are served meanwhile" then reads "others are
    /// served afterwards".
    fn one_at_a_time(&self) -> bool {
        let deviations = self.model.deviations.iter();
        let mut promises: Vec<_> = deviations.map(|deviation| deviation.promise).collect();
        promises.sort();
        match promises[..] {
            [] => false,
            [Promise::ConnectionLimit, Promise::Backpressure] => true,
            _ => panic!("nothing here checks that {promises:?} are broken as declared"),
        }
    }
}

/// Limits that no check runs into by accident.
fn limits() -> Limits {
    Limits {
        idle_timeout: Duration::from_secs(60),
        max_connections: 1000,
        drain: Duration::from_secs(60),
        // So that models with workers have somebody to steal from, on any machine.
        workers: NonZero::<usize>::MIN.saturating_add(1),
    }
}

/// Waits until something is so.
#[track_caller]
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + GUARD;
    while !so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs the whole contract over models: `suite! { name: model, … }` makes a module of tests for each.
#[macro_export]
macro_rules! suite {
    ($($name:ident: $model:expr),+ $(,)?) => {$(
        mod $name {
            $crate::suite! { @promises $model;
                exact_replies {
                    cut_in_every_way,
                    pipelined,
                    many_clients_interleaved,
                    big_replies,
                }
                half_close {
                    the_last_line_needs_no_end,
                    more_than_one_read_before_the_end,
                    reset_between_requests,
                    reset_in_mid_request,
                    reset_in_mid_reply,
                    reset_after_the_end_of_input,
                    reset_behind_the_request,
                }
                idle_timeout {
                    silence,
                    silence_in_mid_request,
                    a_byte_now_and_then,
                    a_peer_that_stops_reading,
                }
                connection_limit {
                    the_next_one_waits_for_a_place,
                    stop_at_the_limit,
                    #[cfg(target_os = "linux")]
                    waiting_costs_nothing,
                }
                accept_errors {
                    #[cfg(target_os = "linux")]
                    descriptors_run_out,
                    #[cfg(target_os = "linux")]
                    stop_without_descriptors,
                    #[cfg(target_os = "linux")]
                    a_broken_listener_ends_the_server,
                }
                backpressure {
                    a_peer_that_never_reads,
                    a_slow_reader,
                    a_flood,
                }
                bad_input {
                    a_line_too_long,
                    a_peer_that_goes_on_after_the_refusal,
                    what_was_sent_before_the_refusal_is_drained,
                    garbage,
                }
                graceful_stop {
                    nobody_is_there,
                    told_before_the_start,
                    idle_peers_are_closed,
                    what_had_arrived_is_answered,
                    what_had_arrived_with_its_end_is_answered,
                    who_was_accepted_is_answered,
                    a_request_half_sent_is_cut,
                    a_reply_under_way_is_finished,
                    a_reply_not_taken_is_cut_at_the_deadline,
                    new_peers_are_refused_during_the_drain,
                    in_a_connect_storm,
                    again_on_the_same_port,
                    #[cfg(target_os = "linux")]
                    draining_costs_nothing,
                }
                panic_isolation {
                    in_every_place,
                    in_opening,
                }
                tally {
                    every_ending_is_counted,
                    #[cfg(target_os = "linux")]
                    nothing_is_left_behind,
                }
            }
        }
    )+};
    (@promises $model:expr; $($promise:ident {
        $($(#[$attribute:meta])* $check:ident,)+
    })+) => {$(
        mod $promise {
            $(
                $(#[$attribute])*
                #[test]
                fn $check() {
                    $crate::suite::$promise::$check(&$crate::suite::Subject {
                        model: &$model,
                        test: concat!(module_path!(), "::", stringify!($check)),
                    });
                }
            )+
        }
    )+};
}
