//! Decides when a comparison is precise enough.
//!
//! Measuring stops when the intervals are narrow, and never when a difference is found: to measure until models differ
//! would find differences where there are none.

use super::ranking::{Better, Row, Settings, rank, worse_by};

/// Numbers of rounds after which the precision is looked at. Looking after every round would stop too often on narrow
/// intervals that are chance.
const LOOKS: [usize; 7] = [6, 8, 11, 15, 21, 30, 42];

/// Factor from which on a model that is worse than the best needs no further rounds.
const FAR: f64 = 1.25;

/// Returns whether the precision is looked at after this number of rounds.
pub(crate) fn is_look(rounds: usize) -> bool {
    LOOKS.contains(&rounds) || rounds > LOOKS[LOOKS.len() - 1] && rounds.is_multiple_of(12)
}

/// Returns the widest half of an interval of a ratio to the best, as a share of the ratio; `None` if no ratio is known.
pub(crate) fn half_width(rows: &[Row<'_>], better: Better, settings: &Settings) -> Option<f64> {
    let ranking = rank(rows, better, settings);
    let others = ranking.rows.iter().enumerate();
    others
        .filter(|(index, _)| Some(*index) != ranking.best)
        .filter_map(|(_, row)| Some(row.ratio?.half_width()))
        .max_by(f64::total_cmp)
}

/// Returns the models that are so much worse than the best that they need no further rounds. The significance level is
/// divided by the number of looks.
pub(crate) fn drops_out(rows: &[Row<'_>], better: Better, settings: &Settings) -> Vec<bool> {
    worse_by(rows, better, FAR, settings.alpha / LOOKS.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<'v>(values: &'v [Vec<Option<f64>>]) -> Vec<Row<'v>> {
        let row = |values: &'v Vec<Option<f64>>| Row {
            values,
            doubtful: false,
        };
        values.iter().map(row).collect()
    }

    fn values(values: &[f64]) -> Vec<Option<f64>> {
        values.iter().copied().map(Some).collect()
    }

    #[test]
    fn precision_is_looked_at_after_few_numbers_of_rounds() {
        let looks: Vec<usize> = (0..=80).filter(|rounds| is_look(*rounds)).collect();
        assert_eq!(looks, [6, 8, 11, 15, 21, 30, 42, 48, 60, 72]);
    }

    #[test]
    fn half_width_is_that_of_the_widest_interval_beside_the_best() {
        let all = [
            values(&[1.0; 6]),
            values(&[2.0, 2.02, 1.98, 2.0, 2.01, 1.99]),
            values(&[3.0, 4.0, 2.0, 3.0, 3.5, 2.5]),
        ];
        let width = |count: usize| {
            half_width(&rows(&all[..count]), Better::Lower, &Settings::default()).unwrap()
        };
        assert!(width(2) < 0.02, "{}", width(2));
        assert!((0.1..0.5).contains(&width(3)), "{}", width(3));
        let one = half_width(&rows(&all[..1]), Better::Lower, &Settings::default());
        assert_eq!(one, None);
    }

    #[test]
    fn model_drops_out_if_it_is_certainly_worse_by_a_quarter() {
        let all = [
            values(&[1.0, 1.01, 0.99, 1.0, 1.02, 0.98]),
            values(&[1.2, 1.21, 1.19, 1.2, 1.21, 1.22]),
            values(&[1.8, 1.81, 1.79, 1.8, 1.82, 1.78]),
            values(&[1.1, 3.0, 1.0, 4.0, 1.0, 5.0]),
        ];
        let out = drops_out(&rows(&all), Better::Lower, &Settings::default());
        assert_eq!(out, [false, false, true, false]);
        let inverse: Vec<Vec<Option<f64>>> = all
            .iter()
            .map(|row| row.iter().map(|one| one.map(|one| 1.0 / one)).collect())
            .collect();
        let out = drops_out(&rows(&inverse), Better::Higher, &Settings::default());
        assert_eq!(out, [false, false, true, false]);
    }
}
