//! `samewire diff`: compares two comparisons of the same cases, such as those of two revisions.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::compare::parse_percent;
use crate::report::table::ratio;
use crate::report::words::figure_name;
use crate::results::Results;
use crate::results::samples::{Case, samples};
use crate::statistics::interval::Estimate;
use crate::statistics::welch::{Class, adjust, classify, difference};
use crate::{format, output};

/// Share of the differences that may be wrong.
const ALPHA: f64 = 0.05;

/// Options of `diff`.
#[derive(Debug, Args)]
#[command(
    after_help = "A case is slower or faster if the difference is certain (Welch's test; of all differences that are
named, at most 5 % are wrong: Benjamini and Hochberg), the same if its whole interval is within the
margin, and not known otherwise. Where both comparisons measured the null server, the drift of the
machine between them is taken out. Differences under 5 % between sessions of a machine need more than
two sessions; compare --against measures two builds in the same rounds.

Examples:
  samewire diff results/before results/after
  samewire diff results/before results/after --margin 5% --format markdown >> $GITHUB_STEP_SUMMARY

Exit status: 0 if no case is slower by more than the margin, 1 if one is, 2 for wrong usage."
)]
pub struct DiffArgs {
    /// Directory of the first comparison
    before: PathBuf,

    /// Directory of the second comparison
    after: PathBuf,

    /// Largest difference between equal figures
    #[arg(long, value_name = "PERCENT", default_value = "3%", value_parser = parse_percent)]
    margin: f64,

    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    format: Format,
}

/// Form of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for a terminal
    Text,
    /// A table in Markdown
    Markdown,
    /// One JSON document
    Json,
}

/// Difference of one case.
#[derive(Debug, Serialize)]
struct Row {
    workload: String,
    connections: usize,
    model: String,
    figure: String,
    class: Class,
    /// Ratio of the second comparison to the first.
    ratio: Estimate,
    /// Adjusted probability of a difference as large as this if there were none.
    p: f64,
    /// Whether the drift of the machine was taken out.
    anchored: bool,
    /// Whether the case is slower by more than the margin.
    beyond_margin: bool,
}

/// Runs `samewire diff`.
///
/// # Errors
///
/// Returns an error if a directory has no results, or if the two comparisons have no case in common.
pub fn run(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let before = Results::read(&args.before)?;
    let after = Results::read(&args.after)?;
    let rows = rows(&before, &after, args.margin);
    if rows.is_empty() {
        bail!(
            "{} and {} have no figure in common that was measured in at least two rounds each and is not doubtful",
            args.before.display(),
            args.after.display()
        );
    }
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&rows).context("cannot write JSON")? + "\n",
        Format::Text => to_text(&rows, &notes(&before, &after)),
        Format::Markdown => to_markdown(&rows, &notes(&before, &after)),
    };
    output::print(&text)?;
    let slower = rows.iter().any(|row| row.beyond_margin);
    Ok(if slower {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Compares all cases that both comparisons have: those that are slower first, then by how much they differ.
fn rows(before: &Results, after: &Results, margin: f64) -> Vec<Row> {
    let anchored = |case: &Case| {
        let has = |results| {
            samples(results, true)
                .get(case)
                .is_some_and(|one| one.anchored)
        };
        has(before) && has(after)
    };
    let (plain_before, plain_after) = (samples(before, false), samples(after, false));
    let (anchored_before, anchored_after) = (samples(before, true), samples(after, true));
    let mut found = Vec::new();
    for case in plain_before.keys() {
        let anchored = anchored(case);
        let (first, second) = match anchored {
            true => (anchored_before.get(case), anchored_after.get(case)),
            false => (plain_before.get(case), plain_after.get(case)),
        };
        let Some((first, second)) = first.zip(second) else {
            continue;
        };
        let values = |values: &crate::results::samples::Values| -> Vec<f64> {
            values.by_round.values().copied().collect()
        };
        if let Some(difference) = difference(&values(first), &values(second)) {
            found.push((case, anchored, difference));
        }
    }
    let probabilities: Vec<f64> = found.iter().map(|(_, _, one)| one.p).collect();
    let mut rows: Vec<Row> = found
        .iter()
        .zip(adjust(&probabilities))
        .filter_map(|((case, anchored, difference), p)| {
            let better = case.metric.better(case.workload)?;
            let class = classify(difference, p, ALPHA, margin, better);
            let worse = match better {
                crate::statistics::ranking::Better::Lower => difference.ratio.value,
                crate::statistics::ranking::Better::Higher => 1.0 / difference.ratio.value,
            };
            Some(Row {
                workload: case.workload.to_string(),
                connections: case.connections,
                model: case.model.clone(),
                figure: figure_name(case.metric).to_string(),
                class,
                ratio: difference.ratio,
                p,
                anchored: *anchored,
                beyond_margin: class == Class::Slower && worse > 1.0 + margin,
            })
        })
        .collect();
    rows.sort_by(|a, b| {
        let distance = |row: &Row| row.ratio.value.ln().abs();
        a.class
            .cmp(&b.class)
            .then(distance(b).total_cmp(&distance(a)))
    });
    rows
}

/// Returns what a reader must know about the two comparisons.
fn notes(before: &Results, after: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    let (one, other) = (&before.environment, &after.environment);
    if one.cpu_model != other.cpu_model || one.cpus != other.cpus || one.kernel != other.kernel {
        notes.push(
            "the comparisons ran on different machines or kernels; use merge for that".to_string(),
        );
    }
    if one.binary_sha256.is_some() && one.binary_sha256 == other.binary_sha256 {
        notes.push("both comparisons measured the same program".to_string());
    }
    let commit = |environment: &crate::results::Environment| {
        environment.commit.clone().unwrap_or("unknown".to_string())
    };
    notes.push(format!(
        "source revisions: {} and {}",
        commit(one),
        commit(other)
    ));
    notes
}

fn words(class: Class) -> &'static str {
    match class {
        Class::Slower => "slower",
        Class::Faster => "faster",
        Class::Same => "the same",
        Class::NotKnown => "not known",
    }
}

fn to_text(rows: &[Row], notes: &[String]) -> String {
    let mut text = String::new();
    for class in [Class::Slower, Class::Faster, Class::NotKnown, Class::Same] {
        let of_class: Vec<&Row> = rows.iter().filter(|row| row.class == class).collect();
        if of_class.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{} ({}):", words(class), of_class.len());
        for row in of_class {
            let _ = writeln!(
                text,
                "  {:<14} {:<12} {:>6}  {:<34} {:<20} p {:.3}{}",
                row.workload,
                row.model,
                format::count(row.connections as u64),
                row.figure,
                ratio(&row.ratio),
                row.p,
                if row.beyond_margin {
                    "  beyond the margin"
                } else {
                    ""
                }
            );
        }
    }
    for note in notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn to_markdown(rows: &[Row], notes: &[String]) -> String {
    let mut text = String::from(
        "| workload | model | connections | figure | ratio (95 % interval) | result |\n| --- | --- | ---: | --- | ---: | --- |\n",
    );
    for row in rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {}{} |",
            row.workload,
            row.model,
            format::count(row.connections as u64),
            row.figure,
            ratio(&row.ratio),
            words(row.class),
            if row.beyond_margin {
                ", beyond the margin"
            } else {
                ""
            }
        );
    }
    text.push('\n');
    for note in notes {
        let _ = writeln!(text, "- {note}");
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::results::metric::Metric;
    use crate::results::tests::{full, run};
    use crate::results::workload::Workload;
    use crate::results::{Role, summary};

    /// Results of `max` with these costs by round. A name that begins with `null` is the null server.
    pub(crate) fn results(costs: &[(&str, &[f64])]) -> Results {
        let mut results = full();
        results.options.workloads = vec![Workload::Max];
        results.runs.clear();
        let template = results.models[0].clone();
        results.models.clear();
        for (name, values) in costs {
            let anchor = name.starts_with("null");
            if !anchor {
                let mut model = template.clone();
                model.name = (*name).to_string();
                results.models.push(model);
            }
            for (value, round) in values.iter().zip(1..) {
                let mut run = run(name, Workload::Max);
                run.round = round;
                run.role = if anchor { Role::Anchor } else { Role::Model };
                run.figures.insert(Metric::CpuUsPerRequest, Some(*value));
                run.figures
                    .insert(Metric::ConnectionsWithoutReply, Some(0.0));
                results.runs.push(run);
            }
        }
        summary::complete(&mut results).unwrap();
        results
    }

    const BASE: [f64; 6] = [5.0, 5.1, 4.9, 5.05, 4.95, 5.0];

    fn times(factor: f64) -> Vec<f64> {
        BASE.iter().map(|value| value * factor).collect()
    }

    fn class(rows: &[Row], model: &str) -> (Class, bool) {
        let row = rows.iter().find(|row| row.model == model).unwrap();
        (row.class, row.beyond_margin)
    }

    #[test]
    fn drift_of_the_machine_is_taken_out_by_the_null_server() {
        let before = results(&[
            ("mio", &BASE),
            ("poll", &times(1.1)),
            ("null server", &BASE),
        ]);
        let (mio, poll) = (times(1.2), times(1.1 * 1.2 * 1.15));
        let after = results(&[("mio", &mio), ("poll", &poll), ("null server", &mio)]);
        let rows = rows(&before, &after, 0.03);
        assert!(rows.iter().all(|row| row.anchored));
        assert_eq!(class(&rows, "mio"), (Class::Same, false));
        assert_eq!(class(&rows, "poll"), (Class::Slower, true));
        assert_eq!(rows[0].model, "poll", "what is slower comes first");
        assert!((rows[0].ratio.value - 1.15).abs() < 1e-6);
    }

    #[test]
    fn without_a_null_server_the_difference_is_that_of_the_figures() {
        let before = results(&[("mio", &BASE), ("poll", &BASE)]);
        let faster = times(0.8);
        let after = results(&[("mio", &faster), ("spin", &BASE)]);
        let rows = rows(&before, &after, 0.03);
        assert_eq!(rows.len(), 1, "only mio is in both");
        assert!(!rows[0].anchored);
        assert_eq!(class(&rows, "mio"), (Class::Faster, false));
        // Slower, but within a margin of 30 %.
        let back = super::rows(&after, &before, 0.3);
        assert!(!class(&back, "mio").1);
    }

    #[test]
    fn all_forms_of_the_output_name_the_case() {
        let before = results(&[("mio", &BASE)]);
        let slower = times(1.5);
        let after = results(&[("mio", &slower)]);
        let rows = rows(&before, &after, 0.03);
        let text = to_text(&rows, &["a note".to_string()]);
        assert!(
            text.starts_with("slower (1):\n") && text.contains("beyond the margin"),
            "{text}"
        );
        assert!(text.contains("note: a note"));
        let markdown = to_markdown(&rows, &[]);
        assert!(
            markdown.contains("| max | mio | 100 | CPU time per request | ×1.50 ("),
            "{markdown}"
        );
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(json[0]["class"], "slower");
        assert_eq!(json[0]["beyond_margin"], true);
    }
}
