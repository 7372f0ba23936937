//! Planned send times of an open loop.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, Exp1};

use crate::plan::Arrivals;

/// Send times of one connection: an endless sequence, in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    start: u64,
    sequence: Sequence,
}

#[derive(Debug, Clone)]
enum Sequence {
    /// Every n-th position of one even sequence, so that all connections together are even too.
    Constant { position: u64, step: u64, rate: f64 },
    /// Poisson process of its own; n of them together are one with n times the rate.
    ///
    /// The generator is a named one (xoshiro256++), so that a seed gives the same times on every machine. The sum is
    /// kept as a float: rounding each gap to nanoseconds would shift the rate.
    Poisson {
        random: Box<Xoshiro256PlusPlus>,
        mean_gap: f64,
        sum: f64,
    },
}

impl Schedule {
    /// Creates the schedule of connection `number` of `connections`, which together send `rate` requests per second
    /// from `start` on.
    pub(crate) fn new(
        arrivals: Arrivals,
        rate: f64,
        number: usize,
        connections: usize,
        seed: u64,
        start: u64,
    ) -> Self {
        let sequence = match arrivals {
            Arrivals::Constant => Sequence::Constant {
                position: number as u64,
                step: connections as u64,
                rate,
            },
            Arrivals::Poisson => Sequence::Poisson {
                // An odd factor keeps different numbers different; seeding mixes neighbours apart (SplitMix64).
                random: Box::new(Xoshiro256PlusPlus::seed_from_u64(
                    seed ^ (number as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95),
                )),
                mean_gap: 1e9 * connections as f64 / rate,
                sum: 0.0,
            },
        };
        Schedule { start, sequence }
    }

    /// Returns the next planned time.
    pub(crate) fn next(&mut self) -> u64 {
        let since_start = match &mut self.sequence {
            // Computed from the position and not from the last time: errors do not add up, so the times do not drift.
            Sequence::Constant {
                position,
                step,
                rate,
            } => {
                let time = *position as f64 * 1e9 / *rate;
                *position += *step;
                time as u64
            }
            Sequence::Poisson {
                random,
                mean_gap,
                sum,
            } => {
                let gap: f64 = Exp1.sample(random);
                *sum += gap * *mean_gap;
                *sum as u64
            }
        };
        self.start.saturating_add(since_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(arrivals: Arrivals, number: usize, seed: u64, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(arrivals, 1000.0, number, 4, seed, 0);
        (0..count).map(|_| schedule.next()).collect()
    }

    #[test]
    fn constant_arrivals_are_even_over_all_connections() {
        let mut all: Vec<u64> = (0..4)
            .flat_map(|number| times(Arrivals::Constant, number, 7, 250))
            .collect();
        all.sort_unstable();
        let even: Vec<u64> = (0..1000).map(|position| position * 1_000_000).collect();
        assert_eq!(all, even);
    }

    #[test]
    fn constant_arrivals_do_not_drift() {
        let mut schedule = Schedule::new(Arrivals::Constant, 3.0, 0, 1, 0, 0);
        let last = (0..=3_000_000).map(|_| schedule.next()).last();
        assert_eq!(last, Some(1_000_000_000_000_000));
    }

    #[test]
    fn poisson_times_repeat_for_a_seed_and_differ_for_another_seed_or_connection() {
        let first = times(Arrivals::Poisson, 0, 7, 100);
        assert_eq!(first, times(Arrivals::Poisson, 0, 7, 100));
        assert_ne!(first, times(Arrivals::Poisson, 0, 8, 100));
        assert_ne!(first, times(Arrivals::Poisson, 1, 7, 100));
    }

    #[test]
    fn poisson_gaps_are_exponential_with_the_right_mean() {
        let times = times(Arrivals::Poisson, 2, 42, 100_000);
        let gaps: Vec<f64> = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as f64)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // The rate is 250 per second and connection; the seed is fixed, so these assertions can't fail by chance.
        assert!((mean / 4e6 - 1.0).abs() < 0.02, "mean gap {mean} ns");
        // The standard deviation of an exponential distribution equals its mean.
        assert!(
            (variance.sqrt() / mean - 1.0).abs() < 0.02,
            "deviation {}",
            variance.sqrt()
        );
    }
}
