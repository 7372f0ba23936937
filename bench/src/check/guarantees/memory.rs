//! 6. A peer that sends and never reads costs bounded memory, and delays only itself.

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

/// What each of them offers, in bytes. Who stores what is not taken has all of it, but for what the kernel holds of the
/// replies (3 MiB, though the peers have small buffers) and of the requests (6 MiB); who stores nothing takes no more than
/// that, so it costs no time.
const OFFERED: u64 = 16 << 20;

/// What each may cost the server, in bytes. Our own take 30 to 400 KiB: a read buffer, the session, what replies there
/// are to what was read, a thread's stack or a process of its own.
const MOST: u64 = 1 << 20;

/// The same of somebody else's server: a runtime that collects its garbage when it likes has megabytes of it that are
/// nobody's replies.
const MOST_OUTSIDE: u64 = 4 << 20;

/// If all of them together could send no more than this in a while, they are stuck. In bytes.
const DROPS: u64 = 64 << 10;

/// How long they are watched for that.
const WHILE: Duration = Duration::from_millis(75);

/// Workers, where each is held by a peer.
const WORKERS: usize = 4;

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    if case.asked.protocol.requests_per_connection.is_some() {
        return not_applicable(format!(
            "over {} the server ends every conversation itself: nobody can ask for much and not read it",
            case.asked.protocol.name
        ));
    }
    let capacity = case.target.model().map(|model| model.capacity);
    // How many of them hold up everybody else, by design.
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
    case.serves(&driver, 20, "before")?;
    quiescent(case, &mut tree)?;
    let before = memory(&mut tree)?;
    // As many as leave room for others; or, where those would be too few to measure, as many as there can be.
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
        Some(_) => MOST,
        None => MOST_OUTSIDE,
    };
    let offered = OFFERED >> 20;
    if grown > most {
        return broken(
            format!(
                "that a peer that sends and never reads costs no more than {} KiB",
                most >> 10
            ),
            format!(
                "{} KiB for each of {peers} that offered {offered} MiB",
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
            others.wait(window(case), |seen| seen.heard > 0 || seen.failed > 0);
            let waited = others.seen().heard == 0;
            for flood in floods.drain(..) {
                flood.leave();
            }
            super::limit::finish_by_turns(
                case,
                others,
                "who came while others sent and never read, when those had left",
            )?;
            waited.then(|| {
                format!(
                    "nobody was served while {holders} of them were connected, and all when they had left"
                )
            })
        }
    };
    drop(floods);
    case.serves(&driver, 3, "when those who sent and never read have left")?;
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

fn memory(tree: &mut ProcessTree) -> Result<u64, CheckFailure> {
    tree.look();
    let unknown = || anyhow::anyhow!("the server's memory can't be read");
    Ok(tree.memory().ok_or_else(unknown)?)
}

/// Peers that send until nothing more is taken. They stay.
fn flood(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
    tree: &mut ProcessTree,
    clients: std::ops::Range<usize>,
) -> Result<PeerGroup, CheckFailure> {
    let count = clients.len();
    let peer_scripts = clients.map(|client| {
        let (requests, _) = case.asked.all_at_once(client, Some(1000), 100);
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
    // Until all is taken, or next to nothing more: buffers that are almost full are filled drop by drop for seconds.
    let end = Instant::now() + PATIENCE;
    let (mut sent, mut idle) = (0, 0);
    tree.look();
    let mut before = demand(tree)?;
    while idle < 2 && Instant::now() < end {
        case.go_on()?;
        if group.wait(WHILE, |seen| seen.waiting == count || seen.failed > 0) {
            break;
        }
        let now = group.seen().sent;
        tree.look();
        let after = demand(tree)?;
        let still = now < sent + DROPS && had_its_time(before, after);
        idle = if still { idle + 1 } else { 0 };
        (sent, before) = (now, after);
    }
    if group.seen().failed > 0 {
        let who = "who sends and never reads, and is to be left waiting";
        case.all_done(&group.leave(), who)?;
        return Err(anyhow::anyhow!("somebody failed to send, and nobody knows why").into());
    }
    Ok(group)
}

/// Whether a server could have read more, if it had wanted to: it did not want the CPU, or it had it. Who only waited for
/// the CPU may store all when it gets it.
fn had_its_time(before: CpuDemand, after: CpuDemand) -> bool {
    let ran = after.ran.saturating_sub(before.ran);
    let waited = after
        .wanted
        .saturating_sub(before.wanted)
        .saturating_sub(ran);
    waited < WHILE / 10 || ran > WHILE / 4
}
