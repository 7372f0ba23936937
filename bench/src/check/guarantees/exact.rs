//! The check of `exact`: replies are exact, however the bytes are cut or joined on the way.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use client::misbehave::{Misbehaviour, RequestSpec};
use client::{Action, Cut, PeerScript};
use protocol::http::{Content, Page};

use super::super::case::{CheckCase, CheckFailure, PATIENCE, Passed, Verdict, kind};
use crate::target::TargetSettings;

/// Pause between two pieces, so that a server can read the first. If the server does not, the check sees less, and
/// nothing is wrong.
const BETWEEN: Duration = Duration::from_millis(2);

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    let running = case.start(&TargetSettings::default())?;
    let driver = case.driver(&running)?;
    let finish_all = |peer_scripts: Vec<PeerScript>, label: &str| -> Result<(), CheckFailure> {
        let outcomes = driver.enter(peer_scripts).finish(2 * PATIENCE);
        case.all_done(&outcomes, label)
    };
    for name in ["byte-by-byte", "cut-everywhere", "pipelined"] {
        let kind = kind(name);
        let Some(peer_scripts) = case.misbehave(kind, clients(case.spec, kind)) else {
            continue;
        };
        finish_all(peer_scripts, name)?;
    }
    if !case.quick {
        finish_all(
            crowd(case),
            "one of many clients whose pieces arrive interleaved",
        )?;
    }
    if case.spec.may_cut() {
        let two = joined_and_cut(case);
        finish_all(two, "two requests at once, cut at every position")?;
    }
    let label = "a client that sends MiB of requests and reads late (the server can't send all replies in one piece)";
    finish_all(late_readers(case, false), label)?;
    case.serves(&driver, 10, "afterwards")?;
    drop(driver);
    case.stop(running)?;
    Passed::plain()
}

/// Returns the number of clients of a kind: enough for every position in a request to be cut by one of them.
fn clients(spec: &RequestSpec, kind: &Misbehaviour) -> usize {
    if kind.name == "cut-everywhere" {
        // The longest of their requests, because the client's number is part of a request.
        kind.clients.max(spec.request(999).len())
    } else {
        kind.clients
    }
}

/// Returns scripts of clients that all send their first piece before any of them sends its second.
fn crowd(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let cut = if case.spec.may_cut() {
        Cut::At(7, BETWEEN)
    } else {
        Cut::Whole
    };
    let peer_script = |client| {
        PeerScript::new(vec![Action::Converse {
            script: case.spec.scripts(client),
            requests: case.spec.requests(2),
            cut,
        }])
    };
    (500..550).map(peer_script).collect()
}

/// Returns scripts of clients that send two requests in two pieces. The second piece may begin with the end of the
/// first request or within the second request. So a server that takes each read for one request, or for the beginning
/// of one, fails here.
fn joined_and_cut(case: &CheckCase<'_>) -> Vec<PeerScript> {
    let length = |client| case.spec.all_at_once(client, None, 2).0.len();
    let peer_script = |at| {
        PeerScript::new(vec![
            Action::Converse {
                script: case.spec.pipeline(at, None, 2),
                requests: 1,
                cut: Cut::At(at, BETWEEN),
            },
            Action::HalfClose,
            Action::ExpectFin,
        ])
    };
    (1..length(999)).map(peer_script).collect()
}

/// Returns the script of a client that asks for more than the buffers of both sides hold. With `finish`, it ends its
/// side as soon as it has sent all requests.
pub(super) fn late_readers(case: &CheckCase<'_>, finish: bool) -> Vec<PeerScript> {
    let owed = owed();
    let mut spec = case.spec.clone();
    let (size, reply) = match spec.protocol.name {
        "bulk" => (None, 3 * 64 * 1024),
        // Other pages are known only of our own models.
        "http" if case.target.model().is_some() => {
            let body = b"Hello World!\n".repeat(1024);
            spec.page = Arc::new(Page {
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
            script: spec.pipeline(client, size, requests),
            still: Duration::from_millis(if case.quick { 50 } else { 100 }),
            finish,
        };
        let end = finish.then_some(Action::ExpectFin);
        PeerScript {
            // Small buffers at the client, so that the server's buffer has to hold the replies.
            small_buffers: true,
            ..PeerScript::new([overfill].into_iter().chain(end).collect())
        }
    };
    // One client is enough, and with small buffers it takes its time.
    vec![peer_script(if finish { 701 } else { 700 })]
}

/// Returns the number of bytes that the server must owe: 2 MiB more than the kernel's send buffer of a socket holds by
/// default, within the limits of what can be requested and checked in a moment.
fn owed() -> usize {
    const LEAST: usize = 6 << 20;
    const MOST: usize = 32 << 20;
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_default();
    let most = limits.split_ascii_whitespace().nth(2);
    let most: usize = most.and_then(|most| most.parse().ok()).unwrap_or(0);
    most.saturating_add(2 << 20).clamp(LEAST, MOST)
}
