//! 13. After its end it can be started again on the same port at once.
//!
//! Who closes a connection first has it in TIME_WAIT for a minute, and nobody may listen on its port meanwhile who does
//! not say that it is all the same to him (SO_REUSEADDR). So the server is stopped while peers are connected: then it is
//! the one.

use client::PeerScript;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, not_applicable, reaches,
};
use super::parked_clients::two_requests;
use crate::target::{Need, TargetSettings, free_port};

/// Those who are connected when it is stopped.
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
                    format!("that it can be started on the same port at once, {time} times"),
                    format!("{why:#}"),
                );
            }
            started => started?,
        };
        let driver = case.driver(&running)?;
        case.serves(&driver, 3, &format!("started {} times", time + 1))?;
        let peer = |client| {
            let mut actions = Vec::new();
            if case.asked.protocol.requests_per_connection.is_none() {
                let [first, _] = two_requests(case, client);
                actions.push(first);
            }
            // Until it is cut.
            actions.extend([client::Action::WaitForSignal, client::Action::ReadToEnd]);
            PeerScript::new(actions)
        };
        let peers = driver.enter((0..PEERS).map(peer).collect());
        let served = case.places(&settings).min(PEERS);
        let here = reaches(case, &peers, |seen| {
            seen.waiting >= served || seen.failed > 0
        })?;
        if !here || peers.seen().failed > 0 {
            case.all_done(&peers.leave(), "one of those who were connected")?;
            continue;
        }
        peers.signal_all();
        // How it stops is judged elsewhere. But who leaves a process behind leaves its port, too.
        let end = running.stop();
        if end.as_ref().is_some_and(|end| end.status.is_none()) {
            return not_applicable("it did not stop, and had to be killed: see stop");
        }
        if let Some(left) = end.map(|end| end.left_behind).filter(|left| *left > 0) {
            return broken(
                "that its port is free when it has ended",
                format!("{left} of its processes that were still there"),
            );
        }
        // (Those who were in the backlog hear nothing but a reset, whatever they were doing.)
        peers.finish(PATIENCE);
    }
    Ok(Passed {
        details: vec![format!(
            "stopped {times} times with {PEERS} peers connected, and started again on the same port at once"
        )],
        ..Passed::default()
    })
}
