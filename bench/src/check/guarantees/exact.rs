//! 1. Replies are exact, however the bytes are cut or joined on the way.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use client::misbehave::{Misbehaviour, RequestSpec};
use client::{Action, Cut, PeerScript};
use protocol::http::{Content, Page};

use super::super::case::{CheckCase, CheckFailure, PATIENCE, Passed, Verdict, kind};
use crate::target::TargetSettings;

/// Between two pieces: time for a server to read the first. If it does not, it sees less, and nothing is wrong.
const BETWEEN: Duration = Duration::from_millis(2);

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    let running = case.start(&TargetSettings::default())?;
    let driver = case.driver(&running)?;
    let act = |peer_scripts: Vec<PeerScript>, who: &str| -> Result<(), CheckFailure> {
        let outcomes = driver.enter(peer_scripts).finish(2 * PATIENCE);
        case.all_done(&outcomes, who)
    };
    for name in ["byte-by-byte", "cut-everywhere", "pipelined"] {
        let kind = kind(name);
        let Some(peer_scripts) = case.misbehave(kind, clients(case.asked, kind)) else {
            continue;
        };
        act(peer_scripts, name)?;
    }
    if !case.quick {
        act(crowd(case), "many whose pieces arrive in turns")?;
    }
    if case.asked.may_cut() {
        let two = joined_and_cut(case);
        act(two, "two requests at once, cut at every position")?;
    }
    let who = "requests by the MiB of one who reads late (so that the server can't send in one piece what it owes)";
    act(late_readers(case, false), who)?;
    case.serves(&driver, 10, "afterwards")?;
    drop(driver);
    case.stop(running)?;
    Passed::simply()
}

/// So many that every position of a request is somebody's.
fn clients(asked: &RequestSpec, kind: &Misbehaviour) -> usize {
    if kind.name == "cut-everywhere" {
        // The longest of their requests: the number is part of it.
        kind.clients.max(asked.request(999).len())
    } else {
        kind.clients
    }
}

/// Everybody's first piece comes before anybody's second.
fn crowd(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let cut = if case.asked.may_cut() {
        Cut::At(7, BETWEEN)
    } else {
        Cut::Whole
    };
    let peer_script = |client| {
        PeerScript::new(vec![Action::Converse {
            script: case.asked.scripts(client),
            requests: case.asked.requests(2),
            cut,
        }])
    };
    (500..550).map(peer_script).collect()
}

/// The second piece may begin with the end of the first request, or with some of the second: who believes that a reading
/// is a request, or has its beginning at least, is wrong here.
fn joined_and_cut(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let length = |client| case.asked.all_at_once(client, None, 2).0.len();
    let peer_script = |at| {
        PeerScript::new(vec![
            Action::Converse {
                script: case.asked.pipeline(at, None, 2),
                requests: 1,
                cut: Cut::At(at, BETWEEN),
            },
            Action::HalfClose,
            Action::ExpectFin,
        ])
    };
    (1..length(999)).map(peer_script).collect()
}

/// More than the buffers of both sides hold. If they `finish`, they end their side as soon as all is asked.
pub(super) fn late_readers(case: &CheckCase<'_>, finish: bool) -> Vec<PeerScript> {
    let owed = owed();
    let mut asked = case.asked.clone();
    let (size, reply) = match asked.protocol.name {
        "bulk" => (None, 3 * 64 * 1024),
        // Only of our own it is known what else they have.
        "http" if case.target.model().is_some() => {
            let body = b"Hello World!\n".repeat(1024);
            asked.page = Arc::new(Page {
                path: "/files/13k".to_string(),
                content: OnceLock::from(Content::of(&body)),
                ..Page::default()
            });
            (None, body.len())
        }
        "http" => (None, 200),
        // The previous line comes back too.
        "pair" => (Some(1000), 2000),
        _ => (Some(1000), 1000),
    };
    let requests = (owed / reply) as u64;
    let peer_script = |client| {
        let overfill = Action::Overfill {
            script: asked.pipeline(client, size, requests),
            still: Duration::from_millis(if case.quick { 50 } else { 100 }),
            finish,
        };
        let end = finish.then_some(Action::ExpectFin);
        PeerScript {
            // So that it is the server's buffer that has to hold it.
            small_buffers: true,
            ..PeerScript::new([overfill].into_iter().chain(end).collect())
        }
    };
    // One shows it, and with small buffers it takes its time.
    vec![peer_script(if finish { 701 } else { 700 })]
}

/// 2 MiB more than the kernel keeps of what a socket has to send, where nobody says otherwise; or as much as can be asked
/// for and checked in a moment.
fn owed() -> usize {
    const LEAST: usize = 6 << 20;
    const MOST: usize = 32 << 20;
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_default();
    let most = limits.split_ascii_whitespace().nth(2);
    let most: usize = most.and_then(|most| most.parse().ok()).unwrap_or(0);
    most.saturating_add(2 << 20).clamp(LEAST, MOST)
}
