//! 4. At the connection limit new peers wait in the backlog, and are served when a place is free.

use client::PeerGroup;
use contract::Capacity;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, broken_by, reaches,
};
use super::parked_clients::parked_clients;
use super::quiescence::{must_sleep, window};
use crate::target::{Need, TargetSettings};

/// What it is told.
const LIMIT: usize = 8;

/// So many more than it is told may be accepted and wait in the server: one that somebody has in its hand, say.
const ACCEPTED: usize = 3;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    case.needs(Need::MaxConnections)?;
    let capacity = case.target.model().map(|model| model.capacity);
    let settings = TargetSettings {
        max_connections: Some(LIMIT),
        workers: match capacity {
            // Fewer than the limit, so that they are seen to be what counts.
            Some(Capacity::Workers) => Some(LIMIT / 2),
            Some(Capacity::Shares) => Some(2),
            _ => None,
        },
        ..TargetSettings::default()
    };
    if capacity == Some(Capacity::Shares) {
        return shares(case, &settings);
    }
    at_the_limit(case, &settings)?;
    let places = case.places(&settings);
    match capacity {
        Some(Capacity::Descriptors(most)) => descriptors(case, most),
        _ if places < LIMIT => Ok(by_design(format!(
            "{places} of {} were served at a time, though {LIMIT} are allowed; all others waited, and were served later",
            2 * LIMIT
        ))),
        _ => Passed::simply(),
    }
}

fn by_design(seen: String) -> Passed {
    Passed {
        by_design: Some(seen),
        ..Passed::default()
    }
}

/// Twice as many come as there is room for. Exactly those who have a place are served; the others wait, and the server
/// sleeps; each who leaves makes place for one.
fn at_the_limit(case: &CheckCase<'_>, settings: &TargetSettings) -> Result<(), CheckFailure> {
    let places = case.places(settings);
    let running = case.start(settings)?;
    let driver = case.driver(&running)?;
    let Some(mut tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    let first = driver.enter(parked_clients(case, 0..places)?);
    served(case, first, places, |first| {
        tree.look();
        let open_before = tree.descriptors();
        if !case.quick {
            must_sleep(case, &tree, "while all who are connected are idle")?;
        }
        let others = driver.enter(parked_clients(case, places..2 * LIMIT)?);
        let count = 2 * LIMIT - places;
        // Into the backlog.
        reaches(case, &others, |seen| {
            seen.connects == count as u64 || seen.failed > 0
        })?;
        // So many were heard by the time that there was room for them.
        let waits = |others: PeerGroup, room: usize| -> Result<PeerGroup, CheckFailure> {
            if others.seen().waiting <= room {
                return Ok(others);
            }
            let outcomes = others.leave();
            let answered: Vec<_> = outcomes
                .iter()
                .filter(|outcome| outcome.bytes_heard > 0)
                .collect();
            let Some(over) = answered.last() else {
                return Err(anyhow::anyhow!("who was answered has heard nothing").into());
            };
            broken_by(
                format!(
                    "that {} of {} wait until others leave",
                    count - room,
                    count + places
                ),
                format!(
                    "that {} of them were answered before",
                    answered.len() - room
                ),
                over,
            )
        };
        must_sleep(case, &tree, "at the limit, while others wait")?;
        tree.look();
        // Of ours it is known that they open nothing else meanwhile.
        let ours = case.target.model().is_some();
        let more = tree
            .descriptors()
            .zip(open_before)
            .map_or(0, |(now, before)| now.saturating_sub(before));
        // (Who has fewer places than it may accept, as pools do, may have the rest in a queue.)
        let most = LIMIT - places + ACCEPTED;
        if ours && more > most {
            return broken(
                format!("that those who wait do so in the backlog, all {count} but {most}"),
                format!("{more} descriptors more than before they came"),
            );
        }
        let mut others = waits(others, 0)?;
        if others.seen().failed > 0 {
            return case.all_done(&others.leave(), "somebody who waits for a place");
        }
        // Each who leaves makes place for the next.
        for freed in 1..=places.min(if case.quick { 2 } else { places }) {
            first.signal(1);
            let came = reaches(case, &others, |seen| {
                seen.waiting >= freed.min(count) || seen.failed > 0
            })?;
            if !came || others.seen().failed > 0 {
                let what = format!("who waits for a place, when {freed} had left");
                return case.all_done(&others.leave(), &what);
            }
            others = waits(others, freed)?;
        }
        first.signal_all();
        finish_by_turns(case, others, "who waited for a place")
    })?;
    case.serves(&driver, 3, "after all had left")?;
    case.stop(running)?;
    Ok(())
}

/// Waits until so many of a group have their first reply, lets the rest happen, and lets them leave.
fn served(
    case: &CheckCase<'_>,
    group: PeerGroup,
    count: usize,
    rest: impl FnOnce(&PeerGroup) -> Result<(), CheckFailure>,
) -> Result<(), CheckFailure> {
    let all = reaches(case, &group, |seen| {
        seen.waiting == count || seen.failed > 0
    })?;
    if !all || group.seen().failed > 0 {
        return case.all_done(&group.leave(), &format!("one of the first {count}"));
    }
    rest(&group)?;
    case.all_done(
        &group.finish(PATIENCE),
        "who had a place from the beginning",
    )
}

/// Lets whoever is served ask again and leave, until all have done so.
pub(super) fn finish_by_turns(
    case: &CheckCase<'_>,
    group: PeerGroup,
    who: &str,
) -> Result<(), CheckFailure> {
    loop {
        // Somebody may be seen to wait until the driver has obeyed: who looked for that would say it again and again.
        let before = group.seen();
        group.signal_all();
        let further = reaches(case, &group, |seen| {
            *seen != before || seen.ended == seen.peers
        })?;
        let seen = group.seen();
        if !further || seen.ended == seen.peers {
            return case.all_done(&group.leave(), who);
        }
    }
}

/// select(2) can serve no more than it has numbers for, whatever the limit.
fn descriptors(case: &CheckCase<'_>, most: usize) -> Verdict {
    const MORE: usize = 76;
    let peers = most + MORE;
    let running = case.start(&TargetSettings::default())?;
    let driver = case.driver(&running)?;
    let group = driver.enter(parked_clients(case, 0..peers)?);
    // Some numbers are taken by what it has open itself.
    let least = most - 50;
    let so_far = |seen: &client::GroupProgress| seen.waiting >= least || seen.failed > 0;
    if !reaches(case, &group, so_far)? || group.seen().failed > 0 {
        return match case.all_done(&group.leave(), &format!("one of {peers} peers")) {
            Ok(()) => broken(
                format!("that at least {least} are served"),
                "that fewer are",
            ),
            Err(miss) => Err(miss),
        };
    }
    // It has the time to serve more, if it could.
    let mut served = 0;
    case.eventually(|| {
        std::thread::sleep(window(case) / 2);
        let before = std::mem::replace(&mut served, group.seen().waiting);
        served == before
    })?;
    finish_by_turns(case, group, "who came when all numbers were taken")?;
    case.stop(running)?;
    if served < most {
        return Ok(by_design(format!(
            "{served} of {peers} were served at a time, though 10,000 are allowed; the others waited, and were served later"
        )));
    }
    Passed::simply()
}

/// Each loop has its share of the places, and the kernel chooses the loop: so sooner or later somebody waits though
/// there is room. Never are more served than allowed.
fn shares(case: &CheckCase<'_>, settings: &TargetSettings) -> Verdict {
    const TRIES: usize = 30;
    let running = case.start(settings)?;
    let driver = case.driver(&running)?;
    let Some(tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    let mut seen = None;
    for _ in 0..TRIES {
        // No more than there are places in all: if the kernel divides them evenly, all are served.
        let group = driver.enter(parked_clients(case, 0..LIMIT)?);
        let half = |seen: &client::GroupProgress| seen.waiting >= LIMIT / 2 || seen.failed > 0;
        reaches(case, &group, half)?;
        group.wait(window(case), |seen| seen.waiting == LIMIT);
        let served = group.seen().waiting;
        if served < LIMIT {
            must_sleep(
                case,
                &tree,
                "while somebody waits for the loop that is full",
            )?;
            if group.seen().waiting == served {
                seen = Some(format!(
                    "{served} of {LIMIT} were served at a time, though {LIMIT} are allowed: the kernel had given the others to a loop that was full"
                ));
            }
        }
        finish_by_turns(case, group, "who waited for a loop that was full")?;
        if seen.is_some() {
            break;
        }
    }
    // Twice as many: both loops are full, and that is the limit.
    let group = driver.enter(parked_clients(case, 0..4 * LIMIT)?);
    reaches(case, &group, |seen| {
        seen.waiting >= LIMIT || seen.failed > 0
    })?;
    must_sleep(case, &tree, "at the limit, while others wait")?;
    let served = group.seen().waiting;
    if served != LIMIT {
        group.leave();
        return broken(
            format!("{LIMIT} of {} served at a time", 4 * LIMIT),
            format!("{served}"),
        );
    }
    finish_by_turns(case, group, "who waited for a place")?;
    case.serves(&driver, 3, "after all had left")?;
    case.stop(running)?;
    Ok(Passed {
        by_design: seen,
        ..Passed::default()
    })
}
