//! How far the checks have come: a bar on a terminal, a line per target elsewhere; on standard error.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::matrix::{CellStatus, MatrixCell};
use crate::output;

pub(super) struct CheckProgress {
    bar: ProgressBar,
    /// How many checks of each target are done.
    done: Mutex<HashMap<String, usize>>,
    checks: usize,
}

impl CheckProgress {
    /// Of so many targets, and checks of each.
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

    /// A check begins. Drawn now, and not while it runs: what draws takes time on a CPU of the client's.
    pub(super) fn begin(&self, target: &str, check: &str) {
        self.bar.set_message(format!("{target}, {check}"));
        self.bar.tick();
    }

    /// A check is done. What is broken is told at once.
    pub(super) fn done(&self, cell: &MatrixCell) {
        let bad = match &cell.status {
            CellStatus::Broken { expected, seen, .. } => Some(format!(
                "BROKEN: {}, {}: expected {expected}, saw {seen}",
                cell.target, cell.guarantee
            )),
            CellStatus::Unchecked { why } => Some(format!(
                "not checked: {}, {}: {why}",
                cell.target, cell.guarantee
            )),
            _ => None,
        };
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = done.entry(cell.target.clone()).or_default();
        *of_it += 1;
        if self.bar.is_hidden() {
            if let Some(bad) = bad {
                output::print_error(&bad);
            }
            if *of_it == self.checks {
                output::print_error(&format!("{}: {of_it} checks done", cell.target));
            }
        } else if let Some(bad) = bad {
            self.bar.println(bad);
        }
        self.bar.inc(1);
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
