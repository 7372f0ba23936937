//! Checks of files: a server sends ranges of files as it sends other replies, that is exactly, at the speed of the
//! reader, and to the end or until the deadline.

use std::thread;

use super::idle::stops_reading;
use super::server::{Server, all_served};
use super::serving::Serving;
use super::stop::{is_cut_at_the_deadline, is_finished};
use super::{ModelUnderTest, probe};
use crate::Tally;

/// A client asks for files between other requests and directly after one another. It receives exact replies.
pub fn files_between_replies_are_exact(target: &ModelUnderTest) {
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

/// Twenty peers receive the same file at the same time: each connection has its own position in the file.
pub fn file_sent_to_many_peers_is_exact(target: &ModelUnderTest) {
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

/// A peer reads a file in small pieces, and another peer receives all its replies in between.
pub fn file_to_slow_reader_delays_no_other_peer(target: &ModelUnderTest) {
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

/// A peer that does not read the file is closed after the idle time-out. Other peers are served meanwhile.
pub fn file_to_peer_that_stops_reading_times_out(target: &ModelUnderTest) {
    stops_reading(target, probe::FILE);
}

/// Clients reset in the middle of a download, as a browser does; a later request receives the whole file.
pub fn file_is_sent_again_after_resets(target: &ModelUnderTest) {
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

/// A file is shorter than the announced length, because it was truncated. The peer receives the bytes that are there,
/// and then the end. Other peers are not affected.
pub fn truncated_file_ends_one_connection(target: &ModelUnderTest) {
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

/// After a stop, the server finishes sending a file that is in progress.
pub fn file_in_progress_is_finished(target: &ModelUnderTest) {
    is_finished(target, probe::FILE);
}

/// After a stop, a file that its peer does not read is cut at the drain deadline, and not before.
pub fn unread_file_is_cut_at_the_deadline(target: &ModelUnderTest) {
    is_cut_at_the_deadline(target, probe::FILE);
}
