//! 6. A peer that sends and never reads costs bounded memory, and delays only itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use protocol::PROTOCOLS;

use super::oracle::{Oracle, replies, requests};
use super::server::{Server, all_served};
use super::serving::Serving;
use super::{GUARD, ModelUnderTest, eventually, probe};

/// What a peer can send that never reads. The sockets' buffers are most of it; the server adds no more than a read
/// buffer and the session.
const MOST: usize = 16 << 20;

/// A peer sends until nothing more is taken. Others are served meanwhile; and when it reads at last, all is there.
pub fn a_peer_that_never_reads(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        if protocol.requests_per_connection.is_some() {
            continue;
        }
        let some = requests(protocol, 6, 1024, Some(1024)).concat();
        if some.len() < 32 * 1024 {
            // `bulk` asks for much with a few bytes: it would take hundreds of megabytes of replies.
            continue;
        }
        let server = Server::start(target, Serving::protocol(protocol), target.limits());
        let input = some.repeat(MOST / some.len() + 1);
        let stuck = server.connect();
        let sent = stuck.send_until_stuck(&input);
        assert!(sent < MOST, "{} took all", protocol.name);

        let other = server.connect();
        let request = requests(protocol, 7, 1, None).concat();
        let reply = Oracle::new(protocol).receive(&request);
        other.send(&request);
        if target.one_at_a_time() {
            assert!(!other.has_heard_something(), "not by design");
        } else {
            other.expect(&reply);
        }

        stuck.finish_sending();
        stuck.expect(&replies(protocol, &input[..sent]));
        stuck.expect_end();
        if target.one_at_a_time() {
            other.expect(&reply);
        }
        other.leave();
        assert_eq!(server.stop(), all_served(2), "{}", protocol.name);
    }
}

/// A peer takes a big reply little by little; another has every request answered in between.
pub fn a_slow_reader(target: &ModelUnderTest) {
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
    // Not read by anybody, a reply is taken by nobody: the other one is served then, too.
    if !target.one_at_a_time() {
        let server = Server::start(target, Serving::Probes, target.limits());
        let (stuck, other) = (server.connect(), server.connect());
        stuck.ask(probe::BODY, &probe::body()[..1]);
        for _ in 0..100 {
            other.ask(b"x", b"x");
        }
        thread::scope(|scope| {
            scope.spawn(|| stuck.expect(&probe::body()[1..]));
            for _ in 0..100 {
                other.ask(b"x", b"x");
            }
        });
        stuck.leave();
        other.leave();
        assert_eq!(server.stop(), all_served(2));
    }
}

/// A peer sends faster than the server can take it, so its socket is never empty. Others have their turn all the same.
pub fn a_flood(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let (flooding, other) = (server.connect(), server.connect());
    let over = AtomicBool::new(false);
    let since = Instant::now();
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let flood = probe::FLOOD.repeat(64 * 1024);
            // (After a failure nobody says that it is over.)
            while !over.load(Ordering::Relaxed) && since.elapsed() < 2 * GUARD {
                flooding.send(&flood);
                sent.fetch_add(flood.len(), Ordering::Relaxed);
            }
            flooding.leave();
        });
        eventually("the flood has come", || {
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
