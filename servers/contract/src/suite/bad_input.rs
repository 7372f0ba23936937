//! 7. Over-long input gets a clear error and a close; garbage never panics.

use std::thread;
use std::time::Instant;

use protocol::{CloseReason, PROTOCOLS, Protocol};

use super::oracle::{Oracle, replies, requests};
use super::server::{Server, all_served};
use super::serving::Serving;
use super::{GUARD, ModelUnderTest, eventually};
use crate::{LINGER, Tally};

/// What a protocol refuses, a line of `length` bytes behind good ones, with what it says to all that; nothing for
/// those that take everything.
fn refused(length: usize, end: &[u8]) -> Vec<(&'static Protocol, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    for protocol in PROTOCOLS {
        let mut input = requests(protocol, 8, 2, None).concat();
        input.resize(input.len() + length, b'x');
        input.extend_from_slice(end);
        let mut oracle = Oracle::new(protocol);
        let said = oracle.receive(&input);
        if oracle.over() == Some(CloseReason::Refused) {
            all.push((protocol, input, said));
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

/// Hardly more than a line may have; and so much more that a server says no before it has read it all.
const LENGTHS: [usize; 2] = [70_000, 120_000];

/// A line too long, with its end and without: earlier replies, the error, the end; and no reset before that.
pub fn a_line_too_long(target: &ModelUnderTest) {
    for (length, end) in [
        (LENGTHS[0], &b"\n"[..]),
        (LENGTHS[0], b""),
        (LENGTHS[1], b"\n"),
        (LENGTHS[1], b""),
    ] {
        for (protocol, input, said) in refused(length, end) {
            let server = serve(target, protocol);
            let client = server.connect();
            client.send(&input);
            client.expect(&said);
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

/// A peer that does not care about the refusal and sends as fast as it can: it can read why for as long as the server
/// lingers, and then is closed all the same. Others are served meanwhile.
pub fn a_peer_that_goes_on_after_the_refusal(target: &ModelUnderTest) {
    let (protocol, input, said) = refused(LENGTHS[1], b"").remove(0);
    let server = serve(target, protocol);
    let client = server.connect();
    let since = Instant::now();
    client.send(&input);
    let more = vec![b'x'; 256 * 1024];
    let flood = || {
        while client.try_send(&more).is_ok() {
            assert!(since.elapsed() < GUARD, "not closed");
        }
        assert!(since.elapsed() >= LINGER, "closed too early to be read");
    };
    thread::scope(|scope| {
        // Two at a time are always faster than one who reads.
        let floods = [scope.spawn(flood), scope.spawn(flood)];
        client.expect(&said);
        client.expect_end();
        let request = requests(protocol, 9, 1, None).concat();
        for _ in 0..2 {
            let other = server.connect();
            other.ask(&request, &replies(protocol, &request));
            other.leave();
        }
        for flood in floods {
            flood.join().expect("a flood that failed");
        }
    });
    assert_eq!(server.stop(), one_refused(2));
}

/// What had arrived before the refusal is read before the server closes: closing on unread input would send RST, and
/// take the error away from a peer that is slow to read it.
pub fn what_was_sent_before_the_refusal_is_drained(target: &ModelUnderTest) {
    for (protocol, input, _) in refused(400_000, b"") {
        let server = serve(target, protocol);
        let client = server.connect();
        let mut oracle = Oracle::new(protocol);
        // A connection that has carried much has a window so large that the whole line arrives though nobody reads it.
        let much = requests(protocol, 14, 2000, Some(1000)).concat();
        thread::scope(|scope| {
            scope.spawn(|| client.send(&much));
            client.expect(&oracle.receive(&much));
        });
        let said = oracle.receive(&input);
        client.send(&input);
        eventually("it is told why", || {
            client.has_heard(said.len()) == said.len()
        });
        // What is still on its way when the server has left is another matter: nobody is there to read it.
        eventually("all has arrived", || client.all_has_arrived());
        let tally = server.stop();
        assert!(client.error().is_none(), "reset before it could read");
        client.expect(&said);
        client.expect_end();
        assert_eq!(tally, one_refused(0), "{}", protocol.name);
    }
}

/// Random bytes, also those that no text has: whatever the protocol says to them, and nobody else notices.
pub fn garbage(target: &ModelUnderTest) {
    let mut random = fastrand::Rng::with_seed(7);
    for protocol in PROTOCOLS {
        let server = serve(target, protocol);
        let mut expected = all_served(65);
        for _ in 0..64 {
            let most = 1 << random.u32(0..15);
            let input: Vec<u8> = (0..random.usize(0..most)).map(|_| random.u8(..)).collect();
            let client = server.connect();
            client.send(&input);
            client.finish_sending();
            let mut oracle = Oracle::new(protocol);
            let mut said = oracle.receive(&input);
            said.extend(oracle.hear_the_end());
            client.expect(&said);
            client.expect_end();
            if oracle.over() == Some(CloseReason::Refused) {
                // Some protocols answer whatever comes, others know what is none of theirs.
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
