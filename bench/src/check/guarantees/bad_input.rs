//! The check of `bad-input`: over-long input gets a clear error and a close; garbage never causes a panic.

use std::time::Duration;

use client::{Action, Cut, FaultKind, PeerDriver, PeerOutcome, PeerScript};

use super::super::case::{CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken_by, kind};
use crate::target::{Target, TargetSettings};

/// Number of bytes without a line's end that are sent to an external server. No client needs such a long line, and a
/// server that accepts all of it has no limit.
const ENDLESS: u64 = 16 << 20;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    let running = case.start(&TargetSettings::default())?;
    let driver = case.driver(&running)?;
    let lines = kind("long-line").peer_scripts(case.spec, 1).is_some();
    // This peer takes the longest. The other checks run meanwhile, if the server serves several peers at a time.
    let keeps_sending = (lines && !case.quick).then(|| driver.enter(vec![keeps_sending(case)]));
    if lines {
        long_lines(case, &driver)?;
        case.serves(&driver, 3, "after a line that was too long")?;
    }
    garbage(case, &driver)?;
    case.serves(&driver, 3, "after garbage")?;
    for outcome in keeps_sending
        .map(|group| group.finish(3 * PATIENCE))
        .iter()
        .flatten()
    {
        case.check_interrupted()?;
        is_closed(
            outcome,
            "a peer that goes on sending after a line that was too long is closed all the same",
        )?;
    }
    case.serves(&driver, 3, "after a peer that went on sending")?;
    drop(driver);
    case.stop(running)?;
    Passed::plain()
}

/// Returns whether the target is one of our models.
fn is_model(case: &CheckCase<'_>) -> bool {
    matches!(case.target, Target::Model(_))
}

/// Sends lines that are too long. A model must send an error in the protocol's form and close the connection; for an
/// external server the close is enough.
fn long_lines(case: &CheckCase<'_>, driver: &PeerDriver) -> Result<(), CheckFailure> {
    let kind = kind("long-line");
    if is_model(case) {
        let peer_scripts = kind
            .peer_scripts(case.spec, kind.clients)
            .unwrap_or_default();
        let outcomes = driver.enter(peer_scripts).finish(2 * PATIENCE);
        case.all_done(&outcomes, kind.name)?;
        return match outcomes
            .iter()
            .find(|outcome| !is_refused_with_status(case, outcome))
        {
            None => Ok(()),
            Some(outcome) => broken_by(
                "a head that is too long is refused with a status of 4xx",
                format!("\"{}\"", outcome.received.escape_ascii()),
                outcome,
            ),
        };
    }
    let peer_script = || {
        let flood = Action::Flood {
            bytes: vec![b'x'; 64 * 1024].into(),
            most: ENDLESS,
            stuck: Duration::from_millis(500),
        };
        PeerScript::new(vec![flood, Action::ReadToEnd])
    };
    for outcome in driver
        .enter(vec![peer_script(), peer_script()])
        .finish(3 * PATIENCE)
    {
        case.check_interrupted()?;
        let expected = format!(
            "a line that does not end is refused, and its connection closed, after {} MiB at the latest",
            ENDLESS >> 20
        );
        is_closed(&outcome, &expected)?;
    }
    Ok(())
}

/// Returns whether the reply to a long line is a refusal. Deterministic replies have been compared already, by the
/// peers.
fn is_refused_with_status(case: &CheckCase<'_>, outcome: &PeerOutcome) -> bool {
    case.spec.deterministic() || outcome.received.starts_with(b"HTTP/1.1 4")
}

/// Checks that the server has ended the connection, with FIN or RST.
fn is_closed(outcome: &PeerOutcome, expected: &str) -> Result<(), CheckFailure> {
    match &outcome.fault {
        None if outcome.done => Ok(()),
        Some(fault) if matches!(fault.kind, FaultKind::Reset | FaultKind::End) => Ok(()),
        Some(fault) => broken_by(expected, fault.seen.clone(), outcome),
        None => broken_by(expected, "the connection stays open", outcome),
    }
}

/// Sends NULs and random bytes, and FIN. Any reply is right, but the connection must end.
fn garbage(case: &CheckCase<'_>, driver: &PeerDriver) -> Result<(), CheckFailure> {
    let kind = kind("garbage");
    if is_model(case) {
        let peer_scripts = kind
            .peer_scripts(case.spec, kind.clients)
            .unwrap_or_default();
        let outcomes = driver.enter(peer_scripts).finish(2 * PATIENCE);
        return case.all_done(&outcomes, kind.name);
    }
    let mut random = fastrand::Rng::with_seed(case.spec.seed);
    let peer_script = |number: usize| {
        let mut bytes = vec![0; 1 << (number / 2)];
        if number % 2 == 1 {
            random.fill(&mut bytes);
        }
        PeerScript::new(vec![
            Action::send(bytes),
            Action::HalfClose,
            Action::ReadToEnd,
        ])
    };
    let peer_scripts = (0..24).map(peer_script).collect();
    for outcome in driver.enter(peer_scripts).finish(2 * PATIENCE) {
        case.check_interrupted()?;
        is_closed(
            &outcome,
            "a peer that sent garbage and ended its side is closed",
        )?;
    }
    Ok(())
}

/// Returns the script of a peer that ignores the refusal and goes on sending for longer than any check waits.
fn keeps_sending(case: &CheckCase<'_>) -> PeerScript {
    let mut actions = Vec::new();
    let mut line = b"GET /".to_vec();
    line.resize(if is_model(case) { 100_000 } else { 1 << 20 }, b'x');
    actions.push(Action::send(line));
    let drips = 2 * usize::try_from(PATIENCE.as_millis()).unwrap_or(0) / 20;
    actions.push(Action::Send(
        vec![b'x'; drips].into(),
        Cut::Every(1, Duration::from_millis(20)),
    ));
    // A server that has not closed the connection by now never does.
    actions.push(Action::ExpectReset);
    PeerScript::new(actions)
}
