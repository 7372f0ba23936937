//! Tests of the hub: coroutines let one another run, and each has its own idle time-out.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use contract::{Limits, Needs, READ_BUFFER, Service, Stop, listen};
use protocol::{CloseReason, Session, Step};

/// Longest time that a test waits for an expected event before it fails.
const GUARD: Duration = Duration::from_secs(20);

/// Number of steps of a greedy session. It is much larger than the number of steps in a turn, and it is finite, so that
/// the test fails if the other peer is served too late.
const ROUNDS: usize = 10_000;

/// Session of a peer that is always as fast as the server. To be sure of that, the session is its own peer: it sends
/// the next input of the server before the server can look for it.
struct Greedy {
    peer: Arc<TcpStream>,
    direction: Direction,
    rounds: Arc<AtomicUsize>,
}

#[derive(Clone, Copy)]
enum Direction {
    Reads,
    Writes,
}

impl Greedy {
    fn continues(&self) -> bool {
        self.rounds.fetch_add(1, Ordering::Relaxed) < ROUNDS
    }
}

impl Session for Greedy {
    fn receive(&mut self, _: &[u8]) {
        if matches!(self.direction, Direction::Reads) && self.continues() {
            (&*self.peer).write_all(&[0; READ_BUFFER]).unwrap();
        }
    }

    fn end_of_input(&mut self) {
        self.rounds.store(ROUNDS, Ordering::Relaxed);
    }

    fn step(&mut self) -> Step<'_> {
        let over = self.rounds.load(Ordering::Relaxed) >= ROUNDS;
        match self.direction {
            _ if over => Step::Close(CloseReason::Done),
            Direction::Reads => Step::Read,
            Direction::Writes => Step::Write(&[0; 1024]),
        }
    }

    fn sent(&mut self, count: usize) {
        self.continues();
        (&*self.peer).read_exact(&mut vec![0; count]).unwrap();
    }

    fn mid_request(&self) -> bool {
        false
    }
}

/// Session that answers the first request with one byte and closes.
struct Modest {
    received: bool,
    answered: bool,
}

impl Session for Modest {
    fn receive(&mut self, _: &[u8]) {
        self.received = true;
    }

    fn end_of_input(&mut self) {
        self.answered = true;
    }

    fn step(&mut self) -> Step<'_> {
        match (self.received, self.answered) {
            (_, true) => Step::Close(CloseReason::Done),
            (true, _) => Step::Write(b"x"),
            _ => Step::Read,
        }
    }

    fn sent(&mut self, _: usize) {
        self.answered = true;
    }

    fn mid_request(&self) -> bool {
        false
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream
}

fn check_modest_peer_beside_greedy_one(direction: Direction) {
    let listener = listen("127.0.0.1:0".parse().unwrap(), 2, Needs::NOTHING).unwrap();
    let address = listener.local_addr().unwrap();
    // All input has arrived before the server looks for the first time.
    let greedy = Arc::new(connect(address));
    greedy.set_nodelay(true).unwrap();
    if matches!(direction, Direction::Reads) {
        (&*greedy).write_all(&[0; 2 * READ_BUFFER]).unwrap();
    }
    let mut modest = connect(address);
    modest.write_all(b"x").unwrap();

    let rounds = Arc::new(AtomicUsize::new(0));
    let (opened, peer, counted) = (AtomicUsize::new(0), greedy, Arc::clone(&rounds));
    // Peers are accepted in the order in which they came.
    let service = Service::new(move || match opened.fetch_add(1, Ordering::Relaxed) {
        0 => Box::new(Greedy {
            peer: Arc::clone(&peer),
            direction,
            rounds: Arc::clone(&counted),
        }),
        _ => Box::new(Modest {
            received: false,
            answered: false,
        }),
    });
    let (stopper, stop) = Stop::channel().unwrap();
    let serve = server_coroutines::MODELS[0].serve;
    let server = thread::spawn(move || serve(listener, service, Limits::default(), stop));
    modest.read_exact(&mut [0]).unwrap();
    let rounds = rounds.load(Ordering::Relaxed);
    assert!(
        rounds < ROUNDS,
        "the modest peer was served only after the greedy one had ended"
    );
    drop(stopper);
    drop(modest);
    assert_eq!(server.join().unwrap().unwrap().accepted, 2);
}

#[test]
fn modest_peer_has_its_turn_beside_a_peer_that_always_sends() {
    check_modest_peer_beside_greedy_one(Direction::Reads);
}

#[test]
fn modest_peer_has_its_turn_beside_a_peer_that_always_reads() {
    check_modest_peer_beside_greedy_one(Direction::Writes);
}

/// Session that sleeps and then answers each request with one byte. So it blocks the only thread, as a computation
/// does.
struct Sleeping {
    pause: Duration,
    owed: bool,
    ended: bool,
    answered: Option<Instant>,
    /// Receives the time from the last reply to the drop of this session.
    lifetime: Option<Sender<Duration>>,
}

impl Session for Sleeping {
    fn receive(&mut self, _: &[u8]) {
        thread::sleep(self.pause);
        self.owed = true;
    }

    fn end_of_input(&mut self) {
        self.ended = true;
    }

    fn step(&mut self) -> Step<'_> {
        match (self.owed, self.ended) {
            (true, _) => Step::Write(b"x"),
            (false, false) => Step::Read,
            (false, true) => Step::Close(CloseReason::Done),
        }
    }

    fn sent(&mut self, _: usize) {
        self.owed = false;
        self.answered = Some(Instant::now());
    }

    fn mid_request(&self) -> bool {
        false
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        if let (Some(lifetime), Some(answered)) = (&self.lifetime, self.answered) {
            let _ = lifetime.send(answered.elapsed());
        }
    }
}

/// One coroutine blocks the thread for longer than the time-out. A coroutine that runs after it has its full idle
/// time-out all the same.
#[test]
fn peer_after_a_long_turn_has_its_full_timeout() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    let listener = listen("127.0.0.1:0".parse().unwrap(), 2, Needs::NOTHING).unwrap();
    let address = listener.local_addr().unwrap();
    let (mut sleeping, mut next) = (connect(address), connect(address));
    sleeping.write_all(b"x").unwrap();
    next.write_all(b"x").unwrap();

    let (lifetime, lifetimes) = mpsc::channel();
    let (opened, lifetime) = (AtomicUsize::new(0), Mutex::new(lifetime));
    let service = Service::new(move || {
        let first = opened.fetch_add(1, Ordering::Relaxed) == 0;
        Box::new(Sleeping {
            pause: if first { 2 * TIMEOUT } else { Duration::ZERO },
            owed: false,
            ended: false,
            answered: None,
            lifetime: (!first).then(|| lifetime.lock().unwrap().clone()),
        })
    });
    let limits = Limits {
        idle_timeout: TIMEOUT,
        ..Limits::default()
    };
    let (stopper, stop) = Stop::channel().unwrap();
    let serve = server_coroutines::MODELS[0].serve;
    let server = thread::spawn(move || serve(listener, service, limits, stop));
    sleeping.read_exact(&mut [0]).unwrap();
    // The end of this connection is an event for which the hub wakes up soon.
    drop(sleeping);
    next.read_exact(&mut [0]).unwrap();
    assert_eq!(next.read(&mut [0]).unwrap(), 0);
    drop(stopper);
    let tally = server.join().unwrap().unwrap();
    assert!(tally.timed_out > 0, "{tally}");
    let lifetime = lifetimes.recv().unwrap();
    assert!(lifetime >= TIMEOUT, "closed too early: {lifetime:?}");
}

/// Session that sends without end.
struct Endless;

impl Session for Endless {
    fn receive(&mut self, _: &[u8]) {}
    fn end_of_input(&mut self) {}
    fn step(&mut self) -> Step<'_> {
        Step::Write(&[0; 64 * 1024])
    }
    fn sent(&mut self, _: usize) {}
    fn mid_request(&self) -> bool {
        false
    }
}

/// A coroutine that waits for room in the send buffer is woken by input, too. It does not wait for input, so its idle
/// time continues.
#[test]
fn peer_that_sends_and_does_not_read_is_timed_out() {
    let listener = listen("127.0.0.1:0".parse().unwrap(), 1, Needs::NOTHING).unwrap();
    let mut peer = connect(listener.local_addr().unwrap());
    peer.set_nodelay(true).unwrap();
    let limits = Limits {
        idle_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let (stopper, stop) = Stop::channel().unwrap();
    let serve = server_coroutines::MODELS[0].serve;
    let service = Service::new(|| Box::new(Endless));
    let server = thread::spawn(move || serve(listener, service, limits, stop));
    let since = Instant::now();
    while peer.write_all(b"x").is_ok() {
        assert!(since.elapsed() < GUARD, "not closed");
        thread::sleep(Duration::from_millis(50));
    }
    drop(stopper);
    assert_eq!(server.join().unwrap().unwrap().timed_out, 1);
}
