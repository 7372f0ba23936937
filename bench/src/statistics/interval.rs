//! Intervals of means and ratios.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Estimate with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The estimate itself.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Estimate {
    /// Returns the estimate on the scale of its exponential.
    pub(crate) fn exp(self) -> Estimate {
        Estimate {
            value: self.value.exp(),
            low: self.low.exp(),
            high: self.high.exp(),
        }
    }

    /// Returns the larger of the distances from the value to the ends, as a share of the value. The estimate is a ratio
    /// or another value greater than zero.
    pub(crate) fn half_width(&self) -> f64 {
        (self.high / self.value - 1.0).max(1.0 - self.low / self.value)
    }
}

/// Returns the quantile of Student's t distribution; infinity without a degree of freedom, because nothing is known then.
/// The probability lies between 0 and 1.
pub(crate) fn t_quantile(probability: f64, degrees_of_freedom: f64) -> f64 {
    debug_assert!(
        (0.0..=1.0).contains(&probability),
        "{probability} is no probability"
    );
    match StudentsT::new(0.0, 1.0, degrees_of_freedom) {
        Ok(distribution) => distribution.inverse_cdf(probability),
        Err(_) => f64::INFINITY,
    }
}

/// Returns the number of degrees of freedom, the mean and the standard error of the mean; `None` for fewer than two
/// values.
pub(crate) fn moments(values: &[f64]) -> Option<(f64, f64, f64)> {
    let count = values.len() as f64;
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let variance = squares / (count - 1.0);
    Some((count - 1.0, mean, (variance / count).sqrt()))
}

/// Returns the mean of values that are normally distributed, with its interval; `None` for fewer than two values.
pub fn mean(values: &[f64], confidence: f64) -> Option<Estimate> {
    let (freedom, mean, error) = moments(values)?;
    let reach = t_quantile(0.5 + confidence / 2.0, freedom) * error;
    Some(Estimate {
        value: mean,
        low: mean - reach,
        high: mean + reach,
    })
}

/// Returns the geometric mean with its interval; `None` for fewer than two values, or if one is not greater than zero.
pub fn geometric(values: &[f64], confidence: f64) -> Option<Estimate> {
    if values.iter().any(|value| *value <= 0.0) {
        return None;
    }
    let logarithms: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    mean(&logarithms, confidence).map(Estimate::exp)
}

/// Returns the geometric mean of the ratios of values to the reference of the same round; `None` for fewer than two
/// rounds, or if a value is not greater than zero.
pub fn ratio(values: &[f64], reference: &[f64], confidence: f64) -> Option<Estimate> {
    let ratios: Vec<f64> = values
        .iter()
        .zip(reference)
        .map(|(value, reference)| value / reference)
        .collect();
    if ratios.iter().any(|ratio| !ratio.is_finite()) {
        return None;
    }
    geometric(&ratios, confidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-3
    }

    #[test]
    fn t_quantile_agrees_with_the_printed_table() {
        for (probability, freedom, quantile) in [
            (0.975, 1.0, 12.706),
            (0.975, 5.0, 2.571),
            (0.95, 9.0, 1.833),
            (0.995, 30.0, 2.750),
        ] {
            assert!(close(t_quantile(probability, freedom), quantile));
        }
        assert_eq!(t_quantile(0.975, 0.0), f64::INFINITY);
    }

    #[test]
    fn interval_of_the_mean_is_that_of_student() {
        // Mean 3, standard deviation 1.5811, standard error 0.70711, t(0.975, 4) = 2.77645.
        let estimate = mean(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.95).unwrap();
        assert!(close(estimate.value, 3.0));
        assert!(close(estimate.low, 1.0368) && close(estimate.high, 4.9632));
        assert_eq!(mean(&[1.0], 0.95), None);
    }

    #[test]
    fn ratio_pairs_the_rounds() {
        // The rounds differ by a factor of 100, and the ratio never does.
        let estimate = ratio(&[2.0, 20.0, 200.0], &[1.0, 10.0, 100.0], 0.95).unwrap();
        assert!(
            close(estimate.value, 2.0) && close(estimate.low, 2.0) && close(estimate.high, 2.0)
        );
        assert_eq!(ratio(&[1.0, 0.0], &[1.0, 1.0], 0.95), None);
        assert_eq!(ratio(&[1.0, 1.0], &[1.0, 0.0], 0.95), None);
    }

    #[test]
    fn half_width_is_the_larger_distance() {
        let estimate = Estimate {
            value: 2.0,
            low: 1.9,
            high: 2.2,
        };
        assert!(close(estimate.half_width(), 0.1));
        let estimate = Estimate {
            value: 2.0,
            low: 1.6,
            high: 2.2,
        };
        assert!(close(estimate.half_width(), 0.2));
    }
}
