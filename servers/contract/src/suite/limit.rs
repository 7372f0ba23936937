//! 4. At the connection limit new peers wait in the backlog, and are served when a place is free.

use std::num::NonZero;

use super::ModelUnderTest;
use super::client::TestClient;
use super::server::{Server, all_served};
use super::serving::Serving;
use crate::{Capacity, Limits};

fn two(target: &ModelUnderTest) -> Limits {
    let mut limits = target.limits_of_one_acceptor();
    // (Where the workers are the limit, each takes its peers itself.)
    if target.model.capacity == Capacity::Workers {
        limits.workers = target.limits().workers;
    }
    Limits {
        max_connections: 2,
        ..limits
    }
}

/// How many places there are: the limit, or those that a model has by design.
fn places(target: &ModelUnderTest) -> usize {
    target.places(&two(target))
}

/// Those who have a place are served, and those who wait are not, however often.
fn only_those_are_served(served: &[TestClient], waiting: &[TestClient]) {
    for _ in 0..50 {
        for client in served {
            client.ask(b"x", b"x");
        }
    }
    for client in waiting {
        assert!(!client.has_heard_something(), "served over the limit");
    }
}

/// Two more than there are places; whoever leaves makes place for the next, in the order in which they came.
pub fn the_next_one_waits_for_a_place(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, two(target));
    let mut served: Vec<_> = (0..places(target)).map(|_| server.connect()).collect();
    only_those_are_served(&served, &[]);
    let mut waiting: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &waiting {
        client.send(b"w");
    }
    while !waiting.is_empty() {
        only_those_are_served(&served, &waiting);
        served.remove(0).leave();
        let next = waiting.remove(0);
        next.expect(b"w");
        served.push(next);
    }
    only_those_are_served(&served, &[]);
    for client in served {
        client.leave();
    }
    let all = places(target) as u64 + 2;
    assert_eq!(server.stop(), all_served(all));
}

/// A stop ends those who are served, and those who wait.
pub fn stop_at_the_limit(target: &ModelUnderTest) {
    let mut server = Server::start(target, Serving::Probes, two(target));
    let served: Vec<_> = (0..places(target)).map(|_| server.connect()).collect();
    only_those_are_served(&served, &[]);
    let waiting = server.connect();
    server.tell_to_stop();
    for client in &served {
        client.expect_end();
    }
    waiting.expect_end_or_reset();
    assert_eq!(server.stop(), all_served(places(target) as u64));
}

/// Idle peers hold nothing but their own places; unless each holds a worker, by design: then nobody else is served until
/// one of them leaves.
pub fn idle_peers_hold_their_workers_only(target: &ModelUnderTest) {
    let limits = Limits {
        workers: const { NonZero::new(2).unwrap() },
        ..target.limits()
    };
    let places = target.places(&limits);
    let idle = 6;
    let server = Server::start(target, Serving::Probes, limits);
    let mut served: Vec<_> = (0..idle.min(places)).map(|_| server.connect()).collect();
    only_those_are_served(&served, &[]);
    let waiting: Vec<_> = (served.len()..idle).map(|_| server.connect()).collect();
    for client in &waiting {
        client.send(b"w");
    }
    only_those_are_served(&served, &waiting);
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

/// At the limit, with peers in the backlog, the server sleeps.
pub fn waiting_costs_nothing(target: &ModelUnderTest) {
    use std::thread::sleep;
    use std::time::Duration;

    let server = super::process::ServerProcess::start(target, Serving::Probes, two(target));
    let served: Vec<_> = (0..places(target)).map(|_| server.connect()).collect();
    only_those_are_served(&served, &[]);
    let waiting: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &waiting {
        client.send(b"w");
    }
    only_those_are_served(&served, &waiting);
    let time = Duration::from_secs(1);
    let used = server.busy_during(|| sleep(time));
    target.judge_idleness(used, time);
    only_those_are_served(&served, &waiting);
    drop(served);
    for client in waiting {
        client.expect(b"w");
        client.leave();
    }
    let all = places(target) as u64 + 2;
    assert_eq!(server.stop().tally, all_served(all));
}
