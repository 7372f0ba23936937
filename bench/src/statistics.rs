//! The statistics of a comparison: `interval` for means, ratios and shares, `ranking` for the places of models,
//! `stopping` for the number of rounds; here medians, ranges and quantiles.

use hdrhistogram::Histogram;

use crate::format;

pub mod interval;
pub(crate) mod isotonic;
pub(crate) mod pooling;
pub(crate) mod ranking;
pub(crate) mod stopping;
pub(crate) mod welch;

/// Returns the median of the values; for an even number of values, the mean of the two in the middle. `None` if there
/// are no values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.len() / 2;
    let high = *sorted.get(upper)?;
    if sorted.len() % 2 == 1 {
        Some(high)
    } else {
        Some((sorted[upper - 1] + high) / 2.0)
    }
}

/// Returns the smallest and the largest of the values; `None` if there are no values.
pub(crate) fn range(values: &[f64]) -> Option<(f64, f64)> {
    let min = values.iter().copied().min_by(f64::total_cmp)?;
    let max = values.iter().copied().max_by(f64::total_cmp)?;
    Some((min, max))
}

/// Returns the value at a quantile, as [`format::quantile`] does; for quantile 1 it returns the maximum, which needs
/// only one sample.
pub(crate) fn quantile(histogram: &Histogram<u64>, quantile: f64) -> Option<u64> {
    if quantile < 1.0 {
        format::quantile(histogram, quantile)
    } else {
        (!histogram.is_empty()).then(|| histogram.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_number_of_values_is_halfway_between_the_middle_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn range_is_the_smallest_and_the_largest_value() {
        assert_eq!(range(&[]), None);
        assert_eq!(range(&[3.0, -1.0, 2.0]), Some((-1.0, 3.0)));
    }

    #[test]
    fn maximum_needs_one_sample_and_percentile_needs_more() {
        let mut histogram = client::histogram();
        assert_eq!(quantile(&histogram, 1.0), None);
        histogram.record(5).unwrap();
        assert_eq!(quantile(&histogram, 1.0), Some(5));
        assert_eq!(quantile(&histogram, 0.5), None);
    }
}
