//! How far the comparison has come: a bar on a terminal, a line per run elsewhere; on standard error.
//!
//! Nothing is drawn while a load runs. Drawing takes time on a CPU of the client's, and would be measured as slowness of
//! the server; so the bar stands still for a second at a time.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::metric::Metric;
use super::plan::Batch;
use super::results::Run;
use super::workload::Workload;
use crate::{format, output};

pub(super) struct CompareProgress {
    bar: ProgressBar,
    runs: usize,
    /// Columns of the longest workload's name.
    longest: usize,
    left: Duration,
}

impl CompareProgress {
    pub(super) fn start(batches: &[Batch]) -> CompareProgress {
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}");
        let runs = batches.iter().map(|batch| batch.cases.len()).sum();
        let cases = batches.iter().flat_map(|batch| &batch.cases);
        let longest = cases.map(|case| case.workload.name().len()).max();
        let bar = ProgressBar::with_draw_target(Some(runs as u64), ProgressDrawTarget::stderr())
            .with_style(style.unwrap_or(ProgressStyle::default_bar()));
        CompareProgress {
            bar,
            runs,
            longest: longest.unwrap_or_default(),
            left: batches.iter().map(|batch| batch.estimate).sum(),
        }
    }

    /// A batch begins.
    pub(super) fn begin(&self, batch: &Batch) {
        let what = match &batch.cases[..] {
            [case] => format!("{} {}", case.target.name(), case.workload),
            [case, ..] => format!("{} of {} models", case.workload, batch.cases.len()),
            [] => String::new(),
        };
        self.bar.set_message(format!(
            "about {} left   {what}",
            humantime::format_duration(Duration::from_secs(self.left.as_secs())),
        ));
        self.bar.tick();
    }

    /// One of its runs is over.
    pub(super) fn measured(&self, run: &Run) {
        let line = format!(
            "[{:>width$}/{}] {:<12} {:<longest$}  {}",
            run.order,
            self.runs,
            run.model,
            run.workload,
            outcome(run),
            width = self.runs.to_string().len(),
            longest = self.longest,
        );
        if self.bar.is_hidden() {
            output::print_error(&line);
        } else if !run.valid() {
            self.bar.println(line);
        }
        self.bar.inc(1);
    }

    /// A batch is over.
    pub(super) fn end(&mut self, batch: &Batch) {
        self.left = self.left.saturating_sub(batch.estimate);
    }

    /// A batch is left out after all.
    pub(super) fn skip(&mut self, batch: &Batch) {
        self.runs -= batch.cases.len();
        self.bar.set_length(self.runs as u64);
        self.end(batch);
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A run in a few words.
fn outcome(run: &Run) -> String {
    if let Some(problem) = run.problems.first() {
        return format!("FAILED: {problem}");
    }
    let (metric, unit) = match run.workload {
        Workload::Crowd => (Metric::ClientsServed, "clients served"),
        Workload::Max
        | Workload::Http13b
        | Workload::Http13k
        | Workload::Wait
        | Workload::Compute => (Metric::RequestsPerS, "requests/s"),
        Workload::Steady => (Metric::ResponseP99Ms, "ms p99"),
        Workload::Http13m | Workload::Bulk => (Metric::MbPerS, "MB/s"),
        Workload::Block | Workload::BlockOffload => {
            (Metric::BystandersP99Ms, "ms p99 of the others")
        }
        Workload::Idle => (Metric::IdleCpuMsPerS, "ms of CPU per second"),
    };
    match run.figures.get(&metric).copied().flatten() {
        Some(value) => format!("{} {unit}", format::digits(value)),
        None => format!("n/a {unit}"),
    }
}
