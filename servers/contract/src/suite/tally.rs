//! Checks of `tally`: the tally adds up. Every other check compares the whole tally, too.

use std::time::Duration;

use super::server::Server;
use super::serving::{DropNotices, Serving};
use super::{ModelUnderTest, probe};
use crate::{Limits, Tally};

/// One server has one connection of every ending, and the tally counts each once.
pub fn every_ending_is_counted(target: &ModelUnderTest) {
    let notices = DropNotices::new();
    // The first three connections use a line protocol, which has a limit; the others are probes, which can panic.
    let serving = Serving::LinesThenProbes(notices.address());
    let limits = Limits {
        idle_timeout: Duration::from_secs(1),
        drain: Duration::from_millis(100),
        ..target.limits()
    };
    let server = Server::start(target, serving, limits);

    let served = server.connect();
    served.ask(b"x\n", b"x\n");
    served.leave();
    let timed_out = server.connect();
    timed_out.expect_end();
    let refused = server.connect();
    refused.send(&[b'x'; 70_000]);
    refused.read_all();
    drop(refused);
    let reset = server.connect();
    reset.ask(probe::BODY, &probe::body()[..1]);
    reset.reset();
    notices.wait_for_one();
    let failed = server.connect();
    failed.send(probe::PANIC_IN_STEP);
    failed.expect_end();
    let cut = server.connect();
    cut.ask(probe::BODY, &probe::body()[..1]);
    assert_eq!(
        server.stop(),
        Tally {
            accepted: 6,
            served: 1,
            timed_out: 1,
            refused: 1,
            reset: 1,
            failed: 1,
            cut: 1,
            accept_errors: 0
        }
    );
}

/// After 2000 connections that end in different ways, the process has as many descriptors and threads as before. After
/// the end of the server, no thread and no socket of the server is left.
pub fn descriptors_and_threads_are_released(target: &ModelUnderTest) {
    let server = super::process::ServerProcess::start(
        target,
        Serving::Probes,
        target.limits_of_one_acceptor(),
    );
    let wave = || {
        let clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
        for (number, client) in clients.into_iter().enumerate() {
            client.ask(b"x", b"x");
            match number % 4 {
                0 => client.reset(),
                1 => {
                    client.send(probe::PANIC_IN_STEP);
                    client.expect_end();
                }
                2 => client.leave(),
                _ => drop(client),
            }
        }
    };
    // When a first peer has been served, the server has opened all descriptors that it needs for itself.
    let first = server.connect();
    first.ask(b"x", b"x");
    let (descriptors, threads) = (server.descriptors(), server.threads());
    first.leave();
    for _ in 0..20 {
        wave();
    }
    let last = server.connect();
    last.ask(b"x", b"x");
    super::eventually("descriptors and threads are as before", || {
        server.descriptors() == descriptors && server.threads() <= threads
    });
    last.leave();
    let report = server.stop();
    assert_eq!(report.threads_left, Vec::<String>::new());
    assert_eq!(report.sockets_left, 0);
    assert_eq!(
        report.tally,
        Tally {
            accepted: 2002,
            served: 1002,
            reset: 500,
            failed: 500,
            ..Tally::default()
        }
    );
}
