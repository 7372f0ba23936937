//! The contests of a comparison: which servers are measured beside each other, in which batches, and when a contest
//! has been measured enough.

use std::time::{Duration, Instant};

use contract::{Descriptors, Deviation, Guarantee, Model};

use crate::format;
use crate::measure::plan::{Case, IDLE_TOGETHER, Settings, max_concurrent};
use crate::null_server;
use crate::results::summary::{self, Summary};
use crate::results::{Method, Results, Role, Skipped};
use crate::statistics::{ranking, stopping};
use crate::target::Target;
use crate::workloads::{IDLE_CONNECTIONS, Workload};

/// Number of connections from which on a load is measured as a whole: to connect them takes longer than to load them.
pub(crate) const MANY_CONNECTIONS: usize = 1_000;

/// Models that are measured twice, if they take part: one of each kind, and both are cheap to measure.
const TWINS: [&str; 2] = ["mio", "tokio"];

/// Number of models that are measured twice.
const TWIN_COUNT: usize = 2;

/// Servers that are compared under one workload with one number of connections.
#[derive(Debug, Clone)]
pub(crate) struct Contest {
    pub(crate) workload: Workload,
    pub(crate) connections: usize,
    pub(crate) entries: Vec<Entry>,
    /// Number of rounds that were measured.
    pub(crate) rounds: u32,
    /// Reason why no further round is measured; `None`: one may be.
    pub(crate) end: Option<End>,
    /// Time that the rounds took.
    spent: Duration,
    /// Number of batches that were measured once more because the machine was disturbed.
    pub(crate) repeats: u32,
}

/// Server that takes part in a contest.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) target: Target,
    pub(crate) role: Role,
    pub(crate) method: Method,
    /// Number of peers that the server serves at a time by design; see [`max_concurrent`].
    max_concurrent: Option<usize>,
    /// False once the server is so much worse than the best that no further round is needed, or cannot open its
    /// connections.
    pub(crate) active: bool,
}

/// Reason why a contest is not measured further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All rounds were measured.
    Rounds,
    /// The intervals are narrow enough.
    Precise,
    /// The next round would have ended after the budget.
    Budget,
}

/// Cases that are measured at the same time, with a fresh server process each.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    /// Number of the round that the batch belongs to, from 1.
    pub(crate) round: u32,
    /// 1, or 2 if the batch is measured once more.
    pub(crate) attempt: u32,
    /// Cases of the batch: at least one, all of the same workload and method.
    pub(crate) cases: Vec<Case>,
}

impl Batch {
    /// Returns whether the batch is measured in slices.
    pub(crate) fn in_slices(&self) -> bool {
        self.cases.iter().any(|case| case.method == Method::Slices)
    }
}

impl Skipped {
    fn by_design(case: &Case) -> Skipped {
        let most = format::count(case.max_concurrent.unwrap_or_default() as u64);
        Skipped::because(
            case,
            format!("by design it serves at most {most} at a time"),
        )
    }

    /// Returns the reason for a case that is left out because its connections could not be opened.
    pub(crate) fn full(case: &Case) -> Skipped {
        Skipped::because(
            case,
            "an earlier run could not open so many connections".to_string(),
        )
    }

    fn because(case: &Case, reason: String) -> Skipped {
        Skipped {
            model: case.target.name(),
            workload: case.workload,
            connections: case.connections,
            reason,
        }
    }
}

/// Returns the contests of a comparison, and the cases that are skipped.
///
/// In a sweep, a model is not measured with more connections than it serves at a time by design, because the cost of
/// connections that wait is not the cost of more connections. These cases are returned as skipped.
pub(crate) fn contests(
    targets: &[Target],
    workers: impl Fn(&Model) -> usize,
    settings: &Settings,
) -> (Vec<Contest>, Vec<Skipped>) {
    let mut contests = Vec::new();
    let mut skipped = Vec::new();
    for &workload in &settings.workloads {
        for &connections in settings.connections(workload) {
            let mut contest = Contest {
                workload,
                connections,
                entries: Vec::new(),
                rounds: 0,
                end: None,
                spent: Duration::ZERO,
                repeats: 0,
            };
            for target in targets {
                let entry = Entry {
                    target: target.clone(),
                    role: Role::Model,
                    method: Method::Whole,
                    max_concurrent: target
                        .model()
                        .and_then(|model| max_concurrent(model, workers(model))),
                    active: true,
                };
                let case = contest.case(&entry, 0);
                if let Some(reason) = case.unavailable_reason(settings.protocol) {
                    skipped.push(Skipped::because(&case, reason));
                } else if settings.sweep() && case.exceeds_max_concurrent() {
                    skipped.push(Skipped::by_design(&case));
                } else {
                    contest.entries.push(Entry {
                        method: method(&case),
                        ..entry
                    });
                }
            }
            contest.add_twins(settings);
            contest.add_anchor(settings);
            if contest.models().next().is_some() {
                contests.push(contest);
            }
        }
    }
    (contests, skipped)
}

/// Returns how a case is measured. A load that ends by itself, a load with so many connections that opening them takes
/// longer than the load, and a load of which some requests are never answered do not fit in slices, and neither does a
/// model whose cost is another one after each pause.
fn method(case: &Case) -> Method {
    let sliced = case.workload.definition().slice.is_some();
    let model = case.target.model();
    let fits = sliced && !model.is_some_and(|model| model.needs.load_without_pauses);
    if fits && case.connections < MANY_CONNECTIONS && !case.exceeds_max_concurrent() {
        Method::Slices
    } else {
        Method::Whole
    }
}

/// Returns whether the target uses, or may use, CPU time while its connections are idle: a model that declares that it
/// does not keep the guarantee `accept` (a server never spins), or an external server, which gives no guarantees.
pub(crate) fn may_not_sleep(target: &Target) -> bool {
    target
        .model()
        .map_or(!matches!(target, Target::Null), spins)
}

/// Returns whether a model never sleeps, by its own declaration.
pub(crate) fn spins(model: &Model) -> bool {
    let spins = |deviation: &Deviation| deviation.guarantee == Guarantee::Accept;
    model.deviations.iter().any(spins)
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

impl Contest {
    /// Returns the name of the contest: its workload and, in a sweep, the number of connections.
    pub(crate) fn name(&self, sweep: bool) -> String {
        if sweep {
            let connections = format::count(self.connections as u64);
            format!("{} with {connections} connections", self.workload)
        } else {
            self.workload.to_string()
        }
    }

    /// Returns the entries that are compared.
    pub(crate) fn models(&self) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .filter(|entry| entry.role == Role::Model)
    }

    fn is_in_slices(&self) -> bool {
        self.models().any(|entry| entry.method == Method::Slices)
    }

    /// Adds a twin of two models. Without slices there are too few rounds to tell twins apart.
    fn add_twins(&mut self, settings: &Settings) {
        if !settings.twins || !self.is_in_slices() {
            return;
        }
        let mut candidates: Vec<Entry> = self
            .models()
            .filter(|entry| {
                entry.method == Method::Slices && matches!(entry.target, Target::Model(_))
            })
            .cloned()
            .collect();
        candidates.sort_by_key(|entry| {
            let name = entry.target.name();
            TWINS
                .iter()
                .position(|twin| *twin == name)
                .unwrap_or(TWINS.len())
        });
        let twins = candidates.into_iter().take(TWIN_COUNT);
        self.entries.extend(twins.map(|entry| Entry {
            role: Role::Twin,
            ..entry
        }));
    }

    /// Adds the null server, if it speaks the protocol.
    fn add_anchor(&mut self, settings: &Settings) {
        let protocol = self.workload.protocol(settings.protocol);
        let small = self.workload.own_protocol().is_none() && !self.workload.has_work();
        if self.is_in_slices() && small && null_server::speaks(protocol) {
            self.entries.push(Entry {
                target: Target::Null,
                role: Role::Anchor,
                method: Method::Slices,
                max_concurrent: None,
                active: true,
            });
        }
    }

    fn case(&self, entry: &Entry, seed: u64) -> Case {
        Case {
            target: entry.target.clone(),
            role: entry.role,
            method: entry.method,
            workload: self.workload,
            connections: self.connections,
            seed,
            max_concurrent: entry.max_concurrent,
            burn: None,
        }
    }

    /// Returns the batches of the next round: every active entry once, in random order, and all with the same requests.
    pub(crate) fn next_round(
        &self,
        random: &mut fastrand::Rng,
        descriptors: Descriptors,
    ) -> Vec<Batch> {
        let seed = random.u64(..);
        let mut cases: Vec<Case> = self
            .entries
            .iter()
            .filter(|entry| entry.active)
            .map(|entry| self.case(entry, seed))
            .collect();
        // In `idle`, the batches must not have the same members in every round.
        random.shuffle(&mut cases);
        let (slices, whole): (Vec<Case>, Vec<Case>) = cases
            .into_iter()
            .partition(|case| case.method == Method::Slices);
        let most = match self.workload {
            Workload::Idle => idle_together(descriptors),
            _ => 1,
        };
        let (awake, asleep): (Vec<Case>, Vec<Case>) = whole
            .into_iter()
            .partition(|case| may_not_sleep(&case.target));
        let groups = asleep.len().div_ceil(most).max(1);
        let size = asleep.len().div_ceil(groups).max(1);
        let mut batches: Vec<Vec<Case>> = asleep
            .chunks(size)
            .chain(awake.chunks(1))
            .map(<[Case]>::to_vec)
            .collect();
        // Without a model there is nothing to compare the twins and the null server with.
        if slices.iter().any(|case| case.role == Role::Model) {
            batches.push(slices);
        }
        random.shuffle(&mut batches);
        let batch = |cases| Batch {
            round: self.rounds + 1,
            attempt: 1,
            cases,
        };
        batches.into_iter().map(batch).collect()
    }

    /// Returns how long the next round takes, judged by the earlier ones; zero if there are none.
    pub(crate) fn expected(&self) -> Duration {
        self.spent
            .checked_div(self.rounds)
            .unwrap_or(Duration::ZERO)
    }

    /// Ends the contest if its next round would end after `deadline`. The first round is always measured.
    pub(crate) fn check_budget(&mut self, deadline: Option<Instant>) {
        let late = |deadline: Instant| Instant::now() + self.expected() > deadline;
        if self.rounds > 0 && self.end.is_none() && deadline.is_some_and(late) {
            self.end = Some(End::Budget);
        }
    }

    /// Counts a round that was measured, and decides whether the contest needs another.
    ///
    /// The decision depends on the width of the intervals and never on whether models differ: to measure until they do
    /// would find differences where there are none.
    pub(crate) fn round_measured(
        &mut self,
        took: Duration,
        settings: &Settings,
        results: &Results,
    ) {
        self.rounds += 1;
        self.spent += took;
        if let Some(rounds) = settings.rounds(self.workload) {
            if self.rounds >= rounds {
                self.end = Some(End::Rounds);
            }
            return;
        }
        if !stopping::is_look(self.rounds as usize) {
            return;
        }
        if self
            .half_width(results)
            .is_some_and(|width| width <= settings.precision)
        {
            self.end = Some(End::Precise);
        }
        self.drop_out(settings, results);
    }

    fn summaries<'r>(&self, results: &'r Results) -> Vec<&'r Summary> {
        results
            .summary
            .iter()
            .filter(|one| one.workload == self.workload && one.connections == self.connections)
            .collect()
    }

    /// Returns the widest interval of a ratio to the best, as half of its width; `None` if no interval is known.
    pub(crate) fn half_width(&self, results: &Results) -> Option<f64> {
        let metric = self.workload.main_metric();
        let better = metric.better(self.workload)?;
        let rows = summary::rows(results, metric, &self.summaries(results));
        let active = rows.iter().filter(|(name, _)| self.is_active(name));
        let rows: Vec<ranking::Row<'_>> = active.map(|(_, values)| values.row()).collect();
        stopping::half_width(&rows, better, &ranking::Settings::default())
    }

    fn is_active(&self, name: &str) -> bool {
        self.models()
            .any(|entry| entry.active && entry.target.name() == name)
    }

    /// Leaves out the models that are far worse than the best and whose ratio is known as precisely as was asked for.
    fn drop_out(&mut self, settings: &Settings, results: &Results) {
        let metric = self.workload.main_metric();
        let Some(better) = metric.better(self.workload) else {
            return;
        };
        let summaries = self.summaries(results);
        let rows = summary::rows(results, metric, &summaries);
        let values: Vec<ranking::Row<'_>> = rows.iter().map(|(_, values)| values.row()).collect();
        let far = stopping::drops_out(&values, better, &ranking::Settings::default());
        for ((name, _), far) in rows.iter().zip(far) {
            let ratio = summaries
                .iter()
                .find(|summary| summary.model == *name)
                .and_then(|summary| summary.figure(metric)?.ratio_to_best);
            let known = ratio.is_some_and(|ratio| ratio.half_width() <= settings.precision);
            if far && known {
                for entry in &mut self.entries {
                    if entry.target.name() == *name && entry.role == Role::Model {
                        entry.active = false;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::commands::compare::tests::settings;
    use crate::registry;
    use crate::results::metric::Metric;
    use crate::results::tests::{full, run};
    use crate::target::ExternalServer;
    use crate::workloads::defaults;

    const UNLIMITED: Descriptors = Descriptors {
        now: None,
        most: None,
    };

    fn all_models() -> Vec<Target> {
        registry::models().map(Target::Model).collect()
    }

    fn models(names: &[&str]) -> Vec<Target> {
        let find = |name: &&str| Target::Model(registry::find(name).unwrap());
        names.iter().map(find).collect()
    }

    fn planned(targets: &[Target], words: &[&str]) -> (Vec<Contest>, Vec<Skipped>) {
        contests(targets, |_| 5, &settings(words))
    }

    fn round(contest: &Contest, seed: u64) -> Vec<Batch> {
        contest.next_round(&mut fastrand::Rng::with_seed(seed), UNLIMITED)
    }

    fn names(batches: &[Batch]) -> Vec<(String, Role)> {
        let cases = batches.iter().flat_map(|batch| &batch.cases);
        cases.map(|case| (case.target.name(), case.role)).collect()
    }

    #[test]
    fn round_contains_every_model_once_in_an_order_given_by_the_seed() {
        let (contests, skipped) = planned(&all_models(), &[]);
        assert!(skipped.is_empty());
        let workloads: Vec<Workload> = contests.iter().map(|one| one.workload).collect();
        assert_eq!(workloads, defaults());
        for contest in &contests {
            let first = names(&round(contest, 7));
            assert_eq!(first, names(&round(contest, 7)));
            assert_ne!(first, names(&round(contest, 8)));
            let of_role = |role| first.iter().filter(|one| one.1 == role).count();
            let different: BTreeSet<_> = first
                .iter()
                .filter(|one| one.1 == Role::Model)
                .map(|one| &one.0)
                .collect();
            assert_eq!(different.len(), registry::models().count());
            assert_eq!(of_role(Role::Model), registry::models().count());
            let slices = contest.is_in_slices();
            assert_eq!(of_role(Role::Twin), if slices { 2 } else { 0 });
            assert_eq!(of_role(Role::Anchor), usize::from(slices));
            let seeds: BTreeSet<u64> = round(contest, 7)
                .iter()
                .flat_map(|batch| batch.cases.iter().map(|case| case.seed))
                .collect();
            assert_eq!(seeds.len(), 1, "all models receive the same requests");
        }
    }

    #[test]
    fn slices_take_in_what_fits_and_the_rest_is_measured_as_a_whole() {
        let method = |words: &[&str], model: &str| {
            let (contests, _) = planned(&all_models(), words);
            let mut entries = contests[0].models();
            entries
                .find(|entry| entry.target.name() == model)
                .unwrap()
                .method
        };
        assert_eq!(method(&["--workloads", "max"], "mio"), Method::Slices);
        assert_eq!(method(&["--workloads", "steady"], "fork"), Method::Slices);
        // It serves one connection, and the others would never be answered.
        assert_eq!(method(&["--workloads", "max"], "serial"), Method::Whole);
        // After each pause it costs more.
        assert_eq!(method(&["--workloads", "max"], "smol"), Method::Whole);
        assert_eq!(method(&["--workloads", "crowd"], "mio"), Method::Whole);
        assert_eq!(method(&["--workloads", "bulk"], "mio"), Method::Whole);
        let many = ["--workloads", "max", "--connections", "1000"];
        assert_eq!(method(&many, "mio"), Method::Whole);
    }

    #[test]
    fn batches_as_a_whole_have_one_server_but_in_idle_those_that_sleep_are_together() {
        let (contests, _) = planned(&all_models(), &["--workloads", "crowd,idle"]);
        assert!(
            round(&contests[0], 7)
                .iter()
                .all(|batch| batch.cases.len() == 1)
        );
        for batch in round(&contests[1], 7) {
            assert!(batch.cases.len() <= IDLE_TOGETHER);
            let awake = |case: &Case| may_not_sleep(&case.target);
            assert!(batch.cases.len() == 1 || !batch.cases.iter().any(awake));
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
    }

    #[test]
    fn null_server_is_measured_where_it_speaks_the_protocol() {
        let anchored = |words: &[&str]| {
            let (contests, _) = planned(&all_models(), words);
            contests[0]
                .entries
                .iter()
                .any(|entry| entry.role == Role::Anchor)
        };
        assert!(anchored(&["--workloads", "max"]));
        assert!(anchored(&["--workloads", "max", "--protocol", "echo"]));
        assert!(!anchored(&["--workloads", "http-13b"]));
        assert!(!anchored(&["--workloads", "wait"]), "it does no work");
        assert!(!anchored(&["--workloads", "crowd"]));
    }

    #[test]
    fn twins_are_of_models_in_slices_alone() {
        let twins = |targets: &[Target], words: &[&str]| -> Vec<String> {
            let (contests, _) = planned(targets, words);
            let entries = contests[0].entries.iter();
            let twins = entries.filter(|entry| entry.role == Role::Twin);
            twins.map(|entry| entry.target.name()).collect()
        };
        let max = ["--workloads", "max"];
        assert_eq!(twins(&all_models(), &max), ["mio", "tokio"]);
        assert_eq!(twins(&models(&["serial", "poll"]), &max), ["poll"]);
        assert!(twins(&all_models(), &["--workloads", "max", "--no-twins"]).is_empty());
        let external = ExternalServer::parse("mine=serve {port}").unwrap();
        assert!(twins(&[Target::ExternalServer(external)], &max).is_empty());
    }

    #[test]
    fn sweep_skips_connections_above_max_concurrent_and_reports_each_once() {
        let sweep = ["--connections", "1,10", "--workloads", "max"];
        let (contests, skipped) = planned(&all_models(), &sweep);
        assert_eq!(contests.len(), 2);
        for contest in &contests {
            let batches = round(contest, 7);
            let cases = batches.iter().flat_map(|batch| &batch.cases);
            assert!(!cases.into_iter().any(Case::exceeds_max_concurrent));
        }
        let serial: Vec<_> = skipped.iter().filter(|one| one.model == "serial").collect();
        assert_eq!(serial.len(), 1);
        assert_eq!(serial[0].connections, 10);
        // A single number was chosen by the user and is measured for every model.
        let one = ["--connections", "10", "--workloads", "max"];
        let (contests, skipped) = planned(&all_models(), &one);
        let batches = round(&contests[0], 7);
        let mut cases = batches.iter().flat_map(|batch| &batch.cases);
        assert!(cases.any(Case::exceeds_max_concurrent));
        assert!(skipped.is_empty());
    }

    #[test]
    fn block_offload_skips_models_that_cannot_offload() {
        let words = ["--workloads", "block,block-offload"];
        let (contests, skipped) = planned(&all_models(), &words);
        for model in registry::models() {
            let nowhere = matches!(model.offload, contract::Offload::Nowhere(_));
            let own = skipped.iter().filter(|one| one.model == model.name);
            assert_eq!(own.count(), usize::from(nowhere), "{}", model.name);
            let takes_part = |contest: &Contest| {
                contest
                    .models()
                    .any(|entry| entry.target.name() == model.name)
            };
            assert!(takes_part(&contests[0]));
            assert_eq!(takes_part(&contests[1]), !nowhere);
        }
        assert!(
            skipped
                .iter()
                .all(|one| one.workload == Workload::BlockOffload)
        );
    }

    #[test]
    fn external_server_is_measured_on_workloads_of_its_protocol_without_work() {
        let external = ExternalServer::parse("mine=serve {port}").unwrap();
        let targets = [Target::ExternalServer(external)];
        let measured = |words: &[&str]| -> BTreeSet<Workload> {
            let (contests, skipped) = planned(&targets, words);
            let measured: BTreeSet<_> = contests.iter().map(|one| one.workload).collect();
            let skipped: BTreeSet<_> = skipped.iter().map(|one| one.workload).collect();
            assert_eq!(
                measured.len() + skipped.len(),
                settings(words).workloads.len()
            );
            measured
        };
        let default: BTreeSet<_> = defaults().into_iter().collect();
        assert_eq!(measured(&["--workloads", "all"]), default);
        let http = ["--protocol", "http", "--workloads", "http-13b,bulk"];
        assert_eq!(measured(&http), BTreeSet::from([Workload::Http13b]));
    }

    /// Results in which these models have these costs in `max`, by round.
    fn results(costs: &[(&str, &[f64])]) -> Results {
        let mut results = full();
        results.options.workloads = vec![Workload::Max];
        results.runs.clear();
        let template = results.models[0].clone();
        results.models.clear();
        for (name, values) in costs {
            let mut model = template.clone();
            model.name = (*name).to_string();
            results.models.push(model);
            for (value, round) in values.iter().zip(1..) {
                let mut run = run(name, Workload::Max);
                run.round = round;
                run.figures.insert(Metric::CpuUsPerRequest, Some(*value));
                run.figures
                    .insert(Metric::ConnectionsWithoutReply, Some(0.0));
                results.runs.push(run);
            }
        }
        summary::complete(&mut results).unwrap();
        results
    }

    fn contest(words: &[&str], names: &[&str]) -> (Contest, Settings) {
        let settings = settings(words);
        let (mut contests, _) = contests(&models(names), |_| 5, &settings);
        (contests.remove(0), settings)
    }

    #[test]
    fn contest_ends_when_its_intervals_are_narrow_and_only_at_a_look() {
        let narrow: &[(&str, &[f64])] = &[
            ("mio", &[5.0, 5.01, 4.99, 5.0, 5.02, 4.98]),
            ("poll", &[5.0, 5.0, 5.01, 4.99, 5.0, 5.0]),
        ];
        let (mut contest, settings) = contest(&["--workloads", "max"], &["mio", "poll"]);
        let second = Duration::from_secs(1);
        for _ in 0..5 {
            contest.round_measured(second, &settings, &results(narrow));
            assert_eq!(contest.end, None);
        }
        contest.round_measured(second, &settings, &results(narrow));
        assert_eq!(contest.end, Some(End::Precise));
        assert_eq!(contest.expected(), second);
    }

    #[test]
    fn contest_with_wide_intervals_goes_on_until_the_budget_is_used_up() {
        let wide: &[(&str, &[f64])] = &[
            ("mio", &[5.0, 5.5, 4.5, 5.0, 6.0, 4.0]),
            ("poll", &[5.5, 4.5, 5.0, 6.0, 4.0, 5.0]),
        ];
        let (mut contest, settings) = contest(&["--workloads", "max"], &["mio", "poll"]);
        for _ in 0..6 {
            contest.round_measured(Duration::from_secs(10), &settings, &results(wide));
        }
        assert_eq!(contest.end, None);
        contest.check_budget(None);
        assert_eq!(contest.end, None);
        let now = Instant::now();
        contest.check_budget(Some(now + Duration::from_secs(3_600)));
        assert_eq!(contest.end, None);
        contest.check_budget(Some(now + Duration::from_secs(5)));
        assert_eq!(contest.end, Some(End::Budget));
    }

    #[test]
    fn first_round_is_measured_whatever_the_budget_is() {
        let (mut contest, _) = contest(&["--workloads", "max"], &["mio", "poll"]);
        contest.check_budget(Some(Instant::now()));
        assert_eq!(contest.end, None);
    }

    #[test]
    fn number_of_rounds_ends_a_contest_whatever_its_intervals_are() {
        let (mut contest, settings) =
            contest(&["--workloads", "max", "--rounds", "2"], &["mio", "poll"]);
        let none = results(&[("mio", &[5.0]), ("poll", &[5.0])]);
        contest.round_measured(Duration::ZERO, &settings, &none);
        assert_eq!(contest.end, None);
        contest.round_measured(Duration::ZERO, &settings, &none);
        assert_eq!(contest.end, Some(End::Rounds));
    }

    #[test]
    fn model_that_is_far_worse_and_known_exactly_drops_out() {
        let (mut contest, settings) =
            contest(&["--workloads", "max"], &["mio", "poll", "threads", "spin"]);
        let costs: &[(&str, &[f64])] = &[
            ("mio", &[5.0, 5.01, 4.99, 5.0, 5.02, 4.98]),
            ("poll", &[5.4, 6.4, 4.6, 5.9, 4.9, 5.4]),
            ("threads", &[10.0, 10.01, 9.99, 10.0, 10.02, 9.98]),
            ("spin", &[11.0, 14.0, 9.0, 12.0, 15.0, 8.0]),
        ];
        for _ in 0..6 {
            contest.round_measured(Duration::ZERO, &settings, &results(costs));
        }
        assert_eq!(contest.end, None, "poll and spin are not known yet");
        let active: Vec<String> = contest
            .models()
            .filter(|entry| entry.active)
            .map(|entry| entry.target.name())
            .collect();
        assert_eq!(active, ["mio", "poll", "spin"].map(String::from));
        let next = names(&round(&contest, 7));
        assert!(!next.contains(&("threads".to_string(), Role::Model)));
    }
}
