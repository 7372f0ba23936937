//! 7. Over-long input gets a clear error and a close; garbage never panics.

use std::time::Duration;

use client::{Action, Cut, FaultKind, PeerDriver, PeerOutcome, PeerScript};

use super::super::case::{CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken_by, kind};
use crate::target::{Target, TargetSettings};

/// What somebody else's server is sent without a line's end: nobody needs so long a line, and who takes it all takes
/// everything.
const ENDLESS: u64 = 16 << 20;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    let running = case.start(&TargetSettings::default())?;
    let driver = case.driver(&running)?;
    let lines = kind("long-line").peer_scripts(case.asked, 1).is_some();
    // It takes the longest: the others come meanwhile, where they can.
    let stubborn = (lines && !case.quick).then(|| driver.enter(vec![stubborn(case)]));
    if lines {
        long_lines(case, &driver)?;
        case.serves(&driver, 3, "after a line that was too long")?;
    }
    garbage(case, &driver)?;
    case.serves(&driver, 3, "after garbage")?;
    for outcome in stubborn
        .map(|group| group.finish(3 * PATIENCE))
        .iter()
        .flatten()
    {
        case.go_on()?;
        is_closed(
            outcome,
            "that a peer that goes on sending after a line that was too long is closed all the same",
        )?;
    }
    case.serves(&driver, 3, "after a peer that went on")?;
    drop(driver);
    case.stop(running)?;
    Passed::simply()
}

fn ours(case: &CheckCase<'_>) -> bool {
    matches!(case.target, Target::Model(_))
}

/// Ours say why, in the protocol's form, and close; of others it is enough that they close.
fn long_lines(case: &CheckCase<'_>, driver: &PeerDriver) -> Result<(), CheckFailure> {
    let kind = kind("long-line");
    if ours(case) {
        let peer_scripts = kind
            .peer_scripts(case.asked, kind.clients)
            .unwrap_or_default();
        let outcomes = driver.enter(peer_scripts).finish(2 * PATIENCE);
        case.all_done(&outcomes, kind.name)?;
        return match outcomes.iter().find(|outcome| !says_why(case, outcome)) {
            None => Ok(()),
            Some(outcome) => broken_by(
                "that a head that is too long is refused with a status of 4xx",
                format!("\"{}\"", outcome.heard.escape_ascii()),
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
        case.go_on()?;
        let expected = format!(
            "that a line that does not end is refused, and its peer closed: after {} MiB at the latest",
            ENDLESS >> 20
        );
        is_closed(&outcome, &expected)?;
    }
    Ok(())
}

/// Where replies are deterministic the kind has compared them.
fn says_why(case: &CheckCase<'_>, outcome: &PeerOutcome) -> bool {
    case.asked.deterministic() || outcome.heard.starts_with(b"HTTP/1.1 4")
}

/// The server has ended it, in whatever way.
fn is_closed(outcome: &PeerOutcome, expected: &str) -> Result<(), CheckFailure> {
    match &outcome.fault {
        None if outcome.done => Ok(()),
        Some(fault) if matches!(fault.kind, FaultKind::Reset | FaultKind::End) => Ok(()),
        Some(fault) => broken_by(expected, fault.seen.clone(), outcome),
        None => broken_by(expected, "that it is not", outcome),
    }
}

/// NULs and random bytes, and FIN: whatever is said to that, it ends, and the others are served.
fn garbage(case: &CheckCase<'_>, driver: &PeerDriver) -> Result<(), CheckFailure> {
    let kind = kind("garbage");
    if ours(case) {
        let peer_scripts = kind
            .peer_scripts(case.asked, kind.clients)
            .unwrap_or_default();
        let outcomes = driver.enter(peer_scripts).finish(2 * PATIENCE);
        return case.all_done(&outcomes, kind.name);
    }
    let mut random = fastrand::Rng::with_seed(case.asked.seed);
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
        case.go_on()?;
        is_closed(
            &outcome,
            "that whoever sent garbage and ended its side is closed",
        )?;
    }
    Ok(())
}

/// Goes on for longer than anybody waits, and does not care.
fn stubborn(case: &CheckCase<'_>) -> PeerScript {
    let mut actions = Vec::new();
    let mut line = b"GET /".to_vec();
    line.resize(if ours(case) { 100_000 } else { 1 << 20 }, b'x');
    actions.push(Action::send(line));
    let drips = 2 * usize::try_from(PATIENCE.as_millis()).unwrap_or(0) / 20;
    actions.push(Action::Send(
        vec![b'x'; drips].into(),
        Cut::Every(1, Duration::from_millis(20)),
    ));
    // Still not closed: then never.
    actions.push(Action::ExpectReset);
    PeerScript::new(actions)
}
