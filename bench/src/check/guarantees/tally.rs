//! The check of `tally`: the tally adds up, and counts every connection once, by the way in which it ended.

use std::time::Duration;

use client::{Action, Cut, FaultKind, PeerDriver, PeerGroup, PeerScript};
use contract::Tally;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, broken_by, kind, not_applicable,
    reaches,
};
use crate::target::{Need, PANIC, TargetSettings};

/// Pause between the bytes of the peer that is cut at the end. It is shorter than the idle time-out.
const DRIP: Duration = Duration::from_millis(20);

/// After this number of bytes the server has certainly read some of them.
const DRIPS: u64 = 15;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    if case.target.model().is_none() {
        prints_tally(case)?;
    }
    // An idle peer must be waited for until it times out. If the machine stands still for that long, the other peers
    // are idle too and time out. That does not happen twice; the second try has a longer time-out.
    match check_tally(case, Duration::from_secs(if case.quick { 1 } else { 2 })) {
        Err(CheckFailure::Broken(_)) => check_tally(case, Duration::from_secs(5)),
        first => first,
    }
}

/// Ends one or a few connections in each way, and compares the tally.
fn check_tally(case: &CheckCase<'_>, idle_timeout: Duration) -> Verdict {
    let spec = case.spec;
    let is_model = case.target.model().is_some();
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
    case.all_done(&outcomes, "a well-behaved client")?;
    expected.served += 5;

    if let Some(mut peer_scripts) = case.misbehave(kind("long-line"), 4) {
        if !is_model {
            // An external server need not send the same error as our models.
            let line = || vec![b'x'; 100_000];
            peer_scripts
                .fill_with(|| PeerScript::new(vec![Action::send(line()), Action::ReadToEnd]));
        }
        all_close(case, &driver, peer_scripts, "a line that is too long")?;
        expected.refused += 4;
    }

    // A peer whose connection is closed after the reply can't send RST before that.
    let may_ask = spec.protocol.requests_per_connection.is_none();
    let reset = |client| {
        let converse = Action::Converse {
            script: spec.scripts(client),
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
    all_close(case, &driver, (20..23).map(reset).collect(), "RST")?;
    expected.reset += 3;

    if case.supports(Need::Panic) {
        let panicking = || {
            PeerScript::new(vec![
                Action::send(format!("{PANIC}\n").into_bytes()),
                Action::ReadToEnd,
            ])
        };
        all_close(case, &driver, vec![panicking(), panicking()], "a panic")?;
        expected.failed += 2;
    }

    if case.supports(Need::IdleTimeout) {
        let idle = PeerScript::new(vec![Action::ReadToEnd]);
        all_close(
            case,
            &driver,
            vec![idle],
            "a peer that is idle for longer than the idle time-out",
        )?;
        expected.timed_out += 1;
    }

    // This peer is in the middle of a request when the server is stopped, and stays there. If every byte is a request,
    // there is no such peer.
    let cut = if spec.framed() {
        expected.cut += 1;
        Some(begins_and_never_ends(case, &driver)?)
    } else {
        None
    };
    expected.accepted = expected.ended();

    let tally = case.stop(running)?;
    case.check_interrupted()?;
    drop(cut);
    match tally {
        None => broken("a tally as the last line of the output", "none"),
        Some(tally) if tally != expected => broken(expected.to_string(), tally.to_string()),
        Some(_) => Passed::plain(),
    }
}

/// Checks whether an external server prints a tally. A line that is no JSON object with `accepted` is not meant to be a
/// tally.
fn prints_tally(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    let end = case.start(&TargetSettings::default())?.stop();
    case.check_interrupted()?;
    let line = end.and_then(|end| end.last).unwrap_or_default();
    let object: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_str(&line);
    if !object.is_ok_and(|object| object.contains_key("accepted")) {
        return not_applicable("the last line that the server prints is no tally");
    }
    match serde_json::from_str::<Tally>(&line) {
        Ok(_) => Ok(()),
        Err(why) => broken(
            "a tally with the fields of our models' tallies",
            format!("{line} ({why})"),
        ),
    }
}

/// Connects peers, and waits until each connection is closed, by the server or by the peer.
fn all_close(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
    peer_scripts: Vec<PeerScript>,
    label: &str,
) -> Result<(), CheckFailure> {
    for outcome in driver.enter(peer_scripts).finish(2 * PATIENCE) {
        case.check_interrupted()?;
        let closed =
            |fault: &client::PeerFault| matches!(fault.kind, FaultKind::Reset | FaultKind::End);
        match &outcome.fault {
            None if outcome.done => {}
            Some(fault) if closed(fault) => {}
            Some(fault) => {
                let expected = format!("{label}: {}", fault.expected);
                return broken_by(expected, fault.seen.clone(), &outcome);
            }
            None => {
                return broken_by(
                    format!("{label}: the end of the connection"),
                    "it is still open",
                    &outcome,
                );
            }
        }
    }
    Ok(())
}

/// Connects a peer that has one reply and is in the middle of its next request.
fn begins_and_never_ends(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
) -> Result<PeerGroup, CheckFailure> {
    let group = driver.enter(vec![PeerScript::new(vec![
        Action::Converse {
            script: case.spec.scripts(30),
            requests: 1,
            cut: Cut::Whole,
        },
        Action::WaitForSignal,
        Action::Send(vec![b'x'; 10_000].into(), Cut::Every(1, DRIP)),
        Action::StayIdle,
    ])]);
    reaches(case, &group, |seen| seen.waiting + seen.ended > 0)?;
    let before = group.progress().sent;
    group.signal_all();
    let begun = reaches(case, &group, |seen| {
        seen.ended > 0 || seen.sent >= before + DRIPS
    })?;
    if begun && group.progress().ended == 0 {
        return Ok(group);
    }
    match group.leave().first() {
        Some(outcome) => broken_by(
            "the server reads a request that arrives byte by byte",
            outcome
                .fault
                .as_ref()
                .map_or("it does not".to_string(), |fault| fault.seen.clone()),
            outcome,
        ),
        None => broken(
            "the server reads a request that arrives byte by byte",
            "it does not",
        ),
    }
}
