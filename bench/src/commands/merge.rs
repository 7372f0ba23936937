//! `samewire merge`: takes the comparisons of several machines together.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::diff::Format;
use crate::report::table::ratio;
use crate::report::words::figure_name;
use crate::results::Results;
use crate::results::metric::Metric;
use crate::results::samples::{Case, Values, samples};
use crate::results::workload::Workload;
use crate::statistics::interval::{Estimate, moments};
use crate::statistics::pooling::pool;
use crate::statistics::ranking::Better;
use crate::{format, output};

/// Options of `merge`.
#[derive(Debug, Args)]
#[command(
    after_help = "Absolute values are never taken together: microseconds of two machines have no mean. For each figure,
the ratio to one reference model is (that with the best mean over all machines). The interval of the
mean is for machines like these, and the interval of the next machine contains the ratio on another
machine in 95 % of the cases (random effects).

Examples:
  samewire merge results/laptop results/server results/vm
  samewire merge results/* --format json > merged.json

Exit status: 0, or 1 if the comparisons cannot be taken together."
)]
pub struct MergeArgs {
    /// Directories of the comparisons, one per machine or session
    #[arg(required = true, num_args = 2.., value_name = "DIR")]
    dirs: Vec<PathBuf>,

    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    format: Format,
}

/// Ratio of one model to the reference over all machines.
#[derive(Debug, Serialize)]
struct Row {
    workload: String,
    connections: usize,
    figure: String,
    model: String,
    /// Model to which the ratio is.
    reference: String,
    /// Number of machines that measured both.
    machines: usize,
    /// Mean over machines like these.
    ratio: Estimate,
    /// Standard deviation between machines, as a share.
    spread: f64,
    /// Interval of the ratio on the next machine; `null` for fewer than three machines.
    next: Option<(f64, f64)>,
}

/// Runs `samewire merge`.
///
/// # Errors
///
/// Returns an error if a directory has no results, or if the comparisons have no case in common.
pub fn run(args: &MergeArgs) -> anyhow::Result<ExitCode> {
    let all = args
        .dirs
        .iter()
        .map(|dir| Results::read(dir))
        .collect::<anyhow::Result<Vec<Results>>>()?;
    let rows = rows(&all);
    if rows.is_empty() {
        bail!(
            "the comparisons have no two models in common that both have a figure by which models are ranked"
        );
    }
    output::print(&match args.format {
        Format::Json => serde_json::to_string_pretty(&rows).context("cannot write JSON")? + "\n",
        Format::Text => to_text(&rows, all.len()),
        Format::Markdown => to_markdown(&rows),
    })?;
    Ok(ExitCode::SUCCESS)
}

type Table = (Workload, usize, Metric);

fn rows(all: &[Results]) -> Vec<Row> {
    let machines: Vec<BTreeMap<Case, Values>> =
        all.iter().map(|results| samples(results, false)).collect();
    let mut tables: Vec<Table> = Vec::new();
    for case in machines.iter().flat_map(BTreeMap::keys) {
        let table = (case.workload, case.connections, case.metric);
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    tables
        .iter()
        .flat_map(|table| table_rows(&machines, *table))
        .collect()
}

fn table_rows(
    machines: &[BTreeMap<Case, Values>],
    (workload, connections, metric): Table,
) -> Vec<Row> {
    let Some(better) = metric.better(workload) else {
        return Vec::new();
    };
    let of_table = |machine: &BTreeMap<Case, Values>| -> BTreeMap<String, Values> {
        let cases = machine.iter().filter(|(case, _)| {
            (case.workload, case.connections, case.metric) == (workload, connections, metric)
        });
        cases
            .map(|(case, values)| (case.model.clone(), values.clone()))
            .collect()
    };
    let machines: Vec<BTreeMap<String, Values>> = machines.iter().map(of_table).collect();
    let Some(reference) = reference(&machines, better) else {
        return Vec::new();
    };
    let mut models: Vec<&String> = machines.iter().flat_map(BTreeMap::keys).collect();
    models.sort();
    models.dedup();
    let mut rows: Vec<Row> = models
        .into_iter()
        .filter(|model| **model != reference)
        .filter_map(|model| {
            let estimates: Vec<(f64, f64)> = machines
                .iter()
                .filter_map(|machine| ratio_by_round(machine.get(model)?, machine.get(&reference)?))
                .collect();
            let pooled = pool(&estimates)?;
            Some(Row {
                workload: workload.to_string(),
                connections,
                figure: figure_name(metric).to_string(),
                model: model.clone(),
                reference: reference.clone(),
                machines: estimates.len(),
                ratio: pooled.mean.exp(),
                spread: pooled.tau.exp_m1(),
                next: pooled.next.map(|(low, high)| (low.exp(), high.exp())),
            })
        })
        .collect();
    rows.sort_by(|a, b| match better {
        Better::Lower => a.ratio.value.total_cmp(&b.ratio.value),
        Better::Higher => b.ratio.value.total_cmp(&a.ratio.value),
    });
    rows
}

/// Returns the mean and the standard error of the logarithm of a ratio, round by round.
fn ratio_by_round(values: &Values, reference: &Values) -> Option<(f64, f64)> {
    let differences: Vec<f64> = values
        .by_round
        .iter()
        .filter_map(|(round, value)| Some(value - reference.by_round.get(round)?))
        .collect();
    moments(&differences).map(|(_, mean, error)| (mean, error))
}

/// Returns the model with the best mean over all machines, of those that all machines measured.
fn reference(machines: &[BTreeMap<String, Values>], better: Better) -> Option<String> {
    let first = machines.first()?;
    let everywhere = first
        .keys()
        .filter(|model| machines.iter().all(|machine| machine.contains_key(*model)));
    let mean = |model: &String| -> f64 {
        let of =
            |values: &Values| values.by_round.values().sum::<f64>() / values.by_round.len() as f64;
        let sum: f64 = machines
            .iter()
            .filter_map(|machine| machine.get(model))
            .map(of)
            .sum();
        match better {
            Better::Lower => sum,
            Better::Higher => -sum,
        }
    };
    everywhere
        .min_by(|a, b| mean(a).total_cmp(&mean(b)))
        .cloned()
}

fn next(row: &Row) -> String {
    row.next.map_or("n/a".to_string(), |(low, high)| {
        format!("{low:.2}–{high:.2}")
    })
}

fn to_text(rows: &[Row], machines: usize) -> String {
    let mut text = String::new();
    let mut last = None;
    for row in rows {
        let table = (&row.workload, row.connections, &row.figure);
        if last != Some(table) {
            let _ = writeln!(
                text,
                "{} with {} connections, {}: ratio to {}, over {machines} comparisons",
                row.workload,
                format::count(row.connections as u64),
                row.figure,
                row.reference
            );
            last = Some(table);
        }
        let _ = writeln!(
            text,
            "  {:<12} {:<20} next machine {:<12} spread between machines {:.1} %",
            row.model,
            ratio(&row.ratio),
            next(row),
            row.spread * 100.0
        );
    }
    text
}

fn to_markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| workload | connections | figure | model | ratio to | ratio (95 % interval) | next machine | spread | machines |\n\
         | --- | ---: | --- | --- | --- | ---: | ---: | ---: | ---: |\n",
    );
    for row in rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {:.1} % | {} |",
            row.workload,
            format::count(row.connections as u64),
            row.figure,
            row.model,
            row.reference,
            ratio(&row.ratio),
            next(row),
            row.spread * 100.0,
            row.machines
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::diff::tests::results;

    /// A machine on which everything takes `speed` times as long, and the model `ratio` times as long as mio.
    fn machine(speed: f64, ratio: f64) -> Results {
        let mio: Vec<f64> = [1.0, 1.02, 0.98, 1.01, 0.99, 1.0]
            .map(|one| one * speed)
            .into();
        let poll: Vec<f64> = [1.01, 1.0, 0.99, 1.0, 1.01, 0.99]
            .map(|one| one * speed * ratio)
            .into();
        results(&[("mio", &mio), ("poll", &poll)])
    }

    #[test]
    fn ratios_are_taken_together_and_absolute_values_are_not() {
        let all = [machine(5.0, 1.5), machine(50.0, 1.6), machine(1.0, 1.55)];
        let rows = rows(&all);
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!(
            (row.model.as_str(), row.reference.as_str()),
            ("poll", "mio")
        );
        assert_eq!(row.machines, 3);
        assert!((row.ratio.value - 1.55).abs() < 0.01, "{row:?}");
        let (low, high) = row.next.unwrap();
        assert!(low < 1.5 && high > 1.6, "{row:?}");
        let text = to_text(&rows, 3);
        assert!(
            text.starts_with("max with 100 connections, CPU time per request: ratio to mio"),
            "{text}"
        );
        assert!(
            to_markdown(&rows).contains("| max | 100 | CPU time per request | poll | mio | ×1.55")
        );
    }

    #[test]
    fn two_machines_have_no_interval_of_the_next_and_one_has_no_row() {
        let two = [machine(5.0, 1.5), machine(7.0, 1.6)];
        assert_eq!(rows(&two)[0].next, None);
        assert!(rows(&two[..1]).is_empty());
    }
}
