//! Whether a server sleeps while there is nothing to do, and whether it is where it was.

use std::time::Duration;

use contract::Guarantee;

use super::super::case::{CheckCase, CheckFailure, PATIENCE, broken};
use crate::resources::{CpuDemand, ProcessTree, YieldPolicy};

/// How long it is watched.
pub(super) fn window(case: &CheckCase<'_>) -> Duration {
    Duration::from_millis(if case.quick { 150 } else { 300 })
}

/// What a watched server did, as shares of the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activity {
    pub(super) ran: f64,
    wanted: f64,
    /// Times that one of its threads went to sleep, a second: each has been awake before.
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

    /// Sleeps until something happens. Who looks every few milliseconds whether something has takes little of a CPU, but
    /// takes it again and again; on a busy machine it does so less often, never more.
    fn sleeps(self) -> bool {
        const WAKES: f64 = 250.0;
        !self.is_busy() && self.wakes < WAKES
    }

    /// Never sleeps, or hardly. Beside other servers on the same CPU a thread that spins may get little of it, but wants
    /// it all the time; and one that sleeps may have to wait long for the CPU, but takes next to nothing of it then.
    fn is_busy(self) -> bool {
        self.ran > 0.25 || (self.ran > 0.04 && self.wanted > 0.5)
    }
}

/// It must sleep now, `when` there is nothing that it could do; unless it is one that never sleeps, and says so: then it
/// must be busy. Gives what it did.
pub(super) fn must_sleep(
    case: &CheckCase<'_>,
    tree: &ProcessTree,
    when: &str,
) -> Result<Activity, CheckFailure> {
    // (Errors of accept(2) are where models declare that they never sleep.)
    let declared = case.target.deviation(Guarantee::Accept).is_some();
    let time = window(case);
    let mut tree = tree.clone();
    let mut last = None;
    // One look may fall on what it still had to do.
    for _ in 0..4 {
        // What was forked since the last time counts too.
        tree.look();
        let before = look(&tree)?;
        let since = std::time::Instant::now();
        case.pause(time)?;
        let activity = Activity::between(before, look(&tree)?, since.elapsed());
        let as_it_should = if declared {
            activity.is_busy()
        } else {
            activity.sleeps()
        };
        if as_it_should {
            return Ok(activity);
        }
        last = Some(activity);
    }
    let percent = |share: fn(Activity) -> f64| 100.0 * last.map_or(0.0, share);
    broken(
        if declared {
            format!("that it is busy {when}, as it declares")
        } else {
            format!("that it sleeps {when}")
        },
        // Beside others it may get little of what it wants.
        format!(
            "{:.0} % of a CPU in use, and {:.0} % wanted; awake {:.0} times a second",
            percent(|activity| activity.ran),
            percent(|activity| activity.wanted),
            last.map_or(0.0, |activity| activity.wakes)
        ),
    )
}

/// What it has done until a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    demand: CpuDemand,
    switches: u64,
}

fn look(tree: &ProcessTree) -> Result<Sample, CheckFailure> {
    Ok(Sample {
        demand: demand(tree)?,
        // Where they can't be read nobody is blamed for them.
        switches: tree
            .counters(YieldPolicy::None)
            .voluntary_switches
            .unwrap_or(0),
    })
}

pub(super) fn demand(tree: &ProcessTree) -> Result<CpuDemand, CheckFailure> {
    let unknown = || anyhow::anyhow!("the kernel does not tell how long the server's threads ran");
    Ok(tree.demand().ok_or_else(unknown)?)
}

/// What a server has, at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResourceUsage {
    pub(super) processes: u64,
    pub(super) threads: u64,
    pub(super) descriptors: usize,
}

impl ResourceUsage {
    fn take(tree: &mut ProcessTree) -> Result<ResourceUsage, CheckFailure> {
        tree.look();
        let counters = tree.counters(YieldPolicy::None);
        let Some(threads) = counters.threads.filter(|_| tree.lives()) else {
            return broken("that the server lives on", "that it is gone");
        };
        let unknown = || anyhow::anyhow!("what the server has open can't be read");
        let descriptors = tree.descriptors().ok_or_else(unknown)?;
        Ok(ResourceUsage {
            processes: counters.processes,
            threads,
            descriptors,
        })
    }

    /// Has nothing that the other has not.
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

/// What it has when that has not changed for a while; what it has at last, if that does not come.
pub(super) fn quiescent(
    case: &CheckCase<'_>,
    tree: &mut ProcessTree,
) -> Result<ResourceUsage, CheckFailure> {
    until_quiescent(case, tree, PATIENCE, |_| true)
}

/// The same, once it is as it should be.
pub(super) fn until_quiescent(
    case: &CheckCase<'_>,
    tree: &mut ProcessTree,
    limit: Duration,
    good: impl Fn(&ResourceUsage) -> bool,
) -> Result<ResourceUsage, CheckFailure> {
    let end = std::time::Instant::now() + limit;
    let mut now = ResourceUsage::take(tree)?;
    let mut same = 0;
    while (same < 8 || !good(&now)) && std::time::Instant::now() < end {
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
    fn who_spins_is_told_from_who_sleeps_on_a_busy_machine_too() {
        let activity = |ran, wanted, wakes| Activity { ran, wanted, wakes };
        let busy = |ran, wanted| activity(ran, wanted, 0.0).is_busy();
        // A CPU of its own, and the tenth part of one.
        assert!(busy(0.98, 1.0) && busy(0.1, 1.0));
        // Nothing to do; and ten times something short, after a wait for the CPU each time.
        assert!(!busy(0.0, 0.0) && !busy(0.01, 0.7));
        // Who looks again and again is not busy, but does not sleep either.
        assert!(!activity(0.02, 0.03, 900.0).sleeps() && activity(0.02, 0.03, 10.0).sleeps());
        assert!(!activity(0.98, 1.0, 0.0).sleeps());
    }
}
