//! Checks of `half-close`: after FIN the server sends everything owed and closes; RST ends that connection only.

use std::thread;

use protocol::PROTOCOLS;

use super::oracle::{replies, requests};
use super::server::{Server, all_served};
use super::serving::{DropNotices, Serving};
use super::{ModelUnderTest, probe};
use crate::{READ_BUFFER, Tally};

/// A client sends requests, a last line without its newline, and FIN at once. All of them are answered.
pub fn last_line_without_newline_is_answered_at_fin(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        let server = Server::start(target, Serving::protocol(protocol), target.limits());
        let whole = requests(protocol, 3, 3, None).concat();
        for input in [&whole[..], b"", b"a", &[&whole[..], b"the last"].concat()] {
            let client = server.connect();
            client.send(input);
            client.finish_sending();
            client.expect(&replies(protocol, input));
            client.expect_end();
        }
        assert_eq!(server.stop(), all_served(4), "{}", protocol.name);
    }
}

/// FIN comes directly after an input that is larger than one read of the server, or exactly as large.
pub fn input_beyond_one_read_is_answered_at_fin(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        // A server that closes after the first bytes would reset the connection because of the unread ones.
        if protocol.requests_per_connection.is_some() {
            continue;
        }
        let server = Server::start(target, Serving::protocol(protocol), target.limits());
        let sizes = [
            READ_BUFFER - 1,
            READ_BUFFER,
            READ_BUFFER + 1,
            2 * READ_BUFFER,
            50_000,
            1_000_000,
        ];
        for size in sizes {
            let mut input = requests(protocol, 4, size / 128 + 1, Some(128)).concat();
            input.truncate(size);
            let client = server.connect();
            thread::scope(|scope| {
                scope.spawn(|| {
                    client.send(&input);
                    client.finish_sending();
                });
                client.expect(&replies(protocol, &input));
                client.expect_end();
            });
        }
        let served = all_served(sizes.len() as u64);
        assert_eq!(server.stop(), served, "{}", protocol.name);
    }
}

fn one_reset(served: u64) -> Tally {
    Tally {
        accepted: served + 1,
        served,
        reset: 1,
        ..Tally::default()
    }
}

/// Runs a server while one peer resets its connection. Checks that another peer is served: before the reset, if the
/// model can serve two peers at a time, and after it. Returns the tally.
fn one_peer_resets(target: &ModelUnderTest, reset_one: impl FnOnce(&Server)) -> Tally {
    let notices = DropNotices::new();
    let serving = Serving::ProbesWithDropNotice(notices.address());
    let server = Server::start(target, serving, target.limits());
    let other = (!target.one_at_a_time()).then(|| server.connect());
    if let Some(other) = &other {
        other.ask(b"x", b"x");
    }
    reset_one(&server);
    notices.wait_for_one();
    let other = other.unwrap_or_else(|| server.connect());
    other.ask(b"y", b"y");
    other.leave();
    server.stop()
}

/// RST from a peer to which no reply is owed.
pub fn reset_between_requests_ends_one_connection(target: &ModelUnderTest) {
    let tally = one_peer_resets(target, |server| {
        let client = server.connect();
        client.ask(b"a", b"a");
        client.reset();
    });
    assert_eq!(tally, one_reset(1));
}

/// RST directly after a request, before the server has seen the request or while it replies. A server that waits for
/// more input notices the RST. A protocol that closes after its reply may have sent everything and closed before.
pub fn reset_right_after_request_is_counted(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        let server = Server::start(
            target,
            Serving::protocol(protocol),
            target.limits_of_one_acceptor(),
        );
        let request = requests(protocol, 13, 1, None).concat();
        for _ in 0..20 {
            let client = server.connect();
            client.send(&request);
            client.reset();
        }
        // Peers are accepted in the order in which they connected: when this one is served, all others were accepted.
        let other = server.connect();
        other.ask(&request, &replies(protocol, &request));
        other.leave();
        let tally = server.stop();
        let served = if protocol.requests_per_connection.is_some() {
            tally.served
        } else {
            1
        };
        let expected = Tally {
            accepted: 21,
            served,
            reset: 21 - served,
            ..Tally::default()
        };
        assert_eq!(tally, expected, "{}", protocol.name);
    }
}

/// RST from a peer that has sent half a request. Another peer is served afterwards.
pub fn reset_in_mid_request_ends_one_connection(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        if protocol.requests_per_connection.is_some() {
            continue;
        }
        let server = Server::start(target, Serving::protocol(protocol), target.limits());
        let request = requests(protocol, 5, 1, None).concat();
        let client = server.connect();
        client.ask(&request, &replies(protocol, &request));
        client.send(b"half a li");
        client.reset();
        let other = server.connect();
        other.ask(&request, &replies(protocol, &request));
        other.leave();
        assert_eq!(server.stop(), one_reset(1), "{}", protocol.name);
    }
}

/// RST from a peer to which the server owes more than the socket buffers hold.
pub fn reset_in_mid_reply_ends_one_connection(target: &ModelUnderTest) {
    let tally = one_peer_resets(target, |server| {
        let client = server.connect();
        client.ask(probe::BODY, &probe::body()[..1]);
        client.reset();
    });
    assert_eq!(tally, one_reset(1));
}

/// FIN, and then RST while the server sends the reply.
pub fn reset_after_fin_ends_one_connection(target: &ModelUnderTest) {
    let tally = one_peer_resets(target, |server| {
        let client = server.connect();
        client.send(probe::BODY);
        client.finish_sending();
        client.expect(&probe::body()[..1]);
        client.reset();
    });
    assert_eq!(tally, one_reset(1));
}
