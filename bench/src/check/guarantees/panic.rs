//! The check of `panic`: a panic while serving one connection ends that connection alone.

use std::time::Duration;

use client::{Action, Cut, PeerScript};
use contract::Capacity;

use super::super::case::{CheckCase, PATIENCE, Passed, Verdict, broken, broken_by, reaches};
use crate::target::{Need, PANIC, TargetSettings};

/// Number of clients that converse meanwhile, if there are enough slots.
const BYSTANDERS: usize = 20;

/// Number of workers that are left for the sessions that panic, if each worker is held by one peer: far fewer than
/// panics.
const SPARE: usize = 4;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Panic)?;
    let panics = if case.quick { 40 } else { 100 };
    let model = case.target.model();
    let one_worker_per_peer = model.is_some_and(|model| model.capacity == Capacity::Workers);
    let settings = TargetSettings {
        panic: true,
        workers: one_worker_per_peer.then_some(BYSTANDERS + SPARE),
        ..TargetSettings::default()
    };
    let bystanders = case
        .slots(&settings)
        .saturating_sub(SPARE.min(case.slots(&settings)))
        .min(BYSTANDERS);
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;

    let bystander_group = driver.enter(
        (0..bystanders)
            .map(|client| bystander(case, client))
            .collect(),
    );
    reaches(case, &bystander_group, |seen| {
        seen.completed_runs >= bystanders as u64 || seen.failed > 0
    })?;
    let before = bystander_group.progress().completed_runs;

    let faulty = (0..panics).map(|client| faulty(case, 100 + client));
    let outcomes = driver.enter(faulty.collect()).finish(2 * PATIENCE);
    case.all_done(&outcomes, "a peer whose session panics")?;
    if let Some(outcome) = outcomes.iter().find(|outcome| !outcome.received.is_empty()) {
        return broken_by(
            "a session that panics sends nothing more",
            format!("\"{}\"", outcome.received.escape_ascii()),
            outcome,
        );
    }

    // The bystanders must also be served from now on.
    let continues =
        |seen: &client::GroupProgress| seen.completed_runs >= before + 2 * bystanders as u64;
    let continued = reaches(case, &bystander_group, |seen| {
        continues(seen) || seen.failed > 0
    })?;
    let outcomes = bystander_group.leave();
    let disturbed: Vec<_> = outcomes
        .into_iter()
        .filter(|outcome| outcome.fault.is_some())
        .collect();
    case.all_done(&disturbed, "a bystander, while other sessions panicked")?;
    if !continued {
        return broken(
            format!("{bystanders} bystanders are served while {panics} sessions panic"),
            format!("no progress for {PATIENCE:?}"),
        );
    }
    case.serves(
        &driver,
        BYSTANDERS.min(case.slots(&settings)),
        "after the panics",
    )?;
    if let Some(tally) = case.stop(running)?
        && tally.failed != panics as u64
    {
        return broken(
            format!("a tally with {panics} failed sessions"),
            tally.to_string(),
        );
    }
    Passed::plain()
}

/// Returns the script of a client that converses throughout. It pauses, so that the panicking sessions get a turn too.
fn bystander(case: &CheckCase<'_>, client: usize) -> PeerScript {
    let mut peer_script = case.well_behaved(client, 10);
    peer_script
        .actions
        .insert(1, Action::Pause(Duration::from_millis(3)));
    peer_script.again = true;
    peer_script
}

/// Returns the script of a client whose otherwise valid request makes its session panic. Every second client does so in
/// the middle of a conversation.
fn faulty(case: &CheckCase<'_>, client: usize) -> PeerScript {
    let spec = case.spec;
    let fatal = match spec.protocol.name {
        "http" => format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Fault: {PANIC}\r\n\r\n"),
        "bulk" => format!("{PANIC}\r<--EOM-->\r"),
        _ => format!("{PANIC}\n"),
    };
    let mut actions = Vec::new();
    if client % 2 == 1 && spec.protocol.requests_per_connection.is_none() {
        actions.push(Action::Converse {
            script: spec.scripts(client),
            requests: 3,
            cut: Cut::Whole,
        });
    }
    actions.extend([Action::send(fatal.as_bytes()), Action::ReadToEnd]);
    PeerScript::new(actions)
}
