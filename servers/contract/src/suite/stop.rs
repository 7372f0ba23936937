//! Checks of `stop`: the server finishes the requests that it has received, closes idle peers, and cuts all other
//! connections at the drain deadline.

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

/// A server without peers ends at the stop.
pub fn stop_without_peers_ends_the_server(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    assert_eq!(server.stop(), Tally::default());
}

/// A server that starts after its stop was requested ends at once.
pub fn stop_before_the_start_ends_the_server(target: &ModelUnderTest) {
    let anywhere = ([127, 0, 0, 1], 0).into();
    let listener = listen(anywhere, 1, target.model.needs).expect("not listening");
    let server = Server::start_on(listener, target, Serving::Probes, target.limits(), true);
    let tally = server.wait_for_end().expect("the server failed");
    assert_eq!(tally, Tally::default());
}

/// Peers to which no reply is owed receive FIN at once.
pub fn idle_peers_are_closed(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let count = if target.one_at_a_time() { 1 } else { 5 };
    let clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
    for client in &clients {
        client.ask(b"x", b"x");
    }
    server.request_stop();
    for client in &clients {
        client.expect_end();
    }
    assert_eq!(server.stop(), all_served(count));
}

/// A peer writes requests for two reads of the server just before the stop: once to a server that waits for requests,
/// and once to a server that is sending a reply. All of them are answered.
pub fn requests_received_before_stop_are_answered(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        if protocol.requests_per_connection.is_some() {
            continue;
        }
        let mut server = Server::start(target, Serving::protocol(protocol), target.limits());
        let client = server.connect();
        let mut oracle = Oracle::new(protocol);
        let first = requests(protocol, 10, 1, None).concat();
        client.ask(&first, &oracle.receive(&first));
        let burst = requests(protocol, 11, 300, Some(100)).concat();
        client.send(&burst);
        client.wait_until_arrived();
        server.request_stop();
        client.expect(&oracle.receive(&burst));
        client.expect_end();
        assert_eq!(server.stop(), all_served(1), "{}", protocol.name);
    }
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.ask(probe::BODY, &probe::body()[..1]);
    client.send(b"x");
    client.wait_until_arrived();
    server.request_stop();
    client.expect(&probe::body()[1..]);
    client.expect(b"x");
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// A peer sends half a request and FIN before the stop. FIN completes the request, so the request is answered, although
/// the server reads it only after the stop.
pub fn request_completed_by_fin_before_stop_is_answered(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.ask(probe::BODY, &probe::body()[..1]);
    client.send(probe::HALF);
    client.finish_sending();
    client.wait_until_arrived();
    server.request_stop();
    client.expect(&probe::body()[1..]);
    client.expect(probe::HALF);
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// Many peers connect and send a request before the stop. Every accepted peer receives its reply; the others receive
/// nothing.
pub fn accepted_peers_are_answered(target: &ModelUnderTest) {
    for round in 0..10 {
        let mut server = Server::start(target, Serving::Probes, target.limits());
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let client = server.connect();
                client.send(b"x");
                client
            })
            .collect();
        // The stop comes at another moment in each round.
        for client in clients.iter().take(round) {
            client.expect(b"x");
            if target.one_at_a_time() {
                client.finish_sending();
            }
        }
        server.request_stop();
        let replies = clients.iter().skip(round).map(TestClient::read_all);
        let answered = replies.filter(|reply| reply == b"x").count() + round;
        assert_eq!(server.stop(), all_served(answered as u64));
    }
}

/// A connection with half a request is cut at the stop.
pub fn half_sent_request_is_cut(target: &ModelUnderTest) {
    let serving = Serving::protocol(&PROTOCOLS[0]);
    let mut server = Server::start(target, serving, target.limits());
    let client = server.connect();
    client.ask(b"one\n", b"one\n");
    client.send(b"tw");
    client.wait_until_arrived();
    server.request_stop();
    client.expect_end();
    let cut = Tally {
        accepted: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(server.stop(), cut);
}

/// The server finishes sending a large reply within the drain.
pub fn reply_in_progress_is_finished(target: &ModelUnderTest) {
    is_finished(target, probe::BODY);
}

/// Checks that the reply to `request`, which the server is sending at the stop, arrives completely.
pub(super) fn is_finished(target: &ModelUnderTest, request: &[u8]) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.ask(request, &probe::body()[..1]);
    server.request_stop();
    client.expect(&probe::body()[1..]);
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// A peer that does not read its reply is cut at the drain deadline, and not before.
pub fn unread_reply_is_cut_at_the_deadline(target: &ModelUnderTest) {
    is_cut_at_the_deadline(target, probe::BODY);
}

/// Checks that a peer which does not read the reply to `request` is cut at the drain deadline, and not before.
pub(super) fn is_cut_at_the_deadline(target: &ModelUnderTest, request: &[u8]) {
    let drain = Duration::from_millis(300);
    let limits = Limits {
        drain,
        ..target.limits()
    };
    let server = Server::start(target, Serving::Probes, limits);
    let client = server.connect();
    client.ask(request, &probe::body()[..1]);
    let since = Instant::now();
    let tally = server.stop();
    assert!(since.elapsed() >= drain, "cut too early");
    let cut = Tally {
        accepted: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(tally, cut);
    let received = client.read_all();
    assert!(
        received.len() < probe::body().len() - 1,
        "the peer received the whole reply"
    );
    assert!(probe::body()[1..].starts_with(&received), "wrong bytes");
}

/// While the server finishes a reply, new peers are refused. They do not even enter the backlog, from which no server
/// would accept them. The only thread of a model that serves one peer at a time is busy with the reply, and closes the
/// listener afterwards.
pub fn new_peers_are_refused_during_the_drain(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, target.limits());
    let address = server.address();
    let client = server.connect();
    client.ask(probe::BODY, &probe::body()[..1]);
    let idle = (!target.one_at_a_time()).then(|| server.connect());
    if let Some(idle) = &idle {
        idle.ask(b"x", b"x");
    }
    server.request_stop();
    let refused = || {
        let connected = TestClient::try_connect(address);
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if let Some(idle) = &idle {
        // From here on the server accepts no peer, but its listener may be open for a moment.
        idle.expect_end();
        eventually("the listener is closed", refused);
    }
    client.expect(&probe::body()[1..]);
    client.expect_end();
    assert_eq!(server.stop(), all_served(1 + u64::from(idle.is_some())));
    eventually("the listener is closed", refused);
}

/// Peers connect, send a request and leave without a pause, before, during and after the stop.
pub fn stop_in_a_connect_storm_answers_accepted_peers(target: &ModelUnderTest) {
    const STORM: u64 = 3;
    let server = Server::start(target, Serving::Probes, target.limits());
    let address = server.address();
    let answered = AtomicU64::new(0);
    let since = Instant::now();
    let tally = thread::scope(|scope| {
        for _ in 0..STORM {
            scope.spawn(|| {
                // The time limit ends the loop after a failure, when the listener stays open.
                while since.elapsed() < 2 * GUARD
                    && let Ok(client) = TestClient::try_connect(address)
                {
                    if client.try_ask(b"x", b"x").is_ok() {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        eventually("200 requests of the storm are answered", || {
            answered.load(Ordering::Relaxed) > 200
        });
        server.stop()
    });
    // Each storming peer may have been accepted just before the stop, and its request may have come just after it.
    let unanswered = tally.accepted - answered.into_inner();
    assert!(
        unanswered <= STORM,
        "{unanswered} accepted peers without a reply"
    );
    assert_eq!(tally, all_served(tally.accepted));
}

/// A server that closes first leaves connections in TIME_WAIT. The next server can listen on the same port all the
/// same.
pub fn port_can_be_reused_after_stop(target: &ModelUnderTest) {
    // The kernel may assign the port to a peer of another test meanwhile, but not every time.
    for _ in 0..5 {
        let mut server = Server::start(target, Serving::Probes, target.limits());
        let address = server.address();
        let client = server.connect();
        client.ask(b"x", b"x");
        server.request_stop();
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
    panic!("five times the port could not be used again");
}

/// While the drain waits for a peer, the server sleeps. This holds also when a peer was in the backlog and slots become
/// free.
pub fn drain_costs_no_cpu(target: &ModelUnderTest) {
    let limits = Limits {
        max_connections: 2,
        ..target.limits_of_one_acceptor()
    };
    let slots = target.slots(&limits);
    let server = super::process::ServerProcess::start(target, Serving::Probes, limits);
    let blocked = server.connect();
    blocked.ask(probe::BODY, &probe::body()[..1]);
    let (idle, waiting) = (server.connect(), server.connect());
    let served = slots as u64;
    if served == 2 {
        idle.ask(b"x", b"x");
    }
    server.request_stop();
    if served == 2 {
        idle.expect_end();
    }
    let time = Duration::from_secs(1);
    let used = server.busy_during(|| thread::sleep(time));
    target.check_cpu_time(used, time);
    blocked.expect(&probe::body()[1..]);
    blocked.expect_end();
    waiting.expect_end_or_reset();
    assert_eq!(server.stop().tally, all_served(served));
}
