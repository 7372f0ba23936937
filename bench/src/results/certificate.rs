//! The certificate of a run and of a case: the conditions under which its figures are those of the server.
//!
//! Each condition is a check with a value, a limit and a verdict. A check that fails makes some figures doubtful, and
//! not all: a late client makes replies late, but it does not change the CPU time that the server uses for each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::results::metric::Metric;

/// Condition that is checked.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Number of requests that were planned and are neither replies, errors nor unanswered; must be 0.
    Exact,
    /// Number of connections that were not open when the window began; must be 0.
    Ready,
    /// Distance of the interval over which CPU time was counted from the window, as a share of the window.
    CpuInterval,
    /// Share of its CPU time that the client used: above the limit, the client was the limit and not the server.
    ClientHeadroom,
    /// Planned rate as a share of the rate that the null server reaches.
    BelowCeiling,
    /// 99th percentile of the response time as a multiple of that of the null server.
    AboveFloor,
    /// 99th percentile of the client's lag, in milliseconds.
    Punctual,
    /// Change of the CPU time per request, or of the response time, from the first third of the window to the last, as
    /// a share.
    Stationary,
    /// Number of steps of the time line that have a response time above the 99th percentile.
    SpreadSamples,
    /// Share of the CPUs' time that went to other programs.
    OtherPrograms,
    /// Share of the CPUs' time that the hypervisor gave to other virtual machines.
    Steal,
    /// Time for which a CPU quota stopped programs, in seconds.
    Throttled,
    /// Number of connections that found the listening queue full.
    ListenOverflows,
    /// Number of TCP segments that were sent again.
    Retransmits,
    /// CPU time of the server while the client loaded other servers, as a share of that time.
    Rested,
    /// Number of CPUs that client and server have in common although they are pinned apart.
    OwnCpus,
}

/// Outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The value is within the limit.
    Kept,
    /// The value is beyond the limit.
    Failed,
    /// The value could not be read here.
    Unknown,
}

/// One checked condition.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Condition that was checked.
    pub condition: Condition,
    /// Value that was measured; `null` if unknown.
    pub value: Option<f64>,
    /// Limit of the value: the largest that is allowed, or for `above_floor` and `spread_samples` the smallest.
    pub limit: f64,
    /// Outcome of the check.
    pub verdict: Verdict,
}

impl Check {
    /// Checks that a value is at most the limit.
    pub(crate) fn at_most(condition: Condition, value: Option<f64>, limit: f64) -> Check {
        Check::of(condition, value, limit, |value| value <= limit)
    }

    /// Checks that a value is at least the limit.
    pub(crate) fn at_least(condition: Condition, value: Option<f64>, limit: f64) -> Check {
        Check::of(condition, value, limit, |value| value >= limit)
    }

    fn of(
        condition: Condition,
        value: Option<f64>,
        limit: f64,
        kept: impl Fn(f64) -> bool,
    ) -> Check {
        let verdict = match value {
            Some(value) if kept(value) => Verdict::Kept,
            Some(_) => Verdict::Failed,
            None => Verdict::Unknown,
        };
        Check {
            condition,
            value,
            limit,
            verdict,
        }
    }

    /// Returns whether the check failed.
    pub(crate) fn failed(&self) -> bool {
        self.verdict == Verdict::Failed
    }
}

impl Condition {
    /// Returns whether a figure is doubtful where this condition does not hold.
    pub(crate) fn affects(self, metric: Metric) -> bool {
        let (time, cost) = (metric.is_time(), metric.is_cost());
        let p99 = matches!(metric, Metric::ResponseP99Ms | Metric::BystandersP99Ms);
        match self {
            Condition::Exact
            | Condition::Ready
            | Condition::Steal
            | Condition::Throttled
            | Condition::OwnCpus => true,
            Condition::CpuInterval | Condition::Rested => cost,
            // A busy client delays replies. The cost of a reply is counted in the server.
            Condition::ClientHeadroom
            | Condition::OtherPrograms
            | Condition::ListenOverflows
            | Condition::Retransmits => !cost,
            Condition::BelowCeiling | Condition::Punctual => time,
            Condition::AboveFloor | Condition::SpreadSamples => p99,
            Condition::Stationary => cost || time,
        }
    }

    /// Returns whether the condition is one of the machine, which does not depend on the server: a run in which it
    /// fails may be measured once more without favouring any value.
    pub(crate) fn is_independent(self) -> bool {
        matches!(
            self,
            Condition::OtherPrograms | Condition::Steal | Condition::Throttled
        )
    }

    /// Returns the condition that failed, in words that follow "doubtful:".
    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Condition::Exact => "not all planned requests are accounted for",
            Condition::Ready => "not all connections were open when the window began",
            Condition::CpuInterval => {
                "the CPU clocks of the server were not read at the edges of the window"
            }
            Condition::ClientHeadroom => {
                "the client had no CPU time to spare, so a faster client may get other figures"
            }
            Condition::BelowCeiling => {
                "the rate is near the highest rate that the client can reach with any server"
            }
            Condition::AboveFloor => {
                "p99 is less than 1.5 times that of the null server, so it is the machine's and not the server's"
            }
            Condition::Punctual => "the client sent requests late, which makes replies appear late",
            Condition::Stationary => {
                "the figures at the end of the window differ from those at its beginning"
            }
            Condition::SpreadSamples => {
                "the slowest hundredth of the replies lies in a few moments, which may be one stall"
            }
            Condition::OtherPrograms => "other programs used the CPUs",
            Condition::Steal => "the hypervisor gave CPU time to other virtual machines",
            Condition::Throttled => "a CPU quota stopped client or server for a while",
            Condition::ListenOverflows => "the queue of a listening socket overflowed",
            Condition::Retransmits => "TCP segments were sent again",
            Condition::Rested => "the server used CPU time while the client loaded other servers",
            Condition::OwnCpus => "threads of the server could run on the CPUs of the client",
        }
    }
}

/// Share of the runs of a case in which a condition may fail before the case is doubtful.
const FEW: f64 = 1.0 / 3.0;

/// Combines the checks of the runs of a case: for each condition the median of the values, and "failed" if it failed
/// in more than a third of the runs.
pub(crate) fn combine<'c>(runs: impl Iterator<Item = &'c [Check]>) -> Vec<Check> {
    let mut by_condition: std::collections::BTreeMap<Condition, Vec<&Check>> = Default::default();
    for check in runs.flatten() {
        by_condition.entry(check.condition).or_default().push(check);
    }
    let combined = |(condition, checks): (Condition, Vec<&Check>)| {
        let values: Vec<f64> = checks.iter().filter_map(|check| check.value).collect();
        let failed = checks.iter().filter(|check| check.failed()).count();
        let verdict = if failed as f64 > FEW * checks.len() as f64 {
            Verdict::Failed
        } else if values.is_empty() {
            Verdict::Unknown
        } else {
            Verdict::Kept
        };
        Check {
            condition,
            value: crate::statistics::median(&values),
            limit: checks[0].limit,
            verdict,
        }
    };
    by_condition.into_iter().map(combined).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_at_its_limit_is_kept_and_beyond_it_fails() {
        let verdict = |check: Check| check.verdict;
        let most = |value| verdict(Check::at_most(Condition::Steal, value, 0.01));
        assert_eq!(most(Some(0.01)), Verdict::Kept);
        assert_eq!(most(Some(0.011)), Verdict::Failed);
        assert_eq!(most(None), Verdict::Unknown);
        let least = |value| verdict(Check::at_least(Condition::AboveFloor, value, 1.5));
        assert_eq!(least(Some(1.5)), Verdict::Kept);
        assert_eq!(least(Some(1.49)), Verdict::Failed);
        assert_eq!(least(None), Verdict::Unknown);
    }

    #[test]
    fn late_client_makes_times_doubtful_and_costs_not() {
        assert!(Condition::Punctual.affects(Metric::ResponseP99Ms));
        assert!(!Condition::Punctual.affects(Metric::CpuUsPerRequest));
        assert!(!Condition::OtherPrograms.affects(Metric::CpuUsPerRequest));
        assert!(Condition::OtherPrograms.affects(Metric::FirstReplyMaxMs));
        assert!(Condition::CpuInterval.affects(Metric::CpuUsPerRequest));
        assert!(!Condition::CpuInterval.affects(Metric::ResponseP99Ms));
        assert!(Condition::AboveFloor.affects(Metric::ResponseP99Ms));
        assert!(!Condition::AboveFloor.affects(Metric::ResponseP50Ms));
        assert!(Condition::Steal.affects(Metric::CpuUsPerRequest));
        assert!(Condition::Stationary.affects(Metric::CpuUsPerRequest));
    }

    #[test]
    fn condition_fails_for_a_case_if_it_failed_in_more_than_a_third_of_its_runs() {
        let check = |value| Check::at_most(Condition::OtherPrograms, value, 0.05);
        let combined = |values: &[Option<f64>]| {
            let runs: Vec<Vec<Check>> = values.iter().map(|&value| vec![check(value)]).collect();
            combine(runs.iter().map(Vec::as_slice))
        };
        let one_of_three = combined(&[Some(0.01), Some(0.2), Some(0.02)]);
        assert_eq!(one_of_three, [check(Some(0.02))]);
        let two_of_three = combined(&[Some(0.01), Some(0.2), Some(0.3)]);
        assert_eq!(two_of_three, [check(Some(0.2))]);
        assert_eq!(combined(&[None, None]), [check(None)]);
        assert!(combined(&[]).is_empty());
    }
}
