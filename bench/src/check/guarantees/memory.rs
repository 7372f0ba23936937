//! The check of `memory`: a peer that sends and never reads costs bounded memory, and delays only itself.

use std::time::{Duration, Instant};

use client::{Action, PeerDriver, PeerGroup, PeerScript};
use contract::Capacity;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, not_applicable,
};
use super::parked_clients::parked_clients;
use super::quiescence::{demand, quiescent, window};
use crate::resources::{CpuDemand, ProcessTree};
use crate::target::{Need, TargetSettings};

/// Number of bytes that each peer offers. A server that stores replies that are not read stores all of them, except for
/// the part that the kernel holds of the replies (3 MiB, although the peers have small buffers) and of the requests (6
/// MiB). A server that stores nothing accepts no more than that, so the size costs no time.
const OFFERED: u64 = 16 << 20;

/// Memory that each peer may cost the server, in bytes. Our own models take 30 to 400 KiB: a read buffer, the session,
/// the replies to the bytes that were read, and the stack of a thread or a process of its own.
const MOST_PER_PEER: u64 = 1 << 20;

/// Memory that each peer may cost an external server, in bytes: a runtime that collects its garbage at any time has
/// megabytes of garbage that belong to no reply.
const MOST_PER_PEER_EXTERNAL: u64 = 4 << 20;

/// The peers are stuck if all of them together could send no more than this during an observation, in bytes.
const TRICKLE: u64 = 64 << 10;

/// Duration of an observation.
const OBSERVATION: Duration = Duration::from_millis(75);

/// Number of workers, if each worker is held by a peer.
const WORKERS: usize = 4;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    if case.spec.protocol.requests_per_connection.is_some() {
        return not_applicable(format!(
            "over {} the server ends every conversation itself, so a peer can't request much without reading it",
            case.spec.protocol.name
        ));
    }
    let capacity = case.target.model().map(|model| model.capacity);
    // Number of peers that hold up all other peers, by design.
    let holders = match capacity {
        Some(Capacity::One) => Some(1),
        Some(Capacity::Workers) => Some(WORKERS),
        _ => None,
    };
    let settings = TargetSettings {
        workers: (capacity == Some(Capacity::Workers)).then_some(WORKERS),
        ..TargetSettings::default()
    };
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let Some(mut tree) = running.tree() else {
        return Err(anyhow::anyhow!("the server has no process").into());
    };
    case.serves(&driver, 20, "before peers sent without reading")?;
    quiescent(case, &mut tree)?;
    let before = memory(&mut tree)?;
    // As many peers as leave slots for others; or, where these would be too few to measure, as many as the server can
    // serve.
    let peers = match holders {
        Some(holders) => holders,
        None if case.quick => 3,
        None => 6,
    };
    let mut floods = Vec::new();
    if peers > 1 {
        floods.push(flood(case, &driver, &mut tree, 0..peers - 1)?);
        case.serves(
            &driver,
            5,
            &format!("while {} peers send and never read", peers - 1),
        )?;
    }
    floods.push(flood(case, &driver, &mut tree, peers - 1..peers)?);
    let grown = memory(&mut tree)?.saturating_sub(before) / peers as u64;
    let most = match case.target.model() {
        Some(_) => MOST_PER_PEER,
        None => MOST_PER_PEER_EXTERNAL,
    };
    let offered = OFFERED >> 20;
    if grown > most {
        return broken(
            format!(
                "a peer that sends and never reads costs no more than {} KiB",
                most >> 10
            ),
            format!(
                "{} KiB for each of {peers} peers that offered {offered} MiB",
                grown >> 10,
            ),
        );
    }
    let seen = match holders {
        None => {
            case.serves(
                &driver,
                5,
                &format!("while {peers} peers send and never read"),
            )?;
            None
        }
        Some(holders) => {
            let others = driver.enter(parked_clients(case, 100..103)?);
            others.wait(window(case), |seen| seen.received > 0 || seen.failed > 0);
            let waited = others.progress().received == 0;
            for flood in floods.drain(..) {
                flood.leave();
            }
            super::limit::finish_by_turns(
                case,
                others,
                "a peer that came while others sent and never read, after those had left",
            )?;
            waited.then(|| {
                format!(
                    "with {holders} of these peers connected, no other peer was served; when they had left, all were served"
                )
            })
        }
    };
    drop(floods);
    case.serves(&driver, 3, "when the peers that never read have left")?;
    drop(driver);
    case.stop(running)?;
    Ok(Passed {
        figure: Some(format!("{} KiB", grown.div_ceil(1024))),
        details: vec![format!(
            "memory of the server for each of {peers} peers that offer {offered} MiB and read nothing: {} KiB",
            grown.div_ceil(1024)
        )],
        by_design: seen,
    })
}

/// Returns the memory of the server, in bytes.
fn memory(tree: &mut ProcessTree) -> Result<u64, CheckFailure> {
    tree.look();
    let unknown = || anyhow::anyhow!("the server's memory can't be read");
    Ok(tree.memory().ok_or_else(unknown)?)
}

/// Connects peers that send until the server accepts no more. They stay connected.
fn flood(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
    tree: &mut ProcessTree,
    clients: std::ops::Range<usize>,
) -> Result<PeerGroup, CheckFailure> {
    let count = clients.len();
    let peer_scripts = clients.map(|client| {
        let (requests, _) = case.spec.all_at_once(client, Some(1000), 100);
        PeerScript {
            small_buffers: true,
            ..PeerScript::new(vec![
                Action::Flood {
                    bytes: requests.into(),
                    most: OFFERED,
                    stuck: PATIENCE,
                },
                Action::WaitForSignal,
            ])
        }
    });
    let group = driver.enter(peer_scripts.collect());
    // Waits until the server accepts no more, or next to nothing: almost full buffers fill drop by drop, for seconds.
    let end = Instant::now() + PATIENCE;
    let (mut sent, mut idle) = (0, 0);
    tree.look();
    let mut before = demand(tree)?;
    while idle < 2 && Instant::now() < end {
        case.check_interrupted()?;
        if group.wait(OBSERVATION, |seen| seen.waiting == count || seen.failed > 0) {
            break;
        }
        let now = group.progress().sent;
        tree.look();
        let after = demand(tree)?;
        let stuck = now < sent + TRICKLE && had_cpu_time(before, after);
        idle = if stuck { idle + 1 } else { 0 };
        (sent, before) = (now, after);
    }
    if group.progress().failed > 0 {
        let label = "a peer that sends and never reads, and must be left waiting";
        case.all_done(&group.leave(), label)?;
        return Err(anyhow::anyhow!("a peer failed to send, for an unknown reason").into());
    }
    Ok(group)
}

/// Returns whether the server could have read more: it did not want the CPU, or it had it. A server that only waited
/// for the CPU may store everything when it gets the CPU.
fn had_cpu_time(before: CpuDemand, after: CpuDemand) -> bool {
    let ran = after.ran.saturating_sub(before.ran);
    let waited = after
        .wanted
        .saturating_sub(before.wanted)
        .saturating_sub(ran);
    waited < OBSERVATION / 10 || ran > OBSERVATION / 4
}
