//! 5. Errors of accept(2) are sorted; the server never spins and recovers when resources come back.
//!
//! Its processes may have no more descriptors than they have, or a few more, and more peers come than that: the limit is
//! lowered when it has opened all that it needs for itself.

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

/// How many come.
const PEERS: usize = 12;

/// How many of them there are descriptors for.
const MORE: usize = 3;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    let mut more = match case.target.model() {
        // Whoever serves one peer at a time closes its descriptor before it accepts the next, and so does a process that
        // forks one for it: there must be none for the next.
        Some(model) if one_by_one(model) => 0,
        _ => MORE,
    };
    loop {
        match attempt(case, more)? {
            Some(kept) => return Ok(kept),
            None if more > 0 => more = 0,
            None if case.target.model().is_some() => {
                return Err(anyhow::anyhow!("there was no shortage of descriptors").into());
            }
            None => {
                return not_applicable(
                    "it serves everybody, though its processes may open no descriptors: there is no shortage to be seen",
                );
            }
        }
    }
}

fn one_by_one(model: &contract::Model) -> bool {
    model.needs.own_process || matches!(model.capacity, Capacity::Workers | Capacity::One)
}

fn settings(case: &CheckCase<'_>) -> TargetSettings {
    let capacity = case.target.model().map(|model| model.capacity);
    TargetSettings {
        workers: match capacity {
            // Each of them tries again now and then: two hundred would not be asleep.
            Some(Capacity::Workers) => Some(4),
            Some(Capacity::Shares) => Some(1),
            _ => None,
        },
        // Room for all, and for few more: who has room for thousands may ask for them in advance (io_uring's multishot
        // accept), and such a request keeps the limit that there was when it was made.
        max_connections: Some(2 * PEERS),
        ..TargetSettings::default()
    }
}

/// `None`: there was no shortage.
fn attempt(case: &CheckCase<'_>, more: usize) -> Result<Option<Passed>, CheckFailure> {
    let (running, driver, mut tree, before) = limited(case, more)?;
    let Some((served, waiting)) = shortage(case, &driver, more)? else {
        return Ok(None);
    };
    tree.look();
    let activity = must_sleep(case, &tree, "while descriptors are lacking")?;
    if running
        .server()
        .is_some_and(crate::child::ChildServer::has_ended)
    {
        return broken(
            "that it lives on when descriptors are lacking",
            "that it has ended",
        );
    }
    let heard = waiting.seen().waiting;
    if more > 0 {
        // Those who have a place are served, and make place for others when they leave. (Perhaps not for as many: who
        // sleeps in accept(2) has a descriptor already, which may be one that is over the limit.)
        for one in served {
            one.signal_all();
            case.all_done(
                &one.finish(PATIENCE),
                "who was served before descriptors were lacking",
            )?;
        }
        let came = reaches(case, &waiting, |seen| {
            seen.waiting > heard || seen.failed > 0
        })?;
        if !came {
            return broken(
                "that others are served when descriptors have come free",
                "that nobody is",
            );
        }
    }
    restore(&before, &mut tree)?;
    finish_by_turns(case, waiting, "who waited for a descriptor")?;
    case.serves(&driver, 3, "when there were descriptors again")?;
    let tally = case.stop(running)?;
    // (Somebody else's need not count them.)
    let ours = case.target.model().is_some();
    if ours && tally.is_some_and(|tally| tally.accept_errors == 0) {
        return Err(anyhow::anyhow!("there was no shortage of descriptors").into());
    }
    stop_meanwhile(case, more)?;
    let busy = case.deviation().is_some();
    let percent = format!("{:.0} % of a CPU in use", 100.0 * activity.ran);
    Ok(Some(Passed {
        by_design: busy.then(|| format!("{percent} while descriptors were lacking")),
        details: vec![format!(
            "{PEERS} peers and {more} descriptors: alive, {percent}, all served when descriptors came free, stopped in order meanwhile"
        )],
        ..Passed::default()
    }))
}

/// A stop while descriptors are lacking: it ends as always.
fn stop_meanwhile(case: &CheckCase<'_>, more: usize) -> Result<(), CheckFailure> {
    let (running, driver, _, _) = limited(case, more)?;
    let _peers = shortage(case, &driver, more)?;
    case.stop(running)?;
    Ok(())
}

/// What limited its processes before.
type Before = Vec<(Pid, Rlimit)>;

/// Starts it, and when it has all that it opens for itself, its processes may open so many descriptors more.
fn limited(
    case: &CheckCase<'_>,
    more: usize,
) -> Result<(RunningTarget, PeerDriver, ProcessTree, Before), CheckFailure> {
    let running = case.start(&settings(case))?;
    let driver = case.driver(&running)?;
    let Some(mut tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    case.serves(&driver, 5, "before descriptors were lacking")?;
    // One after the other: who sleeps in accept(2) has the lowest number then, and not one from among the others.
    for _ in 0..2 {
        case.serves(&driver, 1, "before descriptors were lacking")?;
        quiescent(case, &mut tree)?;
    }
    let mut before = Before::new();
    for number in tree.numbers() {
        // One that has ended since has none.
        let (Some(open), Some(process)) = (open_descriptors(number), Pid::from_raw(number)) else {
            continue;
        };
        // The limit is on the number of a descriptor, not on how many there are: the free numbers below count too.
        let mut free = (0..).filter(|number| !open.contains(number));
        let limit = Rlimit {
            current: Some(free.nth(more).unwrap_or(0)),
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        match prlimit(Some(process), Resource::Nofile, limit) {
            Ok(old) => before.push((process, old)),
            Err(rustix::io::Errno::SRCH) => {}
            Err(why) => {
                return Err(anyhow::anyhow!("cannot limit the server's descriptors: {why}").into());
            }
        }
    }
    Ok((running, driver, tree, before))
}

/// Gives them their descriptors back, and those too that were forked meanwhile, by processes that lacked them.
fn restore(before: &Before, tree: &mut ProcessTree) -> Result<(), CheckFailure> {
    let known: Vec<Pid> = before.iter().map(|(process, _)| *process).collect();
    let restore = |process, old: &Rlimit| -> Result<(), CheckFailure> {
        match prlimit(Some(process), Resource::Nofile, *old) {
            // Whoever has ended needs none.
            Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(why) => {
                let why = anyhow::anyhow!("cannot give the server its descriptors back: {why}");
                Err(why.into())
            }
        }
    };
    // First those who fork: whoever is forked from now on has its limit from them.
    for (process, old) in before {
        restore(*process, old)?;
    }
    tree.look();
    let newcomers = tree.numbers().into_iter().filter_map(Pid::from_raw);
    for process in newcomers.filter(|process| !known.contains(process)) {
        if let Some((_, old)) = before.first() {
            restore(process, old)?;
        }
    }
    Ok(())
}

/// Lets more peers come than there are descriptors for. Gives those who are served, and those who are not; `None`: all
/// were served.
///
/// If there are no descriptors at all, those who are served all the same (who sleeps in accept(2) has a descriptor
/// already) leave, until nobody is served any more.
fn shortage(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
    more: usize,
) -> Result<Option<(Vec<PeerGroup>, PeerGroup)>, CheckFailure> {
    let mut served = Vec::new();
    for client in 0..more {
        let one = driver.enter(parked_clients(case, client..client + 1)?);
        reaches(case, &one, |seen| seen.waiting == 1 || seen.failed > 0)?;
        if one.seen().waiting == 0 {
            if case.target.model().is_none() && one.seen().failed == 0 {
                // It has room for fewer; then there is a shortage of something already.
                break;
            }
            let who = format!("one of {more} for whom there is a descriptor");
            case.all_done(&one.leave(), &who)?;
            continue;
        }
        served.push(one);
    }
    let waiting = driver.enter(parked_clients(case, more..PEERS)?);
    let count = PEERS - more;
    reaches(case, &waiting, |seen| {
        seen.connects == count as u64 || seen.failed > 0
    })?;
    let mut so_far = waiting.seen();
    loop {
        // As long as something happens, it is not the shortage yet.
        let changed = waiting.wait(Duration::from_millis(200), |seen| *seen != so_far);
        case.go_on()?;
        so_far = waiting.seen();
        if so_far.failed > 0 {
            case.all_done(&waiting.leave(), "who came when descriptors were lacking")?;
            return Ok(None);
        }
        if so_far.ended + so_far.waiting == count && (more > 0 || so_far.ended == count) {
            return Ok(None);
        }
        if more == 0 && so_far.waiting > 0 {
            waiting.signal_all();
        } else if !changed {
            return Ok(Some((served, waiting)));
        }
    }
}
