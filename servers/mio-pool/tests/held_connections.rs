//! Tests of events that arrive for a connection while a worker holds it. Only a loop with workers can lose them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZero;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use contract::{Limits, Needs, Service, Stop, Stopper, Tally, listen};
use protocol::{CloseReason, Protocol, Session, SessionOptions, Step};

/// Longest time that a test waits for an expected event before it fails.
const GUARD: Duration = Duration::from_secs(20);

/// Request on which the worker holds the connection until the test releases it.
const HOLD: &[u8] = b"hold\n";

/// Request on which the worker holds the connection in the same way, and closes it after the reply.
const LAST: &[u8] = b"last\n";

/// Echo session whose worker reports that it has read [`HOLD`] or [`LAST`], and waits until the test releases it.
struct HoldingEcho {
    inner: Box<dyn Session>,
    last: bool,
    gate: Arc<Mutex<Gate>>,
}

struct Gate {
    /// Reports that a worker holds its connection.
    held: Sender<()>,
    /// Receives the release of the connection.
    release: Receiver<()>,
}

impl Session for HoldingEcho {
    fn receive(&mut self, input: &[u8]) {
        self.last = input == LAST;
        if input == HOLD || input == LAST {
            let gate = self.gate.lock().unwrap();
            gate.held.send(()).unwrap();
            gate.release.recv_timeout(GUARD).unwrap();
        }
        self.inner.receive(input);
    }

    fn end_of_input(&mut self) {
        self.inner.end_of_input();
    }

    fn step(&mut self) -> Step<'_> {
        match self.inner.step() {
            Step::Read if self.last => Step::Close(CloseReason::Done),
            step => step,
        }
    }

    fn sent(&mut self, count: usize) {
        self.inner.sent(count);
    }

    fn mid_request(&self) -> bool {
        self.inner.mid_request()
    }
}

struct Server {
    address: SocketAddr,
    stopper: Stopper,
    thread: JoinHandle<io::Result<Tally>>,
    held: Receiver<()>,
    release: Sender<()>,
}

impl Server {
    fn start(workers: usize, limits: Limits) -> Server {
        let (report_held, held) = channel();
        let (release, await_release) = channel();
        let gate = Arc::new(Mutex::new(Gate {
            held: report_held,
            release: await_release,
        }));
        let service = Service::new(move || {
            let echo = Protocol::find("echo").expect("the protocols have changed");
            Box::new(HoldingEcho {
                inner: (echo.open)(&SessionOptions::default()),
                last: false,
                gate: Arc::clone(&gate),
            })
        });
        let (stopper, stop) = Stop::channel().unwrap();
        let listener = listen("127.0.0.1:0".parse().unwrap(), 16, Needs::NOTHING).unwrap();
        let limits = Limits {
            workers: NonZero::new(workers).unwrap(),
            ..limits
        };
        let model = &server_mio_pool::MODELS[0];
        Server {
            address: listener.local_addr().unwrap(),
            stopper,
            thread: thread::spawn(move || (model.serve)(listener, service, limits, stop)),
            held,
            release,
        }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_nodelay(true).unwrap();
        client.set_read_timeout(Some(GUARD)).unwrap();
        client
    }

    /// Connects a peer, sends `request`, and waits until a worker has read it and holds the connection without a reply.
    fn held_client(&self, request: &[u8]) -> TcpStream {
        let mut client = self.connect();
        client.write_all(request).unwrap();
        self.held.recv_timeout(GUARD).unwrap();
        client
    }

    /// Waits until the loop has received all earlier events: the kernel reports events in order, so the reply to a new
    /// peer comes after them.
    fn wait_for_earlier_events(&self) {
        let mut other = self.connect();
        other.write_all(b"x\n").unwrap();
        receive(&other, b"x\n");
    }

    fn release(&self) {
        self.release.send(()).unwrap();
    }

    fn stop(self) -> Tally {
        drop(self.stopper);
        self.thread.join().unwrap().unwrap()
    }
}

fn receive(mut client: &TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    client.read_exact(&mut got).unwrap();
    assert_eq!(got, expected);
}

fn expect_fin(mut client: &TcpStream) {
    assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
}

/// The next request arrives after the worker has read the last one and before it returns the connection. There is only
/// one edge for it.
#[test]
fn edge_while_a_worker_holds_the_connection_is_not_lost() {
    let server = Server::start(2, Limits::default());
    let mut client = server.held_client(HOLD);
    client.write_all(b"two\n").unwrap();
    server.wait_for_earlier_events();
    server.release();
    receive(&client, b"hold\ntwo\n");
    drop(client);
    assert_eq!(server.stop().served, 2);
}

/// The end of the input arrives while a worker holds the connection. A short read before it does not show it.
#[test]
fn fin_while_a_worker_holds_the_connection_is_not_lost() {
    let server = Server::start(2, Limits::default());
    let mut client = server.held_client(HOLD);
    client.write_all(b"two\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    server.wait_for_earlier_events();
    server.release();
    receive(&client, b"hold\ntwo\n");
    expect_fin(&client);
    assert_eq!(server.stop().served, 2);
}

/// The stop comes while a worker holds the connection. The requests that arrived before it are answered, and then the
/// connection is closed.
#[test]
fn stop_while_a_worker_holds_the_connection_is_not_lost() {
    let server = Server::start(2, Limits::default());
    let idle = server.connect();
    (&idle).write_all(b"x\n").unwrap();
    receive(&idle, b"x\n");
    let mut client = server.held_client(HOLD);
    client.write_all(b"two\n").unwrap();
    drop(server.stopper);
    // From here on the loop has received the stop.
    expect_fin(&idle);
    server.release.send(()).unwrap();
    receive(&client, b"hold\ntwo\n");
    expect_fin(&client);
    assert_eq!(server.thread.join().unwrap().unwrap().served, 2);
}

/// A worker may take longer than the idle time-out. That time does not count as idle time of the peer. When the peer is
/// idle afterwards, it is closed.
#[test]
fn idle_timeout_begins_when_the_worker_returns_the_connection() {
    let idle_timeout = Duration::from_millis(100);
    let server = Server::start(
        2,
        Limits {
            idle_timeout,
            ..Limits::default()
        },
    );
    let client = server.held_client(HOLD);
    let later = server.connect();
    expect_fin(&later);
    let since = Instant::now();
    server.release();
    receive(&client, HOLD);
    expect_fin(&client);
    assert!(since.elapsed() >= idle_timeout, "closed too early");
    assert_eq!(server.stop().timed_out, 2);
}

/// At the drain deadline a peer that still waits for a worker is cut at once. The server waits for a connection that a
/// worker holds, since a computation can't be ended from outside; its ending is then known.
#[test]
fn peer_waiting_for_a_worker_at_the_deadline_is_cut() {
    let server = Server::start(
        1,
        Limits {
            drain: Duration::ZERO,
            ..Limits::default()
        },
    );
    let mut waiting = server.connect();
    waiting.write_all(b"x\n").unwrap();
    receive(&waiting, b"x\n");
    let client = server.held_client(LAST);
    waiting.write_all(b"x\n").unwrap();
    drop(server.stopper);
    // The request was not read, so the connection ends by RST.
    assert!(!matches!(waiting.read(&mut [0; 64]), Ok(1..)));
    server.release.send(()).unwrap();
    receive(&client, LAST);
    expect_fin(&client);
    let expected = Tally {
        accepted: 2,
        served: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(server.thread.join().unwrap().unwrap(), expected);
}
