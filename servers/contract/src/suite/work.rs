//! Work before replies: done once for each, in order, and whoever only waits keeps nobody else.

use std::time::{Duration, Instant};

use super::server::{Server, all_served};
use super::serving::Serving;
use super::{ModelUnderTest, probe};
use crate::{Limits, Offload, Tally};

/// Each kind, between other replies: what was answered before does not wait for it, what comes after does.
pub fn before_the_reply(target: &ModelUnderTest) {
    for (asked, least) in [
        (probe::WAIT, probe::WAITED),
        (probe::COMPUTE, probe::COMPUTED),
        (probe::BLOCK, probe::BLOCKED),
    ] {
        let server = Server::start(target, Serving::Probes, target.limits());
        let client = server.connect();
        let since = Instant::now();
        client.send(&[b"a", asked, b"b"].concat());
        client.finish_sending();
        client.expect(b"a");
        client.expect(asked);
        assert!(since.elapsed() >= least, "replied too early");
        client.expect(b"b");
        client.expect_end();
        assert_eq!(server.stop(), all_served(1));
    }
}

/// One waits for very long. The others are served, and when he has broken off, his place is free at the latest when
/// the server ends.
pub fn a_wait_keeps_nobody_else(target: &ModelUnderTest) {
    let limits = Limits {
        drain: Duration::from_millis(300),
        ..target.limits()
    };
    let server = Server::start(target, Serving::Probes, limits);
    let waiting = server.connect();
    waiting.ask(&[b"a", probe::LONG_WAIT].concat(), b"a");
    let other = server.connect();
    if target.one_at_a_time() {
        assert!(!other.has_heard_something(), "not by design");
        waiting.reset();
        other.ask(b"x", b"x");
        other.leave();
        let tally = server.stop();
        assert_eq!((tally.accepted, tally.served, tally.reset), (2, 1, 1));
        return;
    }
    for _ in 0..100 {
        other.ask(b"x", b"x");
    }
    // Nor is one wait behind the other.
    other.ask(probe::WAIT, probe::WAIT);
    other.leave();
    assert!(!waiting.has_heard_something(), "did not wait");
    let expected = Tally {
        accepted: 2,
        served: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(server.stop(), expected);
    waiting.expect_end_or_reset();
}

/// Many wait at the same time, each for its own.
pub fn many_wait(target: &ModelUnderTest) {
    const PEERS: u64 = 50;
    let server = Server::start(target, Serving::Probes, target.limits());
    let peers: Vec<_> = (0..PEERS).map(|_| server.connect()).collect();
    for (number, peer) in peers.iter().enumerate() {
        if target.one_at_a_time() && number > 3 {
            peer.send(b"x");
        } else {
            peer.send(&[probe::WAIT, b"x"].concat());
        }
        peer.finish_sending();
    }
    for (number, peer) in peers.iter().enumerate() {
        if !target.one_at_a_time() || number <= 3 {
            peer.expect(probe::WAIT);
        }
        peer.expect(b"x");
        peer.expect_end();
    }
    assert_eq!(server.stop(), all_served(PEERS));
}

/// The server is slow then, not the peer: it is not closed as idle, neither meanwhile nor just after.
pub fn a_wait_is_not_idleness(target: &ModelUnderTest) {
    let limits = Limits {
        idle_timeout: probe::WAITED / 2,
        ..target.limits()
    };
    let server = Server::start(target, Serving::Probes, limits);
    let client = server.connect();
    client.send(&[probe::WAIT, probe::WAIT, b"x"].concat());
    client.finish_sending();
    client.expect(&[probe::WAIT, probe::WAIT, b"x"].concat());
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// After a stop, what was asked before is waited for, and answered.
pub fn a_wait_goes_on_during_the_drain(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.ask(&[b"a", probe::WAIT, b"x"].concat(), b"a");
    let since = Instant::now();
    server.tell_to_stop();
    client.expect(&[probe::WAIT, b"x"].concat());
    assert!(since.elapsed() >= probe::WAITED / 2, "did not wait");
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// After a stop, who waits for longer than the drain is cut at the deadline.
pub fn a_long_wait_is_cut_at_the_deadline(target: &ModelUnderTest) {
    let drain = Duration::from_millis(300);
    let limits = Limits {
        drain,
        ..target.limits()
    };
    let server = Server::start(target, Serving::Probes, limits);
    let client = server.connect();
    client.ask(&[b"a", probe::LONG_WAIT].concat(), b"a");
    let since = Instant::now();
    let tally = server.stop();
    assert!(since.elapsed() >= drain, "cut too early");
    let cut = Tally {
        accepted: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(tally, cut);
    client.expect_end_or_reset();
}

/// A peer that breaks off while the server works for it: seen at once, or when the reply is to be sent.
pub fn reset_meanwhile(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.ask(&[b"a", probe::WAIT].concat(), b"a");
    client.reset();
    let other = server.connect();
    other.ask(&[probe::WAIT, b"x"].concat(), &[probe::WAIT, b"x"].concat());
    other.leave();
    let expected = Tally {
        accepted: 2,
        served: 1,
        reset: 1,
        ..Tally::default()
    };
    assert_eq!(server.stop(), expected);
}

/// One asks for much at once, and each answer keeps the thread. Others who share it have their turn in between.
pub fn much_at_once(target: &ModelUnderTest) {
    if target.one_at_a_time() {
        return;
    }
    let limits = match target.model.offload {
        // With one worker, who holds it keeps the others by design.
        Offload::Needless(_) => target.limits(),
        _ => target.limits_of_one_acceptor(),
    };
    let server = Server::start(target, Serving::Probes, limits);
    let (much, other) = (server.connect(), server.connect());
    other.ask(b"x", b"x");
    let blocks = probe::BLOCK.repeat(3);
    much.ask(&[b"a".as_slice(), &blocks].concat(), b"a");
    other.ask(b"x", b"x");
    assert!(much.has_heard(3) < 3, "all of it first");
    other.leave();
    much.expect(&blocks);
    much.leave();
    assert_eq!(server.stop(), all_served(2));
}

/// One keeps a thread. Where that is moved away (or is nobody else's thread), the others are served meanwhile; where it
/// can't be, they are served afterwards.
pub fn offloaded(target: &ModelUnderTest) {
    let nowhere = matches!(target.model.offload, Offload::Nowhere(_));
    let limits = Limits {
        offload: !nowhere,
        ..match target.model.offload {
            Offload::Needless(_) => target.limits(),
            // So that there is nobody else to serve the others.
            _ => target.limits_of_one_acceptor(),
        }
    };
    let server = Server::start(target, Serving::Probes, limits);
    let blocked = server.connect();
    blocked.ask(&[b"a", probe::BLOCK].concat(), b"a");
    let other = server.connect();
    let last = target.one_at_a_time();
    if last {
        // It is served when he has left.
        blocked.finish_sending();
    }
    for _ in 0..10 {
        other.ask(b"x", b"x");
    }
    let heard = blocked.has_heard_something();
    assert_eq!(heard, nowhere, "answered when the others were");
    other.leave();
    blocked.expect(probe::BLOCK);
    if !last {
        blocked.finish_sending();
    }
    blocked.expect_end();
    assert_eq!(server.stop(), all_served(2));
}
