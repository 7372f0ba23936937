//! Combines the runs of each case into a summary, and ranks the summaries of one table.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::results::metric::{Better, Metric};
use crate::results::workload::Workload;
use crate::results::{Note, Results, Run};
use crate::statistics;

/// Summary of all runs of one case: one model on one workload with one number of connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the model.
    pub model: String,
    /// Workload of the runs.
    pub workload: Workload,
    /// Number of connections of the load.
    pub connections: usize,
    /// Number of runs that were measured.
    pub runs: usize,
    /// Number of runs whose figures may be used; the figures are computed from these runs.
    pub valid: usize,
    /// True if the client was the limit in at least one valid run.
    pub client_limited: bool,
    /// True if other programs used the CPUs too in at least one valid run.
    pub disturbed: bool,
    /// True if the model is ranked: it served every client in all valid runs, and there is at least one.
    pub ranked: bool,
    /// Figures that the tables show; `null` if a figure is unknown or has too few samples.
    pub figures: BTreeMap<Metric, Option<Figure>>,
}

/// One figure over all valid runs of a case.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Median of the runs; for a percentile, the percentile of the samples of all runs together.
    pub value: f64,
    /// Smallest value of a single run; `null` if no run has a value.
    pub min: Option<f64>,
    /// Largest value of a single run; `null` if no run has a value.
    pub max: Option<f64>,
    /// True if the real value may be larger than `value`, because a measurement ended too early.
    pub lower_bound: bool,
}

impl Figure {
    /// Returns whether the ranges of the runs overlap. The range of a lower bound has no upper end.
    fn overlaps(&self, other: &Figure) -> bool {
        let range = |figure: &Figure| {
            let top = if figure.lower_bound {
                Some(f64::INFINITY)
            } else {
                figure.max
            };
            figure.min.zip(top)
        };
        match (range(self), range(other)) {
            (Some(a), Some(b)) => a.0 <= b.1 && b.0 <= a.1,
            _ => false,
        }
    }
}

/// Computes the summaries of all runs, in the order of the workloads and models.
///
/// # Errors
///
/// Returns an error if a histogram is damaged.
pub(crate) fn summarise(results: &Results) -> anyhow::Result<Vec<Summary>> {
    let mut summaries = Vec::new();
    for &workload in &results.options.workloads {
        for model in &results.models {
            let mut by_connections: BTreeMap<usize, Vec<&Run>> = BTreeMap::new();
            let all = results.runs.iter();
            for run in all.filter(|one| one.model == model.name && one.workload == workload) {
                let runs = by_connections.entry(run.connections).or_default();
                runs.push(run);
            }
            for (connections, runs) in by_connections {
                summaries.push(summary(&model.name, workload, connections, &runs)?);
            }
        }
    }
    Ok(summaries)
}

fn summary(
    model: &str,
    workload: Workload,
    connections: usize,
    runs: &[&Run],
) -> anyhow::Result<Summary> {
    let valid: Vec<&Run> = runs.iter().copied().filter(|run| run.valid()).collect();
    let metrics: BTreeSet<Metric> = valid
        .iter()
        .flat_map(|run| run.figures.keys().copied())
        .collect();
    let mut figures = BTreeMap::new();
    for metric in metrics {
        figures.insert(metric, figure(metric, &valid)?);
    }
    let all = |metric, enough: fn(f64) -> bool| {
        let reached = |run: &&Run| {
            run.figures
                .get(&metric)
                .copied()
                .flatten()
                .is_some_and(enough)
        };
        valid.iter().all(reached)
    };
    let served_every_client = match workload {
        Workload::Crowd | Workload::Http13m | Workload::Bulk => valid
            .iter()
            .all(|run| !run.lower_bounds.contains(&Metric::AllServedS)),
        Workload::Max
        | Workload::Http13b
        | Workload::Http13k
        | Workload::Wait
        | Workload::Compute => all(Metric::ConnectionsWithoutReply, |count| count == 0.0),
        Workload::Steady | Workload::Block | Workload::BlockOffload => {
            all(Metric::Availability, |share| share >= 0.99)
        }
        Workload::Idle => all(Metric::KibPerConnection, |_| true),
    };
    Ok(Summary {
        model: model.to_string(),
        workload,
        connections,
        runs: runs.len(),
        valid: valid.len(),
        disturbed: valid.iter().any(|run| run.notes.contains(&Note::Disturbed)),
        client_limited: valid.iter().any(|run| run.client_limited),
        ranked: !valid.is_empty() && served_every_client,
        figures,
    })
}

fn figure(metric: Metric, runs: &[&Run]) -> anyhow::Result<Option<Figure>> {
    let known: Vec<(f64, bool)> = runs
        .iter()
        .filter_map(|run| {
            let value = run.figures.get(&metric).copied().flatten()?;
            Some((value, run.lower_bounds.contains(&metric)))
        })
        .collect();
    let values: Vec<f64> = known.iter().map(|(value, _)| *value).collect();
    let (min, max) = statistics::range(&values).unzip();
    let Some(wanted) = metric.distribution() else {
        return Ok(statistics::median(&values).map(|value| Figure {
            value,
            min,
            max,
            // A lower bound above the median does not change the median, however large the real value is.
            lower_bound: known.iter().any(|&(one, bound)| bound && one <= value),
        }));
    };
    let mut merged = client::histogram();
    for client in runs.iter().filter_map(|run| run.client.as_ref()) {
        let part = (wanted.times)(client).decode()?;
        merged
            .add(&part)
            .map_err(|error| anyhow::anyhow!("a histogram has unexpected bounds: {error}"))?;
    }
    Ok(
        statistics::quantile(&merged, wanted.quantile).map(|value| Figure {
            value: value as f64 / 1e6,
            min,
            max,
            lower_bound: runs.iter().any(|run| run.lower_bounds.contains(&metric)),
        }),
    )
}

/// Rank of a model in one figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Best value of the ranked models.
    Best,
    /// The runs overlap with those of the best model, so another comparison may rank the two the other way round.
    Tied,
    /// The value is not ranked, because the client was late or the limit, or other programs used the CPUs.
    Doubtful,
    /// None of these.
    None,
}

/// Returns the rank of each summary in one figure, in the order of the summaries.
pub(crate) fn marks(metric: Metric, summaries: &[&Summary]) -> Vec<Mark> {
    let Some(better) = metric.better() else {
        return vec![Mark::None; summaries.len()];
    };
    // A client that is late or has no CPU time to spare makes every reply late, and other programs on the CPUs make
    // everything take longer. Neither affects the cost of a request or a connection, which is counted in the server.
    let doubtful = |summary: &Summary| {
        let late = summary.client_limited && !metric.is_throughput();
        !metric.is_cost() && (late || summary.disturbed)
    };
    let figures: Vec<Option<Figure>> = summaries
        .iter()
        .map(|summary| {
            let figure = summary.figures.get(&metric).copied().flatten();
            figure.filter(|_| summary.ranked && !doubtful(summary))
        })
        .collect();
    let ranked = || figures.iter().flatten();
    let best = match better {
        Better::Higher => ranked().max_by(|a, b| a.value.total_cmp(&b.value)),
        Better::Lower => ranked().min_by(|a, b| a.value.total_cmp(&b.value)),
    };
    // A single model cannot be the best of several, and single runs do not distinguish a better model from chance.
    let repeated = summaries.iter().all(|summary| summary.runs > 1);
    let best = best.filter(|_| repeated && ranked().count() > 1);
    let mark = |(summary, figure): (&&Summary, &Option<Figure>)| match (figure, best) {
        _ if doubtful(summary) => Mark::Doubtful,
        (Some(figure), Some(best)) if figure.value == best.value => Mark::Best,
        (Some(figure), Some(best)) if figure.overlaps(best) => Mark::Tied,
        _ => Mark::None,
    };
    summaries.iter().zip(&figures).map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{client_side, run};

    fn max_summary(model: &str, runs: &[&Run]) -> Summary {
        summary(model, Workload::Max, 100, runs).unwrap()
    }

    fn throughput(model: &str, values: &[f64]) -> Summary {
        let runs: Vec<Run> = values
            .iter()
            .map(|&value| {
                let mut run = run(model, Workload::Max);
                run.figures.insert(Metric::RequestsPerS, Some(value));
                run.figures
                    .insert(Metric::ConnectionsWithoutReply, Some(0.0));
                run
            })
            .collect();
        max_summary(model, &runs.iter().collect::<Vec<_>>())
    }

    #[test]
    fn overlapping_model_is_tied_and_model_with_unserved_clients_is_not_ranked() {
        let best = throughput("best", &[100.0, 110.0, 120.0]);
        let tied = throughput("tied", &[90.0, 95.0, 101.0]);
        let worse = throughput("worse", &[70.0, 80.0, 99.0]);
        let mut unranked = throughput("unranked", &[500.0, 500.0]);
        unranked.ranked = false;
        let all = [&best, &tied, &worse, &unranked];
        assert_eq!(
            marks(Metric::RequestsPerS, &all),
            [Mark::Best, Mark::Tied, Mark::None, Mark::None]
        );
        // A figure that only explains others is not ranked.
        assert_eq!(marks(Metric::Threads, &all), [Mark::None; 4]);
        assert_eq!(marks(Metric::RequestsPerS, &[&best]), [Mark::None]);
    }

    #[test]
    fn lower_bound_is_tied_with_larger_values() {
        let best = throughput("best", &[100.0, 110.0, 120.0]);
        let mut limited = throughput("limited", &[70.0, 80.0, 90.0]);
        if let Some(Some(figure)) = limited.figures.get_mut(&Metric::RequestsPerS) {
            figure.lower_bound = true;
        }
        assert_eq!(
            marks(Metric::RequestsPerS, &[&best, &limited]),
            [Mark::Best, Mark::Tied]
        );
    }

    #[test]
    fn latency_measured_by_a_late_client_is_doubtful() {
        let steady = |model: &str, value: f64, late: bool| {
            let mut summary = throughput(model, &[1.0, 1.0]);
            summary.workload = Workload::Steady;
            summary.client_limited = late;
            let figure = Figure {
                value,
                min: Some(value),
                max: Some(value),
                lower_bound: false,
            };
            summary.figures.insert(Metric::ResponseP99Ms, Some(figure));
            summary
                .figures
                .insert(Metric::CpuUsPerRequest, Some(figure));
            summary
        };
        let all = [
            &steady("a", 2.0, false),
            &steady("b", 1.0, true),
            &steady("c", 3.0, false),
        ];
        assert_eq!(
            marks(Metric::ResponseP99Ms, &all),
            [Mark::Best, Mark::Doubtful, Mark::None]
        );
        assert_eq!(
            marks(Metric::CpuUsPerRequest, &all),
            [Mark::None, Mark::Best, Mark::None]
        );
    }

    /// The throughput is marked as a lower bound; the times may be due to the client itself.
    #[test]
    fn time_measured_by_a_busy_client_is_doubtful_but_throughput_is_not() {
        let bulk = |model: &str, value: f64, busy: bool| {
            let mut summary = throughput(model, &[1.0, 1.0]);
            summary.workload = Workload::Bulk;
            summary.client_limited = busy;
            let figure = |lower_bound| Figure {
                value,
                min: Some(value),
                max: Some(value),
                lower_bound,
            };
            for metric in [Metric::AllServedS, Metric::CpuMsPerGb] {
                summary.figures.insert(metric, Some(figure(false)));
            }
            let throughput = Some(figure(busy));
            summary.figures.insert(Metric::MbPerS, throughput);
            summary
        };
        let all = [&bulk("a", 3.0, false), &bulk("b", 2.0, true)];
        let throughput = marks(Metric::MbPerS, &all);
        assert_eq!(throughput, [Mark::Best, Mark::Tied]);
        let time = marks(Metric::AllServedS, &all);
        assert_eq!(time, [Mark::None, Mark::Doubtful]);
        let cost = marks(Metric::CpuMsPerGb, &all);
        assert_eq!(cost, [Mark::None, Mark::Best]);
    }

    #[test]
    fn single_or_disturbed_runs_have_no_best() {
        let (one, other) = (throughput("one", &[1.0]), throughput("other", &[2.0]));
        assert_eq!(
            marks(Metric::RequestsPerS, &[&one, &other]),
            [Mark::None; 2]
        );
        let quiet = throughput("quiet", &[1.0, 1.0]);
        let mut disturbed = throughput("disturbed", &[2.0, 2.0]);
        disturbed.disturbed = true;
        assert_eq!(
            marks(Metric::RequestsPerS, &[&quiet, &disturbed]),
            [Mark::None, Mark::Doubtful]
        );
    }

    #[test]
    fn model_with_connections_without_reply_is_not_ranked() {
        let mut run = run("serial", Workload::Max);
        run.figures
            .insert(Metric::ConnectionsWithoutReply, Some(99.0));
        assert!(!max_summary("serial", &[&run]).ranked);
    }

    #[test]
    fn median_is_a_lower_bound_only_if_a_bound_is_at_or_below_it() {
        let crowd = |values: &[(f64, bool)]| {
            let runs: Vec<Run> = values
                .iter()
                .map(|&(value, bound)| {
                    let mut run = run("m", Workload::Crowd);
                    run.figures.insert(Metric::AllServedS, Some(value));
                    if bound {
                        run.lower_bounds.push(Metric::AllServedS);
                    }
                    run
                })
                .collect();
            figure(Metric::AllServedS, &runs.iter().collect::<Vec<_>>())
                .unwrap()
                .unwrap()
        };
        let bound_above = crowd(&[(1.0, false), (1.1, false), (6.0, true)]);
        assert_eq!((bound_above.value, bound_above.lower_bound), (1.1, false));
        let bound_at = crowd(&[(1.0, false), (6.0, true), (6.0, true)]);
        assert_eq!((bound_at.value, bound_at.lower_bound), (6.0, true));
    }

    #[test]
    fn invalid_run_is_counted_but_its_figures_are_not_used() {
        let mut good = run("m", Workload::Max);
        good.figures.insert(Metric::RequestsPerS, Some(10.0));
        good.figures
            .insert(Metric::ConnectionsWithoutReply, Some(0.0));
        let mut bad = good.clone();
        bad.figures.insert(Metric::RequestsPerS, Some(1_000.0));
        bad.problems.push("a wrong reply".into());
        let summary = max_summary("m", &[&good, &bad]);
        assert_eq!((summary.runs, summary.valid), (2, 1));
        assert_eq!(summary.figures[&Metric::RequestsPerS].unwrap().value, 10.0);
        let nothing = max_summary("m", &[&bad]);
        assert!(nothing.figures.is_empty() && !nothing.ranked);
    }

    #[test]
    fn percentile_of_several_runs_comes_from_all_samples() {
        // 900 samples of 1 ms in each of two runs, and in one of them 100 of 100 ms: the 99th percentile of all is
        // 100 ms, and the mean of both percentiles would be half of that.
        let with = |slow: u64| {
            let mut histogram = client::histogram();
            histogram.record_n(1_000_000, 900).unwrap();
            histogram.record_n(100_000_000, slow).unwrap();
            let mut run = run("m", Workload::Steady);
            run.client = Some(client_side(&histogram));
            run
        };
        let (one, two) = (with(100), with(0));
        let merged = figure(Metric::ResponseP99Ms, &[&one, &two])
            .unwrap()
            .unwrap();
        assert!((merged.value - 100.0).abs() < 0.1, "{}", merged.value);
        // 1,900 samples are too few for the 99.9th percentile.
        assert_eq!(figure(Metric::ResponseP999Ms, &[&one, &two]).unwrap(), None);
    }
}
