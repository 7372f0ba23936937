//! How far the comparison has come: a bar on a terminal, a line per launch elsewhere; on standard error.
//!
//! Nothing is drawn while a load runs. Drawing takes time on a CPU of the client's, and would be measured as slowness of
//! the server; so the bar stands still for a second at a time.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::metric::Metric;
use super::plan::{Cell, Workload};
use super::results::Launch;
use crate::{figures, output};

pub(super) struct Progress {
    bar: ProgressBar,
    cells: usize,
    left: Duration,
}

impl Progress {
    pub(super) fn start(cells: &[Cell]) -> Progress {
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}");
        let bar =
            ProgressBar::with_draw_target(Some(cells.len() as u64), ProgressDrawTarget::stderr())
                .with_style(style.unwrap_or(ProgressStyle::default_bar()));
        Progress {
            bar,
            cells: cells.len(),
            left: cells.iter().map(|cell| cell.estimate).sum(),
        }
    }

    /// A launch begins.
    pub(super) fn begin(&self, cell: &Cell) {
        self.bar.set_message(format!(
            "about {} left   {} {}",
            humantime::format_duration(Duration::from_secs(self.left.as_secs())),
            cell.model.name,
            cell.workload
        ));
        self.bar.tick();
    }

    /// A launch is over.
    pub(super) fn end(&mut self, cell: &Cell, launch: &Launch) {
        self.left = self.left.saturating_sub(cell.estimate);
        let line = format!(
            "[{:>width$}/{}] {:<12} {:<7} {}",
            launch.order,
            self.cells,
            launch.model,
            launch.workload,
            outcome(launch),
            width = self.cells.to_string().len(),
        );
        if self.bar.is_hidden() {
            output::complain(&line);
        } else if !launch.valid() {
            self.bar.println(line);
        }
        self.bar.inc(1);
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
        Workload::Max => (Metric::RequestsPerS, "requests/s"),
        Workload::Steady => (Metric::ResponseP99Ms, "ms p99"),
        Workload::Idle => (Metric::KibPerConnection, "KiB per connection"),
    };
    match launch.figures.get(&metric).copied().flatten() {
        Some(value) => format!("{} {unit}", figures::digits(value)),
        None => format!("n/a {unit}"),
    }
}
