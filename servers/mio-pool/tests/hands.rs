//! What only a loop with workers can get wrong: what comes for a connection while it is in a worker's hands.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZero;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use contract::{Limits, Needs, Service, Stop, Stopper, Tally, listen};
use protocol::{CloseReason, Protocol, Session, SessionOptions, Step};

/// How long is waited for what must come, before the test is given up.
const GUARD: Duration = Duration::from_secs(20);

/// What the worker reads when it is to hold the connection.
const HOLD: &[u8] = b"hold\n";

/// The same, and the connection ends with the reply.
const LAST: &[u8] = b"last\n";

/// An echo whose worker, having read [`HOLD`], says so and waits until it is let go.
struct Held {
    inner: Box<dyn Session>,
    last: bool,
    hand: Arc<Mutex<Hand>>,
}

struct Hand {
    closed: Sender<()>,
    open: Receiver<()>,
}

impl Session for Held {
    fn receive(&mut self, input: &[u8]) {
        self.last = input == LAST;
        if input == HOLD || input == LAST {
            let hand = self.hand.lock().unwrap();
            hand.closed.send(()).unwrap();
            hand.open.recv_timeout(GUARD).unwrap();
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
    closed: Receiver<()>,
    open: Sender<()>,
}

impl Server {
    fn start(workers: usize, limits: Limits) -> Server {
        let (is_closed, closed) = channel();
        let (open, is_open) = channel();
        let hand = Arc::new(Mutex::new(Hand {
            closed: is_closed,
            open: is_open,
        }));
        let service = Service::new(move || {
            let echo = Protocol::find("echo").expect("the protocols have changed");
            Box::new(Held {
                inner: (echo.open)(&SessionOptions::default()),
                last: false,
                hand: Arc::clone(&hand),
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
            closed,
            open,
        }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_nodelay(true).unwrap();
        client.set_read_timeout(Some(GUARD)).unwrap();
        client
    }

    /// A peer whose connection is in a worker's hands, read from and not answered yet.
    fn held(&self, by: &[u8]) -> TcpStream {
        let mut client = self.connect();
        client.write_all(by).unwrap();
        self.closed.recv_timeout(GUARD).unwrap();
        client
    }

    /// Whoever is answered here knows that the loop has heard of all that came before: the kernel reports it in order.
    fn the_loop_has_heard_of_it(&self) {
        let mut other = self.connect();
        other.write_all(b"x\n").unwrap();
        receive(&other, b"x\n");
    }

    fn let_go(&self) {
        self.open.send(()).unwrap();
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

fn hear_the_end(mut client: &TcpStream) {
    assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
}

/// The next request comes when the worker has read the last one and not given the connection back: its edge is the
/// only one that there will be.
#[test]
fn an_edge_is_not_lost() {
    let server = Server::start(2, Limits::default());
    let mut client = server.held(HOLD);
    client.write_all(b"two\n").unwrap();
    server.the_loop_has_heard_of_it();
    server.let_go();
    receive(&client, b"hold\ntwo\n");
    drop(client);
    assert_eq!(server.stop().served, 2);
}

/// So does the end, which a short read before it does not show.
#[test]
fn the_end_is_not_lost() {
    let server = Server::start(2, Limits::default());
    let mut client = server.held(HOLD);
    client.write_all(b"two\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    server.the_loop_has_heard_of_it();
    server.let_go();
    receive(&client, b"hold\ntwo\n");
    hear_the_end(&client);
    assert_eq!(server.stop().served, 2);
}

/// Nor is the stop: what had come before it is answered, and then the connection is closed.
#[test]
fn the_stop_is_not_lost() {
    let server = Server::start(2, Limits::default());
    let idle = server.connect();
    (&idle).write_all(b"x\n").unwrap();
    receive(&idle, b"x\n");
    let mut client = server.held(HOLD);
    client.write_all(b"two\n").unwrap();
    drop(server.stopper);
    // From here on the loop knows.
    hear_the_end(&idle);
    server.open.send(()).unwrap();
    receive(&client, b"hold\ntwo\n");
    hear_the_end(&client);
    assert_eq!(server.thread.join().unwrap().unwrap().served, 2);
}

/// A worker may take longer than a peer may be idle. That is not the peer's doing; and when it is idle, it is closed.
#[test]
fn the_time_out_waits_and_is_not_lost() {
    let idle_timeout = Duration::from_millis(100);
    let server = Server::start(
        2,
        Limits {
            idle_timeout,
            ..Limits::default()
        },
    );
    let client = server.held(HOLD);
    let later = server.connect();
    hear_the_end(&later);
    let since = Instant::now();
    server.let_go();
    receive(&client, HOLD);
    hear_the_end(&client);
    assert!(since.elapsed() >= idle_timeout, "closed too early");
    assert_eq!(server.stop().timed_out, 2);
}

/// At the drain deadline a peer that still waits for a worker is cut at once. Whoever is with one is waited for, since
/// nobody can end a computation from outside; and how it ended is known then.
#[test]
fn who_waits_for_a_worker_at_the_deadline_is_cut() {
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
    let client = server.held(LAST);
    waiting.write_all(b"x\n").unwrap();
    drop(server.stopper);
    // With its request unread, the end is a reset.
    assert!(!matches!(waiting.read(&mut [0; 64]), Ok(1..)));
    server.open.send(()).unwrap();
    receive(&client, LAST);
    hear_the_end(&client);
    let expected = Tally {
        accepted: 2,
        served: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(server.thread.join().unwrap().unwrap(), expected);
}
