//! On a ring with short queues. There one accept takes many peers even at small limits, and ends at the limit, or
//! because the queue is full; and the queue overflows where the usual one never does.

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

// All of the suite that accepting or a full queue may have to do with, but for the shortage of descriptors: that is
// brought about while the server runs, and an accept of many keeps to the limit that was set when it was submitted.
contract::suite! { @guarantees crate::short_queues::SHORT;
    exact { many_clients_interleaved, }
    idle { silence, }
    limit {
        the_next_one_waits_for_a_place,
        stop_at_the_limit,
        idle_peers_hold_their_workers_only,
        waiting_costs_nothing,
    }
    accept { a_broken_listener_ends_the_server, }
    files { to_many_at_once, }
    work { many_wait, }
    stop {
        nobody_is_there,
        told_before_the_start,
        idle_peers_are_closed,
        what_had_arrived_is_answered,
        who_was_accepted_is_answered,
        new_peers_are_refused_during_the_drain,
        in_a_connect_storm,
        again_on_the_same_port,
        draining_costs_nothing,
    }
    tally {
        every_ending_is_counted,
        nothing_is_left_behind,
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

/// What the sessions of a server have seen.
#[derive(Default)]
struct Seen {
    open: AtomicUsize,
    most: AtomicUsize,
    opened: AtomicUsize,
}

/// Sends back what it gets. A `W` holds up the whole server until somebody lets it go on.
struct Echo {
    owed: Vec<u8>,
    ended: bool,
    seen: Arc<Seen>,
    held: Sender<usize>,
    go_on: Arc<Mutex<Receiver<()>>>,
}

impl Session for Echo {
    fn receive(&mut self, input: &[u8]) {
        if input.contains(&b'W') {
            let opened = self.seen.opened.load(Ordering::Relaxed);
            let _ = self.held.send(opened);
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
        self.seen.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
    held: Receiver<usize>,
    go_on: Sender<()>,
    stopper: Option<Stopper>,
    thread: thread::JoinHandle<io::Result<Tally>>,
}

/// A server on a short ring; `None`: there is no ring here, or none that accepts many.
fn server(max_connections: usize) -> Option<Server> {
    if let Err(why) = available::available() {
        eprintln!("{why}; not checked");
        return None;
    }
    // Made and dropped elsewhere, for the reason that `available` tells.
    let burst = thread::spawn(|| Ring::with(QUEUE, QUEUE).unwrap().burst());
    if burst.join().unwrap() > max_connections / 2 {
        eprintln!("it takes Linux 6.1 to accept many; not checked");
        return None;
    }
    let (held, is_held) = channel();
    let (go_on, may_go_on) = channel();
    let may_go_on = Arc::new(Mutex::new(may_go_on));
    let seen = Arc::new(Seen::default());
    let service = {
        let seen = Arc::clone(&seen);
        Service::new(move || {
            let open = seen.open.fetch_add(1, Ordering::Relaxed) + 1;
            seen.most.fetch_max(open, Ordering::Relaxed);
            seen.opened.fetch_add(1, Ordering::Relaxed);
            Box::new(Echo {
                owed: Vec::new(),
                ended: false,
                seen: Arc::clone(&seen),
                held: held.clone(),
                go_on: Arc::clone(&may_go_on),
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
        seen,
        held: is_held,
        go_on,
        stopper: Some(stopper),
        thread,
    })
}

impl Server {
    /// A peer that has said something, and perhaps not been accepted.
    fn peer(&self, says: u8) -> TcpStream {
        let mut peer = TcpStream::connect(self.address).unwrap();
        peer.set_read_timeout(Some(GUARD)).unwrap();
        peer.write_all(&[says]).unwrap();
        peer
    }

    /// Holds the server up while `meanwhile` happens. The peer that did it may stay.
    fn while_held<T>(&self, meanwhile: impl FnOnce() -> T) -> (TcpStream, T) {
        let peer = self.peer(b'W');
        self.held.recv_timeout(GUARD).expect("not held up");
        let result = meanwhile();
        self.go_on.send(()).unwrap();
        (peer, result)
    }

    fn stop(self) -> Tally {
        drop(self.stopper);
        self.thread.join().unwrap().unwrap()
    }
}

fn answered(peer: &mut TcpStream) {
    peer.read_exact(&mut [0]).expect("left waiting");
}

/// Peers wait in the backlog when the server comes back to it. All have asked already; but those that one accept takes
/// are all there before anybody is heard.
#[test]
fn one_accept_takes_many_peers() {
    let Some(server) = server(100) else { return };
    let (mut first, mut others) = server.while_held(|| {
        let mut others = vec![server.peer(b'W')];
        others.extend((0..9).map(|_| server.peer(b'x')));
        others
    });
    answered(&mut first);
    let opened = server.held.recv_timeout(GUARD).expect("not held up");
    server.go_on.send(()).unwrap();
    assert_eq!(opened, 11, "heard before the others were accepted");
    others.iter_mut().for_each(answered);
    assert_eq!(server.stop().accepted, 11);
}

/// The limit is kept to the place wherever one kind of accept takes over from the other: when peers come one by one, and
/// when more come at once than there are places, with few or many places taken.
#[test]
fn the_limit_is_exact_however_peers_are_accepted() {
    const LIMIT: usize = 100;
    for before in [0, 1, 20, 32, 33, 34, 50, 65, 66, 67, 68, 82, 83, 84, 98, 99] {
        let Some(server) = server(LIMIT) else { return };
        let mut served: Vec<_> = (0..before)
            .map(|_| {
                let mut peer = server.peer(b'x');
                answered(&mut peer);
                peer
            })
            .collect();
        let (first, storm) = server.while_held(|| {
            (0..2 * LIMIT)
                .map(|_| server.peer(b'x'))
                .collect::<Vec<_>>()
        });
        served.push(first);
        answered(&mut served[before]);
        // They are accepted in the order in which they came: with every peer that leaves comes the next.
        let mut waiting = storm.into_iter();
        for mut peer in waiting.by_ref().take(LIMIT - served.len()) {
            answered(&mut peer);
            served.push(peer);
        }
        for mut peer in waiting {
            drop(served.swap_remove(0));
            answered(&mut peer);
            served.push(peer);
        }
        // Enough leave for many to be accepted again; and then nobody leaves, and one after the other comes.
        served.truncate(10);
        while server.seen.open.load(Ordering::Relaxed) > 10 {
            thread::yield_now();
        }
        while served.len() < LIMIT {
            let mut peer = server.peer(b'x');
            answered(&mut peer);
            served.push(peer);
        }
        let mut late: Vec<_> = (0..20).map(|_| server.peer(b'x')).collect();
        drop(served);
        late.iter_mut().for_each(answered);
        assert_eq!(server.seen.most.load(Ordering::Relaxed), LIMIT);
        let accepted = (before + 1 + 2 * LIMIT + LIMIT - 10 + 20) as u64;
        assert_eq!(server.stop().accepted, accepted);
    }
}

/// Who was accepted by the time of the stop is counted, and what he had asked is answered.
#[test]
fn nobody_is_lost_at_the_stop() {
    let Some(mut server) = server(1000) else {
        return;
    };
    let stopper = server.stopper.take();
    let (mut first, mut others) = server.while_held(|| {
        let others: Vec<_> = (0..200).map(|_| server.peer(b'x')).collect();
        drop(stopper);
        others
    });
    answered(&mut first);
    let heard = others
        .iter_mut()
        .filter_map(|peer| peer.read(&mut [0]).ok())
        .filter(|&count| count == 1)
        .count();
    let tally = server.stop();
    assert_eq!(tally.accepted, 1 + heard as u64);
    assert_eq!(tally.served, tally.accepted);
}
