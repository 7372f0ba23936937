//! Tests of the ranking: the rules on small examples, and the error rates on simulated comparisons with fixed seeds.

use super::*;
use crate::statistics::stopping;

const SETTINGS: Settings = Settings {
    alpha: 0.05,
    margin: 0.05,
    least_rounds: 6,
};

fn some(values: &[f64]) -> Vec<Option<f64>> {
    values.iter().copied().map(Some).collect()
}

fn rows<'v>(values: &'v [Vec<Option<f64>>]) -> Vec<Row<'v>> {
    let row = |values: &'v Vec<Option<f64>>| Row {
        values,
        doubtful: false,
    };
    values.iter().map(row).collect()
}

fn marks(values: &[Vec<Option<f64>>], better: Better) -> Vec<Option<Mark>> {
    let ranking = rank(&rows(values), better, &SETTINGS);
    ranking.rows.iter().map(|row| row.mark).collect()
}

/// Six values around a mean with a standard deviation of about one percent.
fn around(mean: f64) -> Vec<Option<f64>> {
    some(&[0.99, 1.01, 1.0, 1.015, 0.985, 1.0].map(|one| one * mean))
}

/// The same in another order, so that differences are not all equal.
fn around_too(mean: f64) -> Vec<Option<f64>> {
    some(&[1.01, 1.0, 0.985, 1.0, 1.01, 0.99].map(|one| one * mean))
}

#[test]
fn leader_needs_all_others_to_be_worse() {
    let clear = [around(1.0), around_too(1.2), around(2.0)];
    let leader = [Some(Mark::Leader), Some(Mark::Worse), Some(Mark::Worse)];
    assert_eq!(marks(&clear, Better::Lower), leader);
    let close = [around(1.0), around_too(1.001), around(2.0)];
    let both = [Some(Mark::MayBeBest), Some(Mark::Equal), Some(Mark::Worse)];
    assert_eq!(marks(&close, Better::Lower), both);
}

#[test]
fn higher_is_better_reverses_the_marks_and_keeps_the_ratios() {
    let values = [around(1.0), around_too(0.5)];
    assert_eq!(
        marks(&values, Better::Higher),
        [Some(Mark::Leader), Some(Mark::Worse)]
    );
    let ranking = rank(&rows(&values), Better::Higher, &SETTINGS);
    let ratio = ranking.rows[1].ratio.unwrap();
    assert!((ratio.value - 0.5).abs() < 0.01, "{ratio:?}");
    assert!(ratio.low < ratio.value && ratio.value < ratio.high);
}

#[test]
fn noisy_model_that_looks_worse_is_not_known_and_its_missing_rounds_are_estimated() {
    let noisy = some(&[1.0, 1.4, 0.9, 1.5, 1.0, 1.3]);
    let values = [around(1.0), noisy];
    assert_eq!(
        marks(&values, Better::Lower),
        [Some(Mark::MayBeBest), Some(Mark::NotKnown)]
    );
    let ranking = rank(&rows(&values), Better::Lower, &SETTINGS);
    let missing = ranking.rows[1].rounds_missing.unwrap();
    assert!((1..20).contains(&missing), "{missing}");
    assert_eq!(ranking.rows[0].rounds_missing, None);
}

#[test]
fn noisy_model_that_looks_as_good_as_the_best_may_be_the_best() {
    let values = [around(1.0), some(&[1.0, 1.3, 0.8, 1.2, 0.8, 1.1])];
    assert_eq!(
        marks(&values, Better::Lower),
        [Some(Mark::MayBeBest), Some(Mark::MayBeBest)]
    );
}

#[test]
fn few_rounds_give_no_marks_and_intervals_from_all_models_together() {
    let few = [
        some(&[1.0, 1.01, 0.99]),
        some(&[2.0, 2.0, 2.0]),
        some(&[3.0, 3.3, 2.7]),
    ];
    let ranking = rank(&rows(&few), Better::Lower, &SETTINGS);
    assert!(ranking.rows.iter().all(|row| row.mark.is_none()));
    assert_eq!(ranking.best, Some(0));
    let width = |index: usize| ranking.rows[index].ratio.unwrap().half_width();
    // The second model alone would have a far narrower interval than the third.
    assert!(
        (width(1) - width(2)).abs() < 1e-9,
        "{} {}",
        width(1),
        width(2)
    );
    assert!(width(1) > 0.02);
    let one = [some(&[1.0]), some(&[2.0])];
    let ranking = rank(&rows(&one), Better::Lower, &SETTINGS);
    assert_eq!(ranking.rows[1].ratio, None);
}

#[test]
fn doubtful_and_unmeasured_models_take_no_part() {
    let values = [around(1.0), around_too(2.0), vec![None; 6]];
    let mut rows = rows(&values);
    rows[0].doubtful = true;
    let ranking = rank(&rows, Better::Lower, &SETTINGS);
    let marks: Vec<_> = ranking.rows.iter().map(|row| row.mark).collect();
    assert_eq!(marks, [Some(Mark::Doubtful), None, None]);
    assert_eq!(ranking.best, Some(1));
    assert_eq!(ranking.rows[0].ratio, None);
    assert!(rank(&[], Better::Lower, &SETTINGS).rows.is_empty());
}

#[test]
fn missing_rounds_are_left_out_of_the_pairs_that_they_concern() {
    let mut short = around_too(1.2);
    short[0] = None;
    // Five common rounds: the short model has no mark, the others have theirs.
    let values = [around(1.0), short, around_too(1.5)];
    let marks = marks(&values, Better::Lower);
    assert_eq!(marks[1], None);
    assert_eq!(marks[2], Some(Mark::Worse));
}

#[test]
fn groups_contain_what_cannot_be_told_apart() {
    let values = [
        around(2.0),
        around(1.0),
        around_too(1.002),
        around_too(2.004),
        some(&[3.0, 3.4, 2.6, 3.1, 3.3, 2.9]),
    ];
    let rows = rows(&values);
    let ranking = rank(&rows, Better::Lower, &SETTINGS);
    let groups = groups(&ranking, &rows, Better::Lower, &SETTINGS);
    let members: Vec<Vec<usize>> = groups.iter().map(|one| one.members.clone()).collect();
    assert_eq!(members, [vec![1, 2], vec![0, 3], vec![4]]);
    assert!(groups[0].equal && groups[1].equal);
    assert_eq!(groups[0].ratio, None);
    assert!((groups[1].ratios.0 - 2.0).abs() < 0.01);
    assert!(groups[2].ratio.is_some_and(|ratio| ratio.low > 2.5));
}

/// Kind of noise of a simulation: the logarithm of a factor.
#[derive(Debug, Clone, Copy)]
enum Noise {
    Normal,
    /// Student's t with three degrees of freedom: heavy tails.
    Heavy,
    /// One value in ten is larger by a burst.
    Bursts,
    /// Residuals of real rounds: CPU time per request of `mio` in `max`, by round, over that of its twin.
    Real,
}

const KINDS: [Noise; 4] = [Noise::Normal, Noise::Heavy, Noise::Bursts, Noise::Real];

/// Logarithms of the ratio of a model to its twin in real rounds, divided by their standard deviation.
const RESIDUALS: &[f64] = include!("residuals.in");

struct Simulation {
    random: fastrand::Rng,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        Simulation {
            random: fastrand::Rng::with_seed(seed),
        }
    }

    fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.random.f64(), self.random.f64());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// Draws noise with a standard deviation of about 1.
    fn noise(&mut self, kind: Noise) -> f64 {
        match kind {
            Noise::Normal => self.normal(),
            Noise::Heavy => {
                let squares: f64 = (0..3).map(|_| self.normal().powi(2)).sum();
                self.normal() / (squares / 3.0).sqrt() / 3.0_f64.sqrt()
            }
            Noise::Bursts => {
                let burst = if self.random.f64() < 0.1 { 2.5 } else { 0.0 };
                0.6 * self.normal() + burst
            }
            Noise::Real => RESIDUALS[self.random.usize(..RESIDUALS.len())],
        }
    }

    /// Draws the values of models with these true factors. The rounds differ by far more than the models.
    fn values(
        &mut self,
        factors: &[f64],
        rounds: usize,
        sd: f64,
        kind: Noise,
    ) -> Vec<Vec<Option<f64>>> {
        let shared: Vec<f64> = (0..rounds).map(|_| 0.2 * self.normal()).collect();
        // The standard deviation is that of a difference of two models.
        let sd = sd / 2.0_f64.sqrt();
        factors
            .iter()
            .map(|factor| {
                shared
                    .iter()
                    .map(|shared| Some(10.0 * factor * (shared + sd * self.noise(kind)).exp()))
                    .collect()
            })
            .collect()
    }
}

/// T1: equal models are called worse in at most 5 % of the comparisons of a model with the others.
#[test]
fn equal_models_are_marked_in_at_most_one_case_in_twenty() {
    for kind in KINDS {
        for rounds in [6, 10, 20] {
            let mut simulation = Simulation::new(1);
            let (mut wrong, mut cases) = (0, 0);
            for _ in 0..40 {
                let values = simulation.values(&[1.0; 19], rounds, 0.05, kind);
                let marks = marks(&values, Better::Lower);
                cases += marks.len();
                let called =
                    |mark: &&Option<Mark>| matches!(mark, Some(Mark::Worse | Mark::Leader));
                wrong += marks.iter().filter(called).count();
            }
            let share = wrong as f64 / cases as f64;
            assert!(share <= 0.05, "{kind:?}, {rounds} rounds: {share}");
        }
    }
}

/// T2: a model that is 5 % dearer is found in at least 90 % of the comparisons, and called better in almost none.
#[test]
fn model_that_is_five_percent_dearer_is_found() {
    let mut simulation = Simulation::new(2);
    let (mut found, mut wrong) = (0, 0);
    const RUNS: usize = 1_000;
    for _ in 0..RUNS {
        let values = simulation.values(&[1.0, 1.05], 10, 0.03, Noise::Normal);
        let marks = marks(&values, Better::Lower);
        found += usize::from(marks[1] == Some(Mark::Worse));
        wrong += usize::from(marks[0] == Some(Mark::Worse));
    }
    assert!(found >= RUNS * 9 / 10, "{found}");
    assert!(wrong <= RUNS / 1_000, "{wrong}");
}

/// T3: intervals of ratios cover the truth in 93.5 to 97 % of the cases, although measuring stops when they are narrow.
#[test]
fn intervals_cover_the_truth_also_when_measuring_stops_early() {
    for kind in [Noise::Normal, Noise::Real] {
        let mut simulation = Simulation::new(3);
        const RUNS: usize = 2_000;
        let mut covered = 0;
        for _ in 0..RUNS {
            let values = simulation.values(&[1.0, 1.5], 42, 0.06, kind);
            let mut ratio = None;
            for rounds in (6..=42).filter(|rounds| stopping::is_look(*rounds)) {
                let part: Vec<Vec<Option<f64>>> =
                    values.iter().map(|row| row[..rounds].to_vec()).collect();
                let rows = rows(&part);
                ratio = rank(&rows, Better::Lower, &SETTINGS).rows[1].ratio;
                let width = stopping::half_width(&rows, Better::Lower, &SETTINGS);
                if width.is_some_and(|width| width <= 0.04) {
                    break;
                }
            }
            let ratio = ratio.unwrap();
            covered += usize::from(ratio.low <= 1.5 && 1.5 <= ratio.high);
        }
        let share = covered as f64 / RUNS as f64;
        assert!((0.935..=0.97).contains(&share), "{kind:?}: {share}");
    }
}

/// T4: more rounds find more, whatever the noise is. With the ranges of runs it was the other way round.
#[test]
fn power_grows_with_the_number_of_rounds() {
    for kind in KINDS {
        let found = |rounds: usize| {
            let mut simulation = Simulation::new(4);
            (0..200)
                .filter(|_| {
                    let values = simulation.values(&[1.0, 1.05, 1.0], rounds, 0.12, kind);
                    marks(&values, Better::Lower)[1] == Some(Mark::Worse)
                })
                .count()
        };
        let [six, ten, twenty, forty] = [6, 10, 20, 40].map(found);
        assert!(
            six < ten && ten < twenty && twenty < forty,
            "{kind:?}: {six} {ten} {twenty} {forty}"
        );
        assert!(forty > 100, "{kind:?}: {forty}");
    }
}

/// T5: models within 1 % are called as good as each other, and models that are 6 % apart are not.
#[test]
fn models_are_as_good_as_each_other_only_within_the_margin() {
    let equal = |factor: f64| {
        let mut simulation = Simulation::new(5);
        const RUNS: usize = 500;
        let found = (0..RUNS)
            .filter(|_| {
                let values = simulation.values(&[1.0, factor, 2.0], 20, 0.04, Noise::Normal);
                let marks = marks(&values, Better::Lower);
                // The better of the two, by chance, is the one that may be the best.
                marks[..2].contains(&Some(Mark::Equal))
            })
            .count();
        found as f64 / RUNS as f64
    };
    let (near, far) = (equal(1.01), equal(1.06));
    assert!(near >= 0.9, "{near}");
    assert!(far <= 0.05, "{far}");
}
