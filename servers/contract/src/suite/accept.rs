//! 5. Errors of accept(2) are sorted; the server never spins and recovers when resources come back.

use std::net::Shutdown;
use std::thread::sleep;
use std::time::Duration;

use super::client::TestClient;
use super::process::{Before, ServerProcess};
use super::server::{BACKLOG, Server, all_served};
use super::serving::Serving;
use super::{GUARD, ModelUnderTest, eventually};
use crate::{Capacity, listen};

const CLIENTS: usize = 12;

/// How many peers can be accepted before descriptors run out. One who serves a peer at a time closes its descriptor
/// before he accepts the next, and so does one who forks a process for it.
fn before_that(target: &ModelUnderTest) -> usize {
    let one_at_a_time = target.places(&target.limits_of_one_acceptor()) == 1;
    if one_at_a_time || target.model.needs.own_process {
        0
    } else {
        3
    }
}

/// Runs the server out of descriptors: all peers are connected, and only some can be accepted.
fn shortage(server: &mut ServerProcess, target: &ModelUnderTest) -> (Vec<TestClient>, Before) {
    // A peer that is served before shows that the server has all that it opens for itself.
    let first = server.connect();
    first.ask(b"x", b"x");
    // Its descriptor is closed before its end can be heard.
    first.leave();
    if !server.children().is_empty() && target.model.capacity != Capacity::Workers {
        eventually("its process has ended", || server.children().is_empty());
    }
    let more = before_that(target);
    let (limit, full) = server.limit_descriptors(more);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    for client in &clients {
        client.send(b"a");
    }
    if target.places(&target.limits_of_one_acceptor()) == 1 {
        // Who sleeps in accept(2) has his descriptor already: the shortage comes behind the next peer.
        let next = clients.remove(0);
        next.expect(b"a");
        next.leave();
    }
    server.wait_for_accept_error();
    assert_eq!(server.descriptors(), full, "that was another error");
    // They were accepted in the order in which they came.
    for client in &clients[..more] {
        client.expect(b"a");
    }
    (clients, limit)
}

/// More peers than descriptors. The server goes on with those it has, sleeps otherwise, and serves the others as
/// those leave.
pub fn descriptors_run_out(target: &ModelUnderTest) {
    let mut server = ServerProcess::start(target, Serving::Probes, target.limits_of_one_acceptor());
    let (mut clients, limit) = shortage(&mut server, target);
    let mut waiting = clients.split_off(before_that(target));

    let time = Duration::from_secs(1);
    let used = server.busy_during(|| sleep(time));
    target.judge_idleness(used, time);

    for client in &clients {
        client.ask(b"b", b"b");
    }
    for client in &waiting {
        assert!(!client.has_heard_something(), "not served, but: something");
    }
    // Each who leaves makes place for one.
    for client in clients {
        client.leave();
        let next = waiting.remove(0);
        next.expect(b"a");
        next.leave();
    }
    // And the end of the shortage for all.
    server.restore_descriptors(limit);
    for client in waiting {
        client.expect(b"a");
        client.leave();
    }
    let mut tally = server.stop().tally;
    assert!(tally.accept_errors > 0, "there was no shortage");
    // One for each attempt, and those are ten in a second.
    assert!(tally.accept_errors < 20 * GUARD.as_secs(), "{tally}");
    tally.accept_errors = 0;
    assert_eq!(tally, all_served(CLIENTS as u64 + 1));
}

/// A stop during the shortage.
pub fn stop_without_descriptors(target: &ModelUnderTest) {
    let mut server = ServerProcess::start(target, Serving::Probes, target.limits_of_one_acceptor());
    let (clients, _) = shortage(&mut server, target);
    server.tell_to_stop();
    for client in clients {
        client.expect_end_or_reset();
    }
    let mut tally = server.stop().tally;
    assert!(tally.accept_errors > 0, "there was no shortage");
    tally.accept_errors = 0;
    let one_more = target.places(&target.limits_of_one_acceptor()) == 1;
    let served = 1 + before_that(target) + usize::from(one_more);
    assert_eq!(tally, all_served(served as u64));
}

/// An error that concerns every connection to come is the end, said aloud; and those who are there are not forgotten.
pub fn a_broken_listener_ends_the_server(target: &ModelUnderTest) {
    let listener =
        listen(([127, 0, 0, 1], 0).into(), BACKLOG, target.model.needs).expect("not listening");
    let same = listener.try_clone().expect("no descriptor");
    let server = Server::start_on(listener, target, Serving::Probes, target.limits(), false);
    let idle = server.connect();
    idle.ask(b"x", b"x");
    // On Linux this makes a socket that listens one that does not.
    let same = socket2::SockRef::from(&same);
    same.shutdown(Shutdown::Both).expect("not listening");
    if target.one_at_a_time() {
        idle.leave();
    } else {
        idle.expect_end();
    }
    server.ended().expect_err("nothing to serve any more");
}
