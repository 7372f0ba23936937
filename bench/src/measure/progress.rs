//! Shows the progress of a comparison on standard error: as a bar on a terminal, otherwise as one line per run.
//!
//! Nothing is drawn while a load runs. Drawing takes time on a CPU of the client, and would be measured as slowness of
//! the server. The bar therefore does not move for seconds at a time.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::measure::contest::{Batch, Contest};
use crate::measure::plan::Settings;
use crate::results::{Results, Role, Run};
use crate::{format, measure, output};

/// Progress of a comparison.
pub(crate) struct CompareProgress {
    bar: ProgressBar,
    began: Instant,
    budget: Option<Duration>,
    sweep: bool,
    /// Width of the longest workload name, in columns.
    longest: usize,
    /// Results so far, for the message of the bar.
    known: String,
}

impl CompareProgress {
    /// Shows the bar of a comparison. With a budget its length is the time, otherwise the number of rounds.
    pub(crate) fn start(contests: &[Contest], settings: &Settings) -> CompareProgress {
        let style = ProgressStyle::with_template("{bar:24} {msg}");
        let length = match settings.budget {
            Some(budget) => budget.as_secs(),
            None => contests
                .iter()
                .filter_map(|contest| settings.rounds(contest.workload))
                .map(u64::from)
                .sum(),
        };
        let names = contests.iter().map(|one| one.workload.name().len());
        let bar = ProgressBar::with_draw_target(Some(length.max(1)), ProgressDrawTarget::stderr())
            .with_style(style.unwrap_or(ProgressStyle::default_bar()));
        CompareProgress {
            bar,
            began: Instant::now(),
            budget: settings.budget,
            sweep: settings.sweep(),
            longest: names.max().unwrap_or_default(),
            known: String::new(),
        }
    }

    /// Shows that a batch begins.
    pub(crate) fn begin(&self, batch: &Batch) {
        let Some(first) = batch.cases.first() else {
            return;
        };
        let case = match batch.cases.len() {
            1 => format!("{} {}", first.target.name(), first.workload),
            count => format!("{} of {count} servers", first.workload),
        };
        let time = match self.budget {
            Some(budget) => {
                let elapsed = self.began.elapsed().as_secs();
                self.bar.set_position(elapsed.min(budget.as_secs()));
                let left = budget.as_secs().saturating_sub(elapsed);
                let left = humantime::format_duration(Duration::from_secs(left));
                format!("at most {left} left   ")
            }
            None => String::new(),
        };
        self.bar
            .set_message(format!("{time}round {}: {case}{}", batch.round, self.known));
        self.bar.tick();
    }

    /// Shows the outcome of a finished run.
    pub(crate) fn measured(&self, run: &Run) {
        let role = match run.role {
            Role::Model => "",
            Role::Twin => " (measured again as a twin)",
            Role::Anchor => " (not compared)",
        };
        let line = format!(
            "[round {}] {:<12} {:<longest$}  {}{role}",
            run.round,
            run.model,
            run.workload,
            outcome(run),
            longest = self.longest,
        );
        if self.bar.is_hidden() {
            output::print_error(&line);
        } else if !run.valid() {
            self.bar.println(line);
        }
    }

    /// Shows how exactly a workload is known after a round.
    pub(crate) fn round_measured(&mut self, contest: &Contest, results: &Results) {
        if self.budget.is_none() {
            self.bar.inc(1);
        }
        let name = contest.name(self.sweep);
        let width = match contest.half_width(results) {
            Some(width) => format!("widest interval ±{:.1} %", width * 100.0),
            None => "no interval yet".to_string(),
        };
        self.known = format!("   {name}: {width}");
        if self.bar.is_hidden() {
            output::print_error(&format!(
                "{name}, round {}: {} servers, {width}, {}",
                contest.rounds,
                measure::names(contest).len(),
                measure::end(contest)
            ));
        }
    }

    /// Prints something while the bar is hidden.
    pub(crate) fn pause(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
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
    let (metric, unit) = run.workload.progress_figure();
    match run.figures.get(&metric).copied().flatten() {
        Some(value) => format!("{} {unit}", format::digits(value)),
        None => format!("n/a {unit}"),
    }
}
