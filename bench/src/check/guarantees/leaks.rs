//! The check of `leaks`: after thousands of connections the server uses the same resources as before.
//!
//! Connections that time out take a while. So there are only a few of them, with a server of their own: a descriptor, a
//! thread or a process that leaks there is seen. The memory that they could leak would be too little to see.

use std::time::{Duration, Instant};

use client::{Action, Cut, FaultKind, PeerOutcome, PeerScript};
use contract::Capacity;

use super::super::case::{CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, kind};
use super::quiescence::{quiescent, until_quiescent};
use crate::target::{Need, TargetSettings};

/// Number of connections at the same time. It is the same in the warm-up and in the measurement, so that the server has
/// reached its peak of memory and threads before it is measured.
const TOGETHER: usize = 64;

/// Growth of memory that is allowed, in bytes: reused memory has holes, and allocators return memory at any time.
/// 20,000 connections that leak 500 bytes each make 10 MB.
const TOLERANCE: u64 = 5 << 20;

/// Time in which the server may free the resources of the warm-up. Resources that it holds for longer count as its own.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// Number of rounds for an external server. A runtime that collects its garbage at any time takes memory, or a thread,
/// until it has found its size; a leak grows in every round. So one round without growth is enough. A leak that does
/// not occur in each of the five rounds is not found.
const ROUNDS: u32 = 5;

/// Idle time-out of the server, for clients that stay idle.
const IDLE: Duration = Duration::from_millis(150);
/// Number of idle clients at a time.
const IDLE_CLIENTS: usize = 12;

/// Time without any connection that ends, after which the server counts as stuck.
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
        // Two hundred processes take long to inspect.
        workers: (capacity == Some(Capacity::Workers)).then_some(16),
        // A client that leaves at once does so before it is accepted, and connects again. Without a limit there could
        // be a thousand such connections in the backlog, and later in the server.
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
    // Processes, threads and descriptors that are still being freed must not count as the server's own.
    let mut before = until_quiescent(case, &mut tree, SETTLE_TIME, |now| now.within(&fresh))?;
    let mut memory_before = memory(&tree)?;
    let rounds = match case.target.model() {
        Some(_) => 1,
        None => ROUNDS,
    };
    let mut round = 1;
    let (after, memory_after, more) = loop {
        come_and_go(case, &running, count)?;
        let last = round == rounds;
        let limit = if last { PATIENCE } else { SETTLE_TIME };
        let after = until_quiescent(case, &mut tree, limit, |now| now.within(&before))?;
        let mut memory_after = memory(&tree)?;
        let end = Instant::now() + limit / 2;
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
                format!("the server has no more than before: {before}"),
                format!("{after}, after {count} connections were opened and closed"),
            );
        }
        return broken(
            format!(
                "the memory of the server grows by no more than {} MiB",
                TOLERANCE >> 20
            ),
            format!(
                "{:.1} MiB more after {count} connections were opened and closed: {} bytes for each",
                mebibytes(more),
                more / count
            ),
        );
    };
    case.stop(running)?;
    Ok(Passed {
        figure: Some(format!("+{:.1} MiB", mebibytes(more))),
        details: vec![format!(
            "after {count} connections: {after}, {:.1} MiB; before: {before}, {:.1} MiB",
            mebibytes(memory_after),
            mebibytes(memory_before)
        )],
        ..Passed::default()
    })
}

/// Checks, round by round, that connections leave nothing behind if the server closes them because of the idle
/// time-out.
fn closed_by_the_server(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    if !case.supports(Need::IdleTimeout) {
        return Ok(());
    }
    let capacity = case.target.model().map(|model| model.capacity);
    let settings = TargetSettings {
        idle_timeout: Some(IDLE),
        workers: (capacity == Some(Capacity::Workers)).then_some(IDLE_CLIENTS),
        ..TargetSettings::default()
    };
    let rounds = if case.quick { 1 } else { 2 };
    // If the server serves one peer at a time, each would have to wait for the time-outs of the others.
    let idle_clients = IDLE_CLIENTS.min(case.slots(&settings));
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let Some(mut tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    let round = || -> Result<(), CheckFailure> {
        let peer_scripts = (0..idle_clients)
            .map(|client| idle_client(case, client))
            .collect();
        let outcomes = driver.enter(peer_scripts).finish(PATIENCE);
        case.check_interrupted()?;
        match outcomes.iter().find(|outcome| !ended(outcome)) {
            Some(outcome) => case.all_done(
                std::slice::from_ref(outcome),
                "a peer that sends nothing, or only a part of a request, is closed",
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
        let limit = if tries == 0 { PATIENCE } else { SETTLE_TIME };
        let after = until_quiescent(case, &mut tree, limit, |now| now.within(&before))?;
        if after.within(&before) {
            break;
        }
        if tries == 0 {
            let count = rounds * idle_clients;
            return broken(
                format!("the server has no more than before: {before}"),
                format!("{after}, after {count} connections that were idle for too long"),
            );
        }
        before = after;
    }
    drop(driver);
    case.stop(running)?;
    Ok(())
}

/// Returns the script of a client that sends nothing, or half a request, until the server closes the connection.
fn idle_client(case: &CheckCase<'_>, client: usize) -> PeerScript {
    let half = (kind("slowloris").peer_script)(case.spec, client);
    let half = half.and_then(|peer_script| peer_script.actions.into_iter().next());
    let half = half.filter(|_| client % 2 == 1);
    PeerScript::new(half.into_iter().chain([Action::ReadToEnd]).collect())
}

/// Returns whether a client came to the end of its script, or the server closed the connection before.
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

/// Opens and closes this number of connections, in all ways in which connections end.
fn come_and_go(
    case: &CheckCase<'_>,
    running: &crate::target::RunningTarget,
    count: u64,
) -> Result<(), CheckFailure> {
    // This group has a driver of its own, which closes the remaining connections at the end.
    let driver = case.driver(running)?;
    let peer_scripts = (0..TOGETHER)
        .map(|client| peer_script(case, client))
        .collect();
    let group = driver.enter(peer_scripts);
    let (mut done, mut since) = (0, Instant::now());
    loop {
        case.check_interrupted()?;
        let step = Duration::from_millis(50);
        if group.wait(step, |seen| seen.completed_runs >= count || seen.failed > 0) {
            break;
        }
        let now = group.progress().completed_runs;
        if now > done {
            (done, since) = (now, Instant::now());
        }
        if since.elapsed() > STANDSTILL {
            break;
        }
    }
    let seen = group.progress();
    let outcomes = group.leave();
    if let Some(bad) = outcomes.iter().find(|outcome| outcome.fault.is_some()) {
        return case.all_done(
            std::slice::from_ref(bad),
            &format!("one of {count} connections that are opened and closed"),
        );
    }
    if seen.completed_runs < count {
        return broken(
            format!("{count} connections are opened and closed"),
            format!("no further one after {}", seen.completed_runs),
        );
    }
    // When these clients are served, all connections before them have been accepted.
    case.serves(&driver, 3, "after all peers had left")
}

/// Returns the script of a client that connects, leaves in one of the ways, and connects again.
fn peer_script(case: &CheckCase<'_>, client: usize) -> PeerScript {
    let spec = case.spec;
    let converse = |client| Action::Converse {
        script: spec.scripts(client),
        requests: 1,
        cut: Cut::Whole,
    };
    // The first half of a request, if the protocol has such a thing.
    let half = || {
        let peer_script = (kind("slowloris").peer_script)(spec, client);
        peer_script.and_then(|peer_script| peer_script.actions.into_iter().next())
    };
    let ends_itself = spec.protocol.requests_per_connection.is_some();
    let actions = match client % 8 {
        // Only one client, since this takes much longer. An external server might not refuse a long line.
        _ if client == 5 && case.target.model().is_some() => {
            match (kind("long-line").peer_script)(spec, client) {
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
        7 => vec![Action::send(spec.request(client)), Action::Close],
        _ => vec![converse(client), Action::ExpectFin],
    };
    PeerScript {
        again: true,
        ..PeerScript::new(actions)
    }
}
