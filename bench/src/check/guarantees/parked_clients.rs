//! Peers that hold a place for as long as they are told to: what limits are checked with.

use client::{Action, Cut, PeerScript};

use super::super::case::{CheckCase, CheckFailure, not_applicable};

/// Asks once and has the reply, and waits for a signal; asks again, ends its side and hears the server's end. Who waits for
/// its signal has a place.
pub(super) fn parked_client(
    case: &CheckCase<'_>,
    client: usize,
) -> Result<PeerScript, CheckFailure> {
    if case.asked.protocol.requests_per_connection.is_some() {
        return not_applicable(format!(
            "over {} the server ends every conversation itself, so nobody can keep a place",
            case.asked.protocol.name
        ));
    }
    let [first, second] = two_requests(case, client);
    Ok(PeerScript::new(vec![
        first,
        Action::WaitForSignal,
        second,
        Action::HalfClose,
        Action::ExpectFin,
    ]))
}

/// Some of them.
pub(super) fn parked_clients(
    case: &CheckCase<'_>,
    clients: std::ops::Range<usize>,
) -> Result<Vec<PeerScript>, CheckFailure> {
    clients.map(|client| parked_client(case, client)).collect()
}

/// Two requests of one conversation, each with its reply.
pub(super) fn two_requests(case: &CheckCase<'_>, client: usize) -> [Action; 2] {
    let mut asks = requests(case, client);
    [0, 1].map(|_| asks())
}

/// One request after the other of one conversation, each with its reply.
pub(super) fn requests(case: &CheckCase<'_>, client: usize) -> impl FnMut() -> Action {
    let asked = case.asked.clone();
    // Where a reply does not depend on the requests before, each is a conversation of its own.
    let apart = !asked.deterministic() || asked.protocol.name == "bulk";
    let (mut all, mut said, mut number) = (Vec::new(), 0, 0);
    move || {
        if apart {
            return Action::Converse {
                script: asked.scripts(client),
                requests: 1,
                cut: Cut::Whole,
            };
        }
        let mut request = Vec::new();
        asked.script(client, number, None).ask(&mut request);
        number += 1;
        all.extend_from_slice(&request);
        let replies = asked.replies(&all, false).bytes;
        let reply = replies[said..].to_vec();
        said = replies.len();
        Action::ask(request, reply)
    }
}
