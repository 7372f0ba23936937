//! Parked clients: they hold a slot until they are signalled. Limits are checked with them.

use client::{Action, Cut, PeerScript};

use super::super::case::{CheckCase, CheckFailure, not_applicable};

/// Returns the script of a client that sends a request, has the reply and waits for a signal; then it sends another
/// request, ends its side and expects the server's FIN. A client that waits for its signal has a slot.
pub(super) fn parked_client(
    case: &CheckCase<'_>,
    client: usize,
) -> Result<PeerScript, CheckFailure> {
    if case.spec.protocol.requests_per_connection.is_some() {
        return not_applicable(format!(
            "over {} the server ends every conversation itself, so no client can keep a slot",
            case.spec.protocol.name
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

/// Returns the scripts of several parked clients.
pub(super) fn parked_clients(
    case: &CheckCase<'_>,
    clients: std::ops::Range<usize>,
) -> Result<Vec<PeerScript>, CheckFailure> {
    clients.map(|client| parked_client(case, client)).collect()
}

/// Returns two requests of one conversation, each with its reply.
pub(super) fn two_requests(case: &CheckCase<'_>, client: usize) -> [Action; 2] {
    let mut requests_of = requests(case, client);
    [0, 1].map(|_| requests_of())
}

/// Returns a function that returns the next request of one conversation, with its reply.
pub(super) fn requests(case: &CheckCase<'_>, client: usize) -> impl FnMut() -> Action {
    let spec = case.spec.clone();
    // If a reply does not depend on the requests before it, each request is generated as a conversation of its own.
    let independent = !spec.deterministic() || spec.protocol.name == "bulk";
    let (mut all, mut known, mut number) = (Vec::new(), 0, 0);
    move || {
        if independent {
            return Action::Converse {
                script: spec.scripts(client),
                requests: 1,
                cut: Cut::Whole,
            };
        }
        let mut request = Vec::new();
        spec.script(client, number, None).ask(&mut request);
        number += 1;
        all.extend_from_slice(&request);
        let replies = spec.replies(&all, false).bytes;
        let reply = replies[known..].to_vec();
        known = replies.len();
        Action::ask(request, reply)
    }
}
