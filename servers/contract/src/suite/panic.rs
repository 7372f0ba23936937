//! Checks of `panic`: a panic while serving one connection ends that connection alone.

use super::server::Server;
use super::serving::Serving;
use super::{ModelUnderTest, probe};
use crate::Tally;

/// Sessions panic in every function that a server calls while it serves, before and after a reply on the same
/// connection.
pub fn panic_in_any_session_call_ends_one_connection(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let mut failed = 0;
    let other = (!target.one_at_a_time()).then(|| server.connect());
    for trigger in [
        probe::PANIC_IN_RECEIVE,
        probe::PANIC_IN_STEP,
        probe::PANIC_IN_SENT,
        probe::PANIC_IN_END,
    ] {
        for answered in [false, true] {
            let client = server.connect();
            if answered {
                client.ask(b"x", b"x");
            }
            client.send(trigger);
            if trigger == probe::PANIC_IN_END {
                client.expect(trigger);
                client.finish_sending();
            } else if trigger == probe::PANIC_IN_SENT {
                client.expect(trigger);
            }
            client.expect_end();
            failed += 1;
            if let Some(other) = &other {
                other.ask(b"y", b"y");
            }
        }
    }
    let other = other.unwrap_or_else(|| server.connect());
    other.ask(b"y", b"y");
    other.leave();
    assert_eq!(
        server.stop(),
        Tally {
            accepted: failed + 1,
            served: 1,
            failed,
            ..Tally::default()
        }
    );
}

/// Every second session panics while it is opened.
pub fn panic_while_opening_ends_one_connection(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::PanicsInOpening, target.limits());
    for _ in 0..3 {
        server.connect().expect_end();
        let client = server.connect();
        client.ask(b"x\n", b"x\n");
        client.leave();
    }
    assert_eq!(
        server.stop(),
        Tally {
            accepted: 6,
            served: 3,
            failed: 3,
            ..Tally::default()
        }
    );
}
