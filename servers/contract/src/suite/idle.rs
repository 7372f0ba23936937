//! Checks of `idle`: a peer that is idle for too long is closed and counted, and no other peer is affected.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::server::Server;
use super::serving::{DropNotices, Serving};
use super::{GUARD, ModelUnderTest, probe};
use crate::{Limits, Tally};
use protocol::PROTOCOLS;

const TIMEOUT: Duration = Duration::from_millis(300);

fn short(target: &ModelUnderTest) -> Limits {
    Limits {
        idle_timeout: TIMEOUT,
        ..target.limits()
    }
}

/// A peer connects and sends nothing, while other peers come and go. It is closed after the time-out.
pub fn idle_peer_is_closed_after_the_timeout(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, short(target));
    let since = Instant::now();
    let idle = server.connect();
    let mut served = 0;
    if !target.one_at_a_time() {
        while !idle.has_input() {
            let other = server.connect();
            other.ask(b"x", b"x");
            other.leave();
            served += 1;
            assert!(since.elapsed() < GUARD, "not closed");
        }
        assert!(served > 0, "no other peer was served meanwhile");
    }
    idle.expect_end();
    assert!(since.elapsed() >= TIMEOUT, "closed too early");
    let other = server.connect();
    other.ask(b"x", b"x");
    other.leave();
    served += 1;
    assert_eq!(
        server.stop(),
        Tally {
            accepted: served + 1,
            served,
            timed_out: 1,
            ..Tally::default()
        }
    );
}

/// A peer that has been served sends part of another request and then nothing. It is closed after the time-out.
pub fn peer_idle_in_mid_request_is_closed(target: &ModelUnderTest) {
    let serving = Serving::protocol(&PROTOCOLS[0]);
    let server = Server::start(target, serving, short(target));
    let idle = server.connect();
    idle.ask(b"one\n", b"one\n");
    let since = Instant::now();
    idle.send(b"tw");
    idle.expect_end();
    assert!(since.elapsed() >= TIMEOUT, "closed too early");
    let timed_out = Tally {
        accepted: 1,
        timed_out: 1,
        ..Tally::default()
    };
    assert_eq!(server.stop(), timed_out);
}

/// A peer sends one byte at a time, always within the time-out, for much longer than the time-out. Another peer sends
/// requests as often. Both stay connected.
pub fn peer_sending_slowly_is_kept_open(target: &ModelUnderTest) {
    // If the machine keeps this thread from sending in time, the server may close: such a round proves nothing.
    for _ in 0..10 {
        let serving = Serving::protocol(&PROTOCOLS[0]);
        let server = Server::start(target, serving, short(target));
        let mut pace = Pace {
            last: Instant::now(),
            longest: Duration::ZERO,
        };
        let slow = server.connect();
        let other = (!target.one_at_a_time()).then(|| server.connect());
        let mut converse = || -> io::Result<()> {
            let mut line = Vec::new();
            for number in 0..24 {
                thread::sleep(TIMEOUT / 8);
                pace.step();
                slow.try_send(b"x")?;
                line.push(b'x');
                if let (Some(other), 0) = (&other, number) {
                    other.try_ask(b"y\n", b"y\n")?;
                } else if let Some(other) = &other {
                    other.try_ask(b"y\n", b"y\ny\n")?;
                }
            }
            line.push(b'\n');
            pace.step();
            slow.try_ask(b"\n", &line)
        };
        let result = converse();
        if pace.longest < TIMEOUT {
            result.expect("the server closed a peer that was never idle for the time-out");
            return;
        }
    }
    panic!("this machine is too busy: ten times the test could not send a byte within {TIMEOUT:?}");
}

/// Longest time between two sends or reads as the client measures it. The server sees no longer gap.
struct Pace {
    last: Instant,
    longest: Duration,
}

impl Pace {
    /// Records the time since the last call. Called before each send or read, so a gap is measured from before the last
    /// one and is never too short.
    fn step(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }
}

/// A peer asks for more than the buffers hold and does not read. It is closed after the idle time-out, while other
/// peers are served.
pub fn peer_that_stops_reading_is_closed(target: &ModelUnderTest) {
    stops_reading(target, probe::BODY);
}

/// Checks that a peer which sends `request` and does not read the reply is closed after the idle time-out.
pub(super) fn stops_reading(target: &ModelUnderTest, request: &[u8]) {
    let notices = DropNotices::new();
    let serving = Serving::ProbesWithDropNotice(notices.address());
    let server = Server::start(target, serving, short(target));
    let since = Instant::now();
    let blocked = server.connect();
    blocked.send(request);
    let mut served = 0;
    if target.one_at_a_time() {
        notices.wait_for_one();
    } else {
        // Each other peer causes one notice. The additional one is that of the peer that stopped reading.
        let mut gone = 0;
        while gone <= served {
            let other = server.connect();
            other.ask(b"x", b"x");
            other.leave();
            served += 1;
            gone += notices.count();
            assert!(since.elapsed() < GUARD, "not closed");
        }
    }
    assert!(since.elapsed() >= TIMEOUT, "closed too early");
    let received = blocked.read_all();
    assert!(
        received.len() < probe::body().len(),
        "the peer received the whole reply"
    );
    assert!(probe::body().starts_with(&received), "wrong bytes");
    assert_eq!(
        server.stop(),
        Tally {
            accepted: served + 1,
            served,
            timed_out: 1,
            ..Tally::default()
        }
    );
}

/// A peer reads large replies in pieces, for much longer than the time-out in all. It stays connected.
///
/// Each piece has two megabytes. The kernel reports a socket as writable only when a third of its buffer is free again,
/// so a server could not see the progress of smaller pieces.
pub fn peer_reading_slowly_is_kept_open(target: &ModelUnderTest) {
    let limits = Limits {
        idle_timeout: Duration::from_secs(1),
        ..target.limits()
    };
    let replies = probe::body().repeat(4);
    // If the machine keeps this thread from reading in time, the server may close: such a round proves nothing.
    for _ in 0..10 {
        let server = Server::start(target, Serving::Probes, limits.clone());
        let slow = server.connect();
        slow.send(&probe::BODY.repeat(4));
        let mut pace = Pace {
            last: Instant::now(),
            longest: Duration::ZERO,
        };
        let mut taken = 0;
        for piece in replies.chunks(2 << 20) {
            thread::sleep(limits.idle_timeout / 5);
            pace.step();
            match slow.try_read(piece.len()) {
                Ok(received) if received == piece => taken += received.len(),
                Ok(_) => panic!("wrong bytes after {taken}"),
                Err(_) => break,
            }
        }
        if pace.longest < limits.idle_timeout {
            assert_eq!(
                taken,
                replies.len(),
                "the server closed a peer that read in time"
            );
            // The server has sent everything long before the peer reads the last byte, and may time the peer out then.
            slow.leave();
            let tally = server.stop();
            assert_eq!((tally.accepted, tally.served + tally.timed_out), (1, 1));
            return;
        }
    }
    panic!("this machine is too busy: ten times the test could not read within the idle time-out");
}
