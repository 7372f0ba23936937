//! Checks of work before replies: it is done once for each request, in order, and a request that only waits delays no
//! other peer.

use std::time::{Duration, Instant};

use super::server::{Server, all_served};
use super::serving::Serving;
use super::{ModelUnderTest, probe};
use crate::{Limits, Offload, Tally};

/// Each kind of work between two other requests: the earlier reply does not wait for the work, the later one does.
pub fn work_delays_its_own_and_later_replies(target: &ModelUnderTest) {
    for (request, shortest) in [
        (probe::WAIT, probe::WAITED),
        (probe::COMPUTE, probe::COMPUTED),
        (probe::BLOCK, probe::BLOCKED),
    ] {
        let server = Server::start(target, Serving::Probes, target.limits());
        let client = server.connect();
        let since = Instant::now();
        client.send(&[b"a", request, b"b"].concat());
        client.finish_sending();
        client.expect(b"a");
        client.expect(request);
        assert!(since.elapsed() >= shortest, "replied too early");
        client.expect(b"b");
        client.expect_end();
        assert_eq!(server.stop(), all_served(1));
    }
}

/// One peer waits for a very long time. Other peers are served meanwhile. When the waiting peer resets, its slot is
/// free at the latest when the server ends.
pub fn long_wait_delays_no_other_peer(target: &ModelUnderTest) {
    let limits = Limits {
        drain: Duration::from_millis(300),
        ..target.limits()
    };
    let server = Server::start(target, Serving::Probes, limits);
    let waiting = server.connect();
    waiting.ask(&[b"a", probe::LONG_WAIT].concat(), b"a");
    let other = server.connect();
    if target.one_at_a_time() {
        assert!(
            !other.has_input(),
            "served although the model serves one peer at a time by design"
        );
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
    // A second wait does not queue behind the first.
    other.ask(probe::WAIT, probe::WAIT);
    other.leave();
    assert!(
        !waiting.has_input(),
        "the reply came before the wait was over"
    );
    let expected = Tally {
        accepted: 2,
        served: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(server.stop(), expected);
    waiting.expect_end_or_reset();
}

/// Many peers wait at the same time, and each receives its own reply.
pub fn concurrent_waits_are_all_answered(target: &ModelUnderTest) {
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

/// A wait of the server is not an idle time of the peer: the peer is not closed as idle during the wait or just after
/// it.
pub fn wait_does_not_count_as_idle(target: &ModelUnderTest) {
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

/// After a stop, the server completes the wait of an earlier request and sends the reply.
pub fn wait_continues_during_the_drain(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.ask(&[b"a", probe::WAIT, b"x"].concat(), b"a");
    let since = Instant::now();
    server.request_stop();
    client.expect(&[probe::WAIT, b"x"].concat());
    assert!(
        since.elapsed() >= probe::WAITED / 2,
        "the reply came too early"
    );
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// After a stop, a wait that is longer than the drain is cut at the deadline.
pub fn long_wait_is_cut_at_the_deadline(target: &ModelUnderTest) {
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

/// A peer resets while the server works for it. The server notices at once, or when it sends the reply.
pub fn reset_during_work_is_counted(target: &ModelUnderTest) {
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

/// One peer sends several requests at once, and each of them blocks the thread. Other peers of the thread are served in
/// between.
pub fn burst_of_work_lets_other_peers_run(target: &ModelUnderTest) {
    if target.one_at_a_time() {
        return;
    }
    let limits = match target.model.offload {
        // With one worker, the peer that occupies it delays the others by design.
        Offload::Needless(_) => target.limits(),
        _ => target.limits_of_one_acceptor(),
    };
    let server = Server::start(target, Serving::Probes, limits);
    let (busy, other) = (server.connect(), server.connect());
    other.ask(b"x", b"x");
    let blocks = probe::BLOCK.repeat(3);
    busy.ask(&[b"a".as_slice(), &blocks].concat(), b"a");
    other.ask(b"x", b"x");
    assert!(
        busy.readable_bytes(3) < 3,
        "the whole burst was answered before the other peer"
    );
    other.leave();
    busy.expect(&blocks);
    busy.leave();
    assert_eq!(server.stop(), all_served(2));
}

/// One request blocks a thread. If the model offloads such work, or if no other peer uses the thread, other peers are
/// served meanwhile. If the model can't offload it, they are served afterwards.
pub fn blocking_work_is_offloaded_where_possible(target: &ModelUnderTest) {
    let never_offloads = matches!(target.model.offload, Offload::Nowhere(_));
    let limits = Limits {
        offload: !never_offloads,
        ..match target.model.offload {
            Offload::Needless(_) => target.limits(),
            // One worker, so that no other worker can serve the others.
            _ => target.limits_of_one_acceptor(),
        }
    };
    let server = Server::start(target, Serving::Probes, limits);
    let blocked = server.connect();
    blocked.ask(&[b"a", probe::BLOCK].concat(), b"a");
    let other = server.connect();
    let last = target.one_at_a_time();
    if last {
        // The other peer is served when the first has left.
        blocked.finish_sending();
    }
    for _ in 0..10 {
        other.ask(b"x", b"x");
    }
    let answered = blocked.has_input();
    assert_eq!(
        answered, never_offloads,
        "whether the blocked peer was answered before the others"
    );
    other.leave();
    blocked.expect(probe::BLOCK);
    if !last {
        blocked.finish_sending();
    }
    blocked.expect_end();
    assert_eq!(server.stop(), all_served(2));
}
