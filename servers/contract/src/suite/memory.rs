//! Checks of `memory`: a peer that sends and never reads costs bounded memory, and delays only itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use protocol::PROTOCOLS;

use super::oracle::{Oracle, replies, requests};
use super::server::{Server, all_served};
use super::serving::Serving;
use super::{GUARD, ModelUnderTest, eventually, probe};

/// Upper bound, in bytes, of the input that a server takes from a peer that never reads. The socket buffers are most of
/// it; the server adds no more than a read buffer and the session.
const MOST: usize = 16 << 20;

/// A peer sends until the server takes no more. Other peers are served meanwhile. When the peer reads at last, it
/// receives all replies.
pub fn input_of_peer_that_never_reads_is_bounded(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        if protocol.requests_per_connection.is_some() {
            continue;
        }
        let some = requests(protocol, 6, 1024, Some(1024)).concat();
        if some.len() < 32 * 1024 {
            // A request of `bulk` has a few bytes and a large reply: the check would need hundreds of megabytes of
            // replies.
            continue;
        }
        let server = Server::start(target, Serving::protocol(protocol), target.limits());
        let input = some.repeat(MOST / some.len() + 1);
        let blocked = server.connect();
        let sent = blocked.send_until_stuck(&input);
        assert!(
            sent < MOST,
            "{}: the server took {MOST} bytes from a peer that never reads",
            protocol.name
        );

        let other = server.connect();
        let request = requests(protocol, 7, 1, None).concat();
        let reply = Oracle::new(protocol).receive(&request);
        other.send(&request);
        if target.one_at_a_time() {
            assert!(
                !other.has_input(),
                "served although the model serves one peer at a time by design"
            );
        } else {
            other.expect(&reply);
        }

        blocked.finish_sending();
        blocked.expect(&replies(protocol, &input[..sent]));
        blocked.expect_end();
        if target.one_at_a_time() {
            other.expect(&reply);
        }
        other.leave();
        assert_eq!(server.stop(), all_served(2), "{}", protocol.name);
    }
}

/// A peer reads a large reply in small pieces, and another peer receives all its replies in between.
pub fn slow_reader_delays_no_other_peer(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let slow = server.connect();
    slow.send(probe::BODY);
    let other = server.connect();
    for piece in probe::body().chunks(128 * 1024) {
        slow.expect(piece);
        if !target.one_at_a_time() {
            other.ask(b"x", b"x");
        }
    }
    slow.leave();
    other.ask(b"x", b"x");
    other.leave();
    assert_eq!(server.stop(), all_served(2));
    // The other peer is also served while the first peer reads nothing of its reply.
    if !target.one_at_a_time() {
        let server = Server::start(target, Serving::Probes, target.limits());
        let (blocked, other) = (server.connect(), server.connect());
        blocked.ask(probe::BODY, &probe::body()[..1]);
        for _ in 0..100 {
            other.ask(b"x", b"x");
        }
        thread::scope(|scope| {
            scope.spawn(|| blocked.expect(&probe::body()[1..]));
            for _ in 0..100 {
                other.ask(b"x", b"x");
            }
        });
        blocked.leave();
        other.leave();
        assert_eq!(server.stop(), all_served(2));
    }
}

/// A peer sends faster than the server can read, so its socket is never empty. Another peer is served all the same.
pub fn flooding_peer_delays_no_other_peer(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let (flooding, other) = (server.connect(), server.connect());
    let over = AtomicBool::new(false);
    let since = Instant::now();
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let flood = probe::FLOOD.repeat(64 * 1024);
            // The time limit ends this thread after a failure, when `over` is never set.
            while !over.load(Ordering::Relaxed) && since.elapsed() < 2 * GUARD {
                flooding.send(&flood);
                sent.fetch_add(flood.len(), Ordering::Relaxed);
            }
            flooding.leave();
        });
        eventually("the peer has sent a mebibyte", || {
            sent.load(Ordering::Relaxed) > 1 << 20
        });
        for _ in 0..3 {
            if !target.one_at_a_time() {
                other.ask(b"x", b"x");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    other.ask(b"x", b"x");
    other.leave();
    assert_eq!(server.stop(), all_served(2));
}
