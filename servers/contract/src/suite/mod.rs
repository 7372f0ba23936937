//! The test suite of the contract: it checks every guarantee of a server on real sockets.
//!
//! A server crate runs the whole suite over its models with one line in `tests/contract.rs`:
//!
//! ```ignore
//! contract::suite! { mio: server_mio::MODELS[0] }
//! ```
//!
//! Every check becomes a `#[test]` of its own. The name of the test names the model, the guarantee and the check:
//! `mio::half_close::reset_in_mid_reply_ends_one_connection`. Where a model declares a [deviation](crate::Deviation),
//! the check is that exactly the declared behaviour happens.
//!
//! Principles of the checks:
//!
//! * **Checks wait for events, never for time.** Clients block in read(2) until the expected bytes are there, or until
//!   [`GUARD`] has passed and the check fails. Where a check looks at time, a slow machine can't make it fail: only
//!   *too early* is wrong.
//! * **The protocol is its own oracle.** The expected replies come from the [`Session`](protocol::Session), which the
//!   test drives by hand. So the suite contains no knowledge of any protocol, and a new protocol is checked without a
//!   new line.
//! * **Every tally is exact.** A check ends by comparing the whole [`Tally`](crate::Tally), not only the field that
//!   the check is about.
//! * Checks that measure per process (CPU, descriptors, threads) run the server in a process of its own. So do all
//!   checks of a model that forks.

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

/// Longest time that a check waits for an expected event before it fails. It is never part of a measurement.
pub const GUARD: Duration = Duration::from_secs(20);

/// Model that a check runs on, and the name under which the check runs.
#[derive(Debug)]
pub struct ModelUnderTest {
    /// The model.
    pub model: &'static Model,
    /// Full name of the test, beginning with the name of the crate.
    pub test: &'static str,
}

impl ModelUnderTest {
    /// Runs a check if the model can run on this machine. Otherwise prints the reason.
    pub fn check(&self, check: impl FnOnce(&ModelUnderTest)) {
        match (self.model.available)() {
            Ok(()) => check(self),
            Err(reason) => eprintln!("{} cannot run here: {reason}; not checked", self.model.name),
        }
    }

    /// Returns the name of the model's module in the test names.
    fn name(&self) -> &'static str {
        self.test.split("::").nth(1).expect("no module path")
    }

    /// Returns limits that no check reaches by accident.
    fn limits(&self) -> Limits {
        Limits {
            idle_timeout: Duration::from_secs(60),
            max_connections: 1000,
            drain: Duration::from_secs(60),
            workers: match self.model.capacity {
                // More than the number of peers at a time in any check, except the checks of this limit.
                Capacity::Workers => const { NonZero::new(64).unwrap() },
                // Two, so that a worker has another one to steal tasks from, on any machine.
                _ => const { NonZero::new(2).unwrap() },
            },
            backlog: server::BACKLOG,
            stack: None,
            offload: false,
        }
    }

    /// Returns the same limits with one worker for models whose workers accept, each in its own order and with its own
    /// share of the limit. For checks of the order in which peers are accepted, or of exact numbers of slots and
    /// descriptors.
    fn limits_of_one_acceptor(&self) -> Limits {
        let mut limits = self.limits();
        if self.model.capacity == Capacity::Shares || self.model.needs.own_process {
            limits.workers = NonZero::<usize>::MIN;
        }
        limits
    }

    /// Returns the number of peers that the model serves at a time under these limits, by design.
    fn slots(&self, limits: &Limits) -> usize {
        match self.model.capacity {
            Capacity::Limit | Capacity::Descriptors(_) | Capacity::Shares => limits.max_connections,
            Capacity::Workers => limits.max_connections.min(limits.workers.get()),
            Capacity::One => 1,
        }
    }

    /// Returns true if the model serves one peer at a time by design, whatever the limits. A check that other peers are
    /// served meanwhile then becomes a check that they are served afterwards.
    fn one_at_a_time(&self) -> bool {
        self.model.capacity == Capacity::One
    }

    /// Checks the CPU time that a server used while it had nothing to do. A server that sleeps uses nearly none. A
    /// model that never sleeps, by design, must show that it does not.
    fn check_cpu_time(&self, used: Duration, time: Duration) {
        let deviations = self.model.deviations.iter();
        let mut guarantees = deviations.map(|deviation| deviation.guarantee);
        if guarantees.any(|guarantee| guarantee == Guarantee::Accept) {
            assert!(
                used > time / 4,
                "busy for only {used:?} of {time:?}, though the model declares that it never sleeps"
            );
        } else {
            assert!(
                used < time / 4,
                "busy for {used:?} of {time:?} with nothing to do"
            );
        }
    }

    /// Checks that the model declares only deviations that this suite knows. The other checks then verify that each
    /// declared deviation happens.
    pub fn declared_deviations_are_checked(&self) {
        let deviations = self.model.deviations.iter();
        let mut declared: Vec<_> = deviations.map(|deviation| deviation.guarantee).collect();
        declared.sort();
        let known: &[&[Guarantee]] = match self.model.capacity {
            // The second set is that of a model that never sleeps.
            Capacity::Limit => &[&[], &[Guarantee::Accept]],
            // The tests of the model's own crate check what happens at the last descriptor number.
            Capacity::Descriptors(_) => &[&[Guarantee::Limit]],
            Capacity::Shares => &[&[Guarantee::Limit]],
            Capacity::Workers | Capacity::One => {
                &[&[
                    Guarantee::Limit,
                    Guarantee::Memory,
                    // `samewire check` verifies this one.
                    Guarantee::Isolation,
                ]]
            }
        };
        assert!(
            known.contains(&&declared[..]),
            "the suite does not check the declared deviations {declared:?}"
        );
    }
}

/// Waits until a condition is true, at most for [`GUARD`]. `what` describes the condition in the failure message.
#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + GUARD;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {GUARD:?} in vain: {what}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Generates the tests of the whole contract: `suite! { name: model, … }` makes a module of tests for each model.
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
            fn declared_deviations_are_checked() {
                $crate::suite::ModelUnderTest {
                    model: &$model,
                    test: concat!(module_path!(), "::declared_deviations_are_checked"),
                }
                .declared_deviations_are_checked();
            }

            $crate::suite! { @guarantees $model;
                exact {
                    requests_cut_anywhere_get_exact_replies,
                    pipelined_requests_get_exact_replies,
                    interleaved_clients_get_their_own_replies,
                    replies_beyond_socket_buffers_are_complete,
                }
                half_close {
                    last_line_without_newline_is_answered_at_fin,
                    input_beyond_one_read_is_answered_at_fin,
                    reset_between_requests_ends_one_connection,
                    reset_in_mid_request_ends_one_connection,
                    reset_in_mid_reply_ends_one_connection,
                    reset_after_fin_ends_one_connection,
                    reset_right_after_request_is_counted,
                }
                idle {
                    idle_peer_is_closed_after_the_timeout,
                    peer_idle_in_mid_request_is_closed,
                    peer_sending_slowly_is_kept_open,
                    peer_that_stops_reading_is_closed,
                    peer_reading_slowly_is_kept_open,
                }
                limit {
                    peer_over_the_limit_waits_for_a_slot,
                    stop_at_the_limit_ends_served_and_waiting_peers,
                    idle_peers_occupy_only_their_own_slots,
                    waiting_peers_cost_no_cpu,
                }
                accept {
                    server_out_of_descriptors_recovers,
                    stop_without_descriptors_ends_the_server,
                    broken_listener_ends_the_server,
                }
                memory {
                    input_of_peer_that_never_reads_is_bounded,
                    slow_reader_delays_no_other_peer,
                    flooding_peer_delays_no_other_peer,
                }
                bad_input {
                    overlong_line_is_refused,
                    peer_sending_after_refusal_is_closed_after_linger,
                    input_before_refusal_is_drained,
                    random_bytes_are_answered_or_refused,
                }
                stop {
                    stop_without_peers_ends_the_server,
                    stop_before_the_start_ends_the_server,
                    idle_peers_are_closed,
                    requests_received_before_stop_are_answered,
                    request_completed_by_fin_before_stop_is_answered,
                    accepted_peers_are_answered,
                    half_sent_request_is_cut,
                    reply_in_progress_is_finished,
                    unread_reply_is_cut_at_the_deadline,
                    new_peers_are_refused_during_the_drain,
                    stop_in_a_connect_storm_answers_accepted_peers,
                    port_can_be_reused_after_stop,
                    drain_costs_no_cpu,
                }
                panic {
                    panic_in_any_session_call_ends_one_connection,
                    panic_while_opening_ends_one_connection,
                }
                files {
                    files_between_replies_are_exact,
                    file_sent_to_many_peers_is_exact,
                    file_to_slow_reader_delays_no_other_peer,
                    file_to_peer_that_stops_reading_times_out,
                    file_is_sent_again_after_resets,
                    truncated_file_ends_one_connection,
                    file_in_progress_is_finished,
                    unread_file_is_cut_at_the_deadline,
                }
                work {
                    work_delays_its_own_and_later_replies,
                    long_wait_delays_no_other_peer,
                    concurrent_waits_are_all_answered,
                    wait_does_not_count_as_idle,
                    wait_continues_during_the_drain,
                    long_wait_is_cut_at_the_deadline,
                    reset_during_work_is_counted,
                    burst_of_work_lets_other_peers_run,
                    blocking_work_is_offloaded_where_possible,
                }
                tally {
                    every_ending_is_counted,
                    descriptors_and_threads_are_released,
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
