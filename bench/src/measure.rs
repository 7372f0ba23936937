//! Measures a comparison: `plan` is the load of each case, `contest` decides what is measured in which round and when
//! it is enough, `run` measures servers one after the other, `slices` measures them in turn while all are alive, and
//! `evaluate` computes the figures of a run and checks whether they may be used. `environment` describes the machine.

use std::collections::BTreeMap;
use std::time::Instant;

use contract::Descriptors;

use crate::measure::contest::{Batch, Contest, End, Entry};
use crate::measure::plan::Case;
use crate::measure::progress::CompareProgress;
use crate::measure::run::Runner;
use crate::output;
use crate::results::certificate::Condition;
use crate::results::{Method, Note, Results, Role, Run, Skipped, summary};
use crate::workloads::Workload;

pub(crate) mod contest;
pub(crate) mod environment;
pub(crate) mod evaluate;
pub(crate) mod plan;
pub(crate) mod progress;
pub(crate) mod run;
pub(crate) mod slices;

/// Measures the rounds of all contests, until each is measured enough or the comparison is interrupted.
pub(crate) struct Measurement<'m> {
    pub(crate) runner: Runner<'m>,
    pub(crate) contests: Vec<Contest>,
    pub(crate) descriptors: Descriptors,
    pub(crate) random: fastrand::Rng,
    /// Saves the results; called after each round, so that the runs are kept however this program ends.
    pub(crate) save: &'m dyn Fn(&Results) -> anyhow::Result<()>,
    /// Shows the first results; called after the first round.
    pub(crate) first: &'m dyn Fn(&Results),
}

/// Marks a measurement that was interrupted.
struct Interrupted;

impl Measurement<'_> {
    /// Measures everything, and adds the runs to the results. The results are complete afterwards unless the comparison
    /// was interrupted.
    ///
    /// # Errors
    ///
    /// Returns an error if a histogram cannot be read back.
    pub(crate) fn run(&mut self, results: &mut Results) -> anyhow::Result<()> {
        let deadline = self
            .runner
            .settings
            .budget
            .map(|budget| self.runner.began + budget);
        let mut progress = CompareProgress::start(&self.contests, self.runner.settings);
        let mut full = BTreeMap::new();
        let mut round = 0;
        self.save(results);
        while self.contests.iter().any(|contest| contest.end.is_none()) {
            round += 1;
            let mut order: Vec<usize> = (0..self.contests.len()).collect();
            self.random.shuffle(&mut order);
            for index in order {
                self.contests[index].check_budget(deadline);
                if self.contests[index].end.is_some() {
                    continue;
                }
                let began = Instant::now();
                let measured = self.round(index, results, &mut progress, &mut full);
                if measured.is_err() {
                    restore(&mut results.runs);
                    summary::complete(results)?;
                    progress.finish();
                    return Ok(());
                }
                summary::complete(results)?;
                let settings = self.runner.settings;
                self.contests[index].round_measured(began.elapsed(), settings, results);
                progress.round_measured(&self.contests[index], results);
            }
            self.save(results);
            let more = self.contests.iter().any(|contest| contest.end.is_none());
            if round == 1 && more {
                progress.pause(|| (self.first)(results));
            }
        }
        progress.finish();
        results.complete = true;
        Ok(())
    }

    /// Saves the results. The measurement continues if that fails: the disk may have room again at the end.
    fn save(&self, results: &Results) {
        if let Err(error) = (self.save)(results) {
            output::print_error(&format!("warning: {error:#}; measuring continues"));
        }
    }

    /// Measures one round of a contest. `full` holds, for each server, the smallest number of connections that could
    /// not all be opened: another attempt would take as long and have the same result.
    fn round(
        &mut self,
        index: usize,
        results: &mut Results,
        progress: &mut CompareProgress,
        full: &mut BTreeMap<String, usize>,
    ) -> Result<(), Interrupted> {
        let batches = self.contests[index].next_round(&mut self.random, self.descriptors);
        for batch in batches {
            let is_full = |case: &Case| {
                let most = full.get(&case.target.name());
                case.opening().is_some() && most.is_some_and(|most| case.connections >= *most)
            };
            if batch.cases.iter().all(is_full) {
                for skipped in batch.cases.iter().map(Skipped::full) {
                    if !results.skipped.contains(&skipped) {
                        results.skipped.push(skipped);
                    }
                }
                continue;
            }
            let first = results.runs.len();
            self.batch(&batch, results, progress)?;
            for again in self.again(index, &batch, &mut results.runs[first..]) {
                self.batch(&again, results, progress)?;
            }
            for (case, run) in batch.cases.iter().zip(&results.runs[first..]) {
                if run.notes.contains(&Note::NotAllOpened) {
                    let most = full.entry(case.target.name()).or_insert(case.connections);
                    *most = case.connections.min(*most);
                }
            }
        }
        Ok(())
    }

    fn batch(
        &self,
        batch: &Batch,
        results: &mut Results,
        progress: &mut CompareProgress,
    ) -> Result<(), Interrupted> {
        progress.begin(batch);
        let order = results.runs.len() + 1;
        let runs = self.runner.measure(batch, order).ok_or(Interrupted)?;
        for run in &runs {
            progress.measured(run);
        }
        results.runs.extend(runs);
        Ok(())
    }

    /// Returns the batches to measure once more, and marks the runs that they replace:
    ///
    /// - a run that failed: the cause may be chance, and if it fails again, the model is not ranked;
    /// - all runs of a batch, if the machine was disturbed: for reasons that have nothing to do with the servers and
    ///   never for their values, and at most half as often as there are rounds;
    /// - an external server that does not rest while others are loaded: it is measured as a whole from now on.
    fn again(&mut self, index: usize, batch: &Batch, runs: &mut [Run]) -> Vec<Batch> {
        let contest = &mut self.contests[index];
        let mut again = Vec::new();
        let once_more = |cases: Vec<Case>| Batch {
            round: batch.round,
            attempt: 2,
            cases,
        };
        let restless: Vec<bool> = runs
            .iter()
            .zip(&batch.cases)
            .map(|(run, case)| {
                case.target.model().is_none() && failed(run, |one| one == Condition::Rested)
            })
            .collect();
        for ((run, case), restless) in runs.iter_mut().zip(&batch.cases).zip(&restless) {
            if *restless {
                run.superseded = true;
                contest.measure_as_a_whole(&case.target.name());
                again.push(once_more(vec![Case {
                    method: Method::Whole,
                    ..case.clone()
                }]));
            }
        }
        let disturbed = runs
            .iter()
            .any(|run| failed(run, Condition::is_independent));
        if disturbed && contest.repeats < (contest.rounds + 1).div_ceil(2) {
            contest.repeats += 1;
            let mut cases = Vec::new();
            for ((run, case), restless) in runs.iter_mut().zip(&batch.cases).zip(&restless) {
                if !restless {
                    run.superseded = true;
                    cases.push(case.clone());
                }
            }
            again.push(once_more(cases));
            return again;
        }
        for ((run, case), restless) in runs.iter_mut().zip(&batch.cases).zip(&restless) {
            if !run.problems.is_empty() && !restless {
                run.superseded = true;
                again.push(once_more(vec![case.clone()]));
            }
        }
        again
    }
}

/// Uses the runs again that were to be measured once more, if the comparison was interrupted before that.
fn restore(runs: &mut [Run]) {
    let measured_again: Vec<_> = runs
        .iter()
        .filter(|run| run.attempt > 1)
        .map(identity)
        .collect();
    for run in runs.iter_mut().filter(|run| run.superseded) {
        run.superseded = measured_again.contains(&identity(run));
    }
}

/// Returns what two attempts of a run have in common.
fn identity(run: &Run) -> (u32, String, Workload, usize, Role) {
    let model = run.model.clone();
    (run.round, model, run.workload, run.connections, run.role)
}

fn failed(run: &Run, wanted: impl Fn(Condition) -> bool) -> bool {
    let failed = run.checks.iter().filter(|check| check.failed());
    failed.map(|check| check.condition).any(wanted)
}

impl Contest {
    /// Measures a server as a whole from now on.
    fn measure_as_a_whole(&mut self, name: &str) {
        let entries = self.entries.iter_mut();
        for entry in entries.filter(|entry| entry.target.name() == name) {
            entry.method = Method::Whole;
        }
    }
}

/// Returns the names of the servers that a contest compares and that take part in its next round.
pub(crate) fn names(contest: &Contest) -> Vec<String> {
    let active = |entry: &&Entry| entry.active && entry.role == Role::Model;
    let entries = contest.entries.iter().filter(active);
    entries.map(|entry| entry.target.name()).collect()
}

/// Returns why a contest ended, in words.
pub(crate) fn end(contest: &Contest) -> &'static str {
    match contest.end {
        None => "more rounds follow",
        Some(End::Rounds) => "all rounds measured",
        Some(End::Precise) => "precise enough",
        Some(End::Budget) => "budget used up",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::run;

    #[test]
    fn run_whose_second_attempt_was_not_measured_is_used_again() {
        let attempt = |model: &str, attempt: u32| Run {
            attempt,
            superseded: attempt == 1,
            ..run(model, Workload::Max)
        };
        let mut runs = [attempt("mio", 1), attempt("mio", 2), attempt("poll", 1)];
        restore(&mut runs);
        let superseded: Vec<bool> = runs.iter().map(|run| run.superseded).collect();
        assert_eq!(superseded, [true, false, false]);
    }
}
