//! The highest rate that keeps a promise, from response times at several rates.
//!
//! A response time grows with the rate, but measured ones scatter. Isotonic regression is the curve that never falls and is
//! closest to them, and needs no model of a queue.

/// Returns the values that never fall and are closest to these by least squares: pool adjacent violators (R. E. Barlow and
/// others: "Statistical Inference under Order Restrictions", 1972).
pub(crate) fn never_falling(values: &[f64]) -> Vec<f64> {
    // Each block has a mean and a number of values.
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for &value in values {
        blocks.push((value, 1));
        while let [.., (before, many), (last, few)] = blocks[..]
            && before > last
        {
            let count = many + few;
            let mean = (before * many as f64 + last * few as f64) / count as f64;
            blocks.truncate(blocks.len() - 2);
            blocks.push((mean, count));
        }
    }
    blocks
        .into_iter()
        .flat_map(|(mean, count)| std::iter::repeat_n(mean, count))
        .collect()
}

/// Highest rate that keeps a promise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Crossing {
    /// The rate; the highest measured one if all keep the promise.
    pub(crate) rate: f64,
    /// Highest measured rate below it; `None` if no measured rate keeps the promise.
    pub(crate) kept: Option<f64>,
    /// Lowest measured rate above it; `None` if all measured rates keep the promise.
    pub(crate) broken: Option<f64>,
}

/// Returns the highest rate whose response time is at most `limit`, from pairs of rate and response time, all greater than
/// zero. Between two rates it is interpolated on logarithmic scales. `None` without pairs.
pub(crate) fn crossing(points: &[(f64, f64)], limit: f64) -> Option<Crossing> {
    let mut points = points.to_vec();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let curve = never_falling(&points.iter().map(|point| point.1.ln()).collect::<Vec<_>>());
    let limit = limit.ln();
    let first_broken = curve.iter().position(|value| *value > limit);
    let last = points.last()?.0;
    let Some(index) = first_broken else {
        return Some(Crossing {
            rate: last,
            kept: Some(last),
            broken: None,
        });
    };
    let broken = points[index].0;
    let Some(before) = index.checked_sub(1) else {
        return Some(Crossing {
            rate: broken,
            kept: None,
            broken: Some(broken),
        });
    };
    let (low, high) = (points[before].0, broken);
    let share = (limit - curve[before]) / (curve[index] - curve[before]);
    let rate = low * (high / low).powf(share.clamp(0.0, 1.0));
    Some(Crossing {
        rate,
        kept: Some(low),
        broken: Some(high),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curve_never_falls_and_keeps_the_mean_of_each_block() {
        assert_eq!(never_falling(&[1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]);
        assert_eq!(never_falling(&[3.0, 1.0]), [2.0, 2.0]);
        assert_eq!(
            never_falling(&[1.0, 4.0, 3.0, 2.0, 9.0]),
            [1.0, 3.0, 3.0, 3.0, 9.0]
        );
        assert_eq!(never_falling(&[5.0, 1.0, 1.0, 1.0]), [2.0; 4]);
        assert!(never_falling(&[]).is_empty());
    }

    #[test]
    fn crossing_lies_between_the_rates_that_keep_and_break_the_promise() {
        let points = [(400.0, 16.0), (100.0, 1.0), (200.0, 2.0)];
        let found = crossing(&points, 4.0).unwrap();
        assert_eq!((found.kept, found.broken), (Some(200.0), Some(400.0)));
        // A third of the way on logarithmic scales.
        assert!(
            (found.rate - 200.0 * 2.0_f64.powf(1.0 / 3.0)).abs() < 1e-6,
            "{found:?}"
        );
        let all = crossing(&points, 99.0).unwrap();
        assert_eq!((all.rate, all.broken), (400.0, None));
        let none = crossing(&points, 0.5).unwrap();
        assert_eq!(
            (none.rate, none.kept, none.broken),
            (100.0, None, Some(100.0))
        );
        assert_eq!(crossing(&[], 1.0), None);
    }

    /// T8: an M/M/1 queue, whose response times are known: p99 = ln 100 / (μ − λ). The capacity is found within 5 % in at
    /// least 90 % of the cases, with the noise of measured percentiles.
    #[test]
    fn capacity_of_a_queue_is_found_within_five_percent() {
        let mut random = fastrand::Rng::with_seed(8);
        let mut normal = || -> f64 { (0..12).map(|_| random.f64()).sum::<f64>() - 6.0 };
        let (service, limit) = (10_000.0, 2.5e-3);
        let truth = service - 100.0_f64.ln() / limit;
        const RUNS: usize = 400;
        let mut found = 0;
        for _ in 0..RUNS {
            let mut measure = |rate: f64| {
                let p99 = match rate < 0.999 * service {
                    true => 100.0_f64.ln() / (service - rate),
                    false => 1.0,
                };
                (rate, p99 * (0.15 * normal()).exp())
            };
            let mut points: Vec<(f64, f64)> = (0..8)
                .map(|step| measure(service * (0.3 + 0.65 * f64::from(step) / 7.0)))
                .collect();
            for _ in 0..6 {
                let near = crossing(&points, limit).unwrap().rate;
                points.extend([0.97, 1.0, 1.03].map(|factor| measure(near * factor)));
            }
            let capacity = crossing(&points, limit).unwrap().rate;
            found += usize::from((capacity / truth - 1.0).abs() <= 0.05);
        }
        assert!(found * 10 >= RUNS * 9, "{found} of {RUNS}");
    }
}
