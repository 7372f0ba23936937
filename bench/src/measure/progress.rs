//! Shows the progress of a comparison on standard error: as a bar on a terminal, otherwise as one line per run.
//!
//! Nothing is drawn while a load runs. Drawing takes time on a CPU of the client, and would be measured as slowness of
//! the server. The bar therefore does not move for a second at a time.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::measure::plan::Batch;
use crate::results::Run;
use crate::results::metric::Metric;
use crate::workloads::Workload;
use crate::{format, output};

/// Progress of a comparison.
pub(crate) struct CompareProgress {
    bar: ProgressBar,
    /// Number of planned runs.
    runs: usize,
    /// Width of the longest workload name, in columns.
    longest: usize,
    /// Estimated remaining time.
    left: Duration,
}

impl CompareProgress {
    /// Shows the bar of a comparison with these batches.
    pub(crate) fn start(batches: &[Batch]) -> CompareProgress {
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

    /// Shows that a batch begins.
    pub(crate) fn begin(&self, batch: &Batch) {
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

    /// Shows the outcome of a finished run.
    pub(crate) fn measured(&self, run: &Run) {
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

    /// Reduces the remaining time by that of a finished batch.
    pub(crate) fn end(&mut self, batch: &Batch) {
        self.left = self.left.saturating_sub(batch.estimate);
    }

    /// Removes the runs of a batch that is skipped.
    pub(crate) fn skip(&mut self, batch: &Batch) {
        self.runs -= batch.cases.len();
        self.bar.set_length(self.runs as u64);
        self.end(batch);
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Returns the outcome of a run in a few words: its first problem, or the main figure of its workload.
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
        Workload::Steady => (Metric::ResponseP99Ms, "ms p99 response time"),
        Workload::Http13m | Workload::Bulk => (Metric::MbPerS, "MB/s"),
        Workload::Block | Workload::BlockOffload => (
            Metric::BystandersP99Ms,
            "ms p99 response time of the bystanders",
        ),
        Workload::Idle => (Metric::IdleCpuMsPerS, "ms of CPU time per second"),
    };
    match run.figures.get(&metric).copied().flatten() {
        Some(value) => format!("{} {unit}", format::digits(value)),
        None => format!("n/a {unit}"),
    }
}
