//! The check of `half-close`: after FIN every reply that is owed is sent, then the connection is closed; RST ends that
//! connection and no other.

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
    let (bystanders, lasting) = bystanders(case, &driver, case.slots(&settings) > 1);

    for name in ["half-close", "fin-mid-line"] {
        let kind = kind(name);
        if let Some(peer_scripts) = case.misbehave(kind, kind.clients) {
            finish_all(case, &driver, peer_scripts, name)?;
        }
    }
    let label = "FIN after a last line without a line end, or after no bytes";
    finish_all(case, &driver, last_lines(case), label)?;
    let label = "FIN after exactly as many bytes as the server reads at once, or more";
    finish_all(case, &driver, long_ones(case), label)?;
    if case.spec.protocol.requests_per_connection.is_none() {
        let label = "a client that sends MiB of requests and FIN, and reads late (more is owed at FIN than goes out in one piece)";
        finish_all(case, &driver, late_readers(case, true), label)?;
    }

    for name in ["rst-mid-request", "rst-mid-reply", "hit-and-run"] {
        let kind = kind(name);
        if let Some(peer_scripts) = case.misbehave(kind, kind.clients) {
            finish_all(case, &driver, peer_scripts, name)?;
            case.serves(&driver, 2, &format!("after {name}"))?;
        }
    }
    let label = "RST between requests, after a request, and after FIN";
    finish_all(case, &driver, resets(case), label)?;
    case.serves(&driver, 3, &format!("after {label}"))?;

    undisturbed(case, bystanders, lasting)?;
    drop(driver);
    case.stop(running)?;
    Passed::plain()
}

/// Lets peers carry out their scripts, and checks that none has a fault. `label` describes the peers.
fn finish_all(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
    peer_scripts: Vec<PeerScript>,
    label: &str,
) -> Result<(), CheckFailure> {
    let outcomes = driver.enter(peer_scripts).finish(2 * PATIENCE);
    case.all_done(&outcomes, label)
}

/// Connects clients that converse all the time. The second value says whether each of them does so in one conversation,
/// which shows more. They do not if other peers would then never be served, or if the protocol's conversations are
/// short anyway.
fn bystanders(case: &CheckCase<'_>, driver: &PeerDriver, side_by_side: bool) -> (PeerGroup, bool) {
    let lasting = side_by_side && case.spec.protocol.requests_per_connection.is_none();
    let peer_script = |client| {
        if lasting {
            PeerScript::new(vec![Action::Converse {
                script: case.spec.scripts(client),
                requests: u64::MAX,
                // Only the pause matters: these clients need not be fast.
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

/// Checks that no bystander had a fault, and that each was served until the end.
fn undisturbed(
    case: &CheckCase<'_>,
    bystanders: PeerGroup,
    lasting: bool,
) -> Result<(), CheckFailure> {
    let before = bystanders.progress();
    let served = reaches(case, &bystanders, |seen| {
        seen.failed > 0
            || if lasting {
                seen.received > before.received
            } else {
                seen.completed_runs > before.completed_runs
            }
    })?;
    for outcome in bystanders.leave() {
        if let Some(fault) = &outcome.fault {
            return broken_by(
                format!(
                    "a client that converses meanwhile is not disturbed: {}",
                    fault.expected
                ),
                fault.seen.clone(),
                &outcome,
            );
        }
        if !served {
            return broken_by(
                "clients that converse meanwhile are still served",
                format!("no reply for {PATIENCE:?}"),
                &outcome,
            );
        }
    }
    Ok(())
}

/// Returns scripts of clients that send FIN where a line end would be: FIN ends a line too.
fn last_lines(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let spec = case.spec;
    let mut inputs = vec![Vec::new()];
    if spec.deterministic() {
        inputs.push(b"a".to_vec());
        for client in [900, 901] {
            let (mut input, _) = spec.all_at_once(client, None, 3);
            input.extend_from_slice(b"the last");
            inputs.push(input);
        }
    }
    let peer_script = |input: Vec<u8>| {
        let mut actions = vec![Action::send(input.clone()), Action::HalfClose];
        if spec.deterministic() {
            actions.push(Action::expect(spec.replies(&input, true).bytes));
        }
        actions.push(Action::ExpectFin);
        PeerScript::new(actions)
    };
    inputs.into_iter().map(peer_script).collect()
}

/// Returns scripts that send exactly as many bytes as our models read at once, one byte less, and more: FIN comes with
/// the last of the bytes, or alone.
fn long_ones(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let spec = case.spec;
    // If a server answers the first bytes and closes, it resets the connection because of the remaining bytes. And the
    // replies of `bulk` to this number of bytes would take long to arrive.
    if !spec.may_cut() || spec.protocol.name == "bulk" {
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
        if !spec.deterministic() {
            // Whole requests only: the form of an error for a cut-off request is not known.
            let one = spec.request(client).len();
            let most = (size / one) as u64;
            let script = spec.pipeline_replies(client, None, most);
            return PeerScript::new(vec![
                Action::send(spec.all_at_once(client, None, most).0),
                Action::HalfClose,
                Action::Converse {
                    script,
                    requests: 1,
                    cut: Cut::Whole,
                },
                Action::ExpectFin,
            ]);
        }
        let (mut input, _) = spec.all_at_once(client, Some(128), (size / 128 + 1) as u64);
        input.truncate(size);
        let replies = spec.replies(&input, true).bytes;
        PeerScript::new(vec![
            Action::send(input),
            Action::HalfClose,
            Action::expect(replies),
            Action::ExpectFin,
        ])
    };
    sizes.into_iter().enumerate().map(peer_script).collect()
}

/// Returns scripts of clients that send RST at the remaining moments of a conversation.
fn resets(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let spec = case.spec;
    let mut peer_scripts = Vec::new();
    for client in 950..955 {
        let converse = Action::Converse {
            script: spec.scripts(client),
            requests: 1,
            cut: Cut::Whole,
        };
        peer_scripts.push(PeerScript::new(vec![converse, Action::Reset]));
        peer_scripts.push(PeerScript::new(vec![
            Action::send(spec.request(client)),
            Action::Reset,
        ]));
        let (much, _) = spec.all_at_once(client, Some(1000), 100);
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
