//! How far the comparison has come: a bar on a terminal, a line per launch elsewhere; on standard error.
//!
//! Nothing is drawn while a load runs. Drawing takes time on a CPU of the client's, and would be measured as slowness of
//! the server; so the bar stands still for a second at a time.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::metric::Metric;
use super::plan::Turn;
use super::results::Launch;
use super::workload::Workload;
use crate::{figures, output};

pub(super) struct Progress {
    bar: ProgressBar,
    launches: usize,
    /// Columns of the longest workload's name.
    longest: usize,
    left: Duration,
}

impl Progress {
    pub(super) fn start(turns: &[Turn]) -> Progress {
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}");
        let launches = turns.iter().map(|turn| turn.cells.len()).sum();
        let cells = turns.iter().flat_map(|turn| &turn.cells);
        let longest = cells.map(|cell| cell.workload.name().len()).max();
        let bar =
            ProgressBar::with_draw_target(Some(launches as u64), ProgressDrawTarget::stderr())
                .with_style(style.unwrap_or(ProgressStyle::default_bar()));
        Progress {
            bar,
            launches,
            longest: longest.unwrap_or_default(),
            left: turns.iter().map(|turn| turn.estimate).sum(),
        }
    }

    /// A turn begins.
    pub(super) fn begin(&self, turn: &Turn) {
        let what = match &turn.cells[..] {
            [cell] => format!("{} {}", cell.subject.name(), cell.workload),
            [cell, ..] => format!("{} of {} models", cell.workload, turn.cells.len()),
            [] => String::new(),
        };
        self.bar.set_message(format!(
            "about {} left   {what}",
            humantime::format_duration(Duration::from_secs(self.left.as_secs())),
        ));
        self.bar.tick();
    }

    /// One of its launches is over.
    pub(super) fn measured(&self, launch: &Launch) {
        let line = format!(
            "[{:>width$}/{}] {:<12} {:<longest$}  {}",
            launch.order,
            self.launches,
            launch.model,
            launch.workload,
            outcome(launch),
            width = self.launches.to_string().len(),
            longest = self.longest,
        );
        if self.bar.is_hidden() {
            output::print_error(&line);
        } else if !launch.valid() {
            self.bar.println(line);
        }
        self.bar.inc(1);
    }

    /// A turn is over.
    pub(super) fn end(&mut self, turn: &Turn) {
        self.left = self.left.saturating_sub(turn.estimate);
    }

    /// A turn is left out after all.
    pub(super) fn skip(&mut self, turn: &Turn) {
        self.launches -= turn.cells.len();
        self.bar.set_length(self.launches as u64);
        self.end(turn);
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A launch in a few words.
fn outcome(launch: &Launch) -> String {
    if let Some(problem) = launch.problems.first() {
        return format!("FAILED: {problem}");
    }
    let (metric, unit) = match launch.workload {
        Workload::Crowd => (Metric::ClientsServed, "clients served"),
        Workload::Max
        | Workload::Http13b
        | Workload::Http13k
        | Workload::Wait
        | Workload::Compute => (Metric::RequestsPerS, "requests/s"),
        Workload::Steady => (Metric::ResponseP99Ms, "ms p99"),
        Workload::Http13m | Workload::Bulk => (Metric::MbPerS, "MB/s"),
        Workload::Block | Workload::BlockOffload => (Metric::OthersP99Ms, "ms p99 of the others"),
        Workload::Idle => (Metric::IdleCpuMsPerS, "ms of CPU per second"),
    };
    match launch.figures.get(&metric).copied().flatten() {
        Some(value) => format!("{} {unit}", figures::digits(value)),
        None => format!("n/a {unit}"),
    }
}
