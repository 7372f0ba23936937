//! The check of `limit`: at the connection limit new peers wait in the backlog, and are served when a slot is free.

use client::PeerGroup;
use contract::Capacity;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, broken_by, reaches,
};
use super::parked_clients::parked_clients;
use super::quiescence::{must_sleep, window};
use crate::format;
use crate::target::{Need, TargetSettings};

/// Connection limit of the server.
const LIMIT: usize = 8;

/// Number of connections over the limit that the server may accept and keep waiting, such as one that a thread has just
/// accepted.
const ACCEPTED: usize = 3;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    case.needs(Need::MaxConnections)?;
    let capacity = case.target.model().map(|model| model.capacity);
    let settings = TargetSettings {
        max_connections: Some(LIMIT),
        workers: match capacity {
            // Fewer than the limit, so that the number of workers is seen to be what counts.
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
    let slots = case.slots(&settings);
    match capacity {
        Some(Capacity::Descriptors(highest)) => descriptors(case, highest),
        _ if slots < LIMIT => Ok(by_design(format!(
            "with {}, {slots} of {} peers {} served at a time; the other {} waited, and were served later",
            options(&settings),
            2 * LIMIT,
            if slots == 1 { "was" } else { "were" },
            2 * LIMIT - slots
        ))),
        _ => Passed::plain(),
    }
}

/// Returns the settings of the check as options of `serve`, in words.
fn options(settings: &TargetSettings) -> String {
    let limit = format!("--max-connections {LIMIT}");
    match settings.workers {
        Some(workers) => format!("{limit} and {workers} workers"),
        None => limit,
    }
}

fn by_design(seen: String) -> Passed {
    Passed {
        by_design: Some(seen),
        ..Passed::default()
    }
}

/// Connects twice as many peers as there are slots. Exactly the peers with a slot are served. The other peers wait, the
/// server sleeps, and each peer that leaves frees a slot for one of them.
fn at_the_limit(case: &CheckCase<'_>, settings: &TargetSettings) -> Result<(), CheckFailure> {
    let slots = case.slots(settings);
    let running = case.start(settings)?;
    let driver = case.driver(&running)?;
    let Some(mut tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    let first = driver.enter(parked_clients(case, 0..slots)?);
    served(case, first, slots, |first| {
        tree.look();
        let open_before = tree.descriptors();
        if !case.quick {
            must_sleep(case, &tree, "while all connected peers are idle")?;
        }
        let waiting = driver.enter(parked_clients(case, slots..2 * LIMIT)?);
        let count = 2 * LIMIT - slots;
        // The remaining peers connect into the backlog.
        reaches(case, &waiting, |seen| {
            seen.connects == count as u64 || seen.failed > 0
        })?;
        // Checks that no more peers have a reply than there was room for.
        let must_wait = |waiting: PeerGroup, room: usize| -> Result<PeerGroup, CheckFailure> {
            if waiting.progress().waiting <= room {
                return Ok(waiting);
            }
            let outcomes = waiting.leave();
            let answered: Vec<_> = outcomes
                .iter()
                .filter(|outcome| outcome.bytes_received > 0)
                .collect();
            let Some(over) = answered.last() else {
                return Err(
                    anyhow::anyhow!("a peer that has a reply has received no bytes").into(),
                );
            };
            broken_by(
                format!(
                    "{} of {} peers wait until others leave",
                    count - room,
                    count + slots
                ),
                format!("{} of them had a reply before", answered.len() - room),
                over,
            )
        };
        must_sleep(case, &tree, "at the limit, while peers wait")?;
        tree.look();
        // Our own models are known to open nothing else meanwhile.
        let ours = case.target.model().is_some();
        let more = tree
            .descriptors()
            .zip(open_before)
            .map_or(0, |(now, before)| now.saturating_sub(before));
        // A server with fewer slots than connections that it may accept, as the pools are, may have the rest in a
        // queue.
        let most_accepted = LIMIT - slots + ACCEPTED;
        if ours && more > most_accepted {
            return broken(
                format!("waiting peers stay in the backlog, all {count} but {most_accepted}"),
                format!("{more} descriptors more than before they connected"),
            );
        }
        let mut waiting = must_wait(waiting, 0)?;
        if waiting.progress().failed > 0 {
            return case.all_done(&waiting.leave(), "a peer that waits for a slot");
        }
        // Each peer that leaves frees a slot for the next one.
        for freed in 1..=slots.min(if case.quick { 2 } else { slots }) {
            first.signal(1);
            let moved_up = reaches(case, &waiting, |seen| {
                seen.waiting >= freed.min(count) || seen.failed > 0
            })?;
            if !moved_up || waiting.progress().failed > 0 {
                let what = format!("a peer that waits for a slot, when {freed} had left");
                return case.all_done(&waiting.leave(), &what);
            }
            waiting = must_wait(waiting, freed)?;
        }
        first.signal_all();
        finish_by_turns(case, waiting, "a peer that waited for a slot")
    })?;
    case.serves(&driver, 3, "after all peers had left")?;
    case.stop(running)?;
    Ok(())
}

/// Waits until this number of peers in a group have their first reply, runs `rest`, and lets the peers leave.
fn served(
    case: &CheckCase<'_>,
    group: PeerGroup,
    count: usize,
    rest: impl FnOnce(&PeerGroup) -> Result<(), CheckFailure>,
) -> Result<(), CheckFailure> {
    let all = reaches(case, &group, |seen| {
        seen.waiting == count || seen.failed > 0
    })?;
    if !all || group.progress().failed > 0 {
        return case.all_done(&group.leave(), &format!("one of the first {count} peers"));
    }
    rest(&group)?;
    case.all_done(
        &group.finish(PATIENCE),
        "a peer that had a slot from the beginning",
    )
}

/// Signals the served peers to send their second request and leave, until all peers have done so.
pub(super) fn finish_by_turns(
    case: &CheckCase<'_>,
    group: PeerGroup,
    label: &str,
) -> Result<(), CheckFailure> {
    loop {
        // A peer counts as waiting until the driver has carried out the signal. So the loop waits for any progress and
        // not for the number of waiting peers, which would lead to signals over and over.
        let before = group.progress();
        group.signal_all();
        let further = reaches(case, &group, |seen| {
            *seen != before || seen.ended == seen.peers
        })?;
        let seen = group.progress();
        if !further || seen.ended == seen.peers {
            return case.all_done(&group.leave(), label);
        }
    }
}

/// Checks a server that can't serve more peers than select(2) has descriptor numbers for, whatever the limit.
fn descriptors(case: &CheckCase<'_>, highest: usize) -> Verdict {
    const MORE: usize = 76;
    let peers = highest + MORE;
    let running = case.start(&TargetSettings::default())?;
    let driver = case.driver(&running)?;
    let group = driver.enter(parked_clients(case, 0..peers)?);
    // The server itself uses some of the numbers.
    let least = highest - 50;
    let progressed = |seen: &client::GroupProgress| seen.waiting >= least || seen.failed > 0;
    if !reaches(case, &group, progressed)? || group.progress().failed > 0 {
        return match case.all_done(&group.leave(), &format!("one of {peers} peers")) {
            Ok(()) => broken(
                format!("at least {least} peers are served"),
                "fewer are served",
            ),
            Err(failure) => Err(failure),
        };
    }
    // The server has time to serve more peers, if it can.
    let mut served = 0;
    case.eventually(|| {
        std::thread::sleep(window(case) / 2);
        let before = std::mem::replace(&mut served, group.progress().waiting);
        served == before
    })?;
    finish_by_turns(
        case,
        group,
        "a peer that came when all descriptor numbers were in use",
    )?;
    case.stop(running)?;
    if served < highest {
        return Ok(by_design(format!(
            "with --max-connections 10000 (the default), {} of {} peers were served at a time; the others waited, and were served later",
            format::count(served as u64),
            format::count(peers as u64)
        )));
    }
    Passed::plain()
}

/// Checks a server whose event loops have a share of the slots each. The kernel chooses the loop of a connection. So
/// sooner or later a peer waits although there is a free slot. The server never serves more peers than allowed.
fn shares(case: &CheckCase<'_>, settings: &TargetSettings) -> Verdict {
    const TRIES: usize = 30;
    let running = case.start(settings)?;
    let driver = case.driver(&running)?;
    let Some(tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    let mut seen = None;
    for _ in 0..TRIES {
        // As many peers as there are slots in all: if the kernel distributes them evenly, all are served.
        let group = driver.enter(parked_clients(case, 0..LIMIT)?);
        let half = |seen: &client::GroupProgress| seen.waiting >= LIMIT / 2 || seen.failed > 0;
        reaches(case, &group, half)?;
        group.wait(window(case), |seen| seen.waiting == LIMIT);
        let served = group.progress().waiting;
        if served < LIMIT {
            must_sleep(case, &tree, "while a peer waits for a loop that is full")?;
            if group.progress().waiting == served {
                let remaining = match LIMIT - served {
                    1 => "one".to_string(),
                    more => more.to_string(),
                };
                seen = Some(format!(
                    "with {}, {served} of {LIMIT} peers were served at a time: the kernel had given the remaining {remaining} to a loop that was full",
                    options(settings)
                ));
            }
        }
        finish_by_turns(case, group, "a peer that waited for a loop that was full")?;
        if seen.is_some() {
            break;
        }
    }
    // Twice as many as all loops together have slots for: both loops are full, which is the limit.
    let group = driver.enter(parked_clients(case, 0..4 * LIMIT)?);
    reaches(case, &group, |seen| {
        seen.waiting >= LIMIT || seen.failed > 0
    })?;
    must_sleep(case, &tree, "at the limit, while peers wait")?;
    let served = group.progress().waiting;
    if served != LIMIT {
        group.leave();
        return broken(
            format!("{LIMIT} of {} peers are served at a time", 4 * LIMIT),
            format!("{served} are served"),
        );
    }
    finish_by_turns(case, group, "a peer that waited for a slot")?;
    case.serves(&driver, 3, "after all peers had left")?;
    case.stop(running)?;
    Ok(Passed {
        by_design: seen,
        ..Passed::default()
    })
}
