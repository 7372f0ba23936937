//! 3. Idle too long: closed and counted, and nobody else notices.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::server::Server;
use super::serving::{Goodbyes, Serving};
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

/// A peer that connects and says nothing, while others come and go.
pub fn silence(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, short(target));
    let since = Instant::now();
    let silent = server.connect();
    let mut served = 0;
    if !target.one_at_a_time() {
        while !silent.has_heard_something() {
            let other = server.connect();
            other.ask(b"x", b"x");
            other.leave();
            served += 1;
            assert!(since.elapsed() < GUARD, "not closed");
        }
        assert!(served > 0, "nobody was served meanwhile");
    }
    silent.expect_end();
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

/// A peer that has been served, begins another request and falls silent.
pub fn silence_in_mid_request(target: &ModelUnderTest) {
    let serving = Serving::protocol(&PROTOCOLS[0]);
    let server = Server::start(target, serving, short(target));
    let silent = server.connect();
    silent.ask(b"one\n", b"one\n");
    let since = Instant::now();
    silent.send(b"tw");
    silent.expect_end();
    assert!(since.elapsed() >= TIMEOUT, "closed too early");
    let timed_out = Tally {
        accepted: 1,
        timed_out: 1,
        ..Tally::default()
    };
    assert_eq!(server.stop(), timed_out);
}

/// A peer that sends a byte now and then, in time, for much longer than the time-out; and one that asks as often.
pub fn a_byte_now_and_then(target: &ModelUnderTest) {
    // If this thread is kept from sending in time, the server is right to close; that proves nothing.
    for _ in 0..10 {
        let serving = Serving::protocol(&PROTOCOLS[0]);
        let server = Server::start(target, serving, short(target));
        let mut pace = Pace {
            last: Instant::now(),
            longest: Duration::ZERO,
        };
        let slow = server.connect();
        let other = (!target.one_at_a_time()).then(|| server.connect());
        let mut speak = || -> io::Result<()> {
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
        let said = speak();
        if pace.longest < TIMEOUT {
            said.expect("closed, though it was never silent for that long");
            return;
        }
    }
    panic!("this machine is too busy to send a byte in {TIMEOUT:?}");
}

/// The longest time between two sendings, as the sender sees it: the server sees no longer one.
struct Pace {
    last: Instant,
    longest: Duration,
}

impl Pace {
    /// Called before a sending: but what is sent, is sent later. So this takes the time from before the last sending.
    fn step(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }
}

/// A peer that asks for more than the buffers hold and does not read, while others are served.
pub fn a_peer_that_stops_reading(target: &ModelUnderTest) {
    stops_reading(target, probe::BODY);
}

/// Likewise; `asked` is what it asks for.
pub(super) fn stops_reading(target: &ModelUnderTest, asked: &[u8]) {
    let goodbyes = Goodbyes::new();
    let serving = Serving::ProbesThatSayGoodbye(goodbyes.address());
    let server = Server::start(target, serving, short(target));
    let since = Instant::now();
    let stuck = server.connect();
    stuck.send(asked);
    let mut served = 0;
    if target.one_at_a_time() {
        goodbyes.one();
    } else {
        // Everybody else says goodbye once; one more is his.
        let mut gone = 0;
        while gone <= served {
            let other = server.connect();
            other.ask(b"x", b"x");
            other.leave();
            served += 1;
            gone += goodbyes.count();
            assert!(since.elapsed() < GUARD, "not closed");
        }
    }
    assert!(since.elapsed() >= TIMEOUT, "closed too early");
    let got = stuck.read_all();
    assert!(got.len() < probe::body().len(), "all was sent");
    assert!(probe::body().starts_with(&got), "wrong bytes");
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

/// A peer that takes big replies little by little, for much longer than the time-out.
///
/// Little: two megabytes at a time. The kernel lets a writer go on only when a third of its buffer is free again, so less
/// would be no progress that a server could see.
pub fn big_replies_taken_slowly(target: &ModelUnderTest) {
    let limits = Limits {
        idle_timeout: Duration::from_secs(1),
        ..target.limits()
    };
    let replies = probe::body().repeat(4);
    // If this thread is kept from reading in time, the server is right to close; that proves nothing.
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
                Ok(got) if got == piece => taken += got.len(),
                Ok(_) => panic!("wrong bytes after {taken}"),
                Err(_) => break,
            }
        }
        if pace.longest < limits.idle_timeout {
            assert_eq!(taken, replies.len(), "closed, though it was read");
            // (The server is done long before the last of it is taken, and may find the peer idle then.)
            slow.leave();
            let tally = server.stop();
            assert_eq!((tally.accepted, tally.served + tally.timed_out), (1, 1));
            return;
        }
    }
    panic!("this machine is too busy to read in time");
}
