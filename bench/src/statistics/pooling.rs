//! Pools the results of several machines: random effects, because a ratio differs from machine to machine by more than
//! the noise of each.

use super::interval::{Estimate, t_quantile};

/// Results of several machines taken together, as logarithms of ratios.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pooled {
    /// Mean over machines like these, with its 95 % interval.
    pub(crate) mean: Estimate,
    /// Standard deviation between machines.
    pub(crate) tau: f64,
    /// 95 % interval of the ratio on the next machine; `None` for fewer than three machines.
    pub(crate) next: Option<(f64, f64)>,
}

/// Pools estimates with their standard errors, one per machine (R. DerSimonian and N. Laird 1986). `None` for fewer than two machines, or if a
/// standard error is not greater than zero.
pub(crate) fn pool(estimates: &[(f64, f64)]) -> Option<Pooled> {
    let count = estimates.len() as f64;
    if estimates.len() < 2 || estimates.iter().any(|(_, error)| *error <= 0.0) {
        return None;
    }
    let weighted = |tau2: f64| {
        let weights: Vec<f64> = estimates
            .iter()
            .map(|(_, error)| 1.0 / (error.powi(2) + tau2))
            .collect();
        let sum: f64 = weights.iter().sum();
        let mean = estimates
            .iter()
            .zip(&weights)
            .map(|((estimate, _), weight)| estimate * weight)
            .sum::<f64>()
            / sum;
        (weights, sum, mean)
    };
    let (weights, sum, fixed) = weighted(0.0);
    let q: f64 = estimates
        .iter()
        .zip(&weights)
        .map(|((estimate, _), weight)| weight * (estimate - fixed).powi(2))
        .sum();
    let squares: f64 = weights.iter().map(|weight| weight.powi(2)).sum();
    let tau2 = ((q - (count - 1.0)) / (sum - squares / sum)).max(0.0);
    let (weights, sum, mean) = weighted(tau2);
    // The variance of the mean from the machines themselves (G. Knapp and J. Hartung 2003), and never below the usual one:
    // by chance a few machines agree too well.
    let spread: f64 = estimates
        .iter()
        .zip(&weights)
        .map(|((estimate, _), weight)| weight * (estimate - mean).powi(2))
        .sum();
    let variance = (spread / (count - 1.0) / sum).max(1.0 / sum);
    let reach = t_quantile(0.975, count - 1.0) * variance.sqrt();
    // The next machine is measured like these, so its ratio varies as theirs do. With a handful of machines, an interval
    // from the estimated spread between them alone is too narrow: the estimate is often zero by chance.
    let next = (count > 2.0).then(|| {
        let plain = estimates.iter().map(|(estimate, _)| estimate).sum::<f64>() / count;
        let squares: f64 = estimates.iter().map(|(one, _)| (one - plain).powi(2)).sum();
        let variance = squares / (count - 1.0) * (1.0 + 1.0 / count);
        let reach = t_quantile(0.975, count - 1.0) * variance.sqrt();
        (mean - reach, mean + reach)
    });
    Some(Pooled {
        mean: Estimate {
            value: mean,
            low: mean - reach,
            high: mean + reach,
        },
        tau: tau2.sqrt(),
        next,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_that_agree_have_no_spread_and_a_narrow_mean() {
        let pooled = pool(&[(0.1, 0.02), (0.1, 0.02), (0.1, 0.02), (0.1, 0.02)]).unwrap();
        assert!((pooled.mean.value - 0.1).abs() < 1e-12);
        assert_eq!(pooled.tau, 0.0);
        // Standard error 0.01, t(0.975, 3) = 3.182.
        assert!((pooled.mean.high - 0.1318).abs() < 1e-3, "{pooled:?}");
        assert!(pool(&[(0.1, 0.02)]).is_none());
        assert!(pool(&[(0.1, 0.02), (0.1, 0.0)]).is_none());
    }

    #[test]
    fn machines_that_differ_widen_the_interval_of_the_next() {
        let pooled = pool(&[(0.0, 0.01), (0.2, 0.01), (0.1, 0.01)]).unwrap();
        assert!((pooled.mean.value - 0.1).abs() < 1e-6);
        assert!((pooled.tau - 0.0995).abs() < 1e-3, "{pooled:?}");
        let (low, high) = pooled.next.unwrap();
        assert!(low < pooled.mean.low && high > pooled.mean.high);
        assert_eq!(pool(&[(0.0, 0.01), (0.2, 0.01)]).unwrap().next, None);
    }

    #[test]
    fn precise_machine_counts_for_more() {
        let pooled = pool(&[(0.0, 0.001), (0.05, 0.1)]).unwrap();
        assert!(pooled.mean.value < 0.005, "{pooled:?}");
    }

    /// T10: with six machines, the prediction interval contains the seventh in at least 90 % of the cases.
    #[test]
    fn prediction_interval_of_six_machines_covers_the_seventh() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut normal = || -> f64 { (0..12).map(|_| random.f64()).sum::<f64>() - 6.0 };
        for (between, within) in [(0.05, 0.01), (0.02, 0.02), (0.0, 0.02)] {
            const RUNS: usize = 1_000;
            let mut covered = 0;
            for _ in 0..RUNS {
                let machines: Vec<(f64, f64)> = (0..6)
                    .map(|_| (0.3 + between * normal() + within * normal(), within))
                    .collect();
                let seventh = 0.3 + between * normal();
                let (low, high) = pool(&machines).unwrap().next.unwrap();
                covered += usize::from((low..=high).contains(&seventh));
            }
            assert!(covered * 10 >= RUNS * 9, "{between} {within}: {covered}");
        }
    }
}
