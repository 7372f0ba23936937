//! 2. FIN: everything owed is sent, then closed. RST: that connection dies, nothing else.

use std::time::Duration;

use client::{Action, Cut, PeerDriver, PeerGroup, PeerScript};
use contract::READ_BUFFER;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken_by, kind, reaches,
};
use super::exact::late_readers;
use crate::target::TargetSettings;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    let settings = TargetSettings::default();
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let (bystanders, lasting) = bystanders(case, &driver, case.places(&settings) > 1);

    for name in ["half-close", "fin-mid-line"] {
        let kind = kind(name);
        if let Some(peer_scripts) = case.misbehave(kind, kind.clients) {
            act(case, &driver, peer_scripts, name)?;
        }
    }
    let who = "FIN behind a last line that has no end, or behind nothing";
    act(case, &driver, last_lines(case), who)?;
    let who = "FIN behind more than is read at once, or exactly as much";
    act(case, &driver, long_ones(case), who)?;
    if case.asked.protocol.requests_per_connection.is_none() {
        let who = "FIN behind requests by the MiB, of one who reads late: more is owed at the end than goes out in one piece";
        act(case, &driver, late_readers(case, true), who)?;
    }

    for name in ["rst-mid-request", "rst-mid-reply", "hit-and-run"] {
        let kind = kind(name);
        if let Some(peer_scripts) = case.misbehave(kind, kind.clients) {
            act(case, &driver, peer_scripts, name)?;
            case.serves(&driver, 2, &format!("after {name}"))?;
        }
    }
    let others = "RST between requests, behind one, and after FIN";
    act(case, &driver, resets(case), others)?;
    case.serves(&driver, 3, &format!("after {others}"))?;

    undisturbed(case, bystanders, lasting)?;
    drop(driver);
    case.stop(running)?;
    Passed::simply()
}

fn act(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
    peer_scripts: Vec<PeerScript>,
    who: &str,
) -> Result<(), CheckFailure> {
    let outcomes = driver.enter(peer_scripts).finish(2 * PATIENCE);
    case.all_done(&outcomes, who)
}

/// Those who converse all the time; and whether each does so in one conversation, which shows more. It does not if others
/// would never have their turn, or if a conversation is short anyway.
fn bystanders(case: &CheckCase<'_>, driver: &PeerDriver, side_by_side: bool) -> (PeerGroup, bool) {
    let lasting = side_by_side && case.asked.protocol.requests_per_connection.is_none();
    let peer_script = |client| {
        if lasting {
            PeerScript::new(vec![Action::Converse {
                script: case.asked.scripts(client),
                requests: u64::MAX,
                // The pause is what matters: nobody needs to be in a hurry.
                cut: Cut::At(1, Duration::from_millis(2)),
            }])
        } else {
            let mut peer_script = case.well_behaved(client, 3);
            peer_script.actions.push(Action::Close);
            peer_script
                .actions
                .push(Action::Pause(Duration::from_millis(2)));
            peer_script.again = true;
            peer_script
        }
    };
    (driver.enter((800..803).map(peer_script).collect()), lasting)
}

/// Nothing was wrong with any of them, and each was served to the last.
fn undisturbed(
    case: &CheckCase<'_>,
    bystanders: PeerGroup,
    lasting: bool,
) -> Result<(), CheckFailure> {
    let before = bystanders.seen();
    let served = reaches(case, &bystanders, |seen| {
        seen.failed > 0
            || if lasting {
                seen.heard > before.heard
            } else {
                seen.completed_runs > before.completed_runs
            }
    })?;
    for outcome in bystanders.leave() {
        if let Some(fault) = &outcome.fault {
            return broken_by(
                format!(
                    "that one who converses meanwhile is not disturbed: {}",
                    fault.expected
                ),
                fault.seen.clone(),
                &outcome,
            );
        }
        if !served {
            return broken_by(
                "that those who converse meanwhile go on to be served",
                format!("no reply for {PATIENCE:?}"),
                &outcome,
            );
        }
    }
    Ok(())
}

/// FIN is an end too.
fn last_lines(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let asked = case.asked;
    let mut inputs = vec![Vec::new()];
    if asked.deterministic() {
        inputs.push(b"a".to_vec());
        for client in [900, 901] {
            let (mut input, _) = asked.all_at_once(client, None, 3);
            input.extend_from_slice(b"the last");
            inputs.push(input);
        }
    }
    let peer_script = |input: Vec<u8>| {
        let mut actions = vec![Action::send(input.clone()), Action::HalfClose];
        if asked.deterministic() {
            actions.push(Action::expect(asked.replies(&input, true).bytes));
        }
        actions.push(Action::ExpectFin);
        PeerScript::new(actions)
    };
    inputs.into_iter().map(peer_script).collect()
}

/// As long as what our servers read at once, and a byte less and more: the end comes with the last of it, or alone.
fn long_ones(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let asked = case.asked;
    // Who answers the first bytes and closes would break off over the others; and what bulk is asked for in so many
    // bytes would take long to come.
    if !asked.may_cut() || asked.protocol.name == "bulk" {
        return Vec::new();
    }
    let sizes = [
        READ_BUFFER - 1,
        READ_BUFFER,
        READ_BUFFER + 1,
        2 * READ_BUFFER,
        50_000,
    ];
    let peer_script = |(client, size): (usize, usize)| {
        if !asked.deterministic() {
            // Whole requests only: who is cut off is told so, and in whose words?
            let one = asked.request(client).len();
            let most = (size / one) as u64;
            let script = asked.pipeline_heard(client, None, most);
            return PeerScript::new(vec![
                Action::send(asked.all_at_once(client, None, most).0),
                Action::HalfClose,
                Action::Converse {
                    script,
                    requests: 1,
                    cut: Cut::Whole,
                },
                Action::ExpectFin,
            ]);
        }
        let (mut input, _) = asked.all_at_once(client, Some(128), (size / 128 + 1) as u64);
        input.truncate(size);
        let replies = asked.replies(&input, true).bytes;
        PeerScript::new(vec![
            Action::send(input),
            Action::HalfClose,
            Action::expect(replies),
            Action::ExpectFin,
        ])
    };
    sizes.into_iter().enumerate().map(peer_script).collect()
}

/// The other moments in which one can break off.
fn resets(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let asked = case.asked;
    let mut peer_scripts = Vec::new();
    for client in 950..955 {
        let converse = Action::Converse {
            script: asked.scripts(client),
            requests: 1,
            cut: Cut::Whole,
        };
        peer_scripts.push(PeerScript::new(vec![converse, Action::Reset]));
        peer_scripts.push(PeerScript::new(vec![
            Action::send(asked.request(client)),
            Action::Reset,
        ]));
        let (much, _) = asked.all_at_once(client, Some(1000), 100);
        peer_scripts.push(PeerScript {
            small_buffers: true,
            ..PeerScript::new(vec![
                Action::send(much),
                Action::HalfClose,
                Action::ReadBytes(1),
                Action::Reset,
            ])
        });
    }
    peer_scripts
}
