//! 2. FIN: everything owed is sent, then closed. RST: that connection dies, nothing else.

use std::thread;

use protocol::PROTOCOLS;

use super::oracle::{replies, requests};
use super::server::{Server, all_served};
use super::serving::{Goodbyes, Serving};
use super::{ModelUnderTest, probe};
use crate::{READ_BUFFER, Tally};

/// Requests, a last line without its end, and FIN at once.
pub fn the_last_line_needs_no_end(target: &ModelUnderTest) {
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

/// The end of input comes right behind more than a server reads at once, or exactly as much.
pub fn more_than_one_read_before_the_end(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        // Whoever closes after the first bytes would reset the peer over the others.
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

/// A server for one who breaks off, and somebody else who is served all the same: before, if the model can, and after.
fn breaks_off(target: &ModelUnderTest, break_off: impl FnOnce(&Server)) -> Tally {
    let goodbyes = Goodbyes::new();
    let serving = Serving::ProbesThatSayGoodbye(goodbyes.address());
    let server = Server::start(target, serving, target.limits());
    let other = (!target.one_at_a_time()).then(|| server.connect());
    if let Some(other) = &other {
        other.ask(b"x", b"x");
    }
    break_off(&server);
    goodbyes.one();
    let other = other.unwrap_or_else(|| server.connect());
    other.ask(b"y", b"y");
    other.leave();
    server.stop()
}

/// RST from a peer that is owed nothing.
pub fn reset_between_requests(target: &ModelUnderTest) {
    let tally = breaks_off(target, |server| {
        let client = server.connect();
        client.ask(b"a", b"a");
        client.reset();
    });
    assert_eq!(tally, one_reset(1));
}

/// RST right behind a request: before the server has seen that, or while it answers. Whoever waits for more from the
/// peer comes to know; a protocol that closes after its reply may be gone by then, with everything sent.
pub fn reset_behind_the_request(target: &ModelUnderTest) {
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
        // They were accepted in the order in which they came: when this one is served, so they were.
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

/// RST from a peer that has sent half a request.
pub fn reset_in_mid_request(target: &ModelUnderTest) {
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

/// RST from a peer that is owed more than the buffers hold.
pub fn reset_in_mid_reply(target: &ModelUnderTest) {
    let tally = breaks_off(target, |server| {
        let client = server.connect();
        client.ask(probe::BODY, &probe::body()[..1]);
        client.reset();
    });
    assert_eq!(tally, one_reset(1));
}

/// FIN, and then RST while the reply is under way.
pub fn reset_after_the_end_of_input(target: &ModelUnderTest) {
    let tally = breaks_off(target, |server| {
        let client = server.connect();
        client.send(probe::BODY);
        client.finish_sending();
        client.expect(&probe::body()[..1]);
        client.reset();
    });
    assert_eq!(tally, one_reset(1));
}
