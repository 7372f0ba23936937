//! The values of a comparison that another comparison can be held against: for each model and figure, the logarithms by
//! round.

use std::collections::BTreeMap;

use crate::results::metric::Metric;
use crate::results::summary::ranked_metrics;
use crate::results::workload::Workload;
use crate::results::{Results, Role, Run};

/// Figure of a model under a load.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Case {
    pub(crate) workload: Workload,
    pub(crate) connections: usize,
    pub(crate) metric: Metric,
    pub(crate) model: String,
}

/// Values of one case.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Values {
    /// Logarithms of the figure, by round.
    pub(crate) by_round: BTreeMap<u32, f64>,
    /// Whether the logarithms are of ratios to the null server in the same round.
    pub(crate) anchored: bool,
}

/// Returns the values of all cases of a comparison whose figures count. `anchored` says whether the CPU time per request is
/// divided by that of the null server in the same round, which takes the drift of the machine out.
pub(crate) fn samples(results: &Results, anchored: bool) -> BTreeMap<Case, Values> {
    let mut samples: BTreeMap<Case, Values> = BTreeMap::new();
    for summary in results.summary.iter().filter(|summary| summary.ranked) {
        for metric in ranked_metrics(summary.workload) {
            if summary.doubts(metric).next().is_some() {
                continue;
            }
            let runs = |role: Role| {
                results.runs.iter().filter(move |run| {
                    run.role == role
                        && run.valid()
                        && run.workload == summary.workload
                        && run.connections == summary.connections
                })
            };
            let anchors: BTreeMap<u32, f64> = runs(Role::Anchor)
                .filter(|_| anchored && metric == Metric::CpuUsPerRequest)
                .filter_map(|run| Some((run.round, logarithm(run, metric)?)))
                .collect();
            let own = runs(Role::Model).filter(|run| run.model == summary.model);
            let values: BTreeMap<u32, f64> = own
                .filter_map(|run| {
                    let value = logarithm(run, metric)?;
                    match anchors.is_empty() {
                        true => Some((run.round, value)),
                        false => Some((run.round, value - anchors.get(&run.round)?)),
                    }
                })
                .collect();
            if values.len() > 1 {
                let case = Case {
                    workload: summary.workload,
                    connections: summary.connections,
                    metric,
                    model: summary.model.clone(),
                };
                samples.insert(
                    case,
                    Values {
                        by_round: values,
                        anchored: !anchors.is_empty(),
                    },
                );
            }
        }
    }
    samples
}

fn logarithm(run: &Run, metric: Metric) -> Option<f64> {
    if run.lower_bounds.contains(&metric) {
        return None;
    }
    let value = run.figures.get(&metric).copied().flatten()?;
    Some(value.max(metric.resolution()).ln())
}
