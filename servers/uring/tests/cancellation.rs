//! Tests of mistakes that only a model with cancellation can make: an operation completes at the moment at which it is
//! cancelled, or a cancellation arrives when its target is gone and another operation has its place.

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
    let timeout = Some(Duration::from_secs(20));
    stream.set_read_timeout(timeout).unwrap();
    stream
}

fn all_timed_out(count: u64) -> Tally {
    Tally {
        accepted: count,
        timed_out: count,
        ..Tally::default()
    }
}

/// Peers are idle for about the idle time-out, so each line may come in time or too late. A line is answered with
/// itself or not at all, every connection ends once, and no connection stays open.
#[test]
fn lines_sent_near_the_timeout_are_echoed_or_closed() {
    const TIMEOUT: Duration = Duration::from_millis(10);
    if let Err(reason) = (server_uring::MODELS[0].available)() {
        eprintln!("{reason}; not checked");
        return;
    }
    let echo = Protocol::find("echo").unwrap();
    let service = Service::of(echo, SessionOptions::default());
    let (address, server, stopper) = serve(service, TIMEOUT);
    let connected: u64 = thread::scope(|scope| {
        let peers: Vec<_> = (0..16)
            .map(|number| scope.spawn(move || (0..20).map(|_| send_lines(address, number)).count()))
            .collect();
        let counts = peers.into_iter().map(|peer| peer.join().unwrap() as u64);
        counts.sum()
    });
    drop(stopper);
    let tally = server.join().unwrap().unwrap();
    assert_eq!(tally, all_timed_out(connected));

    /// Sends lines until the server closes the connection, as it does when the peer was idle for the time-out.
    fn send_lines(address: SocketAddr, number: u32) {
        let mut stream = connect(address);
        for round in 0.. {
            // The pause is between a tenth shorter and a tenth longer than the time-out.
            thread::sleep(TIMEOUT * (90 + (7 * number + 13 * round) % 20) / 100);
            let line = format!("{number} says {round}\n");
            let mut reply = vec![0; line.len()];
            let sent = stream.write_all(line.as_bytes());
            match sent.and_then(|()| stream.read_exact(&mut reply)) {
                Ok(()) => assert_eq!(reply, line.as_bytes()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("the server neither replied nor closed")
                }
                Err(_) => return,
            }
        }
    }
}

/// Session that sends its input back, and receives an `S` slowly.
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

/// Idle time-out of the server, and a third of the time for which an `S` blocks it.
const SHORT: Duration = Duration::from_millis(200);

/// The server is busy for longer than the time-out, and meanwhile all peers send. When it waits again all time-outs
/// have passed, and only some of the completions are there: the kernel posts a number of them and leaves the others for
/// the next wait. No peer that has sent in time is closed.
#[test]
fn peers_that_sent_while_the_server_was_busy_are_not_timed_out() {
    if let Err(reason) = (server_uring::MODELS[0].available)() {
        eprintln!("{reason}; not checked");
        return;
    }
    // If the machine keeps this thread from sending in time, the server may close: such a round proves nothing.
    for _ in 0..10 {
        if all_send_while_the_server_is_busy() {
            return;
        }
    }
    panic!(
        "this machine is too busy: ten times the test could not send 200 bytes within {SHORT:?}"
    );
}

/// Returns true if all peers could send in time; then it checks that all of them are answered.
fn all_send_while_the_server_is_busy() -> bool {
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
    // By now the server has read the first byte of each peer, and not much earlier.
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
        let result = peer.read_exact(&mut reply);
        result.expect("the server timed out a peer although the server itself was late");
        assert_eq!(reply, if number == 0 { *b"S" } else { *b"z" });
    }
    // Then the peers are idle, and the server closes them.
    for peer in &mut peers {
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
    drop(stopper);
    let tally = server.join().unwrap().unwrap();
    assert_eq!(tally, all_timed_out(100));
    true
}
