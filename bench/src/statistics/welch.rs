//! Differences between two samples that were not taken together: two comparisons on one machine.

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::interval::{Estimate, moments, t_quantile};
use super::ranking::Better;

/// Difference of two samples of logarithms: by what factor the second is larger.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Difference {
    /// Ratio of the second to the first, with its 95 % interval.
    pub(crate) ratio: Estimate,
    /// Probability of a difference as large as this if there were none.
    pub(crate) p: f64,
}

/// Compares two samples of logarithms, whose variances may differ (B. L. Welch 1947). `None` for fewer than two values
/// in one of them.
pub(crate) fn difference(before: &[f64], after: &[f64]) -> Option<Difference> {
    let (freedom_before, mean_before, error_before) = moments(before)?;
    let (freedom_after, mean_after, error_after) = moments(after)?;
    let variance = error_before.powi(2) + error_after.powi(2);
    let mean = mean_after - mean_before;
    let error = variance.sqrt();
    let freedom = variance.powi(2)
        / (error_before.powi(4) / freedom_before + error_after.powi(4) / freedom_after);
    let (p, reach) = if error > 0.0 {
        let distribution = StudentsT::new(0.0, 1.0, freedom).ok()?;
        let p = 2.0 * (1.0 - distribution.cdf((mean / error).abs()));
        (p, t_quantile(0.975, freedom) * error)
    } else {
        (if mean == 0.0 { 1.0 } else { 0.0 }, 0.0)
    };
    Some(Difference {
        ratio: Estimate {
            value: mean,
            low: mean - reach,
            high: mean + reach,
        }
        .exp(),
        p,
    })
}

/// Adjusts the probabilities of many comparisons so that of those below a level, at most that share is wrong (Y. Benjamini
/// and Y. Hochberg 1995). The order is kept.
pub(crate) fn adjust(probabilities: &[f64]) -> Vec<f64> {
    let count = probabilities.len();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
    let mut adjusted = vec![1.0; count];
    let mut smallest = 1.0_f64;
    for (place, index) in order.into_iter().enumerate() {
        let rank = (count - place) as f64;
        smallest = smallest.min(probabilities[index] * count as f64 / rank);
        adjusted[index] = smallest;
    }
    adjusted
}

/// Outcome of a comparison of two comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    /// The figure is worse, by more than the margin or by less.
    Slower,
    /// The figure is better.
    Faster,
    /// The whole interval of the ratio lies within the margin.
    Same,
    /// None of these is certain.
    NotKnown,
}

/// Classifies a difference. `adjusted` is its adjusted probability, `alpha` the share of the differences that may be
/// wrong, and `margin` the largest difference between equal figures, as a share.
pub(crate) fn classify(
    difference: &Difference,
    adjusted: f64,
    alpha: f64,
    margin: f64,
    better: Better,
) -> Class {
    let Estimate { value, low, high } = difference.ratio;
    let within = low >= 1.0 / (1.0 + margin) && high <= 1.0 + margin;
    let larger_is_worse = better == Better::Lower;
    match () {
        () if within => Class::Same,
        () if adjusted > alpha => Class::NotKnown,
        () if (value > 1.0) == larger_is_worse => Class::Slower,
        () => Class::Faster,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-3
    }

    /// The example of Welch's test in R: t.test(c(1, 2, 3, 4), c(2, 4, 6, 8, 10)).
    #[test]
    fn difference_agrees_with_a_worked_example() {
        let found = difference(&[1.0, 2.0, 3.0, 4.0], &[2.0, 4.0, 6.0, 8.0, 10.0]).unwrap();
        // Means 2.5 and 6, standard error 1.5546, 5.5767 degrees of freedom, t = 2.2514.
        assert!(
            close(found.ratio.value, 3.5_f64.exp()) || (found.ratio.value - 33.115).abs() < 0.01
        );
        assert!((found.p - 0.0691).abs() < 2e-3, "{}", found.p);
        assert!(found.ratio.low < 1.0 && found.ratio.high > 1_000.0);
        assert_eq!(difference(&[1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn adjusted_probabilities_agree_with_a_worked_example() {
        let adjusted = adjust(&[0.01, 0.04, 0.03, 0.005]);
        let wanted = [0.02, 0.04, 0.04, 0.02];
        assert!(
            adjusted.iter().zip(wanted).all(|(a, b)| close(*a, b)),
            "{adjusted:?}"
        );
        assert!(adjust(&[]).is_empty());
        assert_eq!(adjust(&[0.9, 0.8]), [0.9, 0.9]);
    }

    fn found(value: f64, reach: f64) -> Difference {
        Difference {
            ratio: Estimate {
                value,
                low: value / reach,
                high: value * reach,
            },
            p: 0.5,
        }
    }

    #[test]
    fn difference_is_classified_by_interval_direction_and_probability() {
        let class =
            |difference: Difference, p: f64, better| classify(&difference, p, 0.05, 0.03, better);
        assert_eq!(class(found(1.01, 1.005), 0.001, Better::Lower), Class::Same);
        assert_eq!(
            class(found(1.10, 1.02), 0.001, Better::Lower),
            Class::Slower
        );
        assert_eq!(
            class(found(1.10, 1.02), 0.001, Better::Higher),
            Class::Faster
        );
        assert_eq!(
            class(found(0.90, 1.02), 0.001, Better::Lower),
            Class::Faster
        );
        assert_eq!(
            class(found(0.90, 1.02), 0.001, Better::Higher),
            Class::Slower
        );
        assert_eq!(
            class(found(1.10, 1.20), 0.06, Better::Lower),
            Class::NotKnown
        );
    }

    /// T9: two comparisons of one truth, with a drift of 10 % between them that the anchor shows: at most 5 % of the cases
    /// are called different.
    #[test]
    fn two_comparisons_of_one_truth_differ_in_at_most_one_case_in_twenty() {
        let mut random = fastrand::Rng::with_seed(9);
        let mut normal = || -> f64 { (0..12).map(|_| random.f64()).sum::<f64>() - 6.0 };
        let (mut wrong, mut cases) = (0, 0);
        for _ in 0..100 {
            let mut probabilities = Vec::new();
            for model in 0..19 {
                let mut sample = |drift: f64| -> Vec<f64> {
                    (0..8)
                        .map(|_| {
                            let round = 0.1 * normal();
                            let value = f64::from(model) / 10.0 + drift + round + 0.03 * normal();
                            let anchor = drift + round + 0.02 * normal();
                            value - anchor
                        })
                        .collect()
                };
                let (before, after) = (sample(0.0), sample(0.1));
                probabilities.push(difference(&before, &after).unwrap().p);
            }
            cases += probabilities.len();
            wrong += adjust(&probabilities)
                .iter()
                .filter(|p| **p <= 0.05)
                .count();
        }
        assert!(wrong * 20 <= cases, "{wrong} of {cases}");
    }

    #[test]
    fn real_difference_between_two_comparisons_is_found() {
        let mut random = fastrand::Rng::with_seed(10);
        let mut sample = |mean: f64| -> Vec<f64> {
            (0..10)
                .map(|_| mean + 0.03 * (random.f64() - 0.5))
                .collect()
        };
        let (before, after) = (sample(0.0), sample(0.1));
        let found = difference(&before, &after).unwrap();
        assert!(found.p < 1e-6);
        assert_eq!(
            classify(&found, found.p, 0.05, 0.03, Better::Lower),
            Class::Slower
        );
    }
}
