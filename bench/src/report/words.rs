//! Conclusions in words: the groups of models that cannot be told apart, and by how much the others differ.

use crate::format;
use crate::results::Results;
use crate::results::metric::Metric;
use crate::results::summary::{self, Summary};
use crate::statistics::ranking::{self, Better, Group, Ranking, Row, Settings};

/// Returns the conclusions of a comparison, one sentence each.
pub(crate) fn conclusions(results: &Results) -> Vec<String> {
    let sweep = results.options.connections.len() > 1;
    let mut conclusions = Vec::new();
    let mut seen = Vec::new();
    for one in &results.summary {
        let table = (one.workload, one.connections);
        if seen.contains(&table) {
            continue;
        }
        seen.push(table);
        let summaries: Vec<&Summary> = results
            .summary
            .iter()
            .filter(|summary| (summary.workload, summary.connections) == table)
            .collect();
        let place = if sweep {
            let connections = format::count(one.connections as u64);
            format!("{} with {connections} connections", one.workload)
        } else {
            one.workload.to_string()
        };
        let metric = one.workload.main_metric();
        for sentence in of_table(results, metric, &summaries) {
            conclusions.push(format!("{place}: {sentence}"));
        }
    }
    conclusions
}

fn of_table(results: &Results, metric: Metric, summaries: &[&Summary]) -> Vec<String> {
    let Some(better) = summaries
        .first()
        .and_then(|one| metric.better(one.workload))
    else {
        return Vec::new();
    };
    let values = summary::rows(results, metric, summaries);
    let rows: Vec<Row<'_>> = values.iter().map(|(_, values)| values.row()).collect();
    let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
    let settings = Settings::default();
    let ranking: Ranking = ranking::rank(&rows, better, &settings);
    if ranking.rows.iter().all(|row| row.mark.is_none()) {
        return Vec::new();
    }
    let groups = ranking::groups(&ranking, &rows, better, &settings);
    let verb = match better {
        Better::Lower => "times as much",
        Better::Higher => "times less",
    };
    sentences(&groups, &names, figure_name(metric), verb)
}

/// Returns a sentence for the best group, and one for all others.
fn sentences(groups: &[Group], names: &[&str], figure: &str, verb: &str) -> Vec<String> {
    let list = |members: &[usize]| -> String {
        let names: Vec<&str> = members
            .iter()
            .filter_map(|one| names.get(*one).copied())
            .collect();
        match names.split_last() {
            Some((last, [])) => (*last).to_string(),
            Some((last, before)) => format!("{} and {last}", before.join(", ")),
            None => String::new(),
        }
    };
    let mut groups = groups.iter();
    let Some(best) = groups.next() else {
        return Vec::new();
    };
    let margin = Settings::default().margin * 100.0;
    let mut sentences = vec![match best.members.len() {
        1 => format!("best by {figure}: {}", list(&best.members)),
        _ if best.equal => format!(
            "best by {figure}: {}; they are within {margin} % of each other",
            list(&best.members)
        ),
        _ => format!(
            "best by {figure}: {}; no difference between them is certain",
            list(&best.members)
        ),
    }];
    let others: Vec<String> = groups
        .map(|group| {
            let times = match (&group.ratio, group.ratios) {
                (Some(ratio), _) => {
                    format!("{:.2} ({:.2}–{:.2})", ratio.value, ratio.low, ratio.high)
                }
                (None, (low, high)) => format!("{low:.2} to {high:.2}"),
            };
            format!("{} {times} {verb}", list(&group.members))
        })
        .collect();
    if !others.is_empty() {
        sentences.push(format!("compared with the best: {}", others.join("; ")));
    }
    sentences
}

/// Returns the name of a figure in a sentence.
pub(crate) fn figure_name(metric: Metric) -> &'static str {
    match metric {
        Metric::AllServedExcessS => "time until all are served, less the pauses",
        Metric::FirstReplyMaxMs => "slowest first reply",
        Metric::RequestsPerS => "requests per second",
        Metric::CpuUsPerRequest => "CPU time per request",
        Metric::MbPerS => "MB per second",
        Metric::CpuMsPerGb => "CPU time per GB",
        Metric::ResponseP99Ms => "p99 of the response time",
        Metric::BystandersP99Ms => "p99 of the bystanders",
        Metric::KibPerConnection => "memory per connection",
        Metric::PeakKibPerConnection => "growth of the peak memory per connection",
        Metric::IdleCpuMsPerS => "CPU time while idle",
        _ => "figure",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::interval::Estimate;

    fn group(members: &[usize], ratios: (f64, f64), equal: bool) -> Group {
        Group {
            members: members.to_vec(),
            ratios,
            ratio: (ratios.0 == ratios.1 && ratios.0 > 1.0).then_some(Estimate {
                value: ratios.0,
                low: ratios.0 - 0.1,
                high: ratios.0 + 0.1,
            }),
            equal,
        }
    }

    #[test]
    fn groups_are_named_with_their_distance_from_the_best() {
        let names = ["mio", "uring", "threads", "select", "smol"];
        let groups = [
            group(&[0, 1, 3], (1.0, 1.02), true),
            group(&[2], (1.71, 1.71), true),
            group(&[4], (1.9, 1.95), false),
        ];
        assert_eq!(
            sentences(&groups, &names, "CPU time per request", "times as much"),
            [
                "best by CPU time per request: mio, uring and select; they are within 5 % of each other",
                "compared with the best: threads 1.71 (1.61–1.81) times as much; smol 1.90 to 1.95 times as much",
            ]
        );
        let open = [group(&[0, 1], (1.0, 1.2), false)];
        assert_eq!(
            sentences(&open, &names, "CPU time per request", "times as much"),
            ["best by CPU time per request: mio and uring; no difference between them is certain"]
        );
        let alone = [group(&[4], (1.0, 1.0), true)];
        assert_eq!(
            sentences(&alone, &names, "MB per second", ""),
            ["best by MB per second: smol"]
        );
        assert!(sentences(&[], &names, "", "").is_empty());
    }
}
