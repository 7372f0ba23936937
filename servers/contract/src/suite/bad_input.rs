//! Checks of `bad-input`: over-long input gets a clear error and a close; garbage never causes a panic.

use std::thread;
use std::time::Instant;

use protocol::{CloseReason, PROTOCOLS, Protocol};

use super::oracle::{Oracle, replies, requests};
use super::server::{Server, all_served};
use super::serving::Serving;
use super::{GUARD, ModelUnderTest, eventually};
use crate::{LINGER, Tally};

/// Returns, for each protocol with a limit, an input that it refuses and the replies to that input. The input is a line
/// of `length` bytes after valid requests. Protocols that accept everything are left out.
fn refused(length: usize, end: &[u8]) -> Vec<(&'static Protocol, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    for protocol in PROTOCOLS {
        let mut input = requests(protocol, 8, 2, None).concat();
        input.resize(input.len() + length, b'x');
        input.extend_from_slice(end);
        let mut oracle = Oracle::new(protocol);
        let reply = oracle.receive(&input);
        if oracle.over() == Some(CloseReason::Refused) {
            all.push((protocol, input, reply));
        }
    }
    assert!(!all.is_empty(), "no protocol has a limit");
    all
}

fn serve(target: &ModelUnderTest, protocol: &'static Protocol) -> Server {
    Server::start(target, Serving::protocol(protocol), target.limits())
}

fn one_refused(served: u64) -> Tally {
    Tally {
        accepted: served + 1,
        served,
        refused: 1,
        ..Tally::default()
    }
}

/// Lengths of a refused line, in bytes: slightly above the limit, and so far above it that a server refuses the line
/// before it has read all of it.
const LENGTHS: [usize; 2] = [70_000, 120_000];

/// A peer sends a line that is too long, with and without its newline. It receives the earlier replies, the error and
/// FIN, and no reset before them.
pub fn overlong_line_is_refused(target: &ModelUnderTest) {
    for (length, end) in [
        (LENGTHS[0], &b"\n"[..]),
        (LENGTHS[0], b""),
        (LENGTHS[1], b"\n"),
        (LENGTHS[1], b""),
    ] {
        for (protocol, input, reply) in refused(length, end) {
            let server = serve(target, protocol);
            let client = server.connect();
            client.send(&input);
            client.expect(&reply);
            client.expect_end();
            drop(client);
            let other = server.connect();
            let request = requests(protocol, 9, 1, None).concat();
            other.ask(&request, &replies(protocol, &request));
            other.leave();
            assert_eq!(server.stop(), one_refused(1), "{}", protocol.name);
        }
    }
}

/// A peer ignores the refusal and sends as fast as it can. It can read the error for as long as the server lingers;
/// then the server closes the connection. Other peers are served meanwhile.
pub fn peer_sending_after_refusal_is_closed_after_linger(target: &ModelUnderTest) {
    let (protocol, input, reply) = refused(LENGTHS[1], b"").remove(0);
    let server = serve(target, protocol);
    let client = server.connect();
    let since = Instant::now();
    client.send(&input);
    let more = vec![b'x'; 256 * 1024];
    let flood = || {
        while client.try_send(&more).is_ok() {
            assert!(since.elapsed() < GUARD, "not closed");
        }
        assert!(since.elapsed() >= LINGER, "closed before LINGER had passed");
    };
    thread::scope(|scope| {
        // Two senders at a time are always faster than one reader.
        let floods = [scope.spawn(flood), scope.spawn(flood)];
        client.expect(&reply);
        client.expect_end();
        let request = requests(protocol, 9, 1, None).concat();
        for _ in 0..2 {
            let other = server.connect();
            other.ask(&request, &replies(protocol, &request));
            other.leave();
        }
        for flood in floods {
            flood.join().expect("a flooding thread failed");
        }
    });
    assert_eq!(server.stop(), one_refused(2));
}

/// The server reads all input that arrived before the refusal before it closes. A close with unread input would send
/// RST, and a peer that reads slowly would lose the error.
pub fn input_before_refusal_is_drained(target: &ModelUnderTest) {
    for (protocol, input, _) in refused(400_000, b"") {
        let server = serve(target, protocol);
        let client = server.connect();
        let mut oracle = Oracle::new(protocol);
        // After heavy traffic the receive window of a connection is so large that the whole line arrives unread.
        let traffic = requests(protocol, 14, 2000, Some(1000)).concat();
        thread::scope(|scope| {
            scope.spawn(|| client.send(&traffic));
            client.expect(&oracle.receive(&traffic));
        });
        let reply = oracle.receive(&input);
        client.send(&input);
        eventually("the error has arrived", || {
            client.readable_bytes(reply.len()) == reply.len()
        });
        // Bytes that arrive after the server has closed are not part of this check: no server reads them.
        client.wait_until_arrived();
        let tally = server.stop();
        assert!(
            client.error().is_none(),
            "reset before the peer could read the error"
        );
        client.expect(&reply);
        client.expect_end();
        assert_eq!(tally, one_refused(0), "{}", protocol.name);
    }
}

/// Random bytes, including bytes that no text contains, get exactly the reply of the protocol. Other peers are not
/// affected.
pub fn random_bytes_are_answered_or_refused(target: &ModelUnderTest) {
    let mut random = fastrand::Rng::with_seed(7);
    for protocol in PROTOCOLS {
        let server = serve(target, protocol);
        let mut expected = all_served(65);
        for _ in 0..64 {
            let longest = 1 << random.u32(0..15);
            let input: Vec<u8> = (0..random.usize(0..longest))
                .map(|_| random.u8(..))
                .collect();
            let client = server.connect();
            client.send(&input);
            client.finish_sending();
            let mut oracle = Oracle::new(protocol);
            let mut reply = oracle.receive(&input);
            reply.extend(oracle.end_of_input());
            client.expect(&reply);
            client.expect_end();
            if oracle.over() == Some(CloseReason::Refused) {
                // Some protocols answer any input, others refuse input that is not theirs.
                expected.served -= 1;
                expected.refused += 1;
            }
        }
        let other = server.connect();
        let request = requests(protocol, 9, 1, None).concat();
        other.ask(&request, &replies(protocol, &request));
        other.finish_sending();
        other.expect_end();
        assert_eq!(server.stop(), expected, "{}", protocol.name);
    }
}
