//! 9. A panic while serving one connection ends that connection alone.

use super::server::Server;
use super::serving::Serving;
use super::{ModelUnderTest, probe};
use crate::Tally;

/// In everything that a server calls while it serves; before and after an answer of the same connection.
pub fn in_every_place(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let mut failed = 0;
    let other = (!target.one_at_a_time()).then(|| server.connect());
    for place in [
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
            client.send(place);
            if place == probe::PANIC_IN_END {
                client.expect(place);
                client.finish_sending();
            } else if place == probe::PANIC_IN_SENT {
                client.expect(place);
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

/// While the session is opened: every second one, here.
pub fn in_opening(target: &ModelUnderTest) {
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
