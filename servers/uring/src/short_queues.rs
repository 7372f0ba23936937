//! Tests of the server on a ring with short queues. There a multishot accept is used even at small limits, and ends at
//! the limit or because the queue is full; and the queue overflows in cases where the usual one never does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use contract::suite::GUARD;
use contract::{Stopper, listen};
use protocol::Step;

use super::*;

const QUEUE: u32 = 16;

static SHORT: Model = Model {
    name: "uring with short queues",
    serve: |listener, service, limits, stop| {
        serve_on(Ring::with(QUEUE, QUEUE)?, listener, service, limits, stop)
    },
    ..MODELS[0]
};

// All checks of the suite that accepting or a full queue may affect, except those with a shortage of descriptors: that
// shortage begins while the server runs, and a multishot accept keeps the limit that was set when it was submitted.
contract::suite! { @guarantees crate::short_queues::SHORT;
    exact { interleaved_clients_get_their_own_replies, }
    idle { idle_peer_is_closed_after_the_timeout, }
    limit {
        peer_over_the_limit_waits_for_a_slot,
        stop_at_the_limit_ends_served_and_waiting_peers,
        idle_peers_occupy_only_their_own_slots,
        waiting_peers_cost_no_cpu,
    }
    accept { broken_listener_ends_the_server, }
    files { file_sent_to_many_peers_is_exact, }
    work { concurrent_waits_are_all_answered, }
    stop {
        stop_without_peers_ends_the_server,
        stop_before_the_start_ends_the_server,
        idle_peers_are_closed,
        requests_received_before_stop_are_answered,
        accepted_peers_are_answered,
        new_peers_are_refused_during_the_drain,
        stop_in_a_connect_storm_answers_accepted_peers,
        port_can_be_reused_after_stop,
        drain_costs_no_cpu,
    }
    tally {
        every_ending_is_counted,
        descriptors_and_threads_are_released,
    }
}

#[test]
#[ignore = "a child process: the checks that need a server process of its own run this"]
fn server_process() {
    contract::suite::process::serve(&contract::suite::ModelUnderTest {
        model: &SHORT,
        test: concat!(module_path!(), "::server_process"),
    });
}

/// Numbers of a server's sessions.
#[derive(Default)]
struct Counts {
    /// Sessions that are open now.
    open: AtomicUsize,
    /// Most sessions that were open at a time.
    most_open: AtomicUsize,
    /// Sessions that were opened in all.
    opened: AtomicUsize,
}

/// A session that sends its input back. A `W` in the input blocks the whole server until the test lets it continue.
struct Echo {
    owed: Vec<u8>,
    ended: bool,
    counts: Arc<Counts>,
    blocked: Sender<usize>,
    go_on: Arc<Mutex<Receiver<()>>>,
}

impl Session for Echo {
    fn receive(&mut self, input: &[u8]) {
        if input.contains(&b'W') {
            let opened = self.counts.opened.load(Ordering::Relaxed);
            let _ = self.blocked.send(opened);
            let _ = self.go_on.lock().unwrap().recv();
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

impl Drop for Echo {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Server {
    address: SocketAddr,
    counts: Arc<Counts>,
    blocked: Receiver<usize>,
    go_on: Sender<()>,
    stopper: Option<Stopper>,
    thread: thread::JoinHandle<io::Result<Tally>>,
}

/// Starts a server on a ring with short queues. Returns `None` if there is no ring, or if the kernel sets no bound to a
/// multishot accept.
fn server(max_connections: usize) -> Option<Server> {
    if let Err(reason) = available::available() {
        eprintln!("{reason}; not checked");
        return None;
    }
    // The ring is created and dropped on another thread, for the reason given in `available`.
    let burst = thread::spawn(|| Ring::with(QUEUE, QUEUE).unwrap().burst());
    if burst.join().unwrap() > max_connections / 2 {
        eprintln!("a bounded multishot accept needs Linux 6.1; not checked");
        return None;
    }
    let (blocked, blocked_receiver) = channel();
    let (go_on, go_on_receiver) = channel();
    let go_on_receiver = Arc::new(Mutex::new(go_on_receiver));
    let counts = Arc::new(Counts::default());
    let service = {
        let counts = Arc::clone(&counts);
        Service::new(move || {
            let open = counts.open.fetch_add(1, Ordering::Relaxed) + 1;
            counts.most_open.fetch_max(open, Ordering::Relaxed);
            counts.opened.fetch_add(1, Ordering::Relaxed);
            Box::new(Echo {
                owed: Vec::new(),
                ended: false,
                counts: Arc::clone(&counts),
                blocked: blocked.clone(),
                go_on: Arc::clone(&go_on_receiver),
            })
        })
    };
    let listener = listen("127.0.0.1:0".parse().unwrap(), 1024, Needs::NOTHING).unwrap();
    let address = listener.local_addr().unwrap();
    let (stopper, stop) = Stop::channel().unwrap();
    let limits = Limits {
        max_connections,
        idle_timeout: 3 * GUARD,
        ..Limits::default()
    };
    let thread = thread::spawn(move || (SHORT.serve)(listener, service, limits, stop));
    Some(Server {
        address,
        counts,
        blocked: blocked_receiver,
        go_on,
        stopper: Some(stopper),
        thread,
    })
}

impl Server {
    /// Connects a peer that sends a byte. It may not have been accepted yet.
    fn peer(&self, byte: u8) -> TcpStream {
        let mut peer = TcpStream::connect(self.address).unwrap();
        peer.set_read_timeout(Some(GUARD)).unwrap();
        peer.write_all(&[byte]).unwrap();
        peer
    }

    /// Blocks the server while it calls `meanwhile`. Also returns the peer that blocked the server, which may stay.
    fn while_blocked<T>(&self, meanwhile: impl FnOnce() -> T) -> (TcpStream, T) {
        let peer = self.peer(b'W');
        self.blocked
            .recv_timeout(GUARD)
            .expect("the server was not blocked");
        let result = meanwhile();
        self.go_on.send(()).unwrap();
        (peer, result)
    }

    fn stop(self) -> Tally {
        drop(self.stopper);
        self.thread.join().unwrap().unwrap()
    }
}

fn expect_reply(peer: &mut TcpStream) {
    peer.read_exact(&mut [0]).expect("no reply");
}

/// Several peers wait in the backlog when the server continues, and all have sent a request. One accept takes all of
/// them before the server reads any request.
#[test]
fn multishot_accept_takes_all_waiting_peers_before_the_first_read() {
    let Some(server) = server(100) else { return };
    let (mut first, mut others) = server.while_blocked(|| {
        let mut others = vec![server.peer(b'W')];
        others.extend((0..9).map(|_| server.peer(b'x')));
        others
    });
    expect_reply(&mut first);
    let opened = server
        .blocked
        .recv_timeout(GUARD)
        .expect("the server was not blocked");
    server.go_on.send(()).unwrap();
    assert_eq!(
        opened, 11,
        "a request was read before the other peers were accepted"
    );
    others.iter_mut().for_each(expect_reply);
    assert_eq!(server.stop().accepted, 11);
}

/// The limit is exact to the slot wherever one kind of accept takes over from the other: when peers come one by one,
/// and when more peers come at once than there are free slots, with few or many slots taken.
#[test]
fn connection_limit_is_exact_with_both_kinds_of_accept() {
    const LIMIT: usize = 100;
    for before in [0, 1, 20, 32, 33, 34, 50, 65, 66, 67, 68, 82, 83, 84, 98, 99] {
        let Some(server) = server(LIMIT) else { return };
        let mut served: Vec<_> = (0..before)
            .map(|_| {
                let mut peer = server.peer(b'x');
                expect_reply(&mut peer);
                peer
            })
            .collect();
        let (first, storm) = server.while_blocked(|| {
            (0..2 * LIMIT)
                .map(|_| server.peer(b'x'))
                .collect::<Vec<_>>()
        });
        served.push(first);
        expect_reply(&mut served[before]);
        // The peers are accepted in the order in which they came: for every peer that leaves, the next is accepted.
        let mut waiting = storm.into_iter();
        for mut peer in waiting.by_ref().take(LIMIT - served.len()) {
            expect_reply(&mut peer);
            served.push(peer);
        }
        for mut peer in waiting {
            drop(served.swap_remove(0));
            expect_reply(&mut peer);
            served.push(peer);
        }
        // Enough peers leave for a multishot accept to start again. Then no peer leaves, and new peers come one by one.
        served.truncate(10);
        while server.counts.open.load(Ordering::Relaxed) > 10 {
            thread::yield_now();
        }
        while served.len() < LIMIT {
            let mut peer = server.peer(b'x');
            expect_reply(&mut peer);
            served.push(peer);
        }
        let mut late: Vec<_> = (0..20).map(|_| server.peer(b'x')).collect();
        drop(served);
        late.iter_mut().for_each(expect_reply);
        assert_eq!(server.counts.most_open.load(Ordering::Relaxed), LIMIT);
        let accepted = (before + 1 + 2 * LIMIT + LIMIT - 10 + 20) as u64;
        assert_eq!(server.stop().accepted, accepted);
    }
}

/// Every peer that was accepted before the stop is counted, and its request is answered.
#[test]
fn peers_accepted_before_the_stop_are_counted_and_answered() {
    let Some(mut server) = server(1000) else {
        return;
    };
    let stopper = server.stopper.take();
    let (mut first, mut others) = server.while_blocked(|| {
        let others: Vec<_> = (0..200).map(|_| server.peer(b'x')).collect();
        drop(stopper);
        others
    });
    expect_reply(&mut first);
    let replies = others
        .iter_mut()
        .filter_map(|peer| peer.read(&mut [0]).ok())
        .filter(|&count| count == 1)
        .count();
    let tally = server.stop();
    assert_eq!(tally.accepted, 1 + replies as u64);
    assert_eq!(tally.served, tally.accepted);
}
