//! The progress of the checks: a bar on a terminal, otherwise a line for each target, on standard error.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::matrix::{CellStatus, MatrixCell};
use crate::output;

/// Display of the progress of all checks.
pub(super) struct CheckProgress {
    bar: ProgressBar,
    /// Number of checks that are done, for each target.
    done: Mutex<HashMap<String, usize>>,
    /// Number of checks for each target.
    checks: usize,
}

impl CheckProgress {
    /// Shows the progress of this number of targets, with this number of checks for each.
    pub(super) fn start(targets: usize, checks: usize) -> CheckProgress {
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {elapsed}  {msg}");
        let all = Some((targets * checks) as u64);
        let bar = ProgressBar::with_draw_target(all, ProgressDrawTarget::stderr());
        CheckProgress {
            bar: bar.with_style(style.unwrap_or(ProgressStyle::default_bar())),
            done: Mutex::default(),
            checks,
        }
    }

    /// Shows that a check begins. The bar is drawn now and not while the check runs, because drawing takes time on a
    /// CPU of the client.
    pub(super) fn begin(&self, target: &str, check: &str) {
        self.bar.set_message(format!("{target}, {check}"));
        self.bar.tick();
    }

    /// Shows that a check is done. A BROKEN guarantee and a check that failed are reported at once.
    pub(super) fn done(&self, cell: &MatrixCell) {
        let message = match &cell.status {
            CellStatus::Broken { expected, seen, .. } => Some(format!(
                "BROKEN: {}, {}: expected {expected}; saw {seen}",
                cell.target, cell.guarantee
            )),
            CellStatus::Unchecked { why } => Some(format!(
                "not checked: {}, {}: {why}",
                cell.target, cell.guarantee
            )),
            _ => None,
        };
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let count = done.entry(cell.target.clone()).or_default();
        *count += 1;
        if self.bar.is_hidden() {
            if let Some(message) = message {
                output::print_error(&message);
            }
            if *count == self.checks {
                output::print_error(&format!("{}: {count} checks done", cell.target));
            }
        } else if let Some(message) = message {
            self.bar.println(message);
        }
        self.bar.inc(1);
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
