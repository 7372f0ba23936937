//! Formats numbers, times and shares for readers, and reads percentiles from histograms.

use hdrhistogram::Histogram;

/// Number of samples that must lie beyond a percentile for it to be reported. With fewer samples, "the 99.9th
/// percentile" would be the time of a single request.
pub const SAMPLES_BEYOND: f64 = 10.0;

/// Returns the value at a quantile (0 to 1), in the unit of the histogram; `None` if fewer than [`SAMPLES_BEYOND`]
/// samples lie beyond the quantile.
pub fn quantile(histogram: &Histogram<u64>, quantile: f64) -> Option<u64> {
    let beyond = histogram.len() as f64 * (1.0 - quantile);
    (beyond >= SAMPLES_BEYOND - 1e-9).then(|| histogram.value_at_quantile(quantile))
}

/// Formats a time, given in nanoseconds, with three significant digits and its unit.
pub fn time(nanoseconds: u64) -> String {
    let (value, unit) = match nanoseconds {
        0..1_000 => return format!("{nanoseconds} ns"),
        1_000..1_000_000 => (nanoseconds as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (nanoseconds as f64 / 1e6, "ms"),
        _ => (nanoseconds as f64 / 1e9, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// Formats a number with three significant digits; numbers from 100 on as whole numbers in groups of three digits.
pub fn digits(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => count(v.round() as u64),
    }
}

/// Formats a whole number in groups of three digits: 1,234,567.
pub fn count(number: u64) -> String {
    let plain = number.to_string();
    let mut grouped = String::with_capacity(plain.len() + plain.len() / 3);
    for (position, digit) in plain.chars().enumerate() {
        if position > 0 && (plain.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Formats a share (0 to 1) in percent, rounded down to two decimals: 100.00 % appears only if nothing is missing.
pub fn percent(share: f64) -> String {
    if share < 1.0 {
        format!("{:.2} %", (share * 10_000.0).floor() / 100.0)
    } else {
        "100.00 %".to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_formatted_with_its_unit_and_three_digits() {
        assert_eq!(time(7), "7 ns");
        assert_eq!(time(1_234), "1.23 µs");
        assert_eq!(time(99_960), "100 µs");
        assert_eq!(time(12_345_678), "12.3 ms");
        assert_eq!(time(6_000_000_000), "6.00 s");
    }

    #[test]
    fn large_number_is_formatted_in_groups_of_three_digits() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(digits(9.999), "10.0");
        assert_eq!(digits(12_345.6), "12,346");
    }

    #[test]
    fn percent_is_100_only_for_a_complete_share() {
        assert_eq!(percent(1.0), "100.00 %");
        assert_eq!(percent(0.999_999), "99.99 %");
        assert_eq!(percent(0.0), "0.00 %");
    }

    #[test]
    fn quantile_with_too_few_samples_beyond_it_is_none() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        for value in 1..=1_000 {
            histogram.record(value).unwrap();
        }
        assert_eq!(quantile(&histogram, 0.99), Some(990));
        assert_eq!(quantile(&histogram, 0.999), None);
    }
}
