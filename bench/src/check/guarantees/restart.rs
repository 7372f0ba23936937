//! The check of `restart`: after its end the server can be started again on the same port at once.
//!
//! The side that closes a connection first has it in TIME_WAIT for a minute. Meanwhile only a server that sets
//! SO_REUSEADDR may listen on the port. So the server is stopped while peers are connected: then the server closes
//! first.

use client::PeerScript;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, not_applicable, reaches,
};
use super::parked_clients::two_requests;
use crate::target::{Need, TargetSettings, free_port};

/// Number of peers that are connected when the server is stopped.
const PEERS: usize = 5;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    let settings = TargetSettings {
        port: Some(free_port()?),
        ..TargetSettings::default()
    };
    let times = if case.quick { 2 } else { 4 };
    for time in 0..=times {
        let running = match case.start(&settings) {
            Err(CheckFailure::CheckError(why)) if time > 0 => {
                return broken(
                    format!(
                        "the server can be started again on the same port at once, {time} times"
                    ),
                    format!("{why:#}"),
                );
            }
            started => started?,
        };
        let driver = case.driver(&running)?;
        case.serves(&driver, 3, &format!("started {} times", time + 1))?;
        let peer = |client| {
            let mut actions = Vec::new();
            if case.spec.protocol.requests_per_connection.is_none() {
                let [first, _] = two_requests(case, client);
                actions.push(first);
            }
            // The peer stays until the server cuts the connection.
            actions.extend([client::Action::WaitForSignal, client::Action::ReadToEnd]);
            PeerScript::new(actions)
        };
        let peers = driver.enter((0..PEERS).map(peer).collect());
        let served = case.slots(&settings).min(PEERS);
        let here = reaches(case, &peers, |seen| {
            seen.waiting >= served || seen.failed > 0
        })?;
        if !here || peers.progress().failed > 0 {
            case.all_done(
                &peers.leave(),
                "a peer that was connected when the server was stopped",
            )?;
            continue;
        }
        peers.signal_all();
        // The stop itself is checked elsewhere. But a process that is left behind may keep the port.
        let end = running.stop();
        if end.as_ref().is_some_and(|end| end.status.is_none()) {
            return not_applicable("the server did not stop, and had to be killed: see stop");
        }
        if let Some(left) = end.map(|end| end.left_behind).filter(|left| *left > 0) {
            return broken(
                "the port of the server is free when the server has ended",
                format!("{left} of its processes were still there"),
            );
        }
        // Peers in the backlog only see a reset, whatever they were doing.
        peers.finish(PATIENCE);
    }
    Ok(Passed {
        details: vec![format!(
            "stopped {times} times with {PEERS} peers connected, and started again on the same port at once"
        )],
        ..Passed::default()
    })
}
