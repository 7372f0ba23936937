//! Quiescence: whether a server sleeps while it has nothing to do, and whether its resource usage has stopped changing.

use std::time::Duration;

use contract::Guarantee;

use super::super::case::{CheckCase, CheckFailure, PATIENCE, broken};
use crate::resources::{CpuDemand, ProcessTree, YieldPolicy};

/// Returns the duration of an observation of the server's activity.
pub(super) fn window(case: &CheckCase<'_>) -> Duration {
    Duration::from_millis(if case.quick { 150 } else { 300 })
}

/// Activity of a server during an observation, as shares of the time: 1 is a whole CPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activity {
    pub(super) ran: f64,
    pub(super) wanted: f64,
    /// Number of times per second that one of its threads went to sleep: each time it had been woken before.
    wakes: f64,
}

impl Activity {
    fn between(before: Sample, after: Sample, time: Duration) -> Activity {
        let wakes = after.switches.saturating_sub(before.switches) as f64;
        let (before, after) = (before.demand, after.demand);
        let share = |before: Duration, after: Duration| {
            after.saturating_sub(before).as_secs_f64() / time.as_secs_f64()
        };
        Activity {
            ran: share(before.ran, after.ran),
            wanted: share(before.wanted, after.wanted),
            wakes: wakes / time.as_secs_f64(),
        }
    }

    /// Returns whether the server sleeps until something happens. A server that polls every few milliseconds uses
    /// little of a CPU, but uses it again and again; on a busy machine it polls less often, never more.
    fn sleeps(self) -> bool {
        const WAKES: f64 = 250.0;
        !self.is_busy() && self.wakes < WAKES
    }

    /// Returns whether the server never sleeps, or hardly. Beside other servers on the same CPU, a thread that spins
    /// may get little of the CPU, but wants it all the time. A thread that sleeps may have to wait long for the CPU,
    /// but then uses next to nothing.
    fn is_busy(self) -> bool {
        self.ran > 0.25 || (self.ran > 0.04 && self.wanted > 0.5)
    }
}

/// Checks that the server sleeps at a time (`when`) at which it can do nothing. A server that declares that it never
/// sleeps must be busy then. Returns its activity.
pub(super) fn must_sleep(
    case: &CheckCase<'_>,
    tree: &ProcessTree,
    when: &str,
) -> Result<Activity, CheckFailure> {
    // Models declare under `accept` that they never sleep.
    let declared = case.target.deviation(Guarantee::Accept).is_some();
    let time = window(case);
    let mut tree = tree.clone();
    let mut last = None;
    // One observation may include the rest of the server's former work.
    for _ in 0..4 {
        // Processes that were forked since the last time count too.
        tree.look();
        let before = sample(&tree)?;
        let since = std::time::Instant::now();
        case.pause(time)?;
        let activity = Activity::between(before, sample(&tree)?, since.elapsed());
        let as_expected = if declared {
            activity.is_busy()
        } else {
            activity.sleeps()
        };
        if as_expected {
            return Ok(activity);
        }
        last = Some(activity);
    }
    let percent = |share: fn(Activity) -> f64| 100.0 * last.map_or(0.0, share);
    broken(
        if declared {
            format!("the server is busy {when}, as it declares")
        } else {
            format!("the server sleeps {when}")
        },
        // Beside other servers it may get less of the CPU than it wants.
        format!(
            "{:.0} % of a CPU used, {:.0} % wanted; {:.0} wake-ups per second",
            percent(|activity| activity.ran),
            percent(|activity| activity.wanted),
            last.map_or(0.0, |activity| activity.wakes)
        ),
    )
}

/// CPU demand and context switches of a server until a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    demand: CpuDemand,
    switches: u64,
}

/// Reads the CPU demand and the context switches of the server.
fn sample(tree: &ProcessTree) -> Result<Sample, CheckFailure> {
    Ok(Sample {
        demand: demand(tree)?,
        // If the number of switches can't be read, it counts as zero, so that no server is BROKEN because of it.
        switches: tree
            .counters(YieldPolicy::None)
            .voluntary_switches
            .unwrap_or(0),
    })
}

/// Reads the CPU demand of the server.
pub(super) fn demand(tree: &ProcessTree) -> Result<CpuDemand, CheckFailure> {
    let unknown =
        || anyhow::anyhow!("the kernel does not report how long the server's threads ran");
    Ok(tree.demand().ok_or_else(unknown)?)
}

/// Resource usage of a server, at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResourceUsage {
    pub(super) processes: u64,
    pub(super) threads: u64,
    pub(super) descriptors: usize,
}

impl ResourceUsage {
    /// Reads the resource usage of the server.
    fn take(tree: &mut ProcessTree) -> Result<ResourceUsage, CheckFailure> {
        tree.look();
        let counters = tree.counters(YieldPolicy::None);
        let Some(threads) = counters.threads.filter(|_| tree.is_alive()) else {
            return broken("the server stays up", "the server has ended");
        };
        let unknown = || anyhow::anyhow!("the server's open descriptors can't be read");
        let descriptors = tree.descriptors().ok_or_else(unknown)?;
        Ok(ResourceUsage {
            processes: counters.processes,
            threads,
            descriptors,
        })
    }

    /// Returns whether no part of this usage is greater than in the other one.
    pub(super) fn within(&self, other: &ResourceUsage) -> bool {
        self.processes <= other.processes
            && self.threads <= other.threads
            && self.descriptors <= other.descriptors
    }
}

impl std::fmt::Display for ResourceUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} descriptors, {} threads, {} processes",
            self.descriptors, self.threads, self.processes
        )
    }
}

/// Returns the resource usage of the server when it has not changed for a while, or after [`PATIENCE`] at the latest.
pub(super) fn quiescent(
    case: &CheckCase<'_>,
    tree: &mut ProcessTree,
) -> Result<ResourceUsage, CheckFailure> {
    until_quiescent(case, tree, PATIENCE, |_| true)
}

/// Returns the resource usage of the server when it has not changed for a while and meets a condition, or at the limit.
pub(super) fn until_quiescent(
    case: &CheckCase<'_>,
    tree: &mut ProcessTree,
    limit: Duration,
    reached: impl Fn(&ResourceUsage) -> bool,
) -> Result<ResourceUsage, CheckFailure> {
    let end = std::time::Instant::now() + limit;
    let mut now = ResourceUsage::take(tree)?;
    let mut same = 0;
    while (same < 8 || !reached(&now)) && std::time::Instant::now() < end {
        case.pause(Duration::from_millis(5))?;
        let next = ResourceUsage::take(tree)?;
        same = if next == now { same + 1 } else { 0 };
        now = next;
    }
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activity_on_busy_machine_distinguishes_spinning_from_sleeping() {
        let activity = |ran, wanted, wakes| Activity { ran, wanted, wakes };
        let busy = |ran, wanted| activity(ran, wanted, 0.0).is_busy();
        // A server that got a whole CPU; and a server that wanted a whole CPU and got a tenth of it.
        assert!(busy(0.98, 1.0) && busy(0.1, 1.0));
        // Nothing to do; and ten short pieces of work, each after a wait for the CPU.
        assert!(!busy(0.0, 0.0) && !busy(0.01, 0.7));
        // A server that polls is not busy, but does not sleep either.
        assert!(!activity(0.02, 0.03, 900.0).sleeps() && activity(0.02, 0.03, 10.0).sleeps());
        assert!(!activity(0.98, 1.0, 0.0).sleeps());
    }
}
