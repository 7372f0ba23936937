//! What is measured, how much of it, and in which order.

use std::time::Duration;

use client::{Arrivals, Load};
use contract::{Capacity, Descriptors, Deviation, Guarantee, Model, Offload};
use protocol::Protocol;

use super::results::Skipped;
use super::workload::{BLOCK_LEAST, BLOCK_RATE, LIMIT, Workload};
use super::{CompareArgs, ModelSelection};
use crate::target::{ExternalServer, Target};

/// How much is measured, if nobody says otherwise. Three runs show a spread. All of them together take what the
/// help guarantees, and a window max_concurrent requests enough for its percentiles.
#[derive(Debug, Clone, Copy)]
struct Extent {
    runs: u32,
    /// Of `idle`: what it tells hardly varies, and it takes long.
    idle_runs: u32,
    duration: Duration,
    patience: Duration,
}

/// All models in less than four minutes.
const FULL: Extent = Extent {
    runs: 3,
    idle_runs: 1,
    duration: Duration::from_millis(800),
    patience: Duration::from_secs(3),
};

/// The models of [`QUICK_MODELS`] in less than a minute and a half.
const QUICK: Extent = Extent {
    duration: Duration::from_millis(500),
    ..FULL
};

/// One model of each idea: one at a time, a thread for each, a few threads for all, readiness, stacks of their own,
/// tasks that move and tasks that need no runtime, completions.
pub(super) const QUICK_MODELS: [&str; 8] = [
    "serial",
    "threads",
    "pool",
    "mio",
    "coroutines",
    "tokio",
    "smol",
    "uring",
];

/// Requests per client of `crowd`, and the pause after each reply: the published original's load, in less time.
pub(super) const CROWD_MESSAGES: u32 = 10;
pub(super) const CROWD_THINK: Duration = Duration::from_millis(50);

/// From so many on, each user of `http-13m` asks once.
pub(super) const MANY: usize = 1_000;

/// What a server sends and a client checks, roughly; only for the estimate.
const BYTES_PER_S: f64 = 1e9;

/// ModelSelection but not measured: the first requests meet cold caches and threads that are just being started. Connections
/// that the kernel has completed may not be accepted yet, let alone have a process of their own.
const WARM_UP: Duration = Duration::from_millis(200);
const WARM_UP_PER_CONNECTION: Duration = Duration::from_micros(100);

/// More connections than this are not opened at once: the kernel's queue has an end, and whoever finds it full tries
/// again only after a second.
const AT_ONCE: usize = 1_000;
const RAMP_PER_CONNECTION: Duration = Duration::from_micros(100);

/// All connections must be open so long after the last was due: several times what it takes to fork that often. A server
/// that does not take them in the time has no room for them.
const OPENING: Duration = Duration::from_secs(5);
const OPENING_PER_CONNECTION: Duration = Duration::from_micros(500);

/// What a load waits at its end for replies that are owed; only for the estimate.
const GRACE: Duration = Duration::from_millis(250);

/// Connections of `idle`: enough that what each takes is more than what the allocator rounds to.
pub(super) const IDLE_CONNECTIONS: usize = 1_000;

/// In `idle`, the time for all exchanges to be over, for each server that has them at the same time.
const IDLE_WARM_UP: Duration = Duration::from_millis(250);

/// So many servers are idle at the same time. Who sleeps takes nothing from the others, and each has a CPU clock of its
/// own; one after the other they would take minutes.
const IDLE_TOGETHER: usize = 9;

/// Start and end of a server process, roughly; only for the estimate.
const OVERHEAD: Duration = Duration::from_millis(70);

/// What was asked for, with everything decided that was left open.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// In the order of the tables, each once.
    pub(super) workloads: Vec<Workload>,
    /// Of all workloads but `idle`.
    pub(super) runs: u32,
    pub(super) idle_runs: u32,
    pub(super) duration: Duration,
    pub(super) idle_duration: Duration,
    /// Of all workloads but `idle`; ascending. More than one: a sweep.
    pub(super) connections: Vec<usize>,
    pub(super) rate: f64,
    pub(super) patience: Duration,
    pub(super) protocol: &'static Protocol,
    pub(super) size: usize,
}

impl Settings {
    /// # Errors
    ///
    /// Wrong usage: what is asked for does not go together.
    pub(super) fn of(args: &CompareArgs) -> Result<Settings, String> {
        ExternalServer::distinct(&args.with)?;
        if args.with.is_empty()
            && args
                .models
                .iter()
                .any(|one| matches!(one, ModelSelection::Nobody))
        {
            return Err("--models none goes with --with: there is nobody to compare".to_string());
        }
        let extent = if args.quick { QUICK } else { FULL };
        let mut connections: Vec<usize> = args.connections.iter().map(|n| n.get()).collect();
        connections.sort_unstable();
        connections.dedup();
        let asked = args.workloads.concat();
        let sweep = connections.len() > 1;
        if let Some(other) = asked.iter().find(|one| sweep && !one.sweeps()) {
            return Err(format!(
                "{other} is measured with one number of connections; several go with {}",
                names(|one| one.sweeps())
            ));
        }
        let wanted = |one: &Workload| match asked.is_empty() {
            true => Workload::DEFAULT.contains(one) && (one.sweeps() || !sweep),
            false => asked.contains(one),
        };
        let workloads: Vec<Workload> = Workload::ALL.iter().copied().filter(wanted).collect();
        // So many requests per second, of so many bytes: none of that goes with big replies.
        let protocol = args.protocol.name;
        let own = names(|one| one.own_protocol() == Some(protocol));
        let other = workloads.iter().find(|one| one.own_protocol().is_none());
        if let Some(other) = other.filter(|_| !own.is_empty()) {
            return Err(format!(
                "{other} is for protocols with small messages; {protocol} has workloads of its own: --workloads {own}"
            ));
        }
        Ok(Settings {
            workloads,
            runs: args.runs.unwrap_or(extent.runs),
            idle_runs: args.runs.unwrap_or(extent.idle_runs),
            duration: args.duration.unwrap_or(extent.duration),
            idle_duration: args.idle_duration,
            connections,
            rate: args.rate,
            patience: args.patience.unwrap_or(extent.patience),
            protocol: args.protocol,
            size: args.size,
        })
    }

    /// Whether there is more than one number of connections.
    pub(super) fn sweep(&self) -> bool {
        self.connections.len() > 1
    }

    /// The numbers of connections of a workload.
    pub(super) fn connections(&self, workload: Workload) -> &[usize] {
        match workload {
            Workload::Idle => &[IDLE_CONNECTIONS],
            _ => &self.connections,
        }
    }

    /// The largest of all.
    pub(super) fn most_connections(&self) -> usize {
        let all = self.workloads.iter();
        all.flat_map(|&workload| self.connections(workload))
            .copied()
            .max()
            .unwrap_or(0)
    }

    /// The measured window of a load that runs for a time.
    pub(super) fn duration(&self, workload: Workload) -> Duration {
        match workload {
            Workload::Idle => self.idle_duration,
            Workload::Block | Workload::BlockOffload => self.duration.max(BLOCK_LEAST),
            _ => self.duration,
        }
    }

    /// Requests per second of an open loop.
    pub(super) fn rate(&self, workload: Workload) -> f64 {
        match workload {
            Workload::Block | Workload::BlockOffload => BLOCK_RATE,
            _ => self.rate,
        }
    }

    /// How long a load that has an end may take.
    pub(super) fn limit(&self, workload: Workload) -> Duration {
        match workload {
            Workload::Crowd => self.patience,
            _ => LIMIT,
        }
    }

    pub(super) fn runs(&self, workload: Workload) -> u32 {
        match workload {
            Workload::Idle => self.idle_runs,
            _ => self.runs,
        }
    }
}

/// The workloads that are wanted, as on the command line.
fn names(wanted: impl Fn(&Workload) -> bool) -> String {
    let wanted = Workload::ALL.iter().copied().filter(wanted);
    wanted.map(Workload::name).collect::<Vec<_>>().join(",")
}

/// How many peers a model converses with at a time by design, if it is told to have so many workers; `None`: as many as
/// `--max-connections` lets in.
pub(super) fn max_concurrent(model: &Model, workers: usize) -> Option<usize> {
    match model.capacity {
        Capacity::One => Some(1),
        Capacity::Workers => Some(workers),
        // At least; who wants to know how many of the others there are must count them while it runs.
        Capacity::Descriptors(most) => Some(most.saturating_sub(Descriptors::SPARE as usize)),
        Capacity::Limit | Capacity::Shares => None,
    }
}

/// One run to come: a fresh server process under one load.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// Who serves: a model, or an external server.
    pub(super) target: Target,
    pub(super) workload: Workload,
    pub(super) connections: usize,
    /// Of the client's requests.
    pub(super) seed: u64,
    /// See [`max_concurrent`].
    pub(super) max_concurrent: Option<usize>,
}

impl Case {
    /// Whether some of its connections must wait for others to end.
    pub(super) fn is_short(&self) -> bool {
        self.max_concurrent
            .is_some_and(|most| most < self.connections)
    }

    /// Why it can't do this at all, if it can't; `small` is what is said where that is open.
    fn unavailable_reason(&self, small: &Protocol) -> Option<String> {
        match self.target.model().map(|model| model.offload) {
            Some(Offload::Nowhere(why)) if self.workload.offloads() => {
                Some(format!("there is nowhere to move work to: {why}"))
            }
            Some(_) => None,
            // Whoever started it chose its protocol, and it can't be told another.
            None if self.workload.protocol_differs(small) => Some(format!(
                "{} is over another protocol than --protocol {}, and it is an external server",
                self.workload, small.name
            )),
            None if self.workload.works() => Some(format!(
                "before the replies of {} there is work to do, and only our own models can be told to",
                self.workload
            )),
            None => None,
        }
    }

    /// Requests of each client, of a load that has an end.
    fn messages(&self) -> u64 {
        match self.workload {
            Workload::Crowd => CROWD_MESSAGES.into(),
            // Few take the file so soon that one each would be measured in a blink.
            Workload::Http13m if self.connections < MANY => 2,
            _ => 1,
        }
    }

    /// Requests in all, of a load that has an end.
    pub(super) fn requests(&self) -> Option<u64> {
        let requests = || self.connections as u64 * self.messages();
        self.workload.has_an_end().then(requests)
    }

    pub(super) fn load(&self, settings: &Settings, together: usize) -> Load {
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
                // One exchange, and then silence until the end.
                think: Duration::from_secs(24 * 3600),
                warmup,
                duration,
            },
        }
    }

    fn warm_up(&self, together: usize) -> Duration {
        match self.workload {
            Workload::Idle => IDLE_WARM_UP * together as u32,
            with_end if with_end.has_an_end() => Duration::ZERO,
            _ => WARM_UP + WARM_UP_PER_CONNECTION * self.connections as u32,
        }
    }

    /// Over how long the connects are spread.
    pub(super) fn ramp(&self) -> Duration {
        // The crowd comes at once: that is what it is about.
        if self.connections > AT_ONCE && self.workload != Workload::Crowd {
            RAMP_PER_CONNECTION * self.connections as u32
        } else {
            Duration::ZERO
        }
    }

    /// How long it may take until all connections are open; `None` where that is measured.
    pub(super) fn opening(&self) -> Option<Duration> {
        let opening = || self.ramp() + OPENING + OPENING_PER_CONNECTION * self.connections as u32;
        (!self.workload.has_an_end()).then(opening)
    }

    /// How long it takes, roughly, beside so many others.
    fn estimate(&self, settings: &Settings, together: usize) -> Duration {
        let grace = if self.is_short() {
            GRACE
        } else {
            Duration::ZERO
        };
        let load = match self.workload {
            // Whoever cannot hold all clients at a time lets them wait.
            Workload::Crowd if self.is_short() => settings.patience,
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

/// Runs that are measured at the same time: one, or of `idle` several.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    /// From 1.
    pub(super) block: u32,
    /// At least one; all of one workload.
    pub(super) cases: Vec<Case>,
    pub(super) estimate: Duration,
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

/// All runs, in blocks that hold each model and workload once, in random order. So whatever changes on the machine
/// meanwhile (heat, a backup, a neighbour) meets all models alike, and does not favour the one that was always first.
///
/// In a sweep, a model is not asked with more connections than it max_concurrent by design: what it costs to let the others wait
/// is not the cost of more connections. What is left out for that is told.
pub(super) fn batches(
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
                // The same requests for all models.
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
                    let cannot =
                        |case: &Case| Some(Skipped::because(case, unavailable_reason(case)?));
                    skipped.extend(cases.iter().filter_map(cannot));
                }
                cases.retain(|case| unavailable_reason(case).is_none());
                if settings.sweep() {
                    if block == 1 {
                        let short = cases.iter().filter(|case| case.is_short());
                        skipped.extend(short.map(Skipped::by_design));
                    }
                    cases.retain(|case| !case.is_short());
                }
                // So that in `idle` nobody always has the same company.
                random.shuffle(&mut cases);
                let most = match workload {
                    Workload::Idle => idle_together(descriptors),
                    _ => 1,
                };
                let (restless, quiet): (Vec<Case>, Vec<Case>) = cases
                    .into_iter()
                    .partition(|case| may_not_sleep(&case.target));
                let groups = quiet.len().div_ceil(most).max(1);
                let size = quiet.len().div_ceil(groups).max(1);
                let together = quiet.chunks(size).chain(restless.chunks(1));
                batches.extend(together.map(|cases| Batch::of(block, cases.to_vec(), settings)));
            }
        }
        random.shuffle(&mut batches[start..]);
    }
    (batches, skipped)
}

/// Whether it would, or might, take the CPU from those who are idle beside it: it does not keep the guarantee that a
/// server never spins, or has not given it.
fn may_not_sleep(target: &Target) -> bool {
    let spins = |deviation: &Deviation| deviation.guarantee == Guarantee::Accept;
    target
        .model()
        .is_none_or(|model| model.deviations.iter().any(spins))
}

/// How many servers of `idle` the client has descriptors for at a time.
fn idle_together(descriptors: Descriptors) -> usize {
    // Beside the connections: the server's output, and what an event loop waits with.
    const OTHERS: u64 = 16;
    let each = IDLE_CONNECTIONS as u64 + OTHERS;
    let room = descriptors.now.map_or(u64::MAX, |now| {
        now.saturating_sub(Descriptors::SPARE) / each
    });
    room.clamp(1, IDLE_TOGETHER as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::compare::tests::{args, settings};
    use crate::registry;

    const PLENTY: Descriptors = Descriptors {
        now: None,
        most: None,
    };

    fn all(settings: &Settings, seed: u64) -> Vec<Batch> {
        batches(&everybody(), |_| 1, settings, seed, PLENTY).0
    }

    fn everybody() -> Vec<Target> {
        registry::models().map(Target::Model).collect()
    }

    #[test]
    fn every_block_holds_everything_once_and_the_seed_decides_the_order() {
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
                assert_eq!(seeds.len(), 1, "all models are asked the same");
            }
        }
        assert_ne!(
            blocks[0], blocks[1],
            "the order changes from block to block"
        );
    }

    #[test]
    fn only_those_who_sleep_are_idle_together() {
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
        // Nothing else is measured in company.
        let settings = super::super::tests::settings(&["--workloads", "crowd,max,steady"]);
        assert!(all(&settings, 7).iter().all(|batch| batch.cases.len() == 1));
    }

    #[test]
    fn what_is_open_is_decided_by_the_extent_and_what_is_said_overrides_it() {
        let full = settings(&[]);
        assert_eq!((full.runs, full.idle_runs), (3, 1));
        assert_eq!(full.workloads, Workload::DEFAULT);
        let quick = settings(&["--quick"]);
        assert!(quick.duration < full.duration);
        let said = settings(&["--quick", "--runs", "7", "--duration", "2s"]);
        assert_eq!((said.runs, said.idle_runs), (7, 7));
        assert_eq!(said.duration, Duration::from_secs(2));
    }

    #[test]
    fn several_numbers_of_connections_sweep_max_and_steady() {
        let sweep = settings(&["--connections", "1000,10,100,10"]);
        assert_eq!(sweep.connections, [10, 100, 1_000]);
        assert_eq!(sweep.workloads, [Workload::Max, Workload::Steady]);
        assert_eq!(
            settings(&["--connections", "7,7"]).workloads,
            Workload::DEFAULT,
            "one number, said twice"
        );
        let wrong = Settings::of(&args(&["--connections", "1,2", "--workloads", "max,idle"]));
        assert!(wrong.unwrap_err().contains("idle"));
    }

    #[test]
    fn a_sweep_leaves_out_whom_a_model_cannot_hold_and_says_so_once() {
        let models = everybody();
        let sweep = settings(&["--connections", "1,10", "--workloads", "max"]);
        let (planned, skipped) = batches(&models, |_| 5, &sweep, 7, PLENTY);
        let short = |case: &&Case| case.is_short();
        let cases: Vec<_> = planned.iter().flat_map(|batch| &batch.cases).collect();
        assert!(!cases.iter().copied().any(|case| short(&case)));
        let serial: Vec<_> = skipped.iter().filter(|one| one.model == "serial").collect();
        assert_eq!(serial.len(), 1);
        assert_eq!(serial[0].connections, 10);
        // One number is asked for because somebody wants to see it.
        let one = settings(&["--connections", "10", "--workloads", "max"]);
        let (planned, skipped) = batches(&models, |_| 5, &one, 7, PLENTY);
        let mut cases = planned.iter().flat_map(|batch| &batch.cases);
        assert!(cases.any(|case| short(&case)));
        assert!(skipped.is_empty());
    }

    /// What the help guarantees for all models on a machine like the ones it was measured on, with something to spare.
    #[test]
    fn the_plan_keeps_to_its_time() {
        let sum = |settings: &Settings, models: &[Target]| -> Duration {
            let workers = |model: &Model| model.capacity.workers().get();
            let batches = batches(models, workers, settings, 7, PLENTY).0;
            batches.iter().map(|batch| batch.estimate).sum()
        };
        let models = everybody();
        let full = sum(&settings(&[]), &models);
        assert!(full < Duration::from_secs(220), "{full:?}");
        let quick: Vec<_> = (models.into_iter())
            .filter(|model| QUICK_MODELS.contains(&model.name().as_str()))
            .collect();
        assert_eq!(quick.len(), QUICK_MODELS.len(), "one is not there");
        let quick = sum(&settings(&["--quick"]), &quick);
        assert!(quick < Duration::from_secs(85), "{quick:?}");
    }

    #[test]
    fn only_the_first_four_are_measured_unasked() {
        let named = settings(&["--workloads", "bulk,wait,max"]);
        let wanted = [Workload::Max, Workload::Bulk, Workload::Wait];
        assert_eq!(named.workloads, wanted);
        assert_eq!(settings(&["--workloads", "all"]).workloads, Workload::ALL);
        let wrong = Settings::of(&args(&["--connections", "1,2", "--workloads", "all"]));
        assert!(wrong.unwrap_err().contains("http-13m"));
    }

    #[test]
    fn protocols_with_big_replies_have_workloads_of_their_own() {
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
        // Said twice, and right.
        settings(&["--protocol", "http", "--workloads", "http-13b"]);
    }

    #[test]
    fn block_has_a_rate_of_its_own_and_time_enough() {
        let settings = settings(&["--rate", "9", "--duration", "1s"]);
        assert_eq!(settings.rate(Workload::Steady), 9.0);
        assert_eq!(settings.rate(Workload::Block), BLOCK_RATE);
        assert_eq!(settings.duration(Workload::BlockOffload), BLOCK_LEAST);
        assert_eq!(settings.duration(Workload::Wait), Duration::from_secs(1));
        // One request in ten is not of the others, and a 99th percentile needs ten samples beyond.
        assert!(BLOCK_RATE * BLOCK_LEAST.as_secs_f64() * 0.9 >= 1_000.0);
        const {
            assert!(
                BLOCK_RATE * 0.1 * 0.005 < 0.5,
                "one thread has half of its time left"
            );
        }
    }

    #[test]
    fn who_has_nowhere_to_move_work_to_is_left_out_and_told() {
        let settings = settings(&["--workloads", "block,block-offload"]);
        let (planned, skipped) = batches(&everybody(), |_| 5, &settings, 7, PLENTY);
        let planned = |name: &str, workload| {
            let mut cases = planned.iter().flat_map(|batch| &batch.cases);
            cases.any(|case| case.target.name() == name && case.workload == workload)
        };
        for model in registry::models() {
            let nowhere = matches!(model.offload, Offload::Nowhere(_));
            let told: Vec<_> = skipped
                .iter()
                .filter(|one| one.model == model.name)
                .collect();
            assert_eq!(told.len(), usize::from(nowhere), "{}", model.name);
            assert!(
                told.iter()
                    .all(|one| one.workload == Workload::BlockOffload)
            );
            assert!(planned(model.name, Workload::Block));
            assert_eq!(planned(model.name, Workload::BlockOffload), !nowhere);
        }
    }

    #[test]
    fn who_comes_from_outside_is_asked_for_what_it_speaks() {
        let external = ExternalServer::parse("mine=serve {port}").unwrap();
        let targets = [Target::ExternalServer(external)];
        let planned = |words: &[&str]| {
            let settings = settings(words);
            let (planned, skipped) = batches(&targets, |_| 5, &settings, 7, PLENTY);
            let asked: BTreeSet<_> = planned
                .iter()
                .map(|batch| batch.cases[0].workload)
                .collect();
            let told: BTreeSet<_> = skipped.iter().map(|one| one.workload).collect();
            assert_eq!(asked.len() + told.len(), settings.workloads.len());
            assert!(asked.is_disjoint(&told));
            asked
        };
        let usual: BTreeSet<_> = Workload::DEFAULT.iter().copied().collect();
        assert_eq!(planned(&["--workloads", "all"]), usual);
        let http = ["--protocol", "http", "--workloads", "http-13b,bulk"];
        assert_eq!(planned(&http), BTreeSet::from([Workload::Http13b]));
    }
}
