//! Ranks models by one figure, round by round.
//!
//! The values of a round are compared with each other, on a logarithmic scale: what disturbs a whole round cancels out,
//! and a difference is a factor. A model is worse than the best if some other model beats it (J. C. Hsu: "Multiple
//! Comparisons", 1996, with Bonferroni's bound), and as good as the best if the whole interval of the ratio lies within
//! a margin (two one-sided tests).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::interval::{Estimate, moments, t_quantile};

/// Direction in which a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// A larger value is better.
    Higher,
    /// A smaller value is better.
    Lower,
}

/// Place of a model among all models of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// All other models are worse.
    Leader,
    /// No model is better, by what is known.
    MayBeBest,
    /// The model is as good as the best: the interval of the ratio lies within the margin.
    Equal,
    /// The model looks worse than the best by more than the margin, but this is not certain.
    NotKnown,
    /// Some other model is better.
    Worse,
    /// The figure may not be the server's, so it is not ranked.
    Doubtful,
}

/// Settings of a ranking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Probability that a model that is equal to the best is called worse.
    pub(crate) alpha: f64,
    /// Largest difference between models that are as good as each other, as a share.
    pub(crate) margin: f64,
    /// Number of rounds from which on models have marks.
    pub(crate) least_rounds: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            alpha: 0.05,
            margin: 0.05,
            least_rounds: 6,
        }
    }
}

/// Confidence of the intervals of ratios. It is a little above 95 %, so that they cover 95 % although measuring stops
/// when they are narrow.
pub(crate) const RATIO_CONFIDENCE: f64 = 0.964;

/// Model to rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'v> {
    /// Figure of the model by round; `None` where it was not measured. All values are greater than zero.
    pub(crate) values: &'v [Option<f64>],
    /// True if the figure may not be the server's.
    pub(crate) doubtful: bool,
}

/// Places of the models, in the order of the rows.
#[derive(Debug, Clone)]
pub(crate) struct Ranking {
    /// Index of the model with the best mean.
    pub(crate) best: Option<usize>,
    pub(crate) rows: Vec<Ranked>,
}

/// Place of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ranked {
    /// `None` with too few rounds, and without values.
    pub(crate) mark: Option<Mark>,
    /// Ratio to the model with the best mean; `None` without values, or with fewer than two common rounds.
    pub(crate) ratio: Option<Estimate>,
    /// Number of rounds that are still missing until [`Mark::NotKnown`] becomes [`Mark::Worse`], if the ratio is as it
    /// looks.
    pub(crate) rounds_missing: Option<usize>,
}

/// Returns the differences of the logarithms of two models in their common rounds; positive: the first is worse.
fn differences(worse: Row<'_>, than: Row<'_>, better: Better) -> Vec<f64> {
    let sign = match better {
        Better::Lower => 1.0,
        Better::Higher => -1.0,
    };
    let pairs = worse.values.iter().zip(than.values);
    pairs
        .filter_map(|(one, other)| Some(sign * ((*one)?.ln() - (*other)?.ln())))
        .collect()
}

/// Returns the mean of the logarithms of the values of a row; `None` without values.
fn mean_logarithm(row: Row<'_>) -> Option<f64> {
    let logarithms: Vec<f64> = row.values.iter().flatten().map(|one| one.ln()).collect();
    let count = logarithms.len() as f64;
    (!logarithms.is_empty()).then(|| logarithms.iter().sum::<f64>() / count)
}

/// Ranks models. Doubtful models and models without values take no part.
///
/// With fewer than [`Settings::least_rounds`] common rounds there are no marks, because the standard deviation of so few
/// rounds is mostly chance; the intervals then use the standard deviation of all models together.
pub(crate) fn rank(rows: &[Row<'_>], better: Better, settings: &Settings) -> Ranking {
    let part = parts(rows);
    let sign = |mean: f64| match better {
        Better::Lower => mean,
        Better::Higher => -mean,
    };
    let mean = |index: &usize| mean_logarithm(rows[*index]).map_or(f64::INFINITY, sign);
    let best = part
        .iter()
        .copied()
        .min_by(|a, b| mean(a).total_cmp(&mean(b)));
    let pooled = best.and_then(|best| pooled_deviation(rows, &part, best, better));
    let mut ranked: Vec<Ranked> = rows
        .iter()
        .map(|row| Ranked {
            mark: row.doubtful.then_some(Mark::Doubtful),
            ratio: None,
            rounds_missing: None,
        })
        .collect();
    let Some(best) = best else {
        return Ranking { best, rows: ranked };
    };
    for &index in &part {
        ranked[index].ratio = ratio(rows, index, best, better, settings, pooled);
    }
    let enough = |index: usize| {
        let rounds = differences(rows[index], rows[best], better).len();
        rounds >= settings.least_rounds
    };
    if part.len() < 2 || !enough(best) {
        return Ranking {
            best: Some(best),
            rows: ranked,
        };
    }
    let comparisons = part.len() - 1;
    let worse: Vec<bool> = rows
        .iter()
        .enumerate()
        .map(|(index, _)| {
            part.contains(&index) && is_worse(rows, index, &part, better, settings.alpha)
        })
        .collect();
    let margin = 1.0 + settings.margin;
    let equal = |index: usize| {
        let ratio = ranked[index].ratio.map(|ratio| oriented(ratio, better));
        index != best
            && ratio.is_some_and(|ratio| ratio.low >= 1.0 / margin && ratio.high <= margin)
    };
    let marks: Vec<(usize, Mark)> = part
        .iter()
        .copied()
        .filter(|index| enough(*index))
        .map(|index| {
            let others = part.iter().filter(|other| **other != index);
            let all_others_worse = others
                .into_iter()
                .all(|other| worse[*other] && !equal(*other));
            let looks_worse = ranked[index]
                .ratio
                .is_some_and(|ratio| oriented(ratio, better).value > margin);
            let mark = match () {
                // A difference that is certain and small is still small.
                () if equal(index) => Mark::Equal,
                () if worse[index] => Mark::Worse,
                () if all_others_worse => Mark::Leader,
                () if looks_worse => Mark::NotKnown,
                () => Mark::MayBeBest,
            };
            (index, mark)
        })
        .collect();
    for (index, mark) in marks {
        ranked[index].mark = Some(mark);
        if mark == Mark::NotKnown {
            let differences = differences(rows[index], rows[best], better);
            ranked[index].rounds_missing =
                rounds_missing(&differences, comparisons, settings.alpha);
        }
    }
    Ranking {
        best: Some(best),
        rows: ranked,
    }
}

/// Returns the indices of the models that take part.
fn parts(rows: &[Row<'_>]) -> Vec<usize> {
    let has_values = |row: &Row<'_>| row.values.iter().any(Option::is_some);
    (0..rows.len())
        .filter(|&index| !rows[index].doubtful && has_values(&rows[index]))
        .collect()
}

/// Returns a ratio so that larger is worse.
fn oriented(ratio: Estimate, better: Better) -> Estimate {
    match better {
        Better::Lower => ratio,
        Better::Higher => Estimate {
            value: 1.0 / ratio.value,
            low: 1.0 / ratio.high,
            high: 1.0 / ratio.low,
        },
    }
}

/// Returns the ratio of a model to the best, with its interval.
fn ratio(
    rows: &[Row<'_>],
    index: usize,
    best: usize,
    better: Better,
    settings: &Settings,
    pooled: Option<(f64, f64)>,
) -> Option<Estimate> {
    let differences = differences(rows[index], rows[best], better);
    if index == best {
        return Some(Estimate {
            value: 1.0,
            low: 1.0,
            high: 1.0,
        });
    }
    let (freedom, mean, error) = moments(&differences)?;
    let rounds = differences.len();
    let (freedom, error) = if rounds < settings.least_rounds {
        let (freedom, deviation) = pooled?;
        (freedom, deviation / (rounds as f64).sqrt())
    } else {
        (freedom, error)
    };
    let reach = t_quantile(0.5 + RATIO_CONFIDENCE / 2.0, freedom) * error;
    let estimate = Estimate {
        value: mean,
        low: mean - reach,
        high: mean + reach,
    };
    Some(oriented(estimate.exp(), better))
}

/// Returns the degrees of freedom and the standard deviation of the differences to the best, over all models together;
/// `None` if no model has two common rounds with the best.
fn pooled_deviation(
    rows: &[Row<'_>],
    part: &[usize],
    best: usize,
    better: Better,
) -> Option<(f64, f64)> {
    let mut freedom = 0.0;
    let mut squares = 0.0;
    for &index in part.iter().filter(|index| **index != best) {
        if let Some((own, _, error)) = moments(&differences(rows[index], rows[best], better)) {
            freedom += own;
            squares += own * error.powi(2) * (own + 1.0);
        }
    }
    (freedom > 0.0).then(|| (freedom, (squares / freedom).sqrt()))
}

/// Returns whether some other model beats this one.
fn is_worse(rows: &[Row<'_>], index: usize, part: &[usize], better: Better, alpha: f64) -> bool {
    let others: Vec<usize> = part
        .iter()
        .copied()
        .filter(|other| *other != index)
        .collect();
    let level = 1.0 - alpha / others.len() as f64;
    others.iter().any(|other| {
        let differences = differences(rows[index], rows[*other], better);
        moments(&differences).is_some_and(|(freedom, mean, error)| {
            mean > 0.0 && mean > t_quantile(level, freedom) * error
        })
    })
}

/// Returns how many more rounds it takes until a difference is certain, if mean and standard deviation stay the same.
fn rounds_missing(differences: &[f64], comparisons: usize, alpha: f64) -> Option<usize> {
    const MOST: usize = 1_000;
    let (freedom, mean, error) = moments(differences)?;
    let deviation = error * (freedom + 1.0).sqrt();
    let level = 1.0 - alpha / comparisons as f64;
    let rounds = differences.len();
    (rounds + 1..rounds + MOST)
        .find(|&more| {
            mean > t_quantile(level, more as f64 - 1.0) * deviation / (more as f64).sqrt()
        })
        .map(|more| more - rounds)
}

/// Returns the models that are shown to be worse than the best by more than a factor, at a significance level.
pub(crate) fn worse_by(rows: &[Row<'_>], better: Better, factor: f64, alpha: f64) -> Vec<bool> {
    let part = parts(rows);
    let Some(best) = rank(rows, better, &Settings::default()).best else {
        return vec![false; rows.len()];
    };
    let far = |index: usize| {
        let differences = differences(rows[index], rows[best], better);
        let comparisons = (part.len().max(2) - 1) as f64;
        part.contains(&index)
            && moments(&differences).is_some_and(|(freedom, mean, error)| {
                mean - t_quantile(1.0 - alpha / comparisons, freedom) * error > factor.ln()
            })
    };
    (0..rows.len()).map(far).collect()
}

/// Models that cannot be told apart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    /// Indices of the models, best first.
    pub(crate) members: Vec<usize>,
    /// Smallest and largest ratio of a member to the best.
    pub(crate) ratios: (f64, f64),
    /// Interval of the ratio, if the group has one member and is not the best.
    pub(crate) ratio: Option<Estimate>,
    /// True if each member is shown to be within the margin of every other.
    pub(crate) equal: bool,
}

/// Divides the ranked models into groups, in the order of their means. A model joins the group before it if it is not
/// shown to differ from any member.
pub(crate) fn groups(
    ranking: &Ranking,
    rows: &[Row<'_>],
    better: Better,
    settings: &Settings,
) -> Vec<Group> {
    let part = parts(rows);
    let mut order: Vec<(usize, f64)> = part
        .iter()
        .filter_map(|&index| {
            let ratio = ranking.rows[index].ratio?;
            Some((index, oriented(ratio, better).value))
        })
        .collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let comparisons = part.len().max(2) - 1;
    // The same level as that of the marks: a model that is worse than the best is not in the best group.
    let level = 1.0 - settings.alpha / comparisons as f64;
    let differ = |one: usize, other: usize| {
        let differences = differences(rows[one], rows[other], better);
        differences.len() >= settings.least_rounds
            && moments(&differences).is_some_and(|(freedom, mean, error)| {
                mean.abs() > t_quantile(level, freedom) * error
            })
    };
    let within = |one: usize, other: usize| {
        let differences = differences(rows[one], rows[other], better);
        moments(&differences).is_some_and(|(freedom, mean, error)| {
            let reach = t_quantile(0.5 + RATIO_CONFIDENCE / 2.0, freedom) * error;
            mean.abs() + reach <= (1.0 + settings.margin).ln()
        })
    };
    let mut groups: Vec<Group> = Vec::new();
    for (index, value) in order {
        match groups.last_mut() {
            Some(group) if !group.members.iter().any(|member| differ(index, *member)) => {
                group.equal &= group.members.iter().all(|member| within(index, *member));
                group.members.push(index);
                group.ratios.1 = value;
                group.ratio = None;
            }
            before => {
                let first = before.is_none();
                groups.push(Group {
                    members: vec![index],
                    ratios: (value, value),
                    ratio: (!first)
                        .then(|| {
                            ranking.rows[index]
                                .ratio
                                .map(|ratio| oriented(ratio, better))
                        })
                        .flatten(),
                    equal: true,
                });
            }
        }
    }
    groups
}

#[cfg(test)]
#[path = "ranking/tests.rs"]
mod tests;
