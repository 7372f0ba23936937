//! Ranges of files are sent as other replies are: exactly, as fast as they are taken, to the end or until the deadline.

use std::thread;

use super::idle::stops_reading;
use super::server::{Server, all_served};
use super::serving::Serving;
use super::stop::{is_cut_at_the_deadline, is_finished};
use super::{ModelUnderTest, probe};
use crate::Tally;

/// Between other replies, and one behind the other.
pub fn whole_and_exact(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.send(&[b"a", probe::FILE, b"b", probe::FILE, probe::FILE, b"c"].concat());
    client.finish_sending();
    client.expect(b"a");
    client.expect(probe::body());
    client.expect(b"b");
    client.expect(probe::body());
    client.expect(probe::body());
    client.expect(b"c");
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}

/// The same file to many at the same time: nobody's place in it is anybody else's.
pub fn to_many_at_once(target: &ModelUnderTest) {
    const CLIENTS: usize = 20;
    let server = Server::start(target, Serving::Probes, target.limits());
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let client = server.connect();
            scope.spawn(move || {
                client.send(probe::FILE);
                client.finish_sending();
                client.expect(probe::body());
                client.expect_end();
            });
        }
    });
    assert_eq!(server.stop(), all_served(CLIENTS as u64));
}

/// A peer takes it little by little, and another has every request answered in between.
pub fn to_a_slow_reader(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let (slow, other) = (server.connect(), server.connect());
    slow.send(probe::FILE);
    for piece in probe::body().chunks(128 * 1024) {
        slow.expect(piece);
        if !target.one_at_a_time() {
            other.ask(b"x", b"x");
        }
    }
    slow.leave();
    other.ask(b"x", b"x");
    other.leave();
    assert_eq!(server.stop(), all_served(2));
}

/// A peer that does not take it is closed when its time is over, while others are served.
pub fn to_a_peer_that_stops_reading(target: &ModelUnderTest) {
    stops_reading(target, probe::FILE);
}

/// A browser that breaks off a download and asks again.
pub fn reset_and_asked_again(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    for _ in 0..5 {
        let client = server.connect();
        client.ask(probe::FILE, &probe::body()[..100_000]);
        client.reset();
    }
    let client = server.connect();
    client.ask(probe::FILE, probe::body());
    client.leave();
    let expected = Tally {
        accepted: 6,
        served: 1,
        reset: 5,
        ..Tally::default()
    };
    assert_eq!(server.stop(), expected);
}

/// A file that has become shorter than what was promised of it: what is there comes, and then the end, but for nobody
/// else.
pub fn become_shorter(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    let end = &probe::body()[probe::body().len() - probe::LEFT..];
    client.ask(probe::SHORTER, end);
    client.expect_end_or_reset();
    let other = server.connect();
    other.ask(b"x", b"x");
    other.leave();
    let expected = Tally {
        accepted: 2,
        served: 1,
        failed: 1,
        ..Tally::default()
    };
    assert_eq!(server.stop(), expected);
}

/// After a stop, one that is under way is finished.
pub fn finished_within_the_drain(target: &ModelUnderTest) {
    is_finished(target, probe::FILE);
}

/// After a stop, one that nobody takes is cut at the deadline, and not before.
pub fn cut_at_the_deadline(target: &ModelUnderTest) {
    is_cut_at_the_deadline(target, probe::FILE);
}
