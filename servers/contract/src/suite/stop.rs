//! 8. Stop: what was asked is finished, idle peers are closed, the rest is cut at the drain deadline.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protocol::PROTOCOLS;

use super::client::TestClient;
use super::oracle::{Oracle, requests};
use super::server::{Server, all_served};
use super::serving::Serving;
use super::{GUARD, ModelUnderTest, eventually, probe};
use crate::{Limits, Tally, listen};

/// Without peers there is nothing to wait for.
pub fn nobody_is_there(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    assert_eq!(server.stop(), Tally::default());
}

/// A stop that came before the server did.
pub fn told_before_the_start(target: &ModelUnderTest) {
    let anywhere = ([127, 0, 0, 1], 0).into();
    let listener = listen(anywhere, 1, target.model.needs).expect("not listening");
    let server = Server::start_on(listener, target, Serving::Probes, target.limits(), true);
    let tally = server.ended().expect("the server failed");
    assert_eq!(tally, Tally::default());
}

/// Peers that are owed nothing see the end, at once.
pub fn idle_peers_are_closed(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let count = if target.one_at_a_time() { 1 } else { 5 };
    let clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
    for client in &clients {
        client.ask(b"x", b"x");
    }
    server.tell_to_stop();
    for client in &clients {
        client.expect_end();
    }
    assert_eq!(server.stop(), all_served(count));
}

/// Two reads' worth of requests, written just before the stop; to a server that waits for them, and to one that is
/// busy with a reply.
pub fn what_had_arrived_is_answered(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        if protocol.requests_per_connection.is_some() {
            continue;
        }
        let mut server = Server::start(target, Serving::protocol(protocol), target.limits());
        let client = server.connect();
        let mut oracle = Oracle::new(protocol);
        let first = requests(protocol, 10, 1, None).concat();
        client.ask(&first, &oracle.receive(&first));
        // On the loopback device what fits into the first window has arrived when write(2) returns.
        let burst = requests(protocol, 11, 300, Some(100)).concat();
        client.send(&burst);
        server.tell_to_stop();
        client.expect(&oracle.receive(&burst));
        client.expect_end();
        assert_eq!(server.stop(), all_served(1), "{}", protocol.name);
    }
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.ask(probe::BODY, &probe::body()[..1]);
    client.send(b"x");
    server.tell_to_stop();
    client.expect(&probe::body()[1..]);
    client.expect(b"x");
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// As before, with FIN behind it: what is no whole request without its end is one with it, though the server comes to
/// it only after the stop.
pub fn what_had_arrived_with_its_end_is_answered(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.ask(probe::BODY, &probe::body()[..1]);
    client.send(probe::HALF);
    client.finish_sending();
    server.tell_to_stop();
    client.expect(&probe::body()[1..]);
    client.expect(probe::HALF);
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// Many connect and ask, then comes the stop: whoever was accepted is answered, all others hear nothing.
pub fn who_was_accepted_is_answered(target: &ModelUnderTest) {
    for round in 0..10 {
        let mut server = Server::start(target, Serving::Probes, target.limits());
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let client = server.connect();
                client.send(b"x");
                client
            })
            .collect();
        // Not always at the same moment.
        for client in clients.iter().take(round) {
            client.expect(b"x");
            if target.one_at_a_time() {
                client.finish_sending();
            }
        }
        server.tell_to_stop();
        let replies = clients.iter().skip(round).map(TestClient::read_all);
        let answered = replies.filter(|reply| reply == b"x").count() + round;
        assert_eq!(server.stop(), all_served(answered as u64));
    }
}

/// Half a request is not one.
pub fn a_request_half_sent_is_cut(target: &ModelUnderTest) {
    let serving = Serving::protocol(&PROTOCOLS[0]);
    let mut server = Server::start(target, serving, target.limits());
    let client = server.connect();
    client.ask(b"one\n", b"one\n");
    client.send(b"tw");
    server.tell_to_stop();
    client.expect_end();
    let cut = Tally {
        accepted: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(server.stop(), cut);
}

/// A big reply is finished within the drain.
pub fn a_reply_under_way_is_finished(target: &ModelUnderTest) {
    is_finished(target, probe::BODY);
}

/// Likewise; `asked` is what it was asked for.
pub(super) fn is_finished(target: &ModelUnderTest, asked: &[u8]) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.ask(asked, &probe::body()[..1]);
    server.tell_to_stop();
    client.expect(&probe::body()[1..]);
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// A peer that does not take its reply is cut, but not before the deadline.
pub fn a_reply_not_taken_is_cut_at_the_deadline(target: &ModelUnderTest) {
    is_cut_at_the_deadline(target, probe::BODY);
}

/// Likewise; `asked` is what it was asked for.
pub(super) fn is_cut_at_the_deadline(target: &ModelUnderTest, asked: &[u8]) {
    let drain = Duration::from_millis(300);
    let limits = Limits {
        drain,
        ..target.limits()
    };
    let server = Server::start(target, Serving::Probes, limits);
    let client = server.connect();
    client.ask(asked, &probe::body()[..1]);
    let since = Instant::now();
    let tally = server.stop();
    assert!(since.elapsed() >= drain, "cut too early");
    let cut = Tally {
        accepted: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(tally, cut);
    let got = client.read_all();
    assert!(got.len() < probe::body().len() - 1, "all was sent");
    assert!(probe::body()[1..].starts_with(&got), "wrong bytes");
}

/// While a reply is being finished nobody new gets in: not even into the backlog, where nobody would come for them.
/// (The only thread of a model that serves one at a time is busy with the reply, and closes the listener afterwards.)
pub fn new_peers_are_refused_during_the_drain(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let address = server.address();
    let client = server.connect();
    client.ask(probe::BODY, &probe::body()[..1]);
    let idle = (!target.one_at_a_time()).then(|| server.connect());
    if let Some(idle) = &idle {
        idle.ask(b"x", b"x");
    }
    server.tell_to_stop();
    let refused = || {
        let connected = TestClient::try_connect(address);
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if let Some(idle) = &idle {
        // From here on nobody is accepted, but the listener may be open for a moment still.
        idle.expect_end();
        eventually("the listener is closed", refused);
    }
    client.expect(&probe::body()[1..]);
    client.expect_end();
    assert_eq!(server.stop(), all_served(1 + u64::from(idle.is_some())));
    eventually("the listener is closed", refused);
}

/// Peers that connect, ask and leave without a pause, before, during and after the stop.
pub fn in_a_connect_storm(target: &ModelUnderTest) {
    const STORM: u64 = 3;
    let server = Server::start(target, Serving::Probes, target.limits());
    let address = server.address();
    let answered = AtomicU64::new(0);
    let since = Instant::now();
    let tally = thread::scope(|scope| {
        for _ in 0..STORM {
            scope.spawn(|| {
                // (After a failure nobody closes the listener.)
                while since.elapsed() < 2 * GUARD
                    && let Ok(client) = TestClient::try_connect(address)
                {
                    if client.try_ask(b"x", b"x").is_ok() {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        eventually("the storm has begun", || {
            answered.load(Ordering::Relaxed) > 200
        });
        server.stop()
    });
    // Each may have been let in just before the stop, and its request have come just after.
    let unanswered = tally.accepted - answered.into_inner();
    assert!(unanswered <= STORM, "{unanswered} without an answer");
    assert_eq!(tally, all_served(tally.accepted));
}

/// A server that closed first leaves connections in TIME_WAIT; the next one listens on that port all the same.
pub fn again_on_the_same_port(target: &ModelUnderTest) {
    // Another test's peer may be given the port meanwhile; but not every time.
    for _ in 0..5 {
        let mut server = Server::start(target, Serving::Probes, target.limits());
        let address = server.address();
        let client = server.connect();
        client.ask(b"x", b"x");
        server.tell_to_stop();
        client.expect_end();
        server.stop();
        if let Ok(server) = Server::start_at(address, target, Serving::Probes, target.limits()) {
            let client = server.connect();
            client.ask(b"x", b"x");
            client.leave();
            assert_eq!(server.stop(), all_served(1));
            return;
        }
    }
    panic!("the port can't be used again");
}

/// While the drain waits for a peer, the server sleeps; also when there was a peer in the backlog, and places become
/// free.
pub fn draining_costs_nothing(target: &ModelUnderTest) {
    let limits = Limits {
        max_connections: 2,
        ..target.limits_of_one_acceptor()
    };
    let places = target.places(&limits);
    let server = super::process::ServerProcess::start(target, Serving::Probes, limits);
    let stuck = server.connect();
    stuck.ask(probe::BODY, &probe::body()[..1]);
    let (idle, waiting) = (server.connect(), server.connect());
    let served = places as u64;
    if served == 2 {
        idle.ask(b"x", b"x");
    }
    server.tell_to_stop();
    if served == 2 {
        idle.expect_end();
    }
    let time = Duration::from_secs(1);
    let used = server.busy_during(|| thread::sleep(time));
    target.judge_idleness(used, time);
    stuck.expect(&probe::body()[1..]);
    stuck.expect_end();
    waiting.expect_end_or_reset();
    assert_eq!(server.stop().tally, all_served(served));
}
