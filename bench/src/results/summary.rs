//! Combines the runs of each case into a summary, ranks the models of each table, and compares each twin with its
//! model.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::report::words;
use crate::results::certificate::{Check, Condition, combine};
use crate::results::metric::Metric;
use crate::results::workload::Workload;
use crate::results::{Method, Note, Results, Role, Run};
use crate::statistics;
use crate::statistics::interval::{Estimate, geometric, mean, ratio};
use crate::statistics::ranking::{self, Mark, Ranking, Row, Settings};
use crate::target::OTHER_BUILD;
use crate::workloads::Kind;

/// Confidence of the intervals of figures.
const CONFIDENCE: f64 = 0.95;

/// Probability that at least one twin of a comparison is called different from its model although it is the same
/// server. It is divided by the number of twins and figures that are compared (Bonferroni).
const FALSE_ALARM: f64 = 0.01;

/// Probability that at least one model is called different from that of another build although none is.
const DIFFERENT_BUILDS: f64 = 0.05;

/// Smallest multiple of the null server's 99th percentile at which a 99th percentile is the server's.
pub(crate) const ABOVE_FLOOR: f64 = 1.5;

/// Largest share of the null server's rate at which the client is not the limit.
const CEILING: f64 = 0.8;

/// Smallest number of steps of the time line that must have a response time above the 99th percentile.
pub(crate) const SPREAD: usize = 5;

/// Largest 99th percentile of the client's lag, in milliseconds, however short the response times are.
const LAG_MS: f64 = 0.02;

/// Largest 99th percentile of the client's lag, as a share of the 99th percentile of the response time.
const LAG_SHARE: f64 = 0.1;

/// Returns the largest 99th percentile of the client's lag at which a 99th percentile of the response time is the
/// server's; both in milliseconds.
pub(crate) fn lag_limit_ms(p99_ms: f64) -> f64 {
    (LAG_SHARE * p99_ms).max(LAG_MS)
}

/// Largest change of a figure from the first third of the window to the last that is certain, as a share.
const DRIFT: f64 = 0.1;

/// Summary of all runs of one case: one model on one workload with one number of connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Name of the model.
    pub model: String,
    /// Workload of the runs.
    pub workload: Workload,
    /// Number of connections of the load.
    pub connections: usize,
    /// Whether the runs were measured in slices, or as a whole.
    pub method: Method,
    /// Number of runs that were measured, without those that were measured once more.
    pub runs: usize,
    /// Number of runs whose figures may be used; the figures are computed from these runs.
    pub valid: usize,
    /// Number of runs that were measured once more, because the first attempt failed or was disturbed.
    pub measured_again: usize,
    /// True if the client was the limit in at least one valid run.
    pub client_limited: bool,
    /// True if other programs used the CPUs too in at least one valid run.
    pub disturbed: bool,
    /// True if the model is ranked: no run failed, it served every client in all runs, and there is at least one.
    pub ranked: bool,
    /// Conditions that were checked, over all valid runs.
    pub checks: Vec<Check>,
    /// Figures that the tables show; `null` if a figure is unknown or has too few samples.
    pub figures: BTreeMap<Metric, Option<Figure>>,
}

/// One figure over all valid runs of a case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Figure {
    /// Geometric mean of the runs for figures by which models are ranked, and the median for all others; for a
    /// percentile, the percentile of the samples of all runs together.
    pub value: f64,
    /// Lower end of the 95 % interval of the geometric mean of the runs; `null` with fewer than two runs, and for
    /// figures by which models are not ranked.
    pub low: Option<f64>,
    /// Upper end of this interval.
    pub high: Option<f64>,
    /// Smallest value of a single run; `null` if no run has a value.
    pub min: Option<f64>,
    /// Largest value of a single run; `null` if no run has a value.
    pub max: Option<f64>,
    /// True if the real value may be larger than `value`, because a measurement ended too early.
    pub lower_bound: bool,
    /// Place of the model among all models of the table; `null` for figures by which models are not ranked, for models
    /// that are not ranked, and with fewer than six rounds.
    pub mark: Option<Mark>,
    /// Ratio to the model with the best mean, whether or not that model may be called the leader; `null` where there
    /// is no such model.
    pub ratio_to_best: Option<Estimate>,
    /// Rounds that are still missing until `not_known` becomes another mark, by estimate.
    pub rounds_missing: Option<usize>,
}

impl Summary {
    /// Returns a figure, if it is known.
    pub fn figure(&self, metric: Metric) -> Option<&Figure> {
        self.figures.get(&metric)?.as_ref()
    }

    /// Returns the conditions that did not hold and that make this figure doubtful.
    pub(crate) fn doubts(&self, metric: Metric) -> impl Iterator<Item = Condition> {
        let failed = self.checks.iter().filter(|check| check.failed());
        failed
            .map(|check| check.condition)
            .filter(move |condition| condition.affects(metric))
    }
}

/// Comparison of a model with its twin, which is the same server and was measured in the same rounds, or with the same
/// model of another build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TwinResult {
    /// Name of the model.
    pub model: String,
    /// Workload of the runs.
    pub workload: Workload,
    /// Number of connections of the load.
    pub connections: usize,
    /// Figure that is compared.
    pub metric: Metric,
    /// Ratio of the twin's figure to the model's, or of this build's to the other's; `null` with fewer than two common rounds.
    pub ratio: Option<Estimate>,
    /// True if the two are called different: the noise floor was broken. Always false with fewer than six rounds.
    pub different: bool,
}

/// Runs of the models of one table: one workload with one number of connections.
struct Group<'r> {
    workload: Workload,
    connections: usize,
    /// The runs that are not superseded, by model, in the order of the tables.
    models: Vec<(&'r str, Vec<&'r Run>)>,
    anchor: Vec<&'r Run>,
    twins: Vec<(&'r str, Vec<&'r Run>)>,
    /// Number of the last round.
    rounds: u32,
}

/// Computes `summary`, `twins` and `conclusions` from the runs.
///
/// # Errors
///
/// Returns an error if a histogram is damaged.
pub(crate) fn complete(results: &mut Results) -> anyhow::Result<()> {
    let mut summaries = Vec::new();
    let mut twins = Vec::new();
    let mut builds = Vec::new();
    for group in groups(results) {
        summaries.extend(group.summaries(results)?);
        twins.extend(
            group.pairs(
                group
                    .twins
                    .iter()
                    .map(|(name, runs)| (*name, &runs[..], *name)),
            ),
        );
        builds.extend(group.pairs(group.builds()));
    }
    results.summary = summaries;
    results.twins = judge(twins, FALSE_ALARM);
    results.builds = judge(builds, DIFFERENT_BUILDS);
    results.conclusions = words::conclusions(results);
    Ok(())
}

/// Returns the rows of a metric for a ranking, with the indices of their summaries: the models that take part, in the
/// order of `summaries`, which are all of one table.
pub(crate) fn rows<'s>(
    results: &Results,
    metric: Metric,
    summaries: &[&'s Summary],
) -> Vec<(&'s str, RowValues)> {
    let Some(one) = summaries.first() else {
        return Vec::new();
    };
    let all = groups(results);
    let group = all
        .iter()
        .find(|group| group.workload == one.workload && group.connections == one.connections);
    let Some(group) = group else {
        return Vec::new();
    };
    let row = |summary: &&'s Summary| {
        let (_, runs) = group.models.iter().find(|model| model.0 == summary.model)?;
        Some((summary.model.as_str(), group.row(metric, runs, summary)))
    };
    summaries.iter().filter_map(row).collect()
}

/// Values of a model by round, and whether they are doubtful.
pub(crate) struct RowValues {
    values: Vec<Option<f64>>,
    doubtful: bool,
}

impl RowValues {
    pub(crate) fn row(&self) -> Row<'_> {
        Row {
            values: &self.values,
            doubtful: self.doubtful,
        }
    }
}

fn groups(results: &Results) -> Vec<Group<'_>> {
    let mut groups = Vec::new();
    for &workload in &results.options.workloads {
        let of_workload = || results.runs.iter().filter(|run| run.workload == workload);
        let numbers: BTreeSet<usize> = of_workload().map(|run| run.connections).collect();
        for connections in numbers {
            let select = |role: Role, model: Option<&str>| -> Vec<&Run> {
                of_workload()
                    .filter(|run| {
                        run.connections == connections
                            && run.role == role
                            && model.is_none_or(|model| run.model == model)
                    })
                    .collect()
            };
            let by_model = |role| -> Vec<(&str, Vec<&Run>)> {
                let models = results.models.iter().map(|model| model.name.as_str());
                models
                    .map(|model| (model, select(role, Some(model))))
                    .filter(|(_, runs)| !runs.is_empty())
                    .collect()
            };
            let rounds = of_workload()
                .filter(|run| run.connections == connections)
                .map(|run| run.round)
                .max();
            groups.push(Group {
                workload,
                connections,
                models: by_model(Role::Model),
                anchor: select(Role::Anchor, None),
                twins: by_model(Role::Twin),
                rounds: rounds.unwrap_or(0),
            });
        }
    }
    groups
}

impl Group<'_> {
    fn summaries(&self, results: &Results) -> anyhow::Result<Vec<Summary>> {
        // The response times of the null server are the shortest that this machine can measure.
        let floor = figure(Metric::ResponseP99Ms, self.workload, &valid(&self.anchor))?
            .map(|figure| figure.value)
            .or(results.probe.as_ref().and_then(|probe| probe.floor_p99_ms))
            .filter(|_| self.workload.is_open_loop());
        let ceiling = results
            .probe
            .as_ref()
            .and_then(|probe| probe.null_requests_per_s);
        let machine = Machine {
            floor,
            // The ceiling was measured with small messages.
            rate: ceiling
                .filter(|_| self.workload == Workload::Steady)
                .map(|ceiling| results.options.rate_per_s / ceiling),
        };
        let mut summaries = Vec::new();
        for (model, runs) in &self.models {
            summaries.push(self.summary(model, runs, machine)?);
        }
        for metric in ranked_metrics(self.workload) {
            self.rank(metric, &mut summaries);
        }
        Ok(summaries)
    }

    fn summary(&self, model: &str, all: &[&Run], machine: Machine) -> anyhow::Result<Summary> {
        let workload = self.workload;
        let runs: Vec<&Run> = all.iter().copied().filter(|run| !run.superseded).collect();
        let valid = valid(&runs);
        let metrics: BTreeSet<Metric> = valid
            .iter()
            .flat_map(|run| run.figures.keys().copied())
            .collect();
        let mut figures = BTreeMap::new();
        for metric in metrics {
            figures.insert(metric, figure(metric, workload, &valid)?);
        }
        let mut checks = combine(valid.iter().map(|run| run.checks.as_slice()));
        checks.extend(case_checks(workload, &figures, &valid, machine));
        Ok(Summary {
            model: model.to_string(),
            workload,
            connections: self.connections,
            method: runs.first().map_or(Method::Whole, |run| run.method),
            runs: runs.len(),
            valid: valid.len(),
            measured_again: all.len() - runs.len(),
            disturbed: valid.iter().any(|run| run.notes.contains(&Note::Disturbed)),
            client_limited: valid.iter().any(|run| run.client_limited),
            // A model whose run failed twice is not compared by its other runs, as if nothing had happened.
            ranked: !valid.is_empty()
                && valid.len() == runs.len()
                && served_every_client(workload, &valid),
            checks,
            figures,
        })
    }

    /// Returns the values of a figure by round.
    fn row(&self, metric: Metric, runs: &[&Run], summary: &Summary) -> RowValues {
        RowValues {
            values: if summary.ranked {
                self.values(metric, runs)
            } else {
                vec![None; self.rounds as usize]
            },
            doubtful: summary.doubts(metric).next().is_some(),
        }
    }

    fn values(&self, metric: Metric, runs: &[&Run]) -> Vec<Option<f64>> {
        let value = |round: u32| {
            let run = runs.iter().find(|run| run.round == round && run.valid())?;
            if run.lower_bounds.contains(&metric) {
                return None;
            }
            let value = run.figures.get(&metric).copied().flatten()?;
            Some(value.max(metric.resolution()))
        };
        (1..=self.rounds).map(value).collect()
    }

    /// Ranks the models by one figure.
    fn rank(&self, metric: Metric, summaries: &mut [Summary]) {
        let Some(better) = metric.better(self.workload) else {
            return;
        };
        let values: Vec<RowValues> = self
            .models
            .iter()
            .zip(summaries.iter())
            .map(|((_, runs), summary)| self.row(metric, runs, summary))
            .collect();
        let rows: Vec<Row<'_>> = values.iter().map(RowValues::row).collect();
        let Ranking { rows: ranked, .. } = ranking::rank(&rows, better, &Settings::default());
        for (summary, ranked) in summaries.iter_mut().zip(ranked) {
            if let Some(Some(figure)) = summary.figures.get_mut(&metric) {
                figure.mark = ranked.mark;
                figure.ratio_to_best = ranked.ratio;
                figure.rounds_missing = ranked.rounds_missing;
            }
        }
    }

    /// Returns each model of this build that another build has too: its name, its runs, and the name of the other.
    fn builds(&self) -> impl Iterator<Item = (&str, &[&Run], &str)> {
        self.models.iter().filter_map(|(other, _)| {
            let name = other.strip_suffix(OTHER_BUILD)?;
            let (name, runs) = self.models.iter().find(|model| model.0 == name)?;
            Some((*name, &runs[..], *other))
        })
    }

    /// Returns the comparisons of servers with their references, not yet judged: the name of each server, its runs, and the
    /// name of the reference, which is a model.
    fn pairs<'p>(
        &self,
        servers: impl Iterator<Item = (&'p str, &'p [&'p Run], &'p str)>,
    ) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for (name, runs, reference) in servers {
            let Some((_, reference)) = self.models.iter().find(|model| model.0 == reference) else {
                continue;
            };
            for metric in ranked_metrics(self.workload) {
                let own = self.values(metric, runs);
                let other = self.values(metric, reference);
                let both = own.iter().zip(&other);
                let (own, other): (Vec<f64>, Vec<f64>) =
                    both.filter_map(|(own, other)| (*own).zip(*other)).unzip();
                if own.is_empty() {
                    continue;
                }
                pairs.push(Pair {
                    result: TwinResult {
                        model: name.to_string(),
                        workload: self.workload,
                        connections: self.connections,
                        metric,
                        ratio: ratio(&own, &other, CONFIDENCE),
                        different: false,
                    },
                    own,
                    other,
                });
            }
        }
        pairs
    }
}

/// Comparison of a server with its reference, and the values that it is computed from.
struct Pair {
    result: TwinResult,
    own: Vec<f64>,
    other: Vec<f64>,
}

/// Decides which servers differ from their references. `alpha` is the probability that any of them is called different
/// although none is.
fn judge(pairs: Vec<Pair>, alpha: f64) -> Vec<TwinResult> {
    let enough = |pair: &Pair| pair.own.len() >= Settings::default().least_rounds;
    let count = pairs.iter().filter(|pair| enough(pair)).count();
    let judged = |pair: Pair| {
        let confidence = 1.0 - alpha / count.max(1) as f64;
        let ratio = ratio(&pair.own, &pair.other, confidence).filter(|_| enough(&pair));
        TwinResult {
            different: ratio.is_some_and(|ratio| ratio.low > 1.0 || ratio.high < 1.0),
            ..pair.result
        }
    };
    pairs.into_iter().map(judged).collect()
}

/// Returns the figures by which the models of a workload are ranked.
pub(crate) fn ranked_metrics(workload: Workload) -> impl Iterator<Item = Metric> {
    Metric::ALL
        .into_iter()
        .filter(move |metric| metric.better(workload).is_some())
}

fn valid<'r>(runs: &[&'r Run]) -> Vec<&'r Run> {
    runs.iter().copied().filter(|run| run.valid()).collect()
}

fn served_every_client(workload: Workload, valid: &[&Run]) -> bool {
    let all = |metric, enough: fn(f64) -> bool| {
        let reached = |run: &&Run| {
            let value = run.figures.get(&metric).copied().flatten();
            value.is_some_and(enough)
        };
        valid.iter().all(reached)
    };
    match workload.definition().kind {
        Kind::Crowd | Kind::Transfer => valid
            .iter()
            .all(|run| !run.lower_bounds.contains(&Metric::AllServedS)),
        Kind::Closed => all(Metric::ConnectionsWithoutReply, |count| count == 0.0),
        Kind::Open => all(Metric::Availability, |share| share >= 0.99),
        Kind::Idle => all(Metric::KibPerConnection, |_| true),
    }
}

/// Limits of the machine, as the null server shows them.
#[derive(Clone, Copy)]
struct Machine {
    /// 99th percentile of the response time of the null server, in milliseconds.
    floor: Option<f64>,
    /// Planned rate as a share of the rate that the null server reaches.
    rate: Option<f64>,
}

/// Returns the checks that need all runs of a case.
fn case_checks(
    workload: Workload,
    figures: &BTreeMap<Metric, Option<Figure>>,
    runs: &[&Run],
    machine: Machine,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let value = |metric| {
        let figure: Option<Figure> = figures.get(&metric).copied().flatten();
        figure.map(|figure| figure.value)
    };
    if workload.is_open_loop() && !runs.is_empty() {
        let p99 = value(Metric::ResponseP99Ms);
        checks.push(Check::at_least(
            Condition::AboveFloor,
            p99.zip(machine.floor).map(|(p99, floor)| p99 / floor),
            ABOVE_FLOOR,
        ));
        checks.push(Check::at_most(
            Condition::BelowCeiling,
            machine.rate,
            CEILING,
        ));
        let lag = value(Metric::LagP99Ms);
        let limit = lag_limit_ms(p99.unwrap_or(0.0));
        checks.push(Check::at_most(Condition::Punctual, lag, limit));
        checks.push(Check::at_least(
            Condition::SpreadSamples,
            p99.map(|p99| steps_above(p99, runs) as f64),
            SPREAD as f64,
        ));
    }
    if runs.iter().any(|run| has_thirds(run)) {
        checks.push(Check::at_most(Condition::Stationary, drift(runs), DRIFT));
    }
    checks
}

fn steps(run: &Run) -> &[crate::results::TimelineEntry] {
    run.client.as_ref().map_or(&[], |client| &client.timeline)
}

/// Returns the number of steps of all runs that have a response time above a limit.
fn steps_above(limit_ms: f64, runs: &[&Run]) -> usize {
    let all = runs.iter().flat_map(|run| steps(run));
    all.filter(|step| step.max_ms > Some(limit_ms)).count()
}

fn has_thirds(run: &Run) -> bool {
    steps(run).len() >= 3
}

/// Returns how much the CPU time per reply changes at least from the first third of the window to the last, as a share:
/// the end of the interval of the mean change that is nearer to zero, and zero if the interval contains it. `None` if
/// fewer than two runs have a time line with the CPU time of the server.
///
/// The mean alone would not do: on a restless machine it is often ten percent for a server whose cost does not change.
fn drift(runs: &[&Run]) -> Option<f64> {
    let changes: Vec<f64> = runs
        .iter()
        .filter(|run| has_thirds(run))
        .filter_map(|run| {
            let steps = steps(run);
            let third = steps.len() / 3;
            let cost = |steps: &[crate::results::TimelineEntry]| {
                let cpu: Option<f64> = steps.iter().map(|step| step.server_cpu_s).sum();
                let completed: u64 = steps.iter().map(|step| step.completed).sum();
                let cost = cpu? / completed as f64;
                (cost.is_finite() && cost > 0.0).then_some(cost)
            };
            let (first, last) = (cost(&steps[..third])?, cost(&steps[steps.len() - third..])?);
            Some((last / first).ln())
        })
        .collect();
    let change = mean(&changes, CONFIDENCE)?;
    let certain = change.low.max(-change.high).max(0.0);
    Some(certain.exp_m1())
}

fn figure(metric: Metric, workload: Workload, runs: &[&Run]) -> anyhow::Result<Option<Figure>> {
    let known: Vec<(f64, bool)> = runs
        .iter()
        .filter_map(|run| {
            let value = run.figures.get(&metric).copied().flatten()?;
            Some((value, run.lower_bounds.contains(&metric)))
        })
        .collect();
    let values: Vec<f64> = known.iter().map(|(value, _)| *value).collect();
    let (min, max) = statistics::range(&values).unzip();
    let bounded = known.iter().any(|(_, bound)| *bound);
    // A figure that cannot be told from zero has no interval of factors.
    let tiny = values.iter().any(|value| *value < metric.resolution());
    let ranked = metric.better(workload).is_some() && !bounded && !tiny;
    let interval = ranked.then(|| geometric(&values, CONFIDENCE)).flatten();
    let of = |value: f64, lower_bound: bool| Figure {
        value,
        low: interval.map(|interval| interval.low),
        high: interval.map(|interval| interval.high),
        min,
        max,
        lower_bound,
        mark: None,
        ratio_to_best: None,
        rounds_missing: None,
    };
    let Some(wanted) = metric.distribution() else {
        let value = match interval {
            Some(interval) => Some(interval.value),
            None => statistics::median(&values),
        };
        // A lower bound above the median does not change the median, however large the real value is.
        return Ok(value.map(|value| {
            of(
                value,
                known.iter().any(|&(one, bound)| bound && one <= value),
            )
        }));
    };
    let mut merged = client::histogram();
    for client in runs.iter().filter_map(|run| run.client.as_ref()) {
        let part = (wanted.times)(client).decode()?;
        merged
            .add(&part)
            .map_err(|error| anyhow::anyhow!("a histogram has unexpected bounds: {error}"))?;
    }
    let value = statistics::quantile(&merged, wanted.quantile);
    Ok(value.map(|value| of(value as f64 / 1e6, bounded)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Probe;
    use crate::results::certificate::Verdict;
    use crate::results::tests::{client_side, full, run};
    use crate::results::{TimelineEntry, Times};

    /// Results without runs, of these models.
    fn results(workload: Workload, models: &[&str]) -> Results {
        let mut results = full();
        results.options.workloads = vec![workload];
        results.runs.clear();
        results.probe = None;
        let template = results.models[0].clone();
        results.models = models
            .iter()
            .map(|name| crate::results::ModelInfo {
                name: (*name).to_string(),
                ..template.clone()
            })
            .collect();
        results
    }

    fn max_run(model: &str, round: u32, cost: f64) -> Run {
        let mut run = run(model, Workload::Max);
        run.round = round;
        run.figures.insert(Metric::CpuUsPerRequest, Some(cost));
        run.figures
            .insert(Metric::ConnectionsWithoutReply, Some(0.0));
        run
    }

    /// Results of `max` with these costs by round.
    fn costs(all: &[(&str, &[f64])]) -> Results {
        let models: Vec<&str> = all.iter().map(|one| one.0).collect();
        let mut results = results(Workload::Max, &models);
        for (model, values) in all {
            let runs = values
                .iter()
                .zip(1..)
                .map(|(cost, round)| max_run(model, round, *cost));
            results.runs.extend(runs);
        }
        complete(&mut results).unwrap();
        results
    }

    const COST: [f64; 6] = [5.0, 5.1, 4.9, 5.05, 4.95, 5.0];

    fn times(factor: f64) -> Vec<f64> {
        // Another order, so that the differences vary.
        COST.iter().rev().map(|cost| cost * factor).collect()
    }

    fn cost_of<'r>(results: &'r Results, model: &str) -> &'r Figure {
        let summary = results.summary.iter().find(|one| one.model == model);
        summary.unwrap().figure(Metric::CpuUsPerRequest).unwrap()
    }

    #[test]
    fn ranked_figure_has_value_interval_mark_and_ratio() {
        let dearer = times(1.5);
        let results = costs(&[("mio", &COST), ("threads", &dearer)]);
        let (best, other) = (cost_of(&results, "mio"), cost_of(&results, "threads"));
        assert_eq!(
            (best.mark, other.mark),
            (Some(Mark::Leader), Some(Mark::Worse))
        );
        assert!(
            (best.value - 5.0).abs() < 0.01,
            "a geometric mean: {}",
            best.value
        );
        let (low, high) = best.low.zip(best.high).unwrap();
        assert!(low < best.value && best.value < high && high < 5.1);
        let ratio = other.ratio_to_best.unwrap();
        assert!((ratio.value - 1.5).abs() < 1e-6 && ratio.low < 1.5 && ratio.high > 1.5);
        assert_eq!(best.ratio_to_best.unwrap().value, 1.0);
        assert_eq!((best.min, best.max), (Some(4.9), Some(5.1)));
        let fewer = costs(&[("mio", &COST[..5]), ("threads", &dearer[..5])]);
        assert_eq!(cost_of(&fewer, "mio").mark, None);
        assert!(cost_of(&fewer, "threads").ratio_to_best.is_some());
        assert!(fewer.conclusions.is_empty());
        assert_eq!(results.conclusions.len(), 2, "{:?}", results.conclusions);
    }

    #[test]
    fn figure_that_only_explains_others_is_a_median_without_mark() {
        let mut results = results(Workload::Max, &["mio"]);
        for (round, value) in (1..).zip([1.0, 2.0, 9.0]) {
            let mut run = max_run("mio", round, 5.0);
            run.figures.insert(Metric::Threads, Some(value));
            results.runs.push(run);
        }
        complete(&mut results).unwrap();
        let figure = results.summary[0].figure(Metric::Threads).unwrap();
        assert_eq!((figure.value, figure.low, figure.mark), (2.0, None, None));
    }

    #[test]
    fn model_with_a_failed_run_is_not_ranked_and_the_figures_of_its_other_runs_are_shown() {
        let dearer = times(1.5);
        let mut results = costs(&[("mio", &COST), ("threads", &dearer)]);
        results.runs[2].problems.push("a wrong reply".to_string());
        complete(&mut results).unwrap();
        let summary = &results.summary[0];
        assert_eq!((summary.runs, summary.valid, summary.ranked), (6, 5, false));
        assert_eq!(cost_of(&results, "mio").mark, None);
        assert_eq!(
            cost_of(&results, "threads").ratio_to_best.unwrap().value,
            1.0
        );
    }

    #[test]
    fn run_that_was_measured_once_more_does_not_count() {
        let dearer = times(1.5);
        let mut results = costs(&[("mio", &COST), ("threads", &dearer)]);
        let mut first = max_run("mio", 3, 500.0);
        first.superseded = true;
        first.problems.push("refused".to_string());
        results.runs.push(first);
        complete(&mut results).unwrap();
        let summary = &results.summary[0];
        assert_eq!(
            (summary.runs, summary.valid, summary.measured_again),
            (6, 6, 1)
        );
        assert!(summary.ranked);
        assert_eq!(cost_of(&results, "mio").max, Some(5.1));
    }

    #[test]
    fn model_with_connections_without_reply_is_not_ranked() {
        let mut results = costs(&[("serial", &COST)]);
        results.runs[0]
            .figures
            .insert(Metric::ConnectionsWithoutReply, Some(99.0));
        complete(&mut results).unwrap();
        assert!(!results.summary[0].ranked);
    }

    #[test]
    fn failed_check_makes_the_figures_that_it_affects_doubtful() {
        let dearer = times(1.5);
        let mut results = costs(&[("mio", &COST), ("threads", &dearer)]);
        let failed = |condition| Check::at_most(condition, Some(1.0), 0.5);
        for run in results.runs.iter_mut().filter(|run| run.model == "mio") {
            run.checks = vec![failed(Condition::OtherPrograms)];
        }
        complete(&mut results).unwrap();
        assert_eq!(
            cost_of(&results, "mio").mark,
            Some(Mark::Leader),
            "a cost is the server's"
        );
        for run in results.runs.iter_mut().filter(|run| run.model == "mio") {
            run.checks = vec![failed(Condition::CpuInterval)];
        }
        complete(&mut results).unwrap();
        assert_eq!(cost_of(&results, "mio").mark, Some(Mark::Doubtful));
        assert_eq!(cost_of(&results, "mio").ratio_to_best, None);
        // Alone, a model is not compared.
        assert_eq!(cost_of(&results, "threads").mark, None);
    }

    #[test]
    fn lower_bound_takes_no_part_in_the_ranking_and_has_no_interval() {
        let median = |values: &[(f64, bool)]| {
            let runs: Vec<Run> = values
                .iter()
                .map(|&(value, bound)| {
                    let mut run = run("m", Workload::Crowd);
                    run.figures.insert(Metric::AllServedExcessS, Some(value));
                    if bound {
                        run.lower_bounds.push(Metric::AllServedExcessS);
                    }
                    run
                })
                .collect();
            let runs: Vec<&Run> = runs.iter().collect();
            figure(Metric::AllServedExcessS, Workload::Crowd, &runs)
                .unwrap()
                .unwrap()
        };
        let above = median(&[(1.0, false), (1.1, false), (6.0, true)]);
        assert_eq!(
            (above.value, above.lower_bound, above.low),
            (1.1, false, None)
        );
        let at = median(&[(1.0, false), (6.0, true), (6.0, true)]);
        assert_eq!((at.value, at.lower_bound), (6.0, true));
    }

    #[test]
    fn figure_that_cannot_be_told_from_zero_has_its_median_and_no_interval() {
        let runs: Vec<Run> = [0.0, 0.0, 0.5]
            .map(|value| {
                let mut run = run("m", Workload::Idle);
                run.figures.insert(Metric::IdleCpuMsPerS, Some(value));
                run
            })
            .into();
        let runs: Vec<&Run> = runs.iter().collect();
        let figure = figure(Metric::IdleCpuMsPerS, Workload::Idle, &runs);
        let figure = figure.unwrap().unwrap();
        assert_eq!((figure.value, figure.low), (0.0, None));
    }

    /// A run of `steady` with these response times and this lag, both in microseconds.
    fn steady_run(model: &str, round: u32, times: &[(u64, u64)], lag_us: u64) -> Run {
        let mut histogram = client::histogram();
        for (us, count) in times {
            histogram.record_n(us * 1_000, *count).unwrap();
        }
        let mut lag = client::histogram();
        lag.record_n(lag_us * 1_000, 2_000).unwrap();
        let mut run = run(model, Workload::Steady);
        run.round = round;
        let step = TimelineEntry {
            max_ms: Some(100.0),
            ..TimelineEntry::default()
        };
        run.client = Some(crate::results::ClientSide {
            lag: Times::of(&lag).unwrap(),
            timeline: vec![step; 6],
            ..client_side(&histogram)
        });
        for metric in [
            Metric::ResponseP99Ms,
            Metric::LagP99Ms,
            Metric::ResponseP999Ms,
        ] {
            let wanted = metric.distribution().unwrap();
            let times = (wanted.times)(run.client.as_ref().unwrap());
            let value = times.p99_ns.map(|ns| ns as f64 / 1e6);
            run.figures.insert(metric, value);
        }
        run.figures.insert(Metric::Availability, Some(1.0));
        run
    }

    #[test]
    fn percentile_of_several_runs_comes_from_all_samples() {
        // 900 samples of 1 ms in each of two runs, and in one of them 100 of 100 ms: the 99th percentile of all is
        // 100 ms, and the mean of both percentiles would be half of that.
        let one = steady_run("m", 1, &[(1_000, 900), (100_000, 100)], 1);
        let two = steady_run("m", 2, &[(1_000, 900)], 1);
        let of = |metric| figure(metric, Workload::Steady, &[&one, &two]).unwrap();
        let merged = of(Metric::ResponseP99Ms).unwrap();
        assert!((merged.value - 100.0).abs() < 0.1, "{}", merged.value);
        // 1,900 samples are too few for the 99.9th percentile.
        assert_eq!(of(Metric::ResponseP999Ms), None);
    }

    /// Returns the verdict of a check of the model `mio` in `steady`.
    fn verdict(results: &Results, condition: Condition) -> Option<Verdict> {
        let checks = results.summary[0].checks.iter();
        let mut checks = checks.filter(|check| check.condition == condition);
        checks.next().map(|check| check.verdict)
    }

    fn steady(p99_us: u64, floor_us: u64, lag_us: u64) -> Results {
        let mut results = results(Workload::Steady, &["mio"]);
        results.options.rate_per_s = 5_000.0;
        results.runs = (1..=6)
            .map(|round| steady_run("mio", round, &[(50, 1_900), (p99_us, 100)], lag_us))
            .collect();
        results.runs.extend((1..=6).map(|round| Run {
            role: Role::Anchor,
            ..steady_run("null server", round, &[(40, 1_900), (floor_us, 100)], 1)
        }));
        complete(&mut results).unwrap();
        results
    }

    #[test]
    fn p99_near_that_of_the_null_server_is_doubtful() {
        let clear = steady(300, 100, 5);
        assert_eq!(verdict(&clear, Condition::AboveFloor), Some(Verdict::Kept));
        assert_eq!(clear.summary[0].doubts(Metric::ResponseP99Ms).count(), 0);
        let near = steady(140, 100, 5);
        assert_eq!(verdict(&near, Condition::AboveFloor), Some(Verdict::Failed));
        let p99 = near.summary[0].figure(Metric::ResponseP99Ms).unwrap();
        assert_eq!(p99.mark, Some(Mark::Doubtful));
    }

    #[test]
    fn late_client_makes_p99_doubtful() {
        assert_eq!(
            verdict(&steady(300, 100, 29), Condition::Punctual),
            Some(Verdict::Kept)
        );
        assert_eq!(
            verdict(&steady(300, 100, 35), Condition::Punctual),
            Some(Verdict::Failed)
        );
        // Up to 20 µs do not matter, however short the response times are.
        assert_eq!(
            verdict(&steady(100, 10, 19), Condition::Punctual),
            Some(Verdict::Kept)
        );
    }

    #[test]
    fn p99_of_a_few_moments_is_doubtful() {
        let mut results = steady(300, 100, 5);
        assert_eq!(
            verdict(&results, Condition::SpreadSamples),
            Some(Verdict::Kept)
        );
        for run in &mut results.runs {
            if let Some(client) = &mut run.client {
                client
                    .timeline
                    .iter_mut()
                    .for_each(|step| step.max_ms = Some(0.1));
            }
        }
        let slow = results.runs[0].client.as_mut().unwrap();
        slow.timeline[..4]
            .iter_mut()
            .for_each(|step| step.max_ms = Some(9.0));
        complete(&mut results).unwrap();
        assert_eq!(
            verdict(&results, Condition::SpreadSamples),
            Some(Verdict::Failed)
        );
    }

    #[test]
    fn rate_near_the_ceiling_of_the_client_is_doubtful() {
        let mut results = steady(300, 100, 5);
        assert_eq!(
            verdict(&results, Condition::BelowCeiling),
            Some(Verdict::Unknown)
        );
        let probe = |rate| Probe {
            null_requests_per_s: Some(rate),
            ..Probe::default()
        };
        results.probe = Some(probe(100_000.0));
        complete(&mut results).unwrap();
        assert_eq!(
            verdict(&results, Condition::BelowCeiling),
            Some(Verdict::Kept)
        );
        results.probe = Some(probe(6_000.0));
        complete(&mut results).unwrap();
        assert_eq!(
            verdict(&results, Condition::BelowCeiling),
            Some(Verdict::Failed)
        );
    }

    #[test]
    fn cost_that_certainly_changes_from_the_first_third_to_the_last_is_doubtful() {
        let with = |last: f64, noise: f64| {
            let mut results = costs(&[("mio", &COST)]);
            for (number, run) in results.runs.iter_mut().enumerate() {
                let last = if number % 2 == 0 {
                    last * noise
                } else {
                    last / noise
                };
                let step = |cpu| TimelineEntry {
                    completed: 1_000,
                    server_cpu_s: Some(cpu),
                    ..TimelineEntry::default()
                };
                run.client = Some(crate::results::ClientSide {
                    timeline: vec![step(0.005), step(0.005), step(0.005 * last)],
                    ..client_side(&client::histogram())
                });
            }
            complete(&mut results).unwrap();
            verdict(&results, Condition::Stationary)
        };
        assert_eq!(with(1.05, 1.0), Some(Verdict::Kept));
        assert_eq!(with(1.15, 1.0), Some(Verdict::Failed));
        assert_eq!(with(0.85, 1.0), Some(Verdict::Failed));
        // The mean change is the same, but the changes of single runs lie far apart.
        assert_eq!(with(1.15, 1.2), Some(Verdict::Kept));
        assert_eq!(with(0.85, 1.2), Some(Verdict::Kept));
        assert_eq!(with(1.6, 1.2), Some(Verdict::Failed));
    }

    #[test]
    fn twin_that_differs_from_its_model_breaks_the_noise_floor() {
        let with = |factor: f64, rounds: usize| {
            let mut results = costs(&[("mio", &COST[..rounds])]);
            let twins = times(factor);
            results
                .runs
                .extend((1..).zip(&twins[..rounds]).map(|(round, cost)| Run {
                    role: Role::Twin,
                    ..max_run("mio", round, *cost)
                }));
            complete(&mut results).unwrap();
            assert_eq!(results.summary.len(), 1, "a twin has no row");
            assert_eq!(results.twins.len(), 1);
            results.twins.remove(0)
        };
        let same = with(1.0, 6);
        assert!(!same.different);
        assert!((same.ratio.unwrap().value - 1.0).abs() < 0.01);
        assert!(with(1.3, 6).different);
        assert!(!with(1.3, 5).different, "too few rounds for a verdict");
    }

    #[test]
    fn build_is_compared_with_the_other_build_of_the_same_model() {
        let other = times(0.8);
        let results = costs(&[("mio", &COST), ("poll", &COST), ("mio@against", &other)]);
        assert_eq!(results.builds.len(), 1);
        let build = &results.builds[0];
        assert_eq!(build.model, "mio");
        assert!(
            (build.ratio.unwrap().value - 1.25).abs() < 0.01,
            "{build:?}"
        );
        assert!(build.different);
    }
}
