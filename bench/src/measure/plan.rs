//! The plan of a comparison: its cases, the amount of measuring for each, and their order.

use std::time::Duration;

use client::{Arrivals, Load};
use contract::{Capacity, Descriptors, Deviation, Guarantee, Model, Offload};
use protocol::Protocol;

use crate::format;
use crate::results::Skipped;
use crate::target::Target;
use crate::workloads::{BLOCK_LEAST, BLOCK_RATE, LIMIT, Workload};

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

/// Number of connections from which on each user of `http-13m` sends one request instead of two.
pub(crate) const MANY: usize = 1_000;

/// Bytes per second that a server sends and a client checks, roughly; used only for the estimate.
const BYTES_PER_S: f64 = 1e9;

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

/// Time that a load waits at its end for outstanding replies; used only for the estimate.
const GRACE: Duration = Duration::from_millis(250);

/// Connections of `idle`. With this number, the memory per connection is larger than the rounding of the allocator.
pub(crate) const IDLE_CONNECTIONS: usize = 1_000;

/// In `idle`, the time within which all first exchanges must be over, for each server of the batch.
const IDLE_WARM_UP: Duration = Duration::from_millis(250);

/// Number of servers that are measured in `idle` at the same time. A server that sleeps takes no CPU time from the
/// other servers, and each has a CPU clock of its own; one after the other they would take minutes.
const IDLE_TOGETHER: usize = 9;

/// Time to start and stop a server process, roughly; used only for the estimate.
const OVERHEAD: Duration = Duration::from_millis(70);

/// Options of the user, completed with the defaults.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Workloads in the order of the tables, each once.
    pub(crate) workloads: Vec<Workload>,
    /// Runs per model of all workloads except `idle`.
    pub(crate) runs: u32,
    /// Runs per model of `idle`.
    pub(crate) idle_runs: u32,
    /// Measured window of the loads that run for a time, except `idle`; see [`Settings::duration`].
    pub(crate) duration: Duration,
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
        match workload {
            Workload::Idle => &[IDLE_CONNECTIONS],
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

    /// Returns the measured window of a load that runs for a time.
    pub(crate) fn duration(&self, workload: Workload) -> Duration {
        match workload {
            Workload::Idle => self.idle_duration,
            Workload::Block | Workload::BlockOffload => self.duration.max(BLOCK_LEAST),
            _ => self.duration,
        }
    }

    /// Returns the requests per second of an open loop, over all connections.
    pub(crate) fn rate(&self, workload: Workload) -> f64 {
        match workload {
            Workload::Block | Workload::BlockOffload => BLOCK_RATE,
            _ => self.rate,
        }
    }

    /// Returns how long a load that ends by itself may take at most.
    pub(crate) fn limit(&self, workload: Workload) -> Duration {
        match workload {
            Workload::Crowd => self.patience,
            _ => LIMIT,
        }
    }

    /// Returns the number of runs per model of a workload.
    pub(crate) fn runs(&self, workload: Workload) -> u32 {
        match workload {
            Workload::Idle => self.idle_runs,
            _ => self.runs,
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
    /// Server to measure: a model or an external server.
    pub(crate) target: Target,
    /// Workload of the run.
    pub(crate) workload: Workload,
    /// Number of connections of the load.
    pub(crate) connections: usize,
    /// Seed of the client's requests.
    pub(crate) seed: u64,
    /// Number of peers that the server serves at a time by design; `None` if the connection limit is the only limit,
    /// and for an external server. See [`max_concurrent`].
    pub(crate) max_concurrent: Option<usize>,
}

impl Case {
    /// Returns whether, by design, some connections must wait until other connections end.
    pub(crate) fn exceeds_max_concurrent(&self) -> bool {
        self.max_concurrent
            .is_some_and(|most| most < self.connections)
    }

    /// Returns why the target cannot run this workload at all; `None` if it can. `small` is the protocol of the
    /// workloads that do not require a certain one.
    fn unavailable_reason(&self, small: &Protocol) -> Option<String> {
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
        match self.workload {
            Workload::Crowd => CROWD_MESSAGES.into(),
            // With few connections, one file each would arrive too fast to be measured.
            Workload::Http13m if self.connections < MANY => 2,
            _ => 1,
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
        let duration = settings.duration(self.workload);
        match self.workload {
            Workload::Crowd | Workload::Http13m | Workload::Bulk => Load::Messages {
                messages: self.messages(),
                think: if self.workload == Workload::Crowd {
                    CROWD_THINK
                } else {
                    Duration::ZERO
                },
                rounds: 1,
                limit: Some(settings.limit(self.workload)),
            },
            Workload::Steady | Workload::Block | Workload::BlockOffload => Load::Open {
                rate: settings.rate(self.workload),
                arrivals: Arrivals::Constant,
                warmup,
                duration,
            },
            Workload::Max
            | Workload::Http13b
            | Workload::Http13k
            | Workload::Wait
            | Workload::Compute => Load::Closed {
                think: Duration::ZERO,
                warmup,
                duration,
            },
            Workload::Idle => Load::Closed {
                // One exchange per connection; then the connections are idle until the end.
                think: Duration::from_secs(24 * 3600),
                warmup,
                duration,
            },
        }
    }

    fn warm_up(&self, together: usize) -> Duration {
        match self.workload {
            Workload::Idle => IDLE_WARM_UP * together as u32,
            ending if ending.ends_by_itself() => Duration::ZERO,
            _ => WARM_UP + WARM_UP_PER_CONNECTION * self.connections as u32,
        }
    }

    /// Returns the time over which the connects are spread.
    pub(crate) fn ramp(&self) -> Duration {
        // In `crowd` all clients connect at once: that is the purpose of this workload.
        if self.connections > AT_ONCE && self.workload != Workload::Crowd {
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

    /// Returns roughly how long the run takes in a batch of `together` servers.
    fn estimate(&self, settings: &Settings, together: usize) -> Duration {
        let grace = if self.exceeds_max_concurrent() {
            GRACE
        } else {
            Duration::ZERO
        };
        let load = match self.workload {
            // A server that cannot serve all clients at a time keeps the others waiting until the limit.
            Workload::Crowd if self.exceeds_max_concurrent() => settings.patience,
            Workload::Crowd => (CROWD_THINK * CROWD_MESSAGES).min(settings.patience),
            Workload::Http13m | Workload::Bulk => {
                let bytes = self.requests().zip(self.workload.reply_bytes());
                let bytes = bytes.map_or(0, |(requests, each)| requests * each);
                Duration::from_secs_f64(bytes as f64 / BYTES_PER_S).min(LIMIT)
            }
            timed => settings.duration(timed) + grace,
        };
        OVERHEAD * together as u32 + self.ramp() + self.warm_up(together) + load
    }
}

/// Cases that are measured at the same time: several in `idle`, one in every other workload.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    /// Number of the block that the batch belongs to, from 1.
    pub(crate) block: u32,
    /// Cases of the batch: at least one, all of the same workload.
    pub(crate) cases: Vec<Case>,
    /// Estimated time that the batch takes.
    pub(crate) estimate: Duration,
}

impl Batch {
    fn of(block: u32, cases: Vec<Case>, settings: &Settings) -> Batch {
        let together = cases.len();
        let longest = cases.iter().map(|case| case.estimate(settings, together));
        Batch {
            block,
            estimate: longest.max().unwrap_or_default(),
            cases,
        }
    }
}

impl Skipped {
    /// Returns the entry of a case with more connections than the model serves at a time by design.
    pub(crate) fn by_design(case: &Case) -> Skipped {
        let most = case.max_concurrent.unwrap_or_default();
        let most = format::count(most as u64);
        Skipped::because(
            case,
            format!("by design it serves at most {most} at a time"),
        )
    }

    /// Returns the entry of a case whose connections could not all be opened in an earlier run.
    pub(crate) fn full(case: &Case) -> Skipped {
        Skipped::because(
            case,
            "an earlier run could not open all connections".to_string(),
        )
    }

    /// Returns the entry of a case that is skipped for this reason.
    pub(crate) fn because(case: &Case, reason: String) -> Skipped {
        Skipped {
            model: case.target.name(),
            workload: case.workload,
            connections: case.connections,
            reason,
        }
    }
}

/// Plans all runs and returns them together with the cases that are skipped.
///
/// The runs form blocks. Each block contains every case once, in random order: a change of the machine during the
/// comparison (heat, a backup, another virtual machine) then affects all models alike and does not favour the model
/// that always runs first.
///
/// In a sweep, a model is not measured with more connections than it serves at a time by design, because the cost of
/// connections that wait is not the cost of more connections. These cases are returned as skipped.
pub(crate) fn batches(
    targets: &[Target],
    workers: impl Fn(&Model) -> usize,
    settings: &Settings,
    seed: u64,
    descriptors: Descriptors,
) -> (Vec<Batch>, Vec<Skipped>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut batches = Vec::new();
    let mut skipped = Vec::new();
    let blocks = settings.runs.max(settings.idle_runs);
    for block in 1..=blocks {
        let start = batches.len();
        let due = settings.workloads.iter().copied();
        for workload in due.filter(|workload| block <= settings.runs(*workload)) {
            for &connections in settings.connections(workload) {
                // One seed for all models, so that all receive the same requests.
                let seed = random.u64(..);
                let case = |target: &Target| Case {
                    target: target.clone(),
                    workload,
                    connections,
                    seed,
                    max_concurrent: target
                        .model()
                        .and_then(|model| max_concurrent(model, workers(model))),
                };
                let mut cases: Vec<Case> = targets.iter().map(case).collect();
                let unavailable_reason = |case: &Case| case.unavailable_reason(settings.protocol);
                if block == 1 {
                    let unavailable =
                        |case: &Case| Some(Skipped::because(case, unavailable_reason(case)?));
                    skipped.extend(cases.iter().filter_map(unavailable));
                }
                cases.retain(|case| unavailable_reason(case).is_none());
                if settings.sweep() {
                    if block == 1 {
                        let too_many = cases.iter().filter(|case| case.exceeds_max_concurrent());
                        skipped.extend(too_many.map(Skipped::by_design));
                    }
                    cases.retain(|case| !case.exceeds_max_concurrent());
                }
                // In `idle`, the batches must not have the same members in every block.
                random.shuffle(&mut cases);
                let most = match workload {
                    Workload::Idle => idle_together(descriptors),
                    _ => 1,
                };
                let (awake, asleep): (Vec<Case>, Vec<Case>) = cases
                    .into_iter()
                    .partition(|case| may_not_sleep(&case.target));
                let groups = asleep.len().div_ceil(most).max(1);
                let size = asleep.len().div_ceil(groups).max(1);
                let together = asleep.chunks(size).chain(awake.chunks(1));
                batches.extend(together.map(|cases| Batch::of(block, cases.to_vec(), settings)));
            }
        }
        random.shuffle(&mut batches[start..]);
    }
    (batches, skipped)
}

/// Returns whether the target uses, or may use, CPU time while its connections are idle, and would take it from the
/// servers of the same batch: a model that declares that it does not keep the guarantee `accept` (a server never
/// spins), or an external server, which gives no guarantees.
fn may_not_sleep(target: &Target) -> bool {
    let spins = |deviation: &Deviation| deviation.guarantee == Guarantee::Accept;
    target
        .model()
        .is_none_or(|model| model.deviations.iter().any(spins))
}

/// Returns the number of servers that the client has descriptors for at the same time in `idle`, from 1 to
/// [`IDLE_TOGETHER`].
fn idle_together(descriptors: Descriptors) -> usize {
    // Descriptors per server beside the connections: the output of the server, and those of an event loop.
    const EXTRA: u64 = 16;
    let each = IDLE_CONNECTIONS as u64 + EXTRA;
    let room = descriptors.now.map_or(u64::MAX, |now| {
        now.saturating_sub(Descriptors::SPARE) / each
    });
    room.clamp(1, IDLE_TOGETHER as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::commands::compare::tests::{args, settings};
    use crate::registry;
    use crate::target::ExternalServer;

    const UNLIMITED: Descriptors = Descriptors {
        now: None,
        most: None,
    };

    fn all(settings: &Settings, seed: u64) -> Vec<Batch> {
        batches(&all_models(), |_| 1, settings, seed, UNLIMITED).0
    }

    fn all_models() -> Vec<Target> {
        registry::models().map(Target::Model).collect()
    }

    #[test]
    fn block_contains_every_case_once_in_an_order_given_by_the_seed() {
        let settings = settings(&["--runs", "4"]);
        let order = |seed| -> Vec<_> {
            all(&settings, seed)
                .iter()
                .flat_map(|batch| batch.cases.iter().map(|case| (batch.block, case.clone())))
                .map(|(block, case)| (block, case.target.name(), case.workload, case.seed))
                .collect()
        };
        let first = order(7);
        assert_eq!(first, order(7));
        assert_ne!(first, order(8));
        let size = registry::models().count() * Workload::DEFAULT.len();
        let blocks: Vec<Vec<_>> = first
            .chunks(size)
            .map(|block| block.iter().map(|case| (case.1.clone(), case.2)).collect())
            .collect();
        assert_eq!(blocks.len(), 4);
        for (block, cases) in first.chunks(size).zip(1..) {
            assert!(block.iter().all(|case| case.0 == cases));
            let different: BTreeSet<_> = block.iter().map(|case| (&case.1, case.2)).collect();
            assert_eq!(different.len(), size);
            for &workload in Workload::DEFAULT {
                let seeds: BTreeSet<_> = block
                    .iter()
                    .filter(|case| case.2 == workload)
                    .map(|case| case.3)
                    .collect();
                assert_eq!(seeds.len(), 1, "all models receive the same requests");
            }
        }
        assert_ne!(
            blocks[0], blocks[1],
            "the order changes from block to block"
        );
    }

    #[test]
    fn idle_batches_contain_only_servers_that_sleep() {
        let settings = settings(&["--workloads", "idle"]);
        for batch in all(&settings, 7) {
            assert!(batch.cases.len() <= IDLE_TOGETHER);
            assert!(
                batch.cases.len() == 1 || !batch.cases.iter().any(|c| may_not_sleep(&c.target))
            );
        }
        let limited = |now| {
            idle_together(Descriptors {
                now: Some(now),
                most: None,
            })
        };
        assert_eq!(limited(1_024), 1);
        assert_eq!(limited(4_096), 4);
        assert_eq!(limited(1 << 20), IDLE_TOGETHER);
        // In every other workload a batch has one case.
        let settings =
            crate::commands::compare::tests::settings(&["--workloads", "crowd,max,steady"]);
        assert!(all(&settings, 7).iter().all(|batch| batch.cases.len() == 1));
    }

    #[test]
    fn option_that_is_given_overrides_the_default() {
        let full = settings(&[]);
        assert_eq!((full.runs, full.idle_runs), (3, 1));
        assert_eq!(full.workloads, Workload::DEFAULT);
        let quick = settings(&["--quick"]);
        assert!(quick.duration < full.duration);
        let given = settings(&["--quick", "--runs", "7", "--duration", "2s"]);
        assert_eq!((given.runs, given.idle_runs), (7, 7));
        assert_eq!(given.duration, Duration::from_secs(2));
    }

    #[test]
    fn sweep_without_named_workloads_runs_max_and_steady() {
        let sweep = settings(&["--connections", "1000,10,100,10"]);
        assert_eq!(sweep.connections, [10, 100, 1_000]);
        assert_eq!(sweep.workloads, [Workload::Max, Workload::Steady]);
        assert_eq!(
            settings(&["--connections", "7,7"]).workloads,
            Workload::DEFAULT,
            "one number, given twice"
        );
        let wrong = Settings::of(&args(&["--connections", "1,2", "--workloads", "max,idle"]));
        assert!(wrong.unwrap_err().contains("idle"));
    }

    #[test]
    fn sweep_skips_connections_above_max_concurrent_and_reports_each_once() {
        let models = all_models();
        let sweep = settings(&["--connections", "1,10", "--workloads", "max"]);
        let (planned, skipped) = batches(&models, |_| 5, &sweep, 7, UNLIMITED);
        let too_many = |case: &&Case| case.exceeds_max_concurrent();
        let cases: Vec<_> = planned.iter().flat_map(|batch| &batch.cases).collect();
        assert!(!cases.iter().copied().any(|case| too_many(&case)));
        let serial: Vec<_> = skipped.iter().filter(|one| one.model == "serial").collect();
        assert_eq!(serial.len(), 1);
        assert_eq!(serial[0].connections, 10);
        // A single number was chosen by the user and is measured for every model.
        let one = settings(&["--connections", "10", "--workloads", "max"]);
        let (planned, skipped) = batches(&models, |_| 5, &one, 7, UNLIMITED);
        let mut cases = planned.iter().flat_map(|batch| &batch.cases);
        assert!(cases.any(|case| too_many(&case)));
        assert!(skipped.is_empty());
    }

    /// The help states times for machines like those on which they were measured; the estimate stays below them.
    #[test]
    fn estimate_stays_below_the_time_that_the_help_states() {
        let sum = |settings: &Settings, models: &[Target]| -> Duration {
            let workers = |model: &Model| model.capacity.workers().get();
            let batches = batches(models, workers, settings, 7, UNLIMITED).0;
            batches.iter().map(|batch| batch.estimate).sum()
        };
        let models = all_models();
        let full = sum(&settings(&[]), &models);
        assert!(full < Duration::from_secs(220), "{full:?}");
        let quick: Vec<_> = (models.into_iter())
            .filter(|model| QUICK_MODELS.contains(&model.name().as_str()))
            .collect();
        assert_eq!(quick.len(), QUICK_MODELS.len(), "a model is missing");
        let quick = sum(&settings(&["--quick"]), &quick);
        assert!(quick < Duration::from_secs(85), "{quick:?}");
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
        assert_eq!(settings.duration(Workload::BlockOffload), BLOCK_LEAST);
        assert_eq!(settings.duration(Workload::Wait), Duration::from_secs(1));
        // One request in ten is not a bystander, and a 99th percentile needs ten samples beyond it.
        assert!(BLOCK_RATE * BLOCK_LEAST.as_secs_f64() * 0.9 >= 1_000.0);
        const {
            assert!(
                BLOCK_RATE * 0.1 * 0.005 < 0.5,
                "one thread has half of its time left"
            );
        }
    }

    #[test]
    fn block_offload_skips_models_that_cannot_offload() {
        let settings = settings(&["--workloads", "block,block-offload"]);
        let (planned, skipped) = batches(&all_models(), |_| 5, &settings, 7, UNLIMITED);
        let planned = |name: &str, workload| {
            let mut cases = planned.iter().flat_map(|batch| &batch.cases);
            cases.any(|case| case.target.name() == name && case.workload == workload)
        };
        for model in registry::models() {
            let nowhere = matches!(model.offload, Offload::Nowhere(_));
            let skipped: Vec<_> = skipped
                .iter()
                .filter(|one| one.model == model.name)
                .collect();
            assert_eq!(skipped.len(), usize::from(nowhere), "{}", model.name);
            assert!(
                skipped
                    .iter()
                    .all(|one| one.workload == Workload::BlockOffload)
            );
            assert!(planned(model.name, Workload::Block));
            assert_eq!(planned(model.name, Workload::BlockOffload), !nowhere);
        }
    }

    #[test]
    fn external_server_is_measured_on_workloads_of_its_protocol_without_work() {
        let external = ExternalServer::parse("mine=serve {port}").unwrap();
        let targets = [Target::ExternalServer(external)];
        let planned = |words: &[&str]| {
            let settings = settings(words);
            let (planned, skipped) = batches(&targets, |_| 5, &settings, 7, UNLIMITED);
            let measured: BTreeSet<_> = planned
                .iter()
                .map(|batch| batch.cases[0].workload)
                .collect();
            let skipped: BTreeSet<_> = skipped.iter().map(|one| one.workload).collect();
            assert_eq!(measured.len() + skipped.len(), settings.workloads.len());
            assert!(measured.is_disjoint(&skipped));
            measured
        };
        let default: BTreeSet<_> = Workload::DEFAULT.iter().copied().collect();
        assert_eq!(planned(&["--workloads", "all"]), default);
        let http = ["--protocol", "http", "--workloads", "http-13b,bulk"];
        assert_eq!(planned(&http), BTreeSet::from([Workload::Http13b]));
    }
}
