//! The little statistics that a handful of runs allow.

use hdrhistogram::Histogram;

use crate::format;

/// The middle value; of an even number, halfway between the middle two.
pub(super) fn median(values: &[f64]) -> Option<f64> {
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

/// The smallest and the largest. With three runs no interval can claim more than that.
pub(super) fn range(values: &[f64]) -> Option<(f64, f64)> {
    let min = values.iter().copied().min_by(f64::total_cmp)?;
    let max = values.iter().copied().max_by(f64::total_cmp)?;
    Some((min, max))
}

/// As [`format::quantile`]; 1 is the maximum, which needs one sample.
pub(super) fn quantile(histogram: &Histogram<u64>, quantile: f64) -> Option<u64> {
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
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn ranges() {
        assert_eq!(range(&[]), None);
        assert_eq!(range(&[3.0, -1.0, 2.0]), Some((-1.0, 3.0)));
    }

    #[test]
    fn the_maximum_needs_one_sample_and_a_percentile_more() {
        let mut histogram = client::histogram();
        assert_eq!(quantile(&histogram, 1.0), None);
        histogram.record(5).unwrap();
        assert_eq!(quantile(&histogram, 1.0), Some(5));
        assert_eq!(quantile(&histogram, 0.5), None);
    }
}
