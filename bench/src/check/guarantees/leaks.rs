//! 12. Nothing leaks: after thousands of connections the server has what it had before.
//!
//! Whoever is timed out takes a while: of those there are few, in front of a server of their own, and what leaks there is
//! seen if it is a descriptor, a thread or a process. Of memory it would be too little.

use std::time::{Duration, Instant};

use client::{Action, Cut, FaultKind, PeerOutcome, PeerScript};
use contract::Capacity;

use super::super::case::{CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, kind};
use super::quiescence::{quiescent, until_quiescent};
use crate::target::{Need, TargetSettings};

/// How many are there at the same time: as many when it counts as when it is warmed up, so that what a server keeps for
/// the most that it ever had is there before.
const TOGETHER: usize = 64;

/// What it may have more of in the end, in bytes: what is reused has holes, and what allocators give back, they give back
/// when they like. Of 20,000 connections that leave 500 bytes each there are 10 MB.
const TOLERANCE: u64 = 5 << 20;

/// How long it may take to get rid of what it had for those of the warm-up; what it has longer, it keeps.
const START: Duration = Duration::from_secs(2);

/// Of somebody else's server so many times as many may come and go. A runtime that collects its garbage when it likes
/// takes memory, or a thread, until it has found its size; what leaks grows every time. So one round of these in which
/// nothing grew is enough: who leaks less often than in each of five is not caught.
const ROUNDS: u32 = 5;

/// Until those are closed who say nothing, and how many of them come at a time.
const IDLE: Duration = Duration::from_millis(150);
const IDLERS: usize = 12;

/// How long all of them may take without one that ends.
const STANDSTILL: Duration = PATIENCE;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    closed_by_the_server(case)?;
    let (warm_up, count) = if case.quick {
        (500, 2000)
    } else {
        (1000, 20_000)
    };
    let capacity = case.target.model().map(|model| model.capacity);
    let settings = TargetSettings {
        // Two hundred processes take long to look at.
        workers: (capacity == Some(Capacity::Workers)).then_some(16),
        // Who leaves at once does so before it is accepted, and comes again: without a limit there might be a thousand of
        // them in the backlog, and then in the server, sooner or later.
        max_connections: Some(2 * TOGETHER),
        ..TargetSettings::default()
    };
    let running = case.start(&settings)?;
    let Some(mut tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    come_and_go(case, &running, 1)?;
    let fresh = quiescent(case, &mut tree)?;
    come_and_go(case, &running, warm_up)?;
    // What is still ending must not be taken for what it has.
    let mut before = until_quiescent(case, &mut tree, START, |now| now.within(&fresh))?;
    let mut memory_before = memory(&tree)?;
    let rounds = match case.target.model() {
        Some(_) => 1,
        None => ROUNDS,
    };
    let mut round = 1;
    let (after, memory_after, more) = loop {
        come_and_go(case, &running, count)?;
        let last = round == rounds;
        let patience = if last { PATIENCE } else { START };
        let after = until_quiescent(case, &mut tree, patience, |now| now.within(&before))?;
        let mut memory_after = memory(&tree)?;
        let end = Instant::now() + patience / 2;
        while memory_after > memory_before + TOLERANCE && Instant::now() < end {
            case.pause(Duration::from_millis(20))?;
            memory_after = memory(&tree)?;
        }
        let more = memory_after.saturating_sub(memory_before);
        if after.within(&before) && more <= TOLERANCE {
            break (after, memory_after, more);
        }
        if !last {
            (before, memory_before, round) = (after, memory_after, round + 1);
            continue;
        }
        if !after.within(&before) {
            return broken(
                format!("that it has no more than before: {before}"),
                format!("{after}, after {count} connections that have come and gone"),
            );
        }
        return broken(
            format!(
                "that its memory grows by no more than {} MiB",
                TOLERANCE >> 20
            ),
            format!(
                "{:.1} MiB more after {count} connections that have come and gone: {} bytes for each",
                mebibytes(more),
                more / count
            ),
        );
    };
    case.stop(running)?;
    Ok(Passed {
        figure: Some(format!("+{:.1} MiB", mebibytes(more))),
        details: vec![format!(
            "{count} connections later: {after}, and {:.1} MiB (it had {before}, and {:.1} MiB)",
            mebibytes(memory_after),
            mebibytes(memory_before)
        )],
        ..Passed::default()
    })
}

/// Lets some come, round by round, that the server has to get rid of itself.
fn closed_by_the_server(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    if !case.can(Need::IdleTimeout) {
        return Ok(());
    }
    let capacity = case.target.model().map(|model| model.capacity);
    let settings = TargetSettings {
        idle_timeout: Some(IDLE),
        workers: (capacity == Some(Capacity::Workers)).then_some(IDLERS),
        ..TargetSettings::default()
    };
    let rounds = if case.quick { 1 } else { 2 };
    // Where one is served at a time, each would have to wait for the time-outs of the others.
    let idlers = IDLERS.min(case.places(&settings));
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let Some(mut tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    let round = || -> Result<(), CheckFailure> {
        let peer_scripts = (0..idlers).map(|client| idler(case, client)).collect();
        let outcomes = driver.enter(peer_scripts).finish(PATIENCE);
        case.go_on()?;
        match outcomes.iter().find(|outcome| !ended(outcome)) {
            Some(outcome) => case.all_done(
                std::slice::from_ref(outcome),
                "who says nothing, or not all of a request, is closed in the end",
            ),
            None => Ok(()),
        }
    };
    round()?;
    let mut before = quiescent(case, &mut tree)?;
    let mut tries = match case.target.model() {
        Some(_) => 1,
        None => ROUNDS,
    };
    loop {
        for _ in 0..rounds {
            round()?;
        }
        tries -= 1;
        let patience = if tries == 0 { PATIENCE } else { START };
        let after = until_quiescent(case, &mut tree, patience, |now| now.within(&before))?;
        if after.within(&before) {
            break;
        }
        if tries == 0 {
            let count = rounds * idlers;
            return broken(
                format!("that it has no more than before: {before}"),
                format!("{after}, after {count} connections that were idle for too long"),
            );
        }
        before = after;
    }
    drop(driver);
    case.stop(running)?;
    Ok(())
}

/// Says nothing, or the half of a request, and is closed.
fn idler(case: &CheckCase<'_>, client: usize) -> PeerScript {
    let half = (kind("slowloris").peer_script)(case.asked, client);
    let half = half.and_then(|peer_script| peer_script.actions.into_iter().next());
    let half = half.filter(|_| client % 2 == 1);
    PeerScript::new(half.into_iter().chain([Action::ReadToEnd]).collect())
}

/// It came to its end, or the server's end came in the midst of it.
fn ended(outcome: &PeerOutcome) -> bool {
    let kind = outcome.fault.as_ref().map(|fault| fault.kind);
    outcome.done || matches!(kind, Some(FaultKind::End | FaultKind::Reset))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn memory(tree: &crate::resources::ProcessTree) -> Result<u64, CheckFailure> {
    let unknown = || anyhow::anyhow!("the server's memory can't be read");
    Ok(tree.memory().ok_or_else(unknown)?)
}

/// Lets so many connections come and go, in all the ways in which they do.
fn come_and_go(
    case: &CheckCase<'_>,
    running: &crate::target::RunningTarget,
    count: u64,
) -> Result<(), CheckFailure> {
    // A driver of their own, which closes what is left.
    let driver = case.driver(running)?;
    let peer_scripts = (0..TOGETHER)
        .map(|client| peer_script(case, client))
        .collect();
    let group = driver.enter(peer_scripts);
    let (mut done, mut since) = (0, Instant::now());
    loop {
        case.go_on()?;
        let step = Duration::from_millis(50);
        if group.wait(step, |seen| seen.completed_runs >= count || seen.failed > 0) {
            break;
        }
        let now = group.seen().completed_runs;
        if now > done {
            (done, since) = (now, Instant::now());
        }
        if since.elapsed() > STANDSTILL {
            break;
        }
    }
    let seen = group.seen();
    let outcomes = group.leave();
    if let Some(bad) = outcomes.iter().find(|outcome| outcome.fault.is_some()) {
        return case.all_done(
            std::slice::from_ref(bad),
            &format!("one of {count} who come and go"),
        );
    }
    if seen.completed_runs < count {
        return broken(
            format!("that {count} connections come and go"),
            format!("none more after {}", seen.completed_runs),
        );
    }
    // Whoever came before these has been accepted, then.
    case.serves(&driver, 3, "after all had left")
}

/// Connects, leaves in its own way, and comes again.
fn peer_script(case: &CheckCase<'_>, client: usize) -> PeerScript {
    let asked = case.asked;
    let converse = |client| Action::Converse {
        script: asked.scripts(client),
        requests: 1,
        cut: Cut::Whole,
    };
    // Of a request the first half, where there is such a thing.
    let half = || {
        let peer_script = (kind("slowloris").peer_script)(asked, client);
        peer_script.and_then(|peer_script| peer_script.actions.into_iter().next())
    };
    let ends_itself = asked.protocol.requests_per_connection.is_some();
    let actions = match client % 8 {
        // One, since it takes much longer. Of somebody else's server it is not known that it would refuse it.
        _ if client == 5 && case.target.model().is_some() => {
            match (kind("long-line").peer_script)(asked, client) {
                Some(peer_script) => peer_script.actions,
                None => vec![Action::Close],
            }
        }
        0 if !ends_itself => vec![converse(client), Action::HalfClose, Action::ExpectFin],
        1 => vec![converse(client), Action::Reset],
        2 => vec![converse(client), Action::Close],
        3 => vec![Action::Close],
        4 => vec![Action::Reset],
        5 => match half() {
            Some(half) => vec![half, Action::HalfClose, Action::ReadToEnd],
            None => vec![Action::HalfClose, Action::ExpectFin],
        },
        6 => half().into_iter().chain([Action::Reset]).collect(),
        7 => vec![Action::send(asked.request(client)), Action::Close],
        _ => vec![converse(client), Action::ExpectFin],
    };
    PeerScript {
        again: true,
        ..PeerScript::new(actions)
    }
}
