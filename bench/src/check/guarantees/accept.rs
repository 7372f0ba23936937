//! The check of `accept`: errors of accept(2) are sorted; the server never spins, and recovers when resources come
//! back.
//!
//! The limit on descriptors of the server's processes is lowered when the server has opened all that it needs for
//! itself. It then may open no further descriptors, or a few, and more peers connect than that.

use std::time::Duration;

use client::{PeerDriver, PeerGroup};
use contract::Capacity;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, not_applicable, reaches,
};
use super::limit::finish_by_turns;
use super::parked_clients::parked_clients;
use super::quiescence::{must_sleep, quiescent};
use crate::resources::{ProcessTree, open_descriptors};
use crate::target::{Need, RunningTarget, TargetSettings};

/// Number of peers that connect.
const PEERS: usize = 12;

/// Number of these peers for which there is a descriptor.
const SPARE: usize = 3;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    let mut spare = match case.target.model() {
        // A server that serves one peer at a time closes the peer's descriptor before it accepts the next peer. So does
        // a process that forks a process for each peer. For a shortage, there must be no descriptor for the next peer.
        Some(model) if one_at_a_time(model) => 0,
        _ => SPARE,
    };
    loop {
        match attempt(case, spare)? {
            Some(passed) => return Ok(passed),
            None if spare > 0 => spare = 0,
            None if case.target.model().is_some() => {
                return Err(anyhow::anyhow!("there was no shortage of descriptors").into());
            }
            None => {
                return not_applicable(
                    "it serves every peer although its processes may open no descriptors, so there is no shortage to see",
                );
            }
        }
    }
}

fn one_at_a_time(model: &contract::Model) -> bool {
    model.needs.own_process || matches!(model.capacity, Capacity::Workers | Capacity::One)
}

fn settings(case: &CheckCase<'_>) -> TargetSettings {
    let capacity = case.target.model().map(|model| model.capacity);
    TargetSettings {
        workers: match capacity {
            // Each worker tries again now and then: two hundred workers would not be asleep.
            Some(Capacity::Workers) => Some(4),
            Some(Capacity::Shares) => Some(1),
            _ => None,
        },
        // Slots for all peers, and for few more. A server that has slots for thousands may ask for connections in
        // advance (io_uring's multishot accept), and such a request keeps the limit on descriptors that was in force
        // when it was made.
        max_connections: Some(2 * PEERS),
        ..TargetSettings::default()
    }
}

/// Checks a server for whose peers there are `spare` descriptors. `None`: there was no shortage.
fn attempt(case: &CheckCase<'_>, spare: usize) -> Result<Option<Passed>, CheckFailure> {
    let (running, driver, mut tree, old_limits) = start_limited(case, spare)?;
    let Some((served, waiting)) = shortage(case, &driver, spare)? else {
        return Ok(None);
    };
    tree.look();
    let activity = must_sleep(case, &tree, "while descriptors are lacking")?;
    if running
        .server()
        .is_some_and(crate::child::ChildServer::has_ended)
    {
        return broken(
            "the server stays up when descriptors are lacking",
            "the server has ended",
        );
    }
    let waiting_before = waiting.progress().waiting;
    if spare > 0 {
        // The served peers leave, and the waiting peers get their slots. (Perhaps fewer of them: a thread that sleeps
        // in accept(2) already has a descriptor, which may be one that is over the limit.)
        for one in served {
            one.signal_all();
            case.all_done(
                &one.finish(PATIENCE),
                "a peer that was served before descriptors were lacking",
            )?;
        }
        let more_served = reaches(case, &waiting, |seen| {
            seen.waiting > waiting_before || seen.failed > 0
        })?;
        if !more_served {
            return broken(
                "waiting peers are served when descriptors have come free",
                "none of them is served",
            );
        }
    }
    restore(&old_limits, &mut tree)?;
    finish_by_turns(case, waiting, "a peer that waited for a descriptor")?;
    case.serves(&driver, 3, "when there were descriptors again")?;
    let tally = case.stop(running)?;
    // An external server need not count them.
    let ours = case.target.model().is_some();
    if ours && tally.is_some_and(|tally| tally.accept_errors == 0) {
        return Err(anyhow::anyhow!("there was no shortage of descriptors").into());
    }
    stop_meanwhile(case, spare)?;
    let busy = case.deviation().is_some();
    let percent = format!("{:.0} % of a CPU used", 100.0 * activity.ran);
    Ok(Some(Passed {
        by_design: busy.then(|| {
            format!(
                "{percent} and {:.0} % wanted while descriptors were lacking; beside other servers on the same CPU, the server gets less than it wants",
                100.0 * activity.wanted
            )
        }),
        details: vec![format!(
            "{PEERS} peers and {spare} descriptors: the server stays up, {percent}, all peers served when descriptors come free; another server stopped in order while descriptors were lacking"
        )],
        ..Passed::default()
    }))
}

/// Checks that a server stops as always while descriptors are lacking.
fn stop_meanwhile(case: &CheckCase<'_>, spare: usize) -> Result<(), CheckFailure> {
    let (running, driver, _, _) = start_limited(case, spare)?;
    let _peers = shortage(case, &driver, spare)?;
    case.stop(running)?;
    Ok(())
}

/// Former limits of the server's processes.
type OldLimits = Vec<(Pid, Rlimit)>;

/// Starts a server. When it has opened all that it needs for itself, lowers the limits of its processes to `spare`
/// further descriptors each.
fn start_limited(
    case: &CheckCase<'_>,
    spare: usize,
) -> Result<(RunningTarget, PeerDriver, ProcessTree, OldLimits), CheckFailure> {
    let running = case.start(&settings(case))?;
    let driver = case.driver(&running)?;
    let Some(mut tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    case.serves(&driver, 5, "before descriptors were lacking")?;
    // One client after the other: a thread that sleeps in accept(2) then has the lowest number, and not a number among
    // those of the other peers.
    for _ in 0..2 {
        case.serves(&driver, 1, "before descriptors were lacking")?;
        quiescent(case, &mut tree)?;
    }
    let mut old_limits = OldLimits::new();
    for number in tree.numbers() {
        // A process that has ended since has no descriptors.
        let (Some(open), Some(process)) = (open_descriptors(number), Pid::from_raw(number)) else {
            continue;
        };
        // The limit is on the number of a descriptor, not on how many are open: the free numbers below it count too.
        let mut free = (0..).filter(|number| !open.contains(number));
        let limit = Rlimit {
            current: Some(free.nth(spare).unwrap_or(0)),
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        match prlimit(Some(process), Resource::Nofile, limit) {
            Ok(old) => old_limits.push((process, old)),
            Err(rustix::io::Errno::SRCH) => {}
            Err(why) => {
                return Err(anyhow::anyhow!("cannot limit the server's descriptors: {why}").into());
            }
        }
    }
    Ok((running, driver, tree, old_limits))
}

/// Restores the limits of all processes, also of those that were forked since by processes with a lowered limit.
fn restore(old_limits: &OldLimits, tree: &mut ProcessTree) -> Result<(), CheckFailure> {
    let known: Vec<Pid> = old_limits.iter().map(|(process, _)| *process).collect();
    let restore = |process, old: &Rlimit| -> Result<(), CheckFailure> {
        match prlimit(Some(process), Resource::Nofile, *old) {
            // A process that has ended needs no limit.
            Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(why) => {
                let why =
                    anyhow::anyhow!("cannot restore the server's limit on descriptors: {why}");
                Err(why.into())
            }
        }
    };
    // First the processes that fork: from now on a forked process inherits the restored limit.
    for (process, old) in old_limits {
        restore(*process, old)?;
    }
    tree.look();
    let newcomers = tree.numbers().into_iter().filter_map(Pid::from_raw);
    for process in newcomers.filter(|process| !known.contains(process)) {
        if let Some((_, old)) = old_limits.first() {
            restore(process, old)?;
        }
    }
    Ok(())
}

/// Connects more peers than there are descriptors for. Returns the groups of peers that are served, and the group of
/// peers that wait; `None` if all peers were served.
///
/// Without any spare descriptors, some peers may be served all the same, because a thread that sleeps in accept(2)
/// already has a descriptor. These peers leave, until no peer is served any more.
fn shortage(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
    spare: usize,
) -> Result<Option<(Vec<PeerGroup>, PeerGroup)>, CheckFailure> {
    let mut served = Vec::new();
    for client in 0..spare {
        let one = driver.enter(parked_clients(case, client..client + 1)?);
        reaches(case, &one, |seen| seen.waiting == 1 || seen.failed > 0)?;
        if one.progress().waiting == 0 {
            if case.target.model().is_none() && one.progress().failed == 0 {
                // The server has fewer slots. So there is a shortage of something already.
                break;
            }
            let label = format!("one of {spare} peers for which there is a descriptor");
            case.all_done(&one.leave(), &label)?;
            continue;
        }
        served.push(one);
    }
    let waiting = driver.enter(parked_clients(case, spare..PEERS)?);
    let count = PEERS - spare;
    reaches(case, &waiting, |seen| {
        seen.connects == count as u64 || seen.failed > 0
    })?;
    let mut so_far = waiting.progress();
    loop {
        // While anything still changes, the shortage is not reached yet.
        let changed = waiting.wait(Duration::from_millis(200), |seen| *seen != so_far);
        case.check_interrupted()?;
        so_far = waiting.progress();
        if so_far.failed > 0 {
            case.all_done(
                &waiting.leave(),
                "a peer that came while descriptors were lacking",
            )?;
            return Ok(None);
        }
        if so_far.ended + so_far.waiting == count && (spare > 0 || so_far.ended == count) {
            return Ok(None);
        }
        if spare == 0 && so_far.waiting > 0 {
            waiting.signal_all();
        } else if !changed {
            return Ok(Some((served, waiting)));
        }
    }
}
