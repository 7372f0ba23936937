//! 9. A panic while serving one connection ends that connection alone.

use std::time::Duration;

use client::{Action, Cut, PeerScript};
use contract::Capacity;

use super::super::case::{CheckCase, PATIENCE, Passed, Verdict, broken, broken_by, reaches};
use crate::target::{Need, PANIC, TargetSettings};

/// Who converse meanwhile, if there is room for so many.
const OTHERS: usize = 20;

/// Workers that are left for those that panic, where each is held by one peer: far fewer than panics.
const SPARE: usize = 4;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Panic)?;
    let panics = if case.quick { 40 } else { 100 };
    let model = case.target.model();
    let held = model.is_some_and(|model| model.capacity == Capacity::Workers);
    let settings = TargetSettings {
        panic: true,
        workers: held.then_some(OTHERS + SPARE),
        ..TargetSettings::default()
    };
    let others = case
        .places(&settings)
        .saturating_sub(SPARE.min(case.places(&settings)))
        .min(OTHERS);
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;

    let neighbours = driver.enter((0..others).map(|client| neighbour(case, client)).collect());
    reaches(case, &neighbours, |seen| {
        seen.completed_runs >= others as u64 || seen.failed > 0
    })?;
    let before = neighbours.seen().completed_runs;

    let faulty = (0..panics).map(|client| faulty(case, 100 + client));
    let outcomes = driver.enter(faulty.collect()).finish(2 * PATIENCE);
    case.all_done(&outcomes, "a peer whose session panics")?;
    if let Some(outcome) = outcomes.iter().find(|outcome| !outcome.heard.is_empty()) {
        return broken_by(
            "that a session that panics says nothing more",
            format!("\"{}\"", outcome.heard.escape_ascii()),
            outcome,
        );
    }

    // They were not only unharmed until now: they are served still.
    let goes_on = |seen: &client::GroupProgress| seen.completed_runs >= before + 2 * others as u64;
    let go_on = reaches(case, &neighbours, |seen| goes_on(seen) || seen.failed > 0)?;
    let outcomes = neighbours.leave();
    let harmed: Vec<_> = outcomes
        .into_iter()
        .filter(|outcome| outcome.fault.is_some())
        .collect();
    case.all_done(&harmed, "others, while sessions panicked beside them")?;
    if !go_on {
        return broken(
            format!("that {others} others go on while {panics} sessions panic"),
            format!("that they stand still for {PATIENCE:?}"),
        );
    }
    case.serves(
        &driver,
        OTHERS.min(case.places(&settings)),
        "after the panics",
    )?;
    if let Some(tally) = case.stop(running)?
        && tally.failed != panics as u64
    {
        return broken(
            format!("{panics} sessions counted as failed"),
            tally.to_string(),
        );
    }
    Passed::simply()
}

/// Converses throughout; with a pause, since those that panic are to have their turn too.
fn neighbour(case: &CheckCase<'_>, client: usize) -> PeerScript {
    let mut peer_script = case.well_behaved(client, 10);
    peer_script
        .actions
        .insert(1, Action::Pause(Duration::from_millis(3)));
    peer_script.again = true;
    peer_script
}

/// Says what makes its session panic, in a request that would be right otherwise. Every second one does so in the middle
/// of a conversation.
fn faulty(case: &CheckCase<'_>, client: usize) -> PeerScript {
    let asked = case.asked;
    let fatal = match asked.protocol.name {
        "http" => format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Fault: {PANIC}\r\n\r\n"),
        "bulk" => format!("{PANIC}\r<--EOM-->\r"),
        _ => format!("{PANIC}\n"),
    };
    let mut actions = Vec::new();
    if client % 2 == 1 && asked.protocol.requests_per_connection.is_none() {
        actions.push(Action::Converse {
            script: asked.scripts(client),
            requests: 3,
            cut: Cut::Whole,
        });
    }
    actions.extend([Action::send(fatal.as_bytes()), Action::ReadToEnd]);
    PeerScript::new(actions)
}
