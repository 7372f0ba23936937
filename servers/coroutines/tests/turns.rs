//! What a hub can get wrong: who lets whom run, and whose time it is.

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

/// How long is waited for what must come, before the test is given up.
const GUARD: Duration = Duration::from_secs(20);

/// How often a greedy session goes on. Far more often than a turn is long; and not for ever, so that the test fails
/// where the other one is served too late.
const ROUNDS: usize = 10_000;

/// The session of a peer that is always as quick as the server. The only way to be sure of that is to be the peer as
/// well: what comes to the server is sent by its own session, which does it before the server can look for it.
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
    fn goes_on(&self) -> bool {
        self.rounds.fetch_add(1, Ordering::Relaxed) < ROUNDS
    }
}

impl Session for Greedy {
    fn receive(&mut self, _: &[u8]) {
        if matches!(self.direction, Direction::Reads) && self.goes_on() {
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
        self.goes_on();
        (&*self.peer).read_exact(&mut vec![0; count]).unwrap();
    }

    fn mid_request(&self) -> bool {
        false
    }
}

/// Answers the first request with a byte, and closes.
struct Modest {
    asked: bool,
    answered: bool,
}

impl Session for Modest {
    fn receive(&mut self, _: &[u8]) {
        self.asked = true;
    }

    fn end_of_input(&mut self) {
        self.answered = true;
    }

    fn step(&mut self) -> Step<'_> {
        match (self.asked, self.answered) {
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

fn a_modest_peer_has_its_turn_beside_one_that_always(direction: Direction) {
    let listener = listen("127.0.0.1:0".parse().unwrap(), 2, Needs::NOTHING).unwrap();
    let address = listener.local_addr().unwrap();
    // All of it is there before the server looks for the first time.
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
            asked: false,
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
        "it had to wait until the other one had left"
    );
    drop(stopper);
    drop(modest);
    assert_eq!(server.join().unwrap().unwrap().accepted, 2);
}

#[test]
fn a_modest_peer_has_its_turn_beside_one_that_always_sends() {
    a_modest_peer_has_its_turn_beside_one_that_always(Direction::Reads);
}

#[test]
fn a_modest_peer_has_its_turn_beside_one_that_always_takes() {
    a_modest_peer_has_its_turn_beside_one_that_always(Direction::Writes);
}

/// Answers every request with a byte, after a nap: so it keeps the only thread, as one that computes does.
struct Napping {
    nap: Duration,
    owed: bool,
    ended: bool,
    answered: Option<Instant>,
    /// Is told how long after the last answer this was dropped.
    lived: Option<Sender<Duration>>,
}

impl Session for Napping {
    fn receive(&mut self, _: &[u8]) {
        thread::sleep(self.nap);
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

impl Drop for Napping {
    fn drop(&mut self) {
        if let (Some(lived), Some(answered)) = (&self.lived, self.answered) {
            let _ = lived.send(answered.elapsed());
        }
    }
}

/// One coroutine keeps the thread for longer than the time-out. Whoever has their turn after it has their whole time
/// all the same.
#[test]
fn who_comes_after_a_long_turn_is_not_timed_out_too_early() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    let listener = listen("127.0.0.1:0".parse().unwrap(), 2, Needs::NOTHING).unwrap();
    let address = listener.local_addr().unwrap();
    let (mut napping, mut next) = (connect(address), connect(address));
    napping.write_all(b"x").unwrap();
    next.write_all(b"x").unwrap();

    let (lived, told) = mpsc::channel();
    let (opened, lived) = (AtomicUsize::new(0), Mutex::new(lived));
    let service = Service::new(move || {
        let first = opened.fetch_add(1, Ordering::Relaxed) == 0;
        Box::new(Napping {
            nap: if first { 2 * TIMEOUT } else { Duration::ZERO },
            owed: false,
            ended: false,
            answered: None,
            lived: (!first).then(|| lived.lock().unwrap().clone()),
        })
    });
    let limits = Limits {
        idle_timeout: TIMEOUT,
        ..Limits::default()
    };
    let (stopper, stop) = Stop::channel().unwrap();
    let serve = server_coroutines::MODELS[0].serve;
    let server = thread::spawn(move || serve(listener, service, limits, stop));
    napping.read_exact(&mut [0]).unwrap();
    // Something for the hub to wake up for, soon.
    drop(napping);
    next.read_exact(&mut [0]).unwrap();
    assert_eq!(next.read(&mut [0]).unwrap(), 0);
    drop(stopper);
    let tally = server.join().unwrap().unwrap();
    assert!(tally.timed_out > 0, "{tally}");
    let lived = told.recv().unwrap();
    assert!(lived >= TIMEOUT, "closed too early: {lived:?}");
}

/// Has more to say than any socket holds.
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

/// A coroutine that waits for room is woken by input too. That is not what it waits for, so its time goes on.
#[test]
fn who_sends_and_does_not_read_is_timed_out_all_the_same() {
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
