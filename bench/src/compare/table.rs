//! The tables, as rows of text: the terminal and the report show the same.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use super::metric::Metric;
use super::plan::Workload;
use super::results::{Launch, Note, Results};
use super::summary::{Figure, Mark, Summary, marks};
use crate::figures;

/// Terminals are at least this wide.
const WIDTH: usize = 100;

/// One table.
#[derive(Debug)]
pub(super) struct Sheet {
    /// The workload's name.
    pub(super) title: String,
    /// What was done, and how to read it.
    pub(super) about: String,
    pub(super) headings: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// What a column shows of a model's summary.
enum Column {
    /// The figure, with its mark.
    Value(Metric),
    /// The smallest and the largest of a single launch.
    Range(Metric),
    /// From the one figure to the other.
    Between(Metric, Metric),
    /// A share in percent.
    Percent(Metric),
}

use Column::{Between, Percent, Range, Value};

/// What the signs in the tables mean.
pub(super) const LEGEND: &str = "* best, ≈ tied with it: its launches overlap with those of the best. \
     ?: the client itself was late, or others had the CPUs. min–max: over the launches. ≥: at least. –: fewer than 10 samples beyond that percentile. \
     n/a: cannot be told here. Who did not serve everybody takes no part in the search for the best.";

/// One table per workload that was measured.
pub(super) fn sheets(results: &Results) -> Vec<Sheet> {
    let workloads = results.options.workloads.iter();
    workloads
        .map(|&workload| sheet(results, workload))
        .filter(|sheet| !sheet.rows.is_empty())
        .collect()
}

fn sheet(results: &Results, workload: Workload) -> Sheet {
    let options = &results.options;
    let connections = figures::count(options.connections as u64);
    let (about, columns): (String, Vec<(&str, Column)>) = match workload {
        Workload::Crowd => (
            format!(
                "{connections} clients connect at once; each asks 10 times, with a pause of 100 ms after each reply. \
                 How long until all are served? (At most {} s are waited.)",
                options.patience_s
            ),
            vec![
                ("all served\nafter s", Value(Metric::AllServedS)),
                ("min–max", Range(Metric::AllServedS)),
                ("clients\nserved", Value(Metric::ClientsServed)),
                ("first reply\nmedian ms", Value(Metric::FirstReplyP50Ms)),
                ("unluckiest\nms", Value(Metric::FirstReplyMaxMs)),
                ("min–max", Range(Metric::FirstReplyMaxMs)),
                ("threads", Value(Metric::Threads)),
            ],
        ),
        Workload::Max => (
            format!(
                "Closed loop: {connections} connections ask again as soon as they are answered, for {} s. What is the \
                 most, and what does it cost? (At saturation latency is queueing, and is not shown.)",
                options.duration_s
            ),
            vec![
                ("requests/s", Value(Metric::RequestsPerS)),
                ("min–max", Range(Metric::RequestsPerS)),
                ("CPU µs/\nrequest", Value(Metric::CpuUsPerRequest)),
                ("min–max", Range(Metric::CpuUsPerRequest)),
                ("switches/\nrequest", Value(Metric::SwitchesPerRequest)),
                ("fairness\n(Jain)", Value(Metric::Fairness)),
                (
                    "replies per\nconnection",
                    Between(Metric::SlowestConnection, Metric::FastestConnection),
                ),
            ],
        ),
        Workload::Steady => (
            format!(
                "Open loop: {} requests/s, evenly over {connections} connections, for {} s, whatever the server does. \
                 How long do replies take? From the planned send time; the last p99 is from the actual one.",
                figures::digits(options.rate_per_s),
                options.duration_s
            ),
            vec![
                ("p50\nms", Value(Metric::ResponseP50Ms)),
                ("p99\nms", Value(Metric::ResponseP99Ms)),
                ("min–max", Range(Metric::ResponseP99Ms)),
                ("p99.9\nms", Value(Metric::ResponseP999Ms)),
                ("max\nms", Value(Metric::ResponseMaxMs)),
                ("uncorr.\np99 ms", Value(Metric::ServiceP99Ms)),
                ("CPU µs/\nrequest", Value(Metric::CpuUsPerRequest)),
                ("answered\n%", Percent(Metric::Availability)),
                ("starved\nrequests", Value(Metric::StarvedRequests)),
            ],
        ),
        Workload::Idle => (
            format!(
                "{} connections are silent after one exchange each. What do they cost the server? (Its own memory; the \
                 kernel's for the sockets is the same for all, and beside it.)",
                figures::count(options.idle_connections as u64)
            ),
            vec![
                ("KiB per\nconnection", Value(Metric::KibPerConnection)),
                ("min–max", Range(Metric::KibPerConnection)),
                ("peak\nMiB", Value(Metric::PeakMemoryMib)),
                ("threads", Value(Metric::Threads)),
                ("% of a CPU\nwhile silent", Percent(Metric::IdleCpus)),
            ],
        ),
    };
    let summaries: Vec<&Summary> = results
        .summary
        .iter()
        .filter(|summary| summary.workload == workload)
        .collect();
    let mut headings = vec!["model".to_string()];
    headings.extend(columns.iter().map(|column| column.0.to_string()));
    let mut rows: Vec<Vec<String>> = summaries
        .iter()
        .map(|summary| vec![summary.model.clone()])
        .collect();
    for (_, column) in &columns {
        let marks = match column {
            Value(metric) => marks(*metric, &summaries),
            _ => vec![Mark::None; summaries.len()],
        };
        let marked = marks.iter().any(|mark| *mark != Mark::None);
        for ((row, summary), mark) in rows.iter_mut().zip(&summaries).zip(marks) {
            let mut text = text(summary, column);
            if marked {
                text.push_str(match mark {
                    Mark::Best => " *",
                    Mark::Tied => " ≈",
                    Mark::Doubtful => " ?",
                    // A no-break space, which keeps the digits of a column under each other.
                    Mark::None => " \u{a0}",
                });
            }
            row.push(text);
        }
    }
    Sheet {
        title: workload.to_string(),
        about,
        headings,
        rows,
    }
}

fn text(summary: &Summary, column: &Column) -> String {
    let get = |metric: &Metric| summary.figures.get(metric).copied().flatten();
    if summary.valid == 0 {
        return match column {
            Value(metric) if Some(*metric) == first(summary.workload) => "failed".to_string(),
            _ => String::new(),
        };
    }
    match column {
        Value(metric) => match get(metric) {
            Some(figure) => value(*metric, &figure),
            None if metric.distribution().is_some() => "–".to_string(),
            None => "n/a".to_string(),
        },
        Range(metric) => match get(metric) {
            Some(Figure {
                min: Some(min),
                max: Some(max),
                ..
            }) => {
                format!("{}–{}", number(*metric, min), number(*metric, max))
            }
            _ => String::new(),
        },
        Between(from, to) => match (get(from), get(to)) {
            (Some(from), Some(to)) => {
                format!(
                    "{}–{}",
                    figures::count(from.value as u64),
                    figures::count(to.value as u64)
                )
            }
            _ => "n/a".to_string(),
        },
        Percent(metric) => get(metric).map_or("n/a".to_string(), |figure| percent(figure.value)),
    }
}

/// The column that says that nothing is to be said.
fn first(workload: Workload) -> Option<Metric> {
    Some(match workload {
        Workload::Crowd => Metric::AllServedS,
        Workload::Max => Metric::RequestsPerS,
        Workload::Steady => Metric::ResponseP50Ms,
        Workload::Idle => Metric::KibPerConnection,
    })
}

fn value(metric: Metric, figure: &Figure) -> String {
    let sign = if figure.lower_bound { "≥ " } else { "" };
    format!("{sign}{}", number(metric, figure.value))
}

fn number(metric: Metric, value: f64) -> String {
    match metric {
        Metric::ClientsServed
        | Metric::StarvedRequests
        | Metric::Threads
        | Metric::SlowestConnection
        | Metric::FastestConnection => figures::count(value.round().max(0.0) as u64),
        Metric::Fairness => format!("{value:.3}"),
        _ if value < 1.0 => format!("{value:.3}"),
        _ => figures::digits(value),
    }
}

/// It says 100 only where nothing is missing.
fn percent(share: f64) -> String {
    let percent = figures::percent(share);
    percent.trim_end_matches(" %").to_string()
}

/// What must be said beside the tables, one sentence each: what failed, what was left out, whom the client held up.
pub(super) fn notes(results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    if !results.complete {
        notes.push("interrupted: not all that was planned was measured".to_string());
    }
    for model in &results.models {
        if let Some(obstacle) = &model.obstacle {
            notes.push(format!("{} was left out: {obstacle}", model.name));
        }
    }
    for summary in &results.summary {
        // One example is enough: the rest is in the JSON.
        let problem = launches(results, summary).find_map(|launch| launch.problems.first());
        if let Some(problem) = problem {
            notes.push(format!(
                "{} {}: {} of {} launches failed and are not in the figures: {problem}",
                summary.model,
                summary.workload,
                summary.launches - summary.valid,
                summary.launches
            ));
        }
    }
    for &workload in &results.options.workloads {
        // One sentence for all models that it concerns.
        let mut concerned: BTreeMap<Note, Vec<String>> = BTreeMap::new();
        for summary in results
            .summary
            .iter()
            .filter(|summary| summary.workload == workload)
        {
            let told: Vec<Note> = launches(results, summary)
                .filter(|launch| launch.valid())
                .flat_map(|launch| launch.notes.iter().copied())
                .collect();
            for note in told.iter().copied().collect::<BTreeSet<_>>() {
                let times = told.iter().filter(|told| **told == note).count();
                let all = times == summary.valid;
                concerned.entry(note).or_default().push(if all {
                    summary.model.clone()
                } else {
                    format!("{} ({times} of {} launches)", summary.model, summary.valid)
                });
            }
        }
        for (note, models) in concerned {
            notes.push(format!(
                "{workload}: {}: {}",
                sentence(note),
                models.join(", ")
            ));
        }
    }
    notes
}

fn launches<'r>(results: &'r Results, summary: &'r Summary) -> impl Iterator<Item = &'r Launch> {
    let of =
        |launch: &&Launch| launch.model == summary.model && launch.workload == summary.workload;
    results.launches.iter().filter(of)
}

fn sentence(note: Note) -> &'static str {
    match note {
        Note::ClientBusy => "the client was the limit, at least 90 % busy while the server was not",
        Note::ClientLate => {
            "the client itself sent late (at p99 over 1 ms, or over half the response time), and makes the replies seem late"
        }
        Note::OtherInFlight => {
            "requests under way were not as many as connections, by more than 10 % (Little's law)"
        }
        Note::NotAllHeld => {
            "not all connections were served, at a time or in time, so there is no memory per connection"
        }
        Note::NotSilent => {
            "the first exchanges lasted into the silence, so its CPU time is not told"
        }
        Note::Disturbed => {
            "others (programs, interrupts, neighbours) had over 10 % of the CPUs in use"
        }
    }
}

impl Sheet {
    /// For a terminal.
    pub(super) fn to_text(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(&self.headings);
        for row in &self.rows {
            table.add_row(row.iter().map(Cell::new));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if index == 0 { 2 } else { 0 }, 2));
            column.set_cell_alignment(if index == 0 {
                CellAlignment::Left
            } else {
                CellAlignment::Right
            });
        }
        let lines: Vec<_> = table
            .lines()
            .map(|line| line.trim_end().to_string())
            .collect();
        let about = wrap(&format!("{}: {}", self.title, self.about), "");
        format!("{about}{}\n", lines.join("\n"))
    }
}

/// All of it, for a terminal.
pub(super) fn to_text(results: &Results) -> String {
    let mut text = String::new();
    let sheets = sheets(results);
    for sheet in &sheets {
        text.push_str(&sheet.to_text());
        text.push('\n');
    }
    if !sheets.is_empty() {
        text.push_str(&wrap(LEGEND, ""));
    }
    for note in notes(results) {
        text.push_str(&wrap(&format!("note: {note}"), "  "));
    }
    for warning in &results.environment.warnings {
        text.push_str(&wrap(&format!("warning: {warning}"), "  "));
    }
    text
}

/// Breaks a text into lines that fit; those after the first are indented.
fn wrap(text: &str, indent: &str) -> String {
    let mut wrapped = String::new();
    let mut width = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > WIDTH {
            wrapped.push('\n');
            wrapped.push_str(indent);
            width = indent.len();
        } else if width > 0 {
            wrapped.push(' ');
            width += 1;
        }
        wrapped.push_str(word);
        width += length;
    }
    wrapped.push('\n');
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::full;

    /// Seventeen models with the widest figures that are to be expected.
    fn wide() -> Results {
        let mut results = full();
        let mut summary = Vec::new();
        for workload in Workload::ALL {
            for number in 0..17 {
                let figures = Metric::ALL.into_iter().map(|metric| {
                    let value = match metric {
                        Metric::RequestsPerS => 999_999.0,
                        Metric::CpuUsPerRequest | Metric::SwitchesPerRequest => 98.7,
                        Metric::SlowestConnection | Metric::FastestConnection => 12_345.0,
                        Metric::Fairness | Metric::Availability => 0.999_9,
                        Metric::StarvedRequests => 99_999.0,
                        _ => 1_250.0,
                    };
                    let figure = Figure {
                        value: value - f64::from(number),
                        min: Some(value - 20.0),
                        max: Some(value),
                        lower_bound: metric == Metric::RequestsPerS,
                    };
                    (metric, Some(figure))
                });
                summary.push(Summary {
                    model: format!("coroutines{number}"),
                    workload,
                    launches: 3,
                    valid: 3,
                    client_limited: true,
                    disturbed: false,
                    ranked: true,
                    figures: figures.collect(),
                });
            }
        }
        results.summary = summary;
        results
    }

    #[test]
    fn everything_fits_a_hundred_columns() {
        let text = to_text(&wide());
        for line in text.lines() {
            assert!(
                line.chars().count() <= WIDTH,
                "{} columns: {line}",
                line.chars().count()
            );
        }
        assert!(text.lines().count() > 17 * 4);
    }

    #[test]
    fn failed_and_unknown_and_too_few_are_told_apart() {
        let mut results = full();
        for summary in &mut results.summary {
            summary.figures.insert(Metric::CpuUsPerRequest, None);
            summary.workload = Workload::Max;
        }
        let rows = |results: &Results| sheet(results, Workload::Max).rows.concat();
        assert!(rows(&results).contains(&"n/a".to_string()));
        for summary in &mut results.summary {
            summary.figures.insert(Metric::ResponseP999Ms, None);
            summary.workload = Workload::Steady;
        }
        assert!(
            sheet(&results, Workload::Steady)
                .rows
                .concat()
                .contains(&"–".to_string())
        );
        for summary in &mut results.summary {
            summary.figures.clear();
            summary.valid = 0;
            summary.workload = Workload::Max;
        }
        assert!(rows(&results).contains(&"failed".to_string()));
    }

    #[test]
    fn notes_name_who_failed_and_who_is_concerned() {
        let mut results = full();
        results.launches[0].notes = vec![Note::ClientBusy];
        results.models[0].obstacle = Some("no such system call".to_string());
        results.complete = false;
        let told = notes(&results).join("\n");
        assert!(told.contains("interrupted"), "{told}");
        assert!(
            told.contains("mio was left out: no such system call"),
            "{told}"
        );
        assert!(
            told.contains("max: the client was the limit") && told.contains(": mio"),
            "{told}"
        );
        results.launches[0].problems.push("it burnt".to_string());
        results.summary[0].valid = 0;
        let told = notes(&results).join("\n");
        assert!(told.contains("mio max: 1 of 1 launches failed"), "{told}");
        assert!(told.contains("it burnt"), "{told}");
    }

    #[test]
    fn numbers_keep_three_digits_that_mean_something() {
        assert_eq!(number(Metric::ResponseP50Ms, 0.0524), "0.052");
        assert_eq!(number(Metric::ResponseP50Ms, 12.34), "12.3");
        assert_eq!(number(Metric::RequestsPerS, 61_234.5), "61,235");
        assert_eq!(number(Metric::Threads, 102.0), "102");
        assert_eq!(percent(0.999_99), "99.99");
    }

    #[test]
    fn lines_are_broken_between_words() {
        let wrapped = wrap(&"word ".repeat(60), "  ");
        assert!(wrapped.lines().count() > 2);
        assert!(wrapped.lines().skip(1).all(|line| line.starts_with("  ")));
        assert_eq!(wrapped.split_whitespace().count(), 60);
    }
}
