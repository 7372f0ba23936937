//! Checks of `limit`: at the connection limit new peers wait in the backlog, and are served when a slot is free.

use std::num::NonZero;

use super::ModelUnderTest;
use super::client::TestClient;
use super::server::{Server, all_served};
use super::serving::Serving;
use crate::{Capacity, Limits};

/// Returns limits with at most two connections.
fn two(target: &ModelUnderTest) -> Limits {
    let mut limits = target.limits_of_one_acceptor();
    // A model whose workers are the limit keeps all its workers.
    if target.model.capacity == Capacity::Workers {
        limits.workers = target.limits().workers;
    }
    Limits {
        max_connections: 2,
        ..limits
    }
}

/// Returns the number of slots: the limit, or the number that a model has by design.
fn slots(target: &ModelUnderTest) -> usize {
    target.slots(&two(target))
}

/// Checks that the peers with a slot are served, each 50 times, and that no waiting peer receives anything.
fn only_served_get_replies(served: &[TestClient], waiting: &[TestClient]) {
    for _ in 0..50 {
        for client in served {
            client.ask(b"x", b"x");
        }
    }
    for client in waiting {
        assert!(
            !client.has_input(),
            "a peer over the limit received something"
        );
    }
}

/// Two peers more than there are slots: for each peer that leaves the next one is served, in the order in which they
/// connected.
pub fn peer_over_the_limit_waits_for_a_slot(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, two(target));
    let mut served: Vec<_> = (0..slots(target)).map(|_| server.connect()).collect();
    only_served_get_replies(&served, &[]);
    let mut waiting: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &waiting {
        client.send(b"w");
    }
    while !waiting.is_empty() {
        only_served_get_replies(&served, &waiting);
        served.remove(0).leave();
        let next = waiting.remove(0);
        next.expect(b"w");
        served.push(next);
    }
    only_served_get_replies(&served, &[]);
    for client in served {
        client.leave();
    }
    let all = slots(target) as u64 + 2;
    assert_eq!(server.stop(), all_served(all));
}

/// A stop at the limit ends the served peers and the waiting ones.
pub fn stop_at_the_limit_ends_served_and_waiting_peers(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, two(target));
    let served: Vec<_> = (0..slots(target)).map(|_| server.connect()).collect();
    only_served_get_replies(&served, &[]);
    let waiting = server.connect();
    server.request_stop();
    for client in &served {
        client.expect_end();
    }
    waiting.expect_end_or_reset();
    assert_eq!(server.stop(), all_served(slots(target) as u64));
}

/// Idle peers occupy only their own slots. By design an idle peer may occupy a worker in some models: there the other
/// peers are served when one of the idle peers leaves.
pub fn idle_peers_occupy_only_their_own_slots(target: &ModelUnderTest) {
    let limits = Limits {
        workers: const { NonZero::new(2).unwrap() },
        ..target.limits()
    };
    let slots = target.slots(&limits);
    let idle = 6;
    let server = Server::start(target, Serving::Probes, limits);
    let mut served: Vec<_> = (0..idle.min(slots)).map(|_| server.connect()).collect();
    only_served_get_replies(&served, &[]);
    let waiting: Vec<_> = (served.len()..idle).map(|_| server.connect()).collect();
    for client in &waiting {
        client.send(b"w");
    }
    only_served_get_replies(&served, &waiting);
    for next in waiting {
        served.remove(0).leave();
        next.expect(b"w");
        served.push(next);
    }
    for client in served {
        client.leave();
    }
    assert_eq!(server.stop(), all_served(idle as u64));
}

/// At the limit, with peers in the backlog, the server sleeps and uses no CPU time.
pub fn waiting_peers_cost_no_cpu(target: &ModelUnderTest) {
    use std::thread::sleep;
    use std::time::Duration;

    let server = super::process::ServerProcess::start(target, Serving::Probes, two(target));
    let served: Vec<_> = (0..slots(target)).map(|_| server.connect()).collect();
    only_served_get_replies(&served, &[]);
    let waiting: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &waiting {
        client.send(b"w");
    }
    only_served_get_replies(&served, &waiting);
    let time = Duration::from_secs(1);
    let used = server.busy_during(|| sleep(time));
    target.check_cpu_time(used, time);
    only_served_get_replies(&served, &waiting);
    drop(served);
    for client in waiting {
        client.expect(b"w");
        client.leave();
    }
    let all = slots(target) as u64 + 2;
    assert_eq!(server.stop().tally, all_served(all));
}
