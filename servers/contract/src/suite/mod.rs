//! The contract as tests: what every server guarantees, checked on real sockets.
//!
//! A server crate runs all of it over its models with one line in `tests/contract.rs`:
//!
//! ```ignore
//! contract::suite! { mio: server_mio::MODELS[0] }
//! ```
//!
//! Every check becomes a `#[test]` of its own, and its name tells model, guarantee and check:
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
//! * What is measured per process (CPU, descriptors, threads) runs in a process of its own, and so does a model that
//!   forks, with all its checks.

use std::num::NonZero;
use std::thread;
use std::time::{Duration, Instant};

use crate::{Capacity, Guarantee, Limits, Model};

pub mod accept;
pub mod bad_input;
mod client;
pub mod exact;
pub mod files;
pub mod half_close;
pub mod idle;
pub mod limit;
pub mod memory;
mod oracle;
pub mod panic;
mod probe;
#[doc(hidden)]
pub mod process;
mod server;
mod serving;
pub mod stop;
pub mod tally;
pub mod work;

/// How long a client waits for what must come, before the test is given up. Never a measure of anything.
pub const GUARD: Duration = Duration::from_secs(20);

/// What a check is about: a model, and the name under which the check runs.
#[derive(Debug)]
pub struct ModelUnderTest {
    /// The model.
    pub model: &'static Model,
    /// The test's full name with the crate's in front.
    pub test: &'static str,
}

impl ModelUnderTest {
    /// Runs a check, if the model can run here.
    pub fn check(&self, check: impl FnOnce(&ModelUnderTest)) {
        match (self.model.available)() {
            Ok(()) => check(self),
            Err(why) => eprintln!("{} cannot run here: {why}; not checked", self.model.name),
        }
    }

    /// The model's name among the tests.
    fn name(&self) -> &'static str {
        self.test.split("::").nth(1).expect("no module path")
    }

    /// Limits that no check runs into by accident.
    fn limits(&self) -> Limits {
        Limits {
            idle_timeout: Duration::from_secs(60),
            max_connections: 1000,
            drain: Duration::from_secs(60),
            workers: match self.model.capacity {
                // More than any check has peers at a time, but for those that are about this.
                Capacity::Workers => const { NonZero::new(64).unwrap() },
                // So that models with workers have somebody to steal from, on any machine.
                _ => const { NonZero::new(2).unwrap() },
            },
            backlog: server::BACKLOG,
            stack: None,
            offload: false,
        }
    }

    /// The same, for checks that are about the order in which peers are accepted, or about places and descriptors to
    /// the number: where several accept, each in its own order and with its own part, only one does.
    fn limits_of_one_acceptor(&self) -> Limits {
        let mut limits = self.limits();
        if self.model.capacity == Capacity::Shares || self.model.needs.own_process {
            limits.workers = NonZero::<usize>::MIN;
        }
        limits
    }

    /// How many peers are served at a time under these limits, by design.
    fn places(&self, limits: &Limits) -> usize {
        match self.model.capacity {
            Capacity::Limit | Capacity::Descriptors(_) | Capacity::Shares => limits.max_connections,
            Capacity::Workers => limits.max_connections.min(limits.workers.get()),
            Capacity::One => 1,
        }
    }

    /// Whether one peer is served at a time, by design, whatever the limits. "Others are served meanwhile" then reads
    /// "others are served afterwards".
    fn one_at_a_time(&self) -> bool {
        self.model.capacity == Capacity::One
    }

    /// Judges the time for which a server was busy while it had nothing to do. Who sleeps uses none of it; who never sleeps,
    /// by design, must be seen to.
    fn judge_idleness(&self, used: Duration, time: Duration) {
        let deviations = self.model.deviations.iter();
        let mut guarantees = deviations.map(|deviation| deviation.guarantee);
        if guarantees.any(|guarantee| guarantee == Guarantee::Accept) {
            assert!(
                used > time / 4,
                "not by design: busy for {used:?} of {time:?}"
            );
        } else {
            assert!(used < time / 4, "busy for {used:?} of {time:?}");
        }
    }

    /// A model declares what the checks know, and nothing else: what is declared is then checked to be so.
    pub fn declares_what_is_checked(&self) {
        let deviations = self.model.deviations.iter();
        let mut declared: Vec<_> = deviations.map(|deviation| deviation.guarantee).collect();
        declared.sort();
        let known: &[&[Guarantee]] = match self.model.capacity {
            // Or it never sleeps.
            Capacity::Limit => &[&[], &[Guarantee::Accept]],
            // Those of its crate check what happens at the last number.
            Capacity::Descriptors(_) => &[&[Guarantee::Limit]],
            Capacity::Shares => &[&[Guarantee::Limit]],
            Capacity::Workers | Capacity::One => {
                &[&[
                    Guarantee::Limit,
                    Guarantee::Memory,
                    // (This one is checked by `samewire check`.)
                    Guarantee::Isolation,
                ]]
            }
        };
        assert!(known.contains(&&declared[..]), "nothing here checks that");
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
            #[test]
            #[ignore = "a child process: the checks that need a server process of its own run this"]
            fn server_process() {
                $crate::suite::process::serve(&$crate::suite::ModelUnderTest {
                    model: &$model,
                    test: concat!(module_path!(), "::server_process"),
                });
            }

            #[test]
            fn declares_what_is_checked() {
                $crate::suite::ModelUnderTest {
                    model: &$model,
                    test: concat!(module_path!(), "::declares_what_is_checked"),
                }
                .declares_what_is_checked();
            }

            $crate::suite! { @guarantees $model;
                exact {
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
                idle {
                    silence,
                    silence_in_mid_request,
                    a_byte_now_and_then,
                    a_peer_that_stops_reading,
                    big_replies_taken_slowly,
                }
                limit {
                    the_next_one_waits_for_a_place,
                    stop_at_the_limit,
                    idle_peers_hold_their_workers_only,
                    waiting_costs_nothing,
                }
                accept {
                    descriptors_run_out,
                    stop_without_descriptors,
                    a_broken_listener_ends_the_server,
                }
                memory {
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
                stop {
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
                    draining_costs_nothing,
                }
                panic {
                    in_every_place,
                    in_opening,
                }
                files {
                    whole_and_exact,
                    to_many_at_once,
                    to_a_slow_reader,
                    to_a_peer_that_stops_reading,
                    reset_and_asked_again,
                    become_shorter,
                    finished_within_the_drain,
                    cut_at_the_deadline,
                }
                work {
                    before_the_reply,
                    a_wait_keeps_nobody_else,
                    many_wait,
                    a_wait_is_not_idleness,
                    a_wait_goes_on_during_the_drain,
                    a_long_wait_is_cut_at_the_deadline,
                    reset_meanwhile,
                    much_at_once,
                    offloaded,
                }
                tally {
                    every_ending_is_counted,
                    nothing_is_left_behind,
                }
            }
        }
    )+};
    (@guarantees $model:expr; $($guarantee:ident {
        $($(#[$attribute:meta])* $check:ident,)+
    })+) => {$(
        mod $guarantee {
            $(
                $(#[$attribute])*
                #[test]
                fn $check() {
                    $crate::suite::ModelUnderTest {
                        model: &$model,
                        test: concat!(module_path!(), "::", stringify!($check)),
                    }
                    .check($crate::suite::$guarantee::$check);
                }
            )+
        }
    )+};
}
