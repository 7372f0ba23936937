//! 10. The tally adds up. (Every other check compares the whole tally too.)

use std::time::Duration;

use super::server::Server;
use super::serving::{Goodbyes, Serving};
use super::{ModelUnderTest, probe};
use crate::{Limits, Tally};

/// One connection of every ending, in one server.
pub fn every_ending_is_counted(target: &ModelUnderTest) {
    let goodbyes = Goodbyes::new();
    // The first three speak lines, which have a limit; the others are probes, which can panic.
    let serving = Serving::LinesThenProbes(goodbyes.address());
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
    goodbyes.one();
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

/// After thousands of connections that end in every way, the process has as many descriptors and threads as before;
/// and after the server's end none of the server's.
pub fn nothing_is_left_behind(target: &ModelUnderTest) {
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
    // When a peer has been served, the server has all that it ever opens for itself.
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
    let account = server.stop();
    assert_eq!(account.threads_left, Vec::<String>::new());
    assert_eq!(account.sockets_left, 0);
    assert_eq!(
        account.tally,
        Tally {
            accepted: 2002,
            served: 1002,
            reset: 500,
            failed: 500,
            ..Tally::default()
        }
    );
}
