//! The plan of a comparison: its settings, and the load of each case.

use std::time::Duration;

use client::Load;
use contract::{Capacity, Descriptors, Model, Offload};
use protocol::Protocol;

use crate::results::{Method, Role};
use crate::target::Target;
use crate::workloads::{IDLE_CONNECTIONS, Kind, LIMIT, Slice, Workload};

/// Models that `--quick` compares, one of each idea: one connection at a time, a thread per connection, a fixed number
/// of threads, readiness, a stack per connection, tasks that move between threads, tasks that need no runtime, and
/// completions.
pub(crate) const QUICK_MODELS: [&str; 8] = [
    "serial",
    "threads",
    "pool",
    "mio",
    "coroutines",
    "tokio",
    "smol",
    "uring",
];

/// Requests per client of `crowd`. Together with [`CROWD_THINK`] it is the load of the published original, in less
/// time.
pub(crate) const CROWD_MESSAGES: u32 = 10;

/// Pause of each client of `crowd` after each reply.
pub(crate) const CROWD_THINK: Duration = Duration::from_millis(50);

/// Time in which requests are sent but not measured: the first requests meet cold caches and threads that are just
/// starting. Connections that the kernel has completed may not be accepted yet, or may have no process of their own
/// yet.
const WARM_UP: Duration = Duration::from_millis(200);
const WARM_UP_PER_CONNECTION: Duration = Duration::from_micros(100);

/// Number of connections above which the connects are spread over time: the kernel's queue is limited, and a client
/// that finds the queue full tries again only after a second.
const AT_ONCE: usize = 1_000;
const RAMP_PER_CONNECTION: Duration = Duration::from_micros(100);

/// Time after the last connect was due within which all connections must be open: several times the time that forking
/// a process for each connection takes. A server that does not accept them within this time has no room for them.
const OPENING: Duration = Duration::from_secs(5);
const OPENING_PER_CONNECTION: Duration = Duration::from_micros(500);

/// In `idle`, the time within which all first exchanges must be over, for each server of the batch.
const IDLE_WARM_UP: Duration = Duration::from_millis(250);

/// Number of servers that are measured in `idle` at the same time. A server that sleeps takes no CPU time from the
/// other servers, and each has a CPU clock of its own; one after the other they would take minutes.
pub(crate) const IDLE_TOGETHER: usize = 9;

/// Options of the user, completed with the defaults.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Workloads in the order of the tables, each once.
    pub(crate) workloads: Vec<Workload>,
    /// Number of rounds of every workload; `None` if the precision and the budget decide.
    pub(crate) rounds: Option<u32>,
    /// Number of rounds of the workloads whose figures hardly vary: `crowd` and `idle`.
    pub(crate) few_rounds: u32,
    /// Half width of the intervals at which measuring stops, as a share.
    pub(crate) precision: f64,
    /// Time after which no round begins; `None`: there is no limit.
    pub(crate) budget: Option<Duration>,
    /// Whether two models are measured twice.
    pub(crate) twins: bool,
    /// Length of the slices of closed loops whose replies come at once.
    pub(crate) slice: Duration,
    /// Measured window of the loads that run for a time, except `idle`; see [`Settings::duration`].
    pub(crate) duration: Duration,
    /// Measured window of the loads in slices of the length [`Settings::slice`].
    pub(crate) sliced_duration: Duration,
    /// Measured window of `idle`.
    pub(crate) idle_duration: Duration,
    /// Numbers of connections of all workloads except `idle`, ascending. More than one is a sweep.
    pub(crate) connections: Vec<usize>,
    /// Requests per second of `steady`, over all connections.
    pub(crate) rate: f64,
    /// How long `crowd` waits at most for all clients to be served.
    pub(crate) patience: Duration,
    /// Protocol of the workloads that do not require a certain one.
    pub(crate) protocol: &'static Protocol,
    /// Bytes per request, including the end of the line.
    pub(crate) size: usize,
}

impl Settings {
    /// Returns whether this is a sweep: more than one number of connections.
    pub(crate) fn sweep(&self) -> bool {
        self.connections.len() > 1
    }

    /// Returns the numbers of connections with which a workload is measured.
    pub(crate) fn connections(&self, workload: Workload) -> &[usize] {
        match workload.definition().kind {
            Kind::Idle => &[IDLE_CONNECTIONS],
            _ => &self.connections,
        }
    }

    /// Returns the largest number of connections of all workloads; 0 without workloads.
    pub(crate) fn most_connections(&self) -> usize {
        let all = self.workloads.iter();
        all.flat_map(|&workload| self.connections(workload))
            .copied()
            .max()
            .unwrap_or(0)
    }

    /// Returns the measured window of a load that runs for a time and is measured as a whole or in long slices.
    pub(crate) fn duration(&self, workload: Workload) -> Duration {
        match workload.definition().kind {
            Kind::Idle => self.idle_duration,
            _ => self.duration.max(workload.definition().least_duration),
        }
    }

    /// Returns the requests per second of an open loop, over all connections.
    pub(crate) fn rate(&self, workload: Workload) -> f64 {
        workload.definition().rate.unwrap_or(self.rate)
    }

    /// Returns how long a load that ends by itself may take at most.
    pub(crate) fn limit(&self, workload: Workload) -> Duration {
        match workload.definition().kind {
            Kind::Crowd => self.patience,
            _ => LIMIT,
        }
    }

    /// Returns the number of rounds after which a workload is measured enough, whatever its intervals are; `None` if
    /// its intervals decide.
    pub(crate) fn rounds(&self, workload: Workload) -> Option<u32> {
        match workload.definition().few_rounds {
            true => Some(self.few_rounds),
            false => self.rounds,
        }
    }
}

/// Returns the number of peers that a model serves at a time by design, if it is started with this number of workers;
/// `None` if `--max-connections` is the only limit.
pub(crate) fn max_concurrent(model: &Model, workers: usize) -> Option<usize> {
    match model.capacity {
        Capacity::One => Some(1),
        Capacity::Workers => Some(workers),
        // A lower bound: how many other descriptors the server has open is known only while it runs.
        Capacity::Descriptors(most) => Some(most.saturating_sub(Descriptors::SPARE as usize)),
        Capacity::Limit | Capacity::Shares => None,
    }
}

/// One planned run: a fresh server process of one model under one load.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Server to measure: a model or an external server, or the null server.
    pub(crate) target: Target,
    /// Part that the server plays in the comparison.
    pub(crate) role: Role,
    /// Whether the run is measured in slices.
    pub(crate) method: Method,
    /// Workload of the run.
    pub(crate) workload: Workload,
    /// Number of connections of the load.
    pub(crate) connections: usize,
    /// Seed of the client's requests.
    pub(crate) seed: u64,
    /// Number of peers that the server serves at a time by design; `None` if the connection limit is the only limit,
    /// and for an external server. See [`max_concurrent`].
    pub(crate) max_concurrent: Option<usize>,
    /// CPU time that each request costs in addition; only in a calibration.
    pub(crate) burn: Option<Duration>,
}

impl Case {
    /// Returns whether, by design, some connections must wait until other connections end.
    pub(crate) fn exceeds_max_concurrent(&self) -> bool {
        self.max_concurrent
            .is_some_and(|most| most < self.connections)
    }

    /// Returns why the target cannot run this workload at all; `None` if it can. `small` is the protocol of the
    /// workloads that do not require a certain one.
    pub(crate) fn unavailable_reason(&self, small: &Protocol) -> Option<String> {
        match self.target.model().map(|model| model.offload) {
            Some(Offload::Nowhere(why)) if self.workload.offloads() => {
                Some(format!("the model cannot offload work: {why}"))
            }
            Some(_) => None,
            // The command that starts an external server decides its protocol.
            None if self.workload.protocol_differs(small) => Some(format!(
                "{} does not use --protocol {}, and an external server speaks only that protocol",
                self.workload, small.name
            )),
            None if self.workload.has_work() => Some(format!(
                "{} needs a server that works before its replies, which only our models can be set to do",
                self.workload
            )),
            None => None,
        }
    }

    /// Returns the number of requests of each client, for a load that ends by itself.
    fn messages(&self) -> u64 {
        if self.workload.definition().kind == Kind::Crowd {
            return CROWD_MESSAGES.into();
        }
        (self.workload.definition().messages)(self.connections)
    }

    /// Returns the measured window of a load that runs for a time.
    pub(crate) fn window(&self, settings: &Settings) -> Duration {
        match (self.method, self.workload.definition().slice) {
            (Method::Slices, Some(Slice::Short)) => settings.sliced_duration,
            _ => settings.duration(self.workload),
        }
    }

    /// Returns the total number of requests of a load that ends by itself; `None` for a load that runs for a time.
    pub(crate) fn requests(&self) -> Option<u64> {
        let requests = || self.connections as u64 * self.messages();
        self.workload.ends_by_itself().then(requests)
    }

    /// Returns the load that the client applies. `together` is the number of servers in the batch.
    pub(crate) fn load(&self, settings: &Settings, together: usize) -> Load {
        let warmup = self.warm_up(together);
        let duration = self.window(settings);
        let messages = |messages, think| Load::Messages {
            messages,
            think,
            rounds: 1,
            limit: Some(settings.limit(self.workload)),
        };
        let closed = |think| Load::Closed {
            think,
            warmup,
            duration,
        };
        match self.workload.definition().kind {
            Kind::Crowd => messages(self.messages(), CROWD_THINK),
            Kind::Transfer => messages(self.messages(), Duration::ZERO),
            Kind::Closed => closed(Duration::ZERO),
            // One exchange per connection; then the connections are idle until the end.
            Kind::Idle => closed(Duration::from_secs(24 * 3600)),
            Kind::Open => Load::Open {
                rate: settings.rate(self.workload),
                arrivals: self.workload.definition().arrivals,
                warmup,
                duration,
            },
        }
    }

    fn warm_up(&self, together: usize) -> Duration {
        match self.workload.definition().kind {
            Kind::Idle => IDLE_WARM_UP * together as u32,
            Kind::Crowd | Kind::Transfer => Duration::ZERO,
            Kind::Closed | Kind::Open => WARM_UP + WARM_UP_PER_CONNECTION * self.connections as u32,
        }
    }

    /// Returns the time over which the connects are spread.
    pub(crate) fn ramp(&self) -> Duration {
        // In `crowd` all clients connect at once: that is the purpose of this workload.
        if self.connections > AT_ONCE && self.workload.definition().kind != Kind::Crowd {
            RAMP_PER_CONNECTION * self.connections as u32
        } else {
            Duration::ZERO
        }
    }

    /// Returns how long it may take until all connections are open; `None` for loads that measure this time.
    pub(crate) fn opening(&self) -> Option<Duration> {
        let opening = || self.ramp() + OPENING + OPENING_PER_CONNECTION * self.connections as u32;
        (!self.workload.ends_by_itself()).then(opening)
    }

    /// Returns the slices in which the run is measured.
    pub(crate) fn slice(&self, settings: &Settings) -> SliceLength {
        match self.workload.definition().slice {
            Some(Slice::Long(length)) => SliceLength {
                lead: length / 5,
                length,
            },
            Some(Slice::Short) | None => SliceLength {
                lead: settings.slice / 10,
                length: settings.slice,
            },
        }
    }
}

/// Lengths of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SliceLength {
    /// Time in which requests are sent but not counted: the caches of the CPU hold the data of another server.
    pub(crate) lead: Duration,
    /// Time that is counted.
    pub(crate) length: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::compare::tests::{args, settings};
    use crate::workloads::{BLOCK_RATE, defaults};

    #[test]
    fn option_that_is_given_overrides_the_default() {
        let full = settings(&[]);
        assert_eq!((full.rounds, full.few_rounds), (None, 3));
        assert_eq!(full.budget, Some(Duration::from_secs(450)));
        assert_eq!(full.workloads, defaults());
        assert_eq!(full.rounds(Workload::Max), None);
        assert_eq!(full.rounds(Workload::Crowd), Some(3));
        let quick = settings(&["--quick"]);
        assert!(quick.duration < full.duration && quick.budget < full.budget);
        let given = settings(&["--quick", "--runs", "7", "--duration", "2s"]);
        assert_eq!((given.rounds, given.few_rounds), (Some(7), 7));
        assert_eq!(given.budget, None, "a number of rounds needs no budget");
        assert_eq!(given.duration, Duration::from_secs(2));
        let both = settings(&["--rounds", "7", "--budget", "1m"]);
        assert_eq!(both.budget, Some(Duration::from_secs(60)));
        assert!(full.twins && !settings(&["--no-twins"]).twins);
        assert_eq!(settings(&["--precision", "2.5%"]).precision, 0.025);
    }

    #[test]
    fn duel_needs_two_different_models_and_has_short_slices() {
        let duel = settings(&["--duel", "mio,uring"]);
        assert_eq!(duel.slice, Duration::from_millis(5));
        assert_eq!(settings(&[]).slice, Duration::from_millis(10));
        for words in [
            &["--duel", "mio"][..],
            &["--duel", "mio,mio"],
            &["--duel", "mio,poll,spin"],
        ] {
            let wrong = Settings::of(&args(words)).unwrap_err();
            assert!(wrong.contains("--duel needs two"), "{wrong}");
        }
    }

    #[test]
    fn sweep_without_named_workloads_runs_max_and_steady() {
        let sweep = settings(&["--connections", "1000,10,100,10"]);
        assert_eq!(sweep.connections, [10, 100, 1_000]);
        assert_eq!(sweep.workloads, [Workload::Max, Workload::Steady]);
        assert_eq!(
            settings(&["--connections", "7,7"]).workloads,
            defaults(),
            "one number, given twice"
        );
        let wrong = Settings::of(&args(&["--connections", "1,2", "--workloads", "max,idle"]));
        assert!(wrong.unwrap_err().contains("idle"));
    }

    #[test]
    fn named_workloads_are_measured_in_the_order_of_the_tables() {
        let named = settings(&["--workloads", "bulk,wait,max"]);
        let wanted = [Workload::Max, Workload::Bulk, Workload::Wait];
        assert_eq!(named.workloads, wanted);
        assert_eq!(settings(&["--workloads", "all"]).workloads, Workload::ALL);
        let wrong = Settings::of(&args(&["--connections", "1,2", "--workloads", "all"]));
        assert!(wrong.unwrap_err().contains("http-13m"));
    }

    #[test]
    fn protocol_with_big_replies_is_refused_for_other_workloads() {
        for (words, part) in [
            (&["--protocol", "bulk"][..], "--workloads bulk"),
            (
                &["--protocol", "http", "--workloads", "wait"],
                "http-13b,http-13k,http-13m",
            ),
        ] {
            let wrong = Settings::of(&args(words)).unwrap_err();
            assert!(wrong.contains(part), "{wrong}");
        }
        // The protocol that the workload uses anyway may be named.
        settings(&["--protocol", "http", "--workloads", "http-13b"]);
    }

    #[test]
    fn block_ignores_rate_and_raises_duration_to_its_minimum() {
        let settings = settings(&["--rate", "9", "--duration", "1s"]);
        assert_eq!(settings.rate(Workload::Steady), 9.0);
        assert_eq!(settings.rate(Workload::Block), BLOCK_RATE);
        assert_eq!(
            settings.duration(Workload::BlockOffload),
            Workload::Block.definition().least_duration
        );
        assert_eq!(settings.duration(Workload::Wait), Duration::from_secs(1));
        // One request in ten is not a bystander, and a 99th percentile needs ten samples beyond it.
        assert!(
            BLOCK_RATE * Workload::Block.definition().least_duration.as_secs_f64() * 0.9 >= 1_000.0
        );
        const {
            assert!(
                BLOCK_RATE * 0.1 * 0.005 < 0.5,
                "one thread has half of its time left"
            );
        }
    }
}
