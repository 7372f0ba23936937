//! Builds the result tables as rows of text, which the terminal and `report.md` show alike, and the notes beside them.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use contract::Capacity;

use crate::output::wrap;
use crate::report::words;
use crate::results::certificate::Condition;
use crate::results::metric::Metric;
use crate::results::summary::{Figure, Summary, TwinResult};
use crate::results::{Method, Note, Results, Role, Run, Skipped};
use crate::statistics::interval::Estimate;
use crate::statistics::ranking::Mark;
use crate::workloads::{Slice, Workload};
use crate::{format, list};

/// One table of results.
#[derive(Debug)]
pub(crate) struct ResultTable {
    /// Name of the workload; in a sweep, with the number of connections.
    pub(crate) title: String,
    /// Sentences above the table: the load, the question, and how to read the figures.
    pub(crate) about: String,
    /// Headings of the columns; a heading may have several lines.
    pub(crate) headings: Vec<String>,
    /// Rows, each with one text per column.
    pub(crate) rows: Vec<Vec<String>>,
    /// Rank of each column: if the table is too wide, the columns with the highest rank are left out first. Columns of
    /// rank 0 are always shown.
    ranks: Vec<u8>,
    /// True if models that did not serve every client are marked with †. In other tables a column shows it.
    marks_unserved: bool,
}

/// Text above a table, and its columns: the heading, the part of the summary, and the rank of each.
pub(crate) struct TableText {
    pub(crate) about: String,
    pub(crate) columns: Vec<(&'static str, Column, u8)>,
}

/// Part of a model's summary that a column shows.
#[derive(Clone, Copy)]
pub(crate) enum Column {
    /// A figure with its mark.
    Value(Metric),
    /// Smallest and largest value of a single run.
    Range(Metric),
    /// Interval of a figure by which models are ranked.
    Interval(Metric),
    /// Ratio to the best, with its interval.
    Ratio(Metric),
    /// Range from the first figure to the second.
    Between(Metric, Metric),
    /// A share in percent.
    Percent(Metric),
}

use Column::{Between, Interval, Percent, Range, Ratio, Value};

/// Returns the explanation of the figures and marks in the tables, one sentence or mark per line.
pub(crate) fn legend(results: &Results) -> Vec<String> {
    let workloads = &results.options.workloads;
    let has_curves = sweeps(results) && workloads.iter().any(|one| one.sweeps_cost());
    let mut lines: Vec<String> = [
        "Each figure with marks is the geometric mean of the rounds, and each other figure is their median. A percentile \
         is over the samples of all rounds together, and \"max\" and \"slowest\" are the largest sample of all rounds.",
        "95 % interval: where the mean of many such rounds lies. min–max: lowest and highest value of a single round. \
         Both belong to the column before them.",
        "times the best: ratio to the model with the best mean, round by round, with its interval. Models that did not \
         serve every client, and models of which a run failed twice, are not ranked.",
        "*: the leader: every other model is worse.  ≈: may be the best.  =: as good as the best: the whole interval is \
         within 5 %.  ~: not known yet.  no mark: worse than the best. No figure has a mark with fewer than six rounds.",
        "?: doubtful, and not ranked; a note says why. A mark belongs to its own column.",
    ]
    .map(String::from)
    .into();
    if has_curves {
        lines.push("†: not every client was served with this number of connections.".to_string());
    }
    lines.push(
        "≥: at least: the run ended before the true value was known, or the client was the limit."
            .to_string(),
    );
    lines.push("–: fewer than 10 samples beyond that percentile.".to_string());
    lines.push("n/a: unknown here.".to_string());
    if workloads.iter().any(|one| one.reply_bytes().is_some()) {
        lines.push(
            "MB: 10⁶ bytes, GB: 10⁹ bytes, of content in complete and correct replies.".to_string(),
        );
    }
    if has_curves {
        lines.push(
            "Growth: the last figure divided by the first. Figures with † do not count."
                .to_string(),
        );
        lines.push(
            "Curve: each figure divided by the first: ▁ up to 1, ▃ 2, ▅ 4, █ 11 or more, · no valid figure."
                .to_string(),
        );
    }
    lines
}

fn sweeps(results: &Results) -> bool {
    results.options.connections.len() > 1
}

/// Returns the tables of the measured workloads: one per workload. In a sweep, workloads of which not only the cost is
/// compared have one table per number of connections.
pub(crate) fn result_tables(results: &Results) -> Vec<ResultTable> {
    let mut result_tables = Vec::new();
    for &workload in &results.options.workloads {
        if sweeps(results) && workload.sweeps_cost() {
            result_tables.push(sweep(results, workload));
            continue;
        }
        let summaries = results.summary.iter();
        let numbers: BTreeSet<usize> = summaries
            .filter(|summary| summary.workload == workload)
            .map(|summary| summary.connections)
            .collect();
        result_tables.extend(
            numbers
                .iter()
                .map(|&one| result_table(results, workload, one)),
        );
    }
    result_tables.retain(|result_table| !result_table.rows.is_empty());
    result_tables
}

fn result_table(results: &Results, workload: Workload, number: usize) -> ResultTable {
    let connections = format::count(number as u64);
    let TableText { about, columns } = (workload.definition().table)(results, number);
    let summaries: Vec<&Summary> = results
        .summary
        .iter()
        .filter(|summary| summary.workload == workload && summary.connections == number)
        .collect();
    let mut result_table = ResultTable {
        title: if sweeps(results) {
            format!("{workload}, {connections} connections")
        } else {
            workload.to_string()
        },
        about,
        headings: vec!["model".to_string()],
        rows: (summaries.iter())
            .map(|summary| vec![summary.model.clone()])
            .collect(),
        ranks: vec![0],
        marks_unserved: false,
    };
    // With a single round there is no spread.
    let repeated = summaries.iter().any(|summary| summary.runs > 1);
    for (heading, column, rank) in columns {
        if repeated || !matches!(column, Range(_) | Interval(_) | Ratio(_)) {
            let summaries: Vec<_> = summaries.iter().copied().map(Some).collect();
            result_table.push(heading, rank, &column, &summaries);
        }
    }
    result_table
}

/// Returns a sentence about the slices and the rounds of a workload.
pub(crate) fn how(results: &Results, workload: Workload) -> String {
    let summaries = results
        .summary
        .iter()
        .filter(|one| one.workload == workload);
    let rounds = summaries
        .clone()
        .map(|summary| summary.runs)
        .max()
        .unwrap_or(0);
    let whole: Vec<&str> = summaries
        .clone()
        .filter(|one| one.method == Method::Whole)
        .map(|one| one.model.as_str())
        .collect();
    let all = summaries.count();
    let rounds = format!("{rounds} {}", if rounds == 1 { "round" } else { "rounds" });
    let as_a_whole = results.options.duration_s;
    let in_slices = match workload.definition().slice {
        Some(Slice::Short) => results.options.sliced_duration_s,
        _ => as_a_whole,
    };
    if whole.len() == all {
        format!(" {rounds} of {as_a_whole} s, one server after the other.")
    } else if whole.is_empty() {
        format!(" {rounds} of {in_slices} s in slices.")
    } else {
        let whole = whole.join(", ");
        format!(" {rounds} of {in_slices} s in slices; {whole} as a whole, {as_a_whole} s.")
    }
}

/// Returns a sentence with the number of servers that were measured at the same time; empty if it was always one.
pub(crate) fn measured_together(results: &Results) -> String {
    let together = results.runs.iter().map(|run| run.beside.len());
    match together.max() {
        None | Some(0) => String::new(),
        Some(others) => format!(
            " The CPU time of each server is measured separately; up to {} servers were measured at the same time.",
            others + 1
        ),
    }
}

/// Returns the table of the CPU time per request, with one column for each number of connections.
fn sweep(results: &Results, workload: Workload) -> ResultTable {
    const METRIC: Metric = Metric::CpuUsPerRequest;
    let options = &results.options;
    let how = match workload {
        Workload::Steady => format!(
            "Open loop for {} s: {} requests/s over all connections, so that a few of them are busy at a time.",
            options.duration_s,
            format::digits(options.rate_per_s)
        ),
        _ => format!(
            "Closed loop without pause for {} s: all connections are busy.",
            options.duration_s
        ),
    };
    let of = |model: &str, connections| {
        results.summary.iter().find(|summary| {
            summary.model == model
                && summary.workload == workload
                && summary.connections == connections
        })
    };
    let models: Vec<&str> = (results.models.iter())
        .map(|model| model.name.as_str())
        .filter(|model| (options.connections.iter()).any(|&number| of(model, number).is_some()))
        .collect();
    let mut result_table = ResultTable {
        title: format!("{workload} by number of connections"),
        about: format!(
            "{how} How many µs of CPU time does a request cost the server? One column for each number of connections."
        ),
        headings: vec!["model".to_string()],
        rows: models.iter().map(|model| vec![model.to_string()]).collect(),
        ranks: vec![0],
        marks_unserved: true,
    };
    for &connections in &options.connections {
        let summaries: Vec<_> = models.iter().map(|model| of(model, connections)).collect();
        let repeated = summaries.iter().flatten().any(|summary| summary.runs > 1);
        let heading = format::count(connections as u64);
        result_table.push(&heading, 0, &Value(METRIC), &summaries);
        if repeated {
            result_table.push("95 %\ninterval", 1, &Interval(METRIC), &summaries);
        }
    }
    result_table
        .headings
        .extend(["growth", "curve"].map(String::from));
    result_table.ranks.extend([0, 0]);
    for (row, model) in result_table.rows.iter_mut().zip(&models) {
        let costs: Vec<Option<f64>> = (options.connections.iter())
            .map(|&connections| {
                let summary = of(model, connections).filter(|summary| summary.ranked)?;
                Some(summary.figures.get(&METRIC).copied().flatten()?.value)
            })
            .collect();
        row.extend([growth(&costs), curve(&costs)]);
    }
    result_table
}

/// Returns the last known cost divided by the first; empty if fewer than two costs are known.
fn growth(costs: &[Option<f64>]) -> String {
    let mut known = costs.iter().flatten();
    match (known.next(), known.next_back()) {
        (Some(first), Some(last)) => format!("×{:.2}", last / first),
        _ => String::new(),
    }
}

/// Draws each cost relative to the first known one. Each step of the bars is a factor of the square root of two.
fn curve(costs: &[Option<f64>]) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let first = costs.iter().flatten().next().copied().unwrap_or(1.0);
    let step = |cost: &Option<f64>| match cost {
        Some(cost) => STEPS[(2.0 * (cost / first).log2()).round().clamp(0.0, 7.0) as usize],
        None => '·',
    };
    costs.iter().map(step).collect()
}

/// Returns the text of a cell, without its mark.
fn text(summary: &Summary, column: &Column) -> String {
    let get = |metric: &Metric| summary.figures.get(metric).copied().flatten();
    if summary.valid == 0 {
        return match column {
            Value(metric) if *metric == summary.workload.definition().first_metric => {
                "failed".to_string()
            }
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
        Interval(metric) => match get(metric) {
            Some(Figure {
                low: Some(low),
                high: Some(high),
                ..
            }) => format!("{}–{}", number(*metric, low), number(*metric, high)),
            _ => String::new(),
        },
        Ratio(metric) => match get(metric) {
            Some(figure) => figure
                .ratio_to_best
                .map_or(String::new(), |one| ratio(&one)),
            None => String::new(),
        },
        Between(from, to) => match (get(from), get(to)) {
            (Some(from), Some(to)) => {
                format!(
                    "{}–{}",
                    format::count(from.value as u64),
                    format::count(to.value as u64)
                )
            }
            _ => "n/a".to_string(),
        },
        Percent(metric) => get(metric).map_or("n/a".to_string(), |figure| percent(figure.value)),
    }
}

/// Formats a ratio with its interval; the best itself has none.
pub(crate) fn ratio(ratio: &Estimate) -> String {
    let Estimate { value, low, high } = *ratio;
    if low == high {
        return "1".to_string();
    }
    // Far from 1, the digits behind the point are noise.
    let digits = if value < 10.0 { 2 } else { 0 };
    format!("×{value:.digits$} ({low:.digits$}–{high:.digits$})")
}

fn value(metric: Metric, figure: &Figure) -> String {
    let sign = if figure.lower_bound { "≥ " } else { "" };
    format!("{sign}{}", number(metric, figure.value))
}

fn number(metric: Metric, value: f64) -> String {
    match metric {
        Metric::ClientsServed
        | Metric::UnansweredRequests
        | Metric::Threads
        | Metric::Processes
        | Metric::FewestRepliesPerConnection
        | Metric::MostRepliesPerConnection => format::count(value.round().max(0.0) as u64),
        Metric::Fairness => format!("{value:.3}"),
        // Zero is shown differently from a very small value.
        Metric::IdleCpuMsPerS if value == 0.0 => "0".to_string(),
        Metric::IdleCpuMsPerS if value < 0.001 => "< 0.001".to_string(),
        _ if value < 1.0 => format!("{value:.3}"),
        _ => format::digits(value),
    }
}

/// Formats a share in percent, without the unit; 100.00 appears only if nothing is missing.
fn percent(share: f64) -> String {
    let percent = format::percent(share);
    percent.trim_end_matches(" %").to_string()
}

/// Returns the notes beside the tables, one sentence each: what failed, what was left out, and for which models the
/// client was the limit.
pub(crate) fn notes(results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    if !results.complete {
        notes.push("interrupted: not all planned runs were measured".to_string());
    }
    for model in &results.models {
        if let Some(unavailable_reason) = &model.unavailable_reason {
            notes.push(format!("{} was left out: {unavailable_reason}", model.name));
        }
    }
    for model in &results.models {
        if let Some(command) = &model.command {
            notes.push(format!("{} is an external server: {command}", model.name));
        }
    }
    // The models by their number of workers.
    let mut by_workers: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for model in &results.models {
        if model.unavailable_reason.is_none() && model.capacity == list::name_of(Capacity::Workers)
        {
            let workers = model.workers.unwrap_or_default();
            by_workers.entry(workers).or_default().push(&model.name);
        }
    }
    for (workers, models) in by_workers {
        let mut note = format!(
            "{} had {workers} workers, each of which serves one peer at a time; other peers wait",
            models.join(" and ")
        );
        let options = &results.options;
        if options.workloads.contains(&Workload::Idle) && options.idle_connections > workers {
            note += ". In idle, the memory per connection is therefore unknown (n/a)";
        }
        notes.push(note);
    }
    notes.extend(skipped(results));
    for summary in &results.summary {
        // One example is enough; results.json contains all problems.
        let counted = runs(results, summary).filter(|run| !run.superseded);
        let problem = counted.filter_map(|run| run.problems.first()).next();
        if let Some(problem) = problem {
            notes.push(format!(
                "{} {}: {} of {} runs failed, also when they were measured once more, so the model is not ranked: {problem}",
                summary.workload,
                name(results, summary),
                summary.runs - summary.valid,
                summary.runs
            ));
        }
    }
    notes.extend(measured_again(results));
    notes.extend(doubts(results));
    notes.extend(run_notes(results));
    notes
}

/// Returns a note with the runs that were measured once more.
fn measured_again(results: &Results) -> Option<String> {
    let again: Vec<String> = results
        .summary
        .iter()
        .filter(|summary| summary.measured_again > 0)
        .map(|summary| {
            format!(
                "{} {} ({})",
                summary.workload,
                name(results, summary),
                summary.measured_again
            )
        })
        .collect();
    (!again.is_empty()).then(|| {
        format!(
            "runs that were measured once more, because the first attempt failed or the machine was disturbed: {}",
            again.join(", ")
        )
    })
}

/// Returns the notes about doubtful figures: one sentence for each workload and condition.
fn doubts(results: &Results) -> Vec<String> {
    let mut by_condition: BTreeMap<(Workload, Condition), Vec<String>> = BTreeMap::new();
    for summary in &results.summary {
        let ranked = crate::results::summary::ranked_metrics(summary.workload);
        let conditions: BTreeSet<Condition> = ranked
            .filter(|metric| summary.figure(*metric).is_some())
            .flat_map(|metric| summary.doubts(metric).collect::<Vec<_>>())
            .collect();
        for condition in conditions {
            let models = by_condition.entry((summary.workload, condition));
            models.or_default().push(name(results, summary));
        }
    }
    let all = |workload| {
        let summaries = results.summary.iter();
        summaries.filter(|one| one.workload == workload).count()
    };
    by_condition
        .into_iter()
        .map(|((workload, condition), models)| {
            let models = if models.len() > 1 && models.len() == all(workload) {
                "all".to_string()
            } else {
                models.join(", ")
            };
            format!(
                "{workload}: doubtful (?): {}. Models: {models}",
                condition.sentence()
            )
        })
        .collect()
}

/// Returns the comparison of the twins with their models, one sentence per model, workload and figure.
pub(crate) fn twins(results: &Results) -> Vec<String> {
    let sentence = |twin: &TwinResult| {
        let broken = if twin.different {
            ". The noise floor was broken: the same server differs from itself, so differences of this size mean \
             nothing in this comparison"
        } else {
            ""
        };
        Some(format!(
            "{}: {} measured twice: {} {}{broken}",
            place(results, twin),
            twin.model,
            words::figure_name(twin.metric),
            ratio(twin.ratio.as_ref()?),
        ))
    };
    results.twins.iter().filter_map(sentence).collect()
}

/// Returns the comparison of this build with the other, one sentence per model, workload and figure.
pub(crate) fn builds(results: &Results) -> Vec<String> {
    let sentence = |build: &TwinResult| {
        Some(format!(
            "{}: {}: {} of this build {} that of the other{}",
            place(results, build),
            build.model,
            words::figure_name(build.metric),
            ratio(build.ratio.as_ref()?),
            if build.different {
                ", which is certain"
            } else {
                ""
            }
        ))
    };
    results.builds.iter().filter_map(sentence).collect()
}

/// Returns the workload of a comparison of two servers; in a sweep, with the number of connections.
fn place(results: &Results, pair: &TwinResult) -> String {
    if sweeps(results) {
        let connections = format::count(pair.connections as u64);
        format!("{} with {connections} connections", pair.workload)
    } else {
        pair.workload.to_string()
    }
}

/// Returns the notes about skipped cases: one sentence for all cases of a model with the same reason; for workloads
/// that cannot be swept, one sentence for all models with the same reason.
fn skipped(results: &Results) -> Vec<String> {
    let (sweeps, single): (Vec<&Skipped>, Vec<&Skipped>) =
        (results.skipped.iter()).partition(|one| one.workload.sweeps());
    let mut by_model: BTreeMap<_, BTreeSet<usize>> = BTreeMap::new();
    for one in sweeps {
        let same = by_model.entry((&one.model, &one.reason));
        same.or_default().insert(one.connections);
    }
    let of_model = |((model, reason), connections): ((&String, &String), BTreeSet<usize>)| {
        let numbers = numbers(connections);
        format!("{model} was not measured with {numbers} connections: {reason}")
    };
    let mut by_reason: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for one in single {
        let same = by_reason.entry((one.workload, &one.reason));
        same.or_default().push(&one.model);
    }
    let of_reason = |((workload, reason), models): ((Workload, &String), Vec<&str>)| {
        format!(
            "{workload} was not measured for {}: {reason}",
            models.join(", ")
        )
    };
    let of_models = by_model.into_iter().map(of_model);
    of_models
        .chain(by_reason.into_iter().map(of_reason))
        .collect()
}

/// Returns the notes of the runs: one sentence for all workloads in which a note affects the same models.
fn run_notes(results: &Results) -> Vec<String> {
    // The workloads by note and affected models.
    let mut by_note: BTreeMap<(Note, String), Vec<String>> = BTreeMap::new();
    for &workload in &results.options.workloads {
        let all: BTreeSet<Note> = (results.runs.iter())
            .filter(|run| run.workload == workload && run.role == Role::Model && run.valid())
            .flat_map(|run| run.notes.iter().copied())
            // The notes about doubtful figures say it, if it was so in the whole case.
            .filter(|note| *note != Note::ClientLate)
            .collect();
        for note in all {
            let models = affected_models(results, workload, note);
            let workloads = by_note.entry((note, models)).or_default();
            workloads.push(workload.to_string());
        }
    }
    let sentence = |((note, models), workloads): ((Note, String), Vec<String>)| {
        let workloads = workloads.join(", ");
        format!("{workloads}: {}. Models: {models}", sentence(note))
    };
    by_note.into_iter().map(sentence).collect()
}

/// Returns the names of the models that a note affects, with the numbers of connections if it does not affect all of
/// them. If it does not affect all runs of each of these models, the number of affected runs follows each name.
fn affected_models(results: &Results, workload: Workload, note: Note) -> String {
    let mut affected = Vec::new();
    let mut all_affected = true;
    for model in &results.models {
        let summaries = results.summary.iter();
        let summaries: Vec<&Summary> = summaries
            .filter(|one| one.model == model.name && one.workload == workload)
            .collect();
        let valid: usize = summaries.iter().map(|summary| summary.valid).sum();
        let mut times = 0;
        let mut connections = BTreeSet::new();
        for summary in &summaries {
            let runs = runs(results, summary);
            let runs = runs.filter(|one| one.valid() && one.notes.contains(&note));
            let count = runs.count();
            if count > 0 {
                connections.insert(summary.connections);
            }
            times += count;
        }
        all_affected &= times == valid;
        if times > 0 {
            let mut name = model.name.clone();
            if connections.len() < summaries.len() {
                name += &format!(" at {}", numbers(connections));
            }
            affected.push((name, times, valid));
        }
    }
    if all_affected && affected.len() > 1 {
        return "all".to_string();
    }
    let counted = affected.iter().any(|(_, times, valid)| times < valid);
    let names = affected.into_iter().map(|(name, times, valid)| {
        if counted {
            format!("{name} ({times} of {valid} runs)")
        } else {
            name
        }
    });
    names.collect::<Vec<_>>().join(", ")
}

fn numbers(connections: BTreeSet<usize>) -> String {
    let numbers = connections.into_iter();
    let numbers: Vec<_> = numbers.map(|one| format::count(one as u64)).collect();
    numbers.join(" and ")
}

/// Returns the name of the model; in a sweep, with the number of connections.
fn name(results: &Results, summary: &Summary) -> String {
    if sweeps(results) {
        let connections = format::count(summary.connections as u64);
        format!("{} at {connections}", summary.model)
    } else {
        summary.model.clone()
    }
}

fn runs<'r>(results: &'r Results, summary: &'r Summary) -> impl Iterator<Item = &'r Run> {
    results.runs.iter().filter(|run| {
        run.role == Role::Model
            && run.model == summary.model
            && run.workload == summary.workload
            && run.connections == summary.connections
    })
}

fn sentence(note: Note) -> &'static str {
    match note {
        Note::ClientBusy => {
            "the client was the limit: it was at least 90 % busy, and the server was not, so the server may be capable of \
             more (≥)"
        }
        Note::ClientLate => {
            "the client sent requests late (p99 of its own delay over 20 µs and over a tenth of the p99 of the response \
             time), or it was at least 90 % busy and stayed below 98 % of the rate; this makes the replies appear late"
        }
        Note::NotAllHeld => {
            "not all connections were served in time, or at the same time, so the memory per connection is unknown (n/a)"
        }
        Note::FewerByDesign => {
            "by design, these models serve fewer connections at a time than the load has; the other connections wait"
        }
        Note::NotAllOpened => {
            "not all connections could be opened: by design the server had no room for them, and the kernel's queue was \
             full"
        }
        Note::NotIdle => {
            "the first exchanges lasted into the idle time, so the CPU time is unknown"
        }
        Note::EdgesMissed => {
            "this program read the server's CPU clock too late, so the CPU time is unknown"
        }
        Note::Disturbed => {
            "other programs or interrupts took over 5 % of the time of the CPUs that client and server use, or other \
             virtual machines took over 1 %"
        }
        Note::OtherListener => {
            "no process of the server's tree has the listening socket, so the CPU time and the memory of the server are \
             unknown (n/a); start the server as a child of the command"
        }
        Note::SharedCpus => {
            "threads of the server could run on the CPUs of the client, so all figures are unknown (n/a); do not let the \
             server choose its CPUs"
        }
        Note::ClosedWhileIdle => {
            "the server closed idle connections, so their cost is unknown (n/a); give it a longer idle time-out"
        }
    }
}

impl ResultTable {
    /// Adds a column. `summaries` are in the order of the rows; `None` leaves the cell empty.
    fn push(&mut self, heading: &str, rank: u8, column: &Column, summaries: &[Option<&Summary>]) {
        self.headings.push(heading.to_string());
        self.ranks.push(rank);
        let sign = |summary: &Summary| {
            let mark = match column {
                Value(metric) => summary.figure(*metric).and_then(|figure| figure.mark),
                _ => None,
            };
            match mark {
                Some(Mark::Leader) => " *",
                Some(Mark::MayBeBest) => " ≈",
                Some(Mark::Equal) => " =",
                Some(Mark::NotKnown) => " ~",
                Some(Mark::Doubtful) => " ?",
                _ if self.marks_unserved && !summary.ranked => " †",
                // A no-break space, which keeps the digits of a column aligned.
                _ => " \u{a0}",
            }
        };
        let mut cells: Vec<(String, &str)> = Vec::new();
        for one in summaries {
            cells.push(match one {
                // No other column of this row shows that the runs failed.
                Some(summary) if self.marks_unserved && summary.valid == 0 => {
                    let failed = if matches!(column, Value(_)) {
                        "failed"
                    } else {
                        ""
                    };
                    (failed.to_string(), " \u{a0}")
                }
                Some(summary) => (text(summary, column), sign(summary)),
                None => (String::new(), " \u{a0}"),
            });
        }
        let marked = matches!(column, Value(_)) && cells.iter().any(|cell| cell.1 != " \u{a0}");
        for (row, (text, sign)) in self.rows.iter_mut().zip(cells) {
            row.push(if marked { text + sign } else { text });
        }
    }

    /// Returns the table as text of at most `width` columns, if the columns of rank 0 fit.
    pub(crate) fn to_text(&self, width: usize) -> String {
        let mut most = self.ranks.iter().copied().max().unwrap_or(0);
        let mut lines = self.lines(most);
        while most > 0 && lines.iter().any(|line| line.chars().count() > width) {
            most -= 1;
            lines = self.lines(most);
        }
        let about = wrap(&format!("{}: {}", self.title, self.about), "", width);
        format!("{about}{}\n", lines.join("\n"))
    }

    /// Returns the lines of the table, with the columns up to this rank.
    fn lines(&self, most: u8) -> Vec<String> {
        let shown = |cells: &[String]| -> Vec<Cell> {
            let ranked = cells.iter().zip(&self.ranks);
            let shown = ranked.filter(|(_, rank)| **rank <= most);
            shown.map(|(cell, _)| Cell::new(cell)).collect()
        };
        let mut table = Table::new();
        table
            .load_style(NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(shown(&self.headings));
        for row in &self.rows {
            table.add_row(shown(row));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if index == 0 { 2 } else { 0 }, 2));
            column.set_cell_alignment(if index == 0 {
                CellAlignment::Left
            } else {
                CellAlignment::Right
            });
        }
        table
            .lines()
            .map(|line| line.trim_end().to_string())
            .collect()
    }
}

/// Returns all tables, the legend, the notes and the warnings as text for a terminal of `width` columns.
pub(crate) fn to_text(results: &Results, width: usize) -> String {
    let mut text = String::new();
    if results.twins.iter().any(|twin| twin.different) {
        text.push_str(&wrap(
            "THE NOISE FLOOR WAS BROKEN: a server that was measured twice differs from itself (see \"twin\" below). Repeat \
             the comparison on a quieter machine, or with more rounds.",
            "",
            width,
        ));
        text.push('\n');
    }
    let result_tables = result_tables(results);
    for result_table in &result_tables {
        text.push_str(&result_table.to_text(width));
        text.push('\n');
    }
    if !result_tables.is_empty() {
        for line in legend(results) {
            text.push_str(&wrap(&line, "   ", width));
        }
        text.push('\n');
    }
    for line in &results.conclusions {
        text.push_str(&wrap(&format!("conclusion: {line}"), "  ", width));
    }
    for line in twins(results) {
        text.push_str(&wrap(&format!("twin: {line}"), "  ", width));
    }
    for line in builds(results) {
        text.push_str(&wrap(&format!("against: {line}"), "  ", width));
    }
    for note in notes(results) {
        text.push_str(&wrap(&format!("note: {note}"), "  ", width));
    }
    for warning in &results.environment.warnings {
        text.push_str(&wrap(&format!("warning: {warning}"), "  ", width));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{NARROWEST, WIDEST};
    use crate::registry;
    use crate::results::tests::{full, run};

    /// Returns results of all models with the widest figures to be expected.
    fn wide() -> Results {
        let mut results = full();
        results.options.workloads = Workload::ALL.to_vec();
        let mut summary = Vec::new();
        for &workload in Workload::ALL {
            for (number, model) in registry::models().enumerate() {
                let figures = Metric::ALL.into_iter().map(|metric| {
                    let value = match metric {
                        Metric::RequestsPerS => 999_999.0,
                        Metric::CpuUsPerRequest | Metric::SwitchesPerRequest => 98.7,
                        Metric::FewestRepliesPerConnection | Metric::MostRepliesPerConnection => {
                            12_345.0
                        }
                        Metric::Fairness | Metric::Availability => 0.999_9,
                        Metric::UnansweredRequests => 99_999.0,
                        Metric::AllServedS | Metric::IdleCpuMsPerS => 1.25,
                        _ => 1_250.0,
                    };
                    let figure = Figure {
                        value: value - number as f64 / 1e3,
                        min: Some(value * 0.9),
                        max: Some(value),
                        lower_bound: metric == Metric::RequestsPerS,
                        ..Figure::default()
                    };
                    (metric, Some(figure))
                });
                summary.push(Summary {
                    model: model.name.to_string(),
                    workload,
                    connections: 100,
                    method: Method::Slices,
                    runs: 3,
                    valid: 3,
                    measured_again: 0,
                    checks: Vec::new(),
                    client_limited: workload == Workload::Max,
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
    fn text_fits_the_width_and_keeps_the_columns_of_rank_0() {
        for width in [NARROWEST, 100, WIDEST] {
            let text = to_text(&wide(), width);
            for line in text.lines() {
                let columns = line.chars().count();
                assert!(columns <= width, "{columns} columns: {line}");
            }
            assert!(text.lines().count() > registry::models().count() * Workload::ALL.len());
            for heading in [
                "requests/s",
                "p99.9",
                "slowest first",
                "processes",
                "MB/s",
                "bystanders",
                "answered",
                "10⁶ bytes",
            ] {
                assert!(text.contains(heading), "{heading} at {width}:\n{text}");
            }
        }
        let ranges = |width| to_text(&wide(), width).matches("min–max  ").count();
        assert!(ranges(NARROWEST) < ranges(100) && ranges(100) <= ranges(WIDEST));
    }

    /// Returns the results of a sweep with these costs: model, connections, CPU time per request, and whether ranked.
    fn swept(costs: &[(&str, usize, Option<f64>, bool)]) -> Results {
        let mut results = full();
        results.options.connections = vec![10, 100, 1_000];
        results.options.workloads = vec![Workload::Max];
        let template = results.summary[0].clone();
        let summary = |&(model, connections, cost, ranked): &(&str, usize, Option<f64>, bool)| {
            let figure = cost.map(|value| Figure {
                value,
                min: Some(value),
                max: Some(value),
                lower_bound: false,
                ..Figure::default()
            });
            Summary {
                model: model.to_string(),
                connections,
                ranked,
                figures: [(Metric::CpuUsPerRequest, figure)].into(),
                ..template.clone()
            }
        };
        results.summary = costs.iter().map(summary).collect();
        results.models = ["mio", "poll", "serial"]
            .map(|name| {
                let mut model = results.models[0].clone();
                model.name = name.to_string();
                model
            })
            .to_vec();
        results
    }

    #[test]
    fn sweep_has_a_row_per_model_and_a_column_per_number_of_connections() {
        let results = swept(&[
            ("mio", 10, Some(5.0), true),
            ("mio", 100, Some(5.0), true),
            ("mio", 1_000, Some(10.0), true),
            ("poll", 10, Some(5.0), true),
            ("poll", 100, Some(20.0), true),
            ("poll", 1_000, Some(1_000.0), false),
        ]);
        let result_tables = result_tables(&results);
        assert_eq!(result_tables.len(), 1);
        let result_table = &result_tables[0];
        let numbers = ["model", "10", "100", "1,000", "growth", "curve"];
        assert_eq!(result_table.headings, numbers);
        let row = |row: usize| -> Vec<&str> {
            result_table.rows[row]
                .iter()
                .map(|cell| cell.trim())
                .collect()
        };
        assert_eq!(row(0), ["mio", "5.00", "5.00", "10.0", "×2.00", "▁▁▃"]);
        // A figure of a model that did not serve every client does not count in the growth.
        assert_eq!(row(1), ["poll", "5.00", "20.0", "1,000 †", "×4.00", "▁▅·"]);
        assert_eq!(result_table.rows.len(), 2, "serial was not measured at all");
        let mut broken = results.clone();
        broken.summary[0].valid = 0;
        broken.summary[0].ranked = false;
        let cells = &super::result_tables(&broken)[0].rows[0];
        assert_eq!(cells[1].trim(), "failed");
        assert!(legend(&results).join(" ").contains("Growth"));
        assert!(!legend(&full()).join(" ").contains("Growth"));
        for line in result_table.to_text(NARROWEST).lines() {
            assert!(line.chars().count() <= NARROWEST, "{line}");
        }
    }

    #[test]
    fn skipped_cases_of_a_sweep_are_one_note_per_model() {
        let mut results = swept(&[("mio", 10, None, false), ("mio", 100, Some(5.0), true)]);
        let first = results.skipped[0].clone();
        results.skipped.push(crate::results::Skipped {
            connections: 1_000,
            ..first
        });
        let mut full = run("mio", Workload::Max);
        full.connections = 10;
        full.notes = vec![Note::NotAllOpened];
        results.runs.push(full);
        let notes = notes(&results).join("\n");
        assert!(notes.contains("serial was not measured"), "{notes}");
        assert!(
            notes.contains("with 100 and 1,000 connections: by design it serves at most 1"),
            "{notes}"
        );
        assert!(
            notes.contains("no room") && notes.contains("mio at 10"),
            "{notes}"
        );
    }

    #[test]
    fn sweep_of_files_has_a_table_per_number_of_connections() {
        let mut results = swept(&[("mio", 100, Some(5.0), true), ("mio", 1_000, None, true)]);
        results.options.workloads = vec![Workload::Http13m];
        for summary in &mut results.summary {
            summary.workload = Workload::Http13m;
        }
        let titles: Vec<_> = (result_tables(&results).iter())
            .map(|one| one.title.clone())
            .collect();
        let wanted = ["http-13m, 100 connections", "http-13m, 1,000 connections"];
        assert_eq!(titles, wanted);
        let text = to_text(&results, 100);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            text.contains("100 users connect at once, and each requests a file of 13 MiB twice"),
            "{text}"
        );
        assert!(
            text.contains("1,000 users connect at once, and each requests a file of 13 MiB once"),
            "{text}"
        );
        assert!(!text.contains("Growth"), "{text}");
    }

    #[test]
    fn models_skipped_for_the_same_reason_are_one_note() {
        let mut results = full();
        let skipped = |model: &str| Skipped {
            model: model.to_string(),
            workload: Workload::BlockOffload,
            connections: 100,
            reason: "the model cannot offload work".to_string(),
        };
        results.skipped = vec![skipped("mio"), skipped("poll")];
        let notes = notes(&results).join("\n");
        let wanted = "block-offload was not measured for mio, poll: the model cannot offload work";
        assert!(notes.contains(wanted), "{notes}");
    }

    #[test]
    fn notes_contain_the_number_of_workers_that_serve_one_peer_each() {
        let mut results = full();
        results.models[0].capacity = "workers".to_string();
        results.models[0].workers = Some(200);
        let notes = notes(&results).join("\n");
        assert!(notes.contains("mio had 200 workers"), "{notes}");
        assert!(!notes.contains("In idle"), "{notes}");
        results.options.workloads = crate::workloads::defaults();
        results.options.idle_connections = 1_000;
        let notes = super::notes(&results).join("\n");
        assert!(
            notes.contains("mio had 200 workers") && notes.contains("In idle"),
            "{notes}"
        );
    }

    #[test]
    fn table_of_single_runs_has_no_ranges() {
        let mut results = wide();
        for summary in &mut results.summary {
            summary.runs = 1;
        }
        assert!(!to_text(&results, WIDEST).contains("min–max  "));
    }

    #[test]
    fn failed_run_unknown_figure_and_too_few_samples_have_different_texts() {
        let mut results = full();
        for summary in &mut results.summary {
            summary.figures.insert(Metric::CpuUsPerRequest, None);
            summary.workload = Workload::Max;
        }
        let rows = |results: &Results| result_table(results, Workload::Max, 100).rows.concat();
        assert!(rows(&results).contains(&"n/a".to_string()));
        for summary in &mut results.summary {
            summary.figures.insert(Metric::ResponseP999Ms, None);
            summary.workload = Workload::Steady;
        }
        assert!(
            result_table(&results, Workload::Steady, 100)
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
    fn notes_name_failed_runs_and_affected_models() {
        let mut results = full();
        results.runs[0].notes = vec![Note::ClientBusy];
        results.models[0].unavailable_reason = Some("no such system call".to_string());
        results.complete = false;
        let text = notes(&results).join("\n");
        assert!(text.contains("interrupted"), "{text}");
        assert!(
            text.contains("mio was left out: no such system call"),
            "{text}"
        );
        assert!(
            text.contains("max: the client was the limit") && text.contains("Models: mio"),
            "{text}"
        );
        results.runs[0].problems.push("it burnt".to_string());
        results.summary[0].valid = 0;
        let text = notes(&results).join("\n");
        assert!(text.contains("max mio: 1 of 1 runs failed"), "{text}");
        assert!(text.contains("it burnt"), "{text}");
    }

    #[test]
    fn number_keeps_three_significant_digits() {
        assert_eq!(number(Metric::ResponseP50Ms, 0.0524), "0.052");
        assert_eq!(number(Metric::ResponseP50Ms, 12.34), "12.3");
        assert_eq!(number(Metric::RequestsPerS, 61_234.5), "61,235");
        assert_eq!(number(Metric::Threads, 102.0), "102");
        assert_eq!(number(Metric::IdleCpuMsPerS, 0.0), "0");
        assert_eq!(number(Metric::IdleCpuMsPerS, 0.000_1), "< 0.001");
        assert_eq!(number(Metric::IdleCpuMsPerS, 0.012), "0.012");
        assert_eq!(percent(0.999_99), "99.99");
    }
}
