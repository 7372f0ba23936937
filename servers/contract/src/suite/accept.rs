//! Checks of `accept`: the server sorts errors of accept(2), never spins, and recovers when resources come back.

use std::net::Shutdown;
use std::thread::sleep;
use std::time::Duration;

use super::client::TestClient;
use super::process::{DescriptorLimits, ServerProcess};
use super::server::{BACKLOG, Server, all_served};
use super::serving::Serving;
use super::{GUARD, ModelUnderTest, eventually};
use crate::{Capacity, listen};

const CLIENTS: usize = 12;

/// Returns the number of peers that can be accepted before descriptors run out. A model that serves one peer at a time
/// closes the descriptor of a peer before it accepts the next. So does a model that forks a process for the peer.
fn accepted_before_shortage(target: &ModelUnderTest) -> usize {
    let one_at_a_time = target.slots(&target.limits_of_one_acceptor()) == 1;
    if one_at_a_time || target.model.needs.own_process {
        0
    } else {
        3
    }
}

/// Lets the server run out of descriptors: all peers are connected, and the server can accept only some of them.
fn shortage(
    server: &mut ServerProcess,
    target: &ModelUnderTest,
) -> (Vec<TestClient>, DescriptorLimits) {
    // When a first peer has been served, the server has opened all descriptors that it needs for itself.
    let first = server.connect();
    first.ask(b"x", b"x");
    // The server closes the descriptor before the peer can see the FIN.
    first.leave();
    if !server.children().is_empty() && target.model.capacity != Capacity::Workers {
        eventually("the process of the first peer has ended", || {
            server.children().is_empty()
        });
    }
    let more = accepted_before_shortage(target);
    let (limit, full) = server.limit_descriptors(more);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    for client in &clients {
        client.send(b"a");
    }
    if target.slots(&target.limits_of_one_acceptor()) == 1 {
        // A server that sleeps in accept(2) has reserved a descriptor already. The shortage begins after the next peer.
        let next = clients.remove(0);
        next.expect(b"a");
        next.leave();
    }
    server.wait_for_accept_error();
    assert_eq!(
        server.descriptors(),
        full,
        "accept(2) failed for another reason than a shortage"
    );
    // Peers are accepted in the order in which they connected.
    for client in &clients[..more] {
        client.expect(b"a");
    }
    (clients, limit)
}

/// More peers connect than there are descriptors. The server continues to serve the accepted peers, sleeps otherwise,
/// and serves the waiting peers as the accepted ones leave.
pub fn server_out_of_descriptors_recovers(target: &ModelUnderTest) {
    let mut server = ServerProcess::start(target, Serving::Probes, target.limits_of_one_acceptor());
    let (mut clients, limit) = shortage(&mut server, target);
    let mut waiting = clients.split_off(accepted_before_shortage(target));

    let time = Duration::from_secs(1);
    let used = server.busy_during(|| sleep(time));
    target.check_cpu_time(used, time);

    for client in &clients {
        client.ask(b"b", b"b");
    }
    for client in &waiting {
        assert!(
            !client.has_input(),
            "a peer beyond the descriptors received bytes, FIN or an error"
        );
    }
    // Each peer that leaves frees a descriptor for one waiting peer.
    for client in clients {
        client.leave();
        let next = waiting.remove(0);
        next.expect(b"a");
        next.leave();
    }
    // The end of the shortage frees descriptors for all of them.
    server.restore_descriptors(limit);
    for client in waiting {
        client.expect(b"a");
        client.leave();
    }
    let mut tally = server.stop().tally;
    assert!(
        tally.accept_errors > 0,
        "accept(2) never failed: there was no shortage"
    );
    // One error for each attempt, and there are ten attempts per second.
    assert!(tally.accept_errors < 20 * GUARD.as_secs(), "{tally}");
    tally.accept_errors = 0;
    assert_eq!(tally, all_served(CLIENTS as u64 + 1));
}

/// A stop during a shortage of descriptors ends the server, and the waiting peers see the end.
pub fn stop_without_descriptors_ends_the_server(target: &ModelUnderTest) {
    let mut server = ServerProcess::start(target, Serving::Probes, target.limits_of_one_acceptor());
    let (clients, _) = shortage(&mut server, target);
    server.request_stop();
    for client in clients {
        client.expect_end_or_reset();
    }
    let mut tally = server.stop().tally;
    assert!(
        tally.accept_errors > 0,
        "accept(2) never failed: there was no shortage"
    );
    tally.accept_errors = 0;
    let one_more = target.slots(&target.limits_of_one_acceptor()) == 1;
    let served = 1 + accepted_before_shortage(target) + usize::from(one_more);
    assert_eq!(tally, all_served(served as u64));
}

/// An error that concerns every later connection ends the server with that error. The peers that are connected are
/// drained as at a stop.
pub fn broken_listener_ends_the_server(target: &ModelUnderTest) {
    let listener =
        listen(([127, 0, 0, 1], 0).into(), BACKLOG, target.model.needs).expect("not listening");
    let same = listener.try_clone().expect("no descriptor");
    let server = Server::start_on(listener, target, Serving::Probes, target.limits(), false);
    let idle = server.connect();
    idle.ask(b"x", b"x");
    // On Linux this makes a listening socket stop listening.
    let same = socket2::SockRef::from(&same);
    same.shutdown(Shutdown::Both).expect("not listening");
    if target.one_at_a_time() {
        idle.leave();
    } else {
        idle.expect_end();
    }
    server
        .wait_for_end()
        .expect_err("the server returned Ok although its listener is broken");
}
