//! 10. The tally adds up: every connection is in it once, as what it was.

use std::time::Duration;

use client::{Action, Cut, FaultKind, PeerDriver, PeerGroup, PeerScript};
use contract::Tally;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, broken_by, kind, not_applicable,
    reaches,
};
use crate::target::{Need, PANIC, TargetSettings};

/// The pause between the bytes of one who is cut off in the end: none of them comes too late for the idle time-out.
const DRIP: Duration = Duration::from_millis(20);

/// So many of them, and the server has surely read some.
const DRIPS: u64 = 15;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    if case.target.model().is_none() {
        gives_one(case)?;
    }
    // Whoever is idle for that long has to be waited for; and where the machine stands still for that long, so is everybody.
    // That does not come twice, and is told by its time.
    match account(case, Duration::from_secs(if case.quick { 1 } else { 2 })) {
        Err(CheckFailure::Broken(_)) => account(case, Duration::from_secs(5)),
        first => first,
    }
}

/// One connection or a few of every ending, and whether the account says so.
fn account(case: &CheckCase<'_>, idle_timeout: Duration) -> Verdict {
    let asked = case.asked;
    let ours = case.target.model().is_some();
    let settings = TargetSettings {
        idle_timeout: Some(idle_timeout),
        drain: Some(Duration::from_millis(200)),
        panic: true,
        ..TargetSettings::default()
    };
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let mut expected = Tally::default();

    let well_behaved = (0..5).map(|client| case.well_behaved(client, 3));
    let outcomes = driver.enter(well_behaved.collect()).finish(2 * PATIENCE);
    case.all_done(&outcomes, "well-behaved")?;
    expected.served += 5;

    if let Some(mut peer_scripts) = case.misbehave(kind("long-line"), 4) {
        if !ours {
            // It need not say what ours say.
            let line = || vec![b'x'; 100_000];
            peer_scripts
                .fill_with(|| PeerScript::new(vec![Action::send(line()), Action::ReadToEnd]));
        }
        ends(case, &driver, peer_scripts, "a line that is too long")?;
        expected.refused += 4;
    }

    // Whoever is closed behind the reply can't break off before that.
    let may_ask = asked.protocol.requests_per_connection.is_none();
    let reset = |client| {
        let converse = Action::Converse {
            script: asked.scripts(client),
            requests: 1,
            cut: Cut::Whole,
        };
        PeerScript::new(
            may_ask
                .then_some(converse)
                .into_iter()
                .chain([Action::Reset])
                .collect(),
        )
    };
    ends(case, &driver, (20..23).map(reset).collect(), "RST")?;
    expected.reset += 3;

    if case.can(Need::Panic) {
        let fails = || {
            PeerScript::new(vec![
                Action::send(format!("{PANIC}\n").into_bytes()),
                Action::ReadToEnd,
            ])
        };
        ends(case, &driver, vec![fails(), fails()], "a panic")?;
        expected.failed += 2;
    }

    if case.can(Need::IdleTimeout) {
        let idle = PeerScript::new(vec![Action::ReadToEnd]);
        ends(
            case,
            &driver,
            vec![idle],
            "silence, longer than the idle time-out",
        )?;
        expected.timed_out += 1;
    }

    // Who is in the middle of a request when the server is stopped, and stays there. (Where every byte is a request nobody
    // is.)
    let cut = if asked.framed() {
        expected.cut += 1;
        Some(begins_and_never_ends(case, &driver)?)
    } else {
        None
    };
    expected.accepted = expected.ended();

    let tally = case.stop(running)?;
    case.go_on()?;
    drop(cut);
    match tally {
        None => broken("a tally as its last line", "none"),
        Some(tally) if tally != expected => broken(expected.to_string(), tally.to_string()),
        Some(_) => Passed::simply(),
    }
}

/// Whether somebody else's server gives an account. One that can't be read is none, unless it is meant to be one.
fn gives_one(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    let end = case.start(&TargetSettings::default())?.stop();
    case.go_on()?;
    let line = end.and_then(|end| end.last).unwrap_or_default();
    let object: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_str(&line);
    if !object.is_ok_and(|object| object.contains_key("accepted")) {
        return not_applicable("its last line is no account that could be compared");
    }
    match serde_json::from_str::<Tally>(&line) {
        Ok(_) => Ok(()),
        Err(why) => broken(
            "an account that has what the tallies of our models have",
            format!("{line} ({why})"),
        ),
    }
}

/// Lets them come, and waits until the server has closed them all, or they it.
fn ends(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
    peer_scripts: Vec<PeerScript>,
    what: &str,
) -> Result<(), CheckFailure> {
    for outcome in driver.enter(peer_scripts).finish(2 * PATIENCE) {
        case.go_on()?;
        let closed =
            |fault: &client::PeerFault| matches!(fault.kind, FaultKind::Reset | FaultKind::End);
        match &outcome.fault {
            None if outcome.done => {}
            Some(fault) if closed(fault) => {}
            Some(fault) => {
                let expected = format!("{what}: {}", fault.expected);
                return broken_by(expected, fault.seen.clone(), &outcome);
            }
            None => return broken_by(format!("{what}: an end"), "none", &outcome),
        }
    }
    Ok(())
}

/// One who has been served once, and is in the middle of the next request.
fn begins_and_never_ends(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
) -> Result<PeerGroup, CheckFailure> {
    let group = driver.enter(vec![PeerScript::new(vec![
        Action::Converse {
            script: case.asked.scripts(30),
            requests: 1,
            cut: Cut::Whole,
        },
        Action::WaitForSignal,
        Action::Send(vec![b'x'; 10_000].into(), Cut::Every(1, DRIP)),
        Action::StayIdle,
    ])]);
    reaches(case, &group, |seen| seen.waiting + seen.ended > 0)?;
    let before = group.seen().sent;
    group.signal_all();
    let begun = reaches(case, &group, |seen| {
        seen.ended > 0 || seen.sent >= before + DRIPS
    })?;
    if begun && group.seen().ended == 0 {
        return Ok(group);
    }
    match group.leave().first() {
        Some(outcome) => broken_by(
            "that a request can be begun, and taken byte by byte",
            outcome
                .fault
                .as_ref()
                .map_or("that it can't".to_string(), |fault| fault.seen.clone()),
            outcome,
        ),
        None => broken("that a request can be begun", "that it can't"),
    }
}
