//! What only a model that cancels can get wrong: an operation that comes to its end at the moment at which it is
//! cancelled, and a cancellation that arrives when its target is gone and another has its place.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use contract::{Limits, Needs, Service, Stop, Stopper, Tally, listen};
use protocol::{CloseReason, Protocol, Session, SessionOptions, Step};

type Server = JoinHandle<io::Result<Tally>>;

fn serve(service: Service, idle_timeout: Duration) -> (SocketAddr, Server, Stopper) {
    let listener = listen("127.0.0.1:0".parse().unwrap(), 256, Needs::NOTHING).unwrap();
    let address = listener.local_addr().unwrap();
    let (stopper, stop) = Stop::channel().unwrap();
    let limits = Limits {
        idle_timeout,
        ..Limits::default()
    };
    let model = &server_uring::MODELS[0];
    let server = thread::spawn(move || (model.serve)(listener, service, limits, stop));
    (address, server, stopper)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).unwrap();
    stream
}

fn all_timed_out(count: u64) -> Tally {
    Tally {
        accepted: count,
        timed_out: count,
        ..Tally::default()
    }
}

/// Peers that are silent for about as long as they may be. Whether each comes in time or too late, nobody knows; but a
/// line is answered with itself or not at all, every connection ends once, and nothing stays open.
#[test]
fn peers_that_speak_at_the_last_moment() {
    const TIMEOUT: Duration = Duration::from_millis(10);
    if let Err(why) = (server_uring::MODELS[0].available)() {
        eprintln!("{why}; not checked");
        return;
    }
    let echo = Protocol::find("echo").unwrap();
    let service = Service::of(echo, SessionOptions::default());
    let (address, server, stopper) = serve(service, TIMEOUT);
    let connected: u64 = thread::scope(|scope| {
        let peers: Vec<_> = (0..16)
            .map(|number| scope.spawn(move || (0..20).map(|_| speak(address, number)).count()))
            .collect();
        let counts = peers.into_iter().map(|peer| peer.join().unwrap() as u64);
        counts.sum()
    });
    drop(stopper);
    let tally = server.join().unwrap().unwrap();
    assert_eq!(tally, all_timed_out(connected));

    /// Speaks until the server has had enough, as it will have after some silence.
    fn speak(address: SocketAddr, number: u32) {
        let mut stream = connect(address);
        for round in 0.. {
            // From a tenth too short to a tenth too long.
            thread::sleep(TIMEOUT * (90 + (7 * number + 13 * round) % 20) / 100);
            let line = format!("{number} says {round}\n");
            let mut reply = vec![0; line.len()];
            let said = stream.write_all(line.as_bytes());
            match said.and_then(|()| stream.read_exact(&mut reply)) {
                Ok(()) => assert_eq!(reply, line.as_bytes()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("left waiting"),
                Err(_) => return,
            }
        }
    }
}

/// Sends back what it gets, and is slow to take an `S`.
struct Slow {
    owed: Vec<u8>,
    ended: bool,
}

impl Session for Slow {
    fn receive(&mut self, input: &[u8]) {
        if input.contains(&b'S') {
            thread::sleep(3 * SHORT);
        }
        self.owed.extend(input);
    }

    fn end_of_input(&mut self) {
        self.ended = true;
    }

    fn step(&mut self) -> Step<'_> {
        match &self.owed[..] {
            [] if self.ended => Step::Close(CloseReason::Done),
            [] => Step::Read,
            owed => Step::Write(owed),
        }
    }

    fn sent(&mut self, count: usize) {
        self.owed.drain(..count);
    }

    fn mid_request(&self) -> bool {
        !self.owed.is_empty()
    }
}

const SHORT: Duration = Duration::from_millis(200);

/// The server is busy for longer than the time-out, and meanwhile everybody speaks. When it looks again all are overdue,
/// and only some of their completions are there: the kernel works a number of them out and leaves the others for the
/// next wait.
#[test]
fn who_has_spoken_is_not_silent_though_nobody_has_listened() {
    if let Err(why) = (server_uring::MODELS[0].available)() {
        eprintln!("{why}; not checked");
        return;
    }
    // If this thread is kept from speaking in time, the server is right to close; that proves nothing.
    for _ in 0..10 {
        if all_speak_while_nobody_listens() {
            return;
        }
    }
    panic!("this machine is too busy to send 200 bytes in {SHORT:?}");
}

/// Whether all could speak in time. Those who could must have been answered.
fn all_speak_while_nobody_listens() -> bool {
    let service = Service::new(|| {
        Box::new(Slow {
            owed: Vec::new(),
            ended: false,
        })
    });
    let (address, server, stopper) = serve(service, SHORT);
    let mut peers: Vec<_> = (0..100).map(|_| connect(address)).collect();
    for peer in &mut peers {
        if peer.write_all(b"x").is_err() || peer.read_exact(&mut [0]).is_err() {
            return false;
        }
    }
    let begun = Instant::now();
    // The server has seen the first byte of each now, and not much earlier.
    for peer in &mut peers {
        if peer.write_all(b"y").is_err() || peer.read_exact(&mut [0]).is_err() {
            return false;
        }
    }
    peers[0].write_all(b"S").unwrap();
    for peer in &mut peers[1..] {
        let _ = peer.write_all(b"z");
    }
    if begun.elapsed() >= SHORT {
        return false;
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        let mut reply = [0];
        let heard = peer.read_exact(&mut reply);
        heard.expect("timed out by a server that was late itself");
        assert_eq!(reply, if number == 0 { *b"S" } else { *b"z" });
    }
    // And then they are silent, and that is noticed.
    for peer in &mut peers {
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
    drop(stopper);
    let tally = server.join().unwrap().unwrap();
    assert_eq!(tally, all_timed_out(100));
    true
}
