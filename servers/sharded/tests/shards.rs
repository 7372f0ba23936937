//! Tests of a server with several loops: mistakes that only such a server can make, and the deviation that it can't
//! avoid, because the kernel chooses the loop of a connection.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use contract::{Limits, Service, Stop, Stopper, Tally, listen};
use protocol::{Protocol, Session, SessionOptions, Step};
use socket2::SockRef;

/// Number of peers in a test. The probability that the kernel sends all of them to one of two loops is 2^-63.
const MANY: usize = 64;

/// Record of the loops' connections, by the thread of the loop.
#[derive(Debug, Clone, Default)]
struct Record(Arc<Mutex<HashMap<ThreadId, Loop>>>);

#[derive(Debug, Default)]
struct Loop {
    name: String,
    opened: usize,
    open: usize,
    most_open: usize,
}

impl Record {
    fn loops(&self) -> MutexGuard<'_, HashMap<ThreadId, Loop>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an echo service whose sessions record the loops in which they are opened and closed.
    fn service(&self) -> Service {
        let record = self.clone();
        Service::new(move || {
            let here = thread::current().id();
            let mut loops = record.loops();
            let this = loops.entry(here).or_default();
            this.name = thread::current().name().unwrap_or_default().to_string();
            this.opened += 1;
            this.open += 1;
            this.most_open = this.most_open.max(this.open);
            drop(loops);
            let echo = Protocol::find("echo").expect("the protocols have changed");
            Box::new(RecordedEcho {
                inner: (echo.open)(&SessionOptions::default()),
                opened_in: here,
                record: record.clone(),
            })
        })
    }
}

struct RecordedEcho {
    inner: Box<dyn Session>,
    opened_in: ThreadId,
    record: Record,
}

impl Session for RecordedEcho {
    fn receive(&mut self, input: &[u8]) {
        // A panic ends this connection, and then its client fails.
        assert_eq!(
            self.opened_in,
            thread::current().id(),
            "the session has moved to another thread"
        );
        self.inner.receive(input);
    }

    fn end_of_input(&mut self) {
        self.inner.end_of_input();
    }

    fn step(&mut self) -> Step<'_> {
        self.inner.step()
    }

    fn sent(&mut self, count: usize) {
        self.inner.sent(count);
    }

    fn mid_request(&self) -> bool {
        self.inner.mid_request()
    }
}

impl Drop for RecordedEcho {
    fn drop(&mut self) {
        if let Some(this) = self.record.loops().get_mut(&self.opened_in) {
            this.open -= 1;
        }
    }
}

struct Server {
    address: SocketAddr,
    /// Listener of the first loop.
    listener: TcpListener,
    stopper: Stopper,
    thread: JoinHandle<io::Result<Tally>>,
}

fn start(service: Service, loops: usize, max_connections: usize) -> Server {
    let model = &server_sharded::MODELS[0];
    let (stopper, stop) = Stop::channel().unwrap();
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let listener = listen(anywhere, 1024, model.needs).unwrap();
    let limits = Limits {
        max_connections,
        workers: NonZero::new(loops).unwrap(),
        // The drain is longer than a client waits, so connections end for another reason than the drain deadline.
        drain: Duration::from_secs(60),
        ..Limits::default()
    };
    let same = listener.try_clone().unwrap();
    Server {
        address: listener.local_addr().unwrap(),
        listener: same,
        stopper,
        thread: thread::spawn(move || (model.serve)(listener, service, limits, stop)),
    }
}

/// Connects a peer and sends a line. The reply is not read yet.
fn ask(address: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).unwrap();
    let guard = Some(Duration::from_secs(20));
    client.set_read_timeout(guard).unwrap();
    client.write_all(b"x\n").unwrap();
    client
}

fn receive(mut client: &TcpStream) {
    let mut reply = [0; 2];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"x\n");
}

/// Connects peers until each of `loops` loops has served one. Returns the peers.
fn connect_to_all_loops(server: &Server, record: &Record, loops: usize) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    while record.loops().len() < loops {
        assert!(clients.len() < 10 * MANY, "{:?}", record.loops());
        let client = ask(server.address);
        receive(&client);
        clients.push(client);
    }
    clients
}

/// Many peers reach all loops, and each connection stays in its loop.
#[test]
fn peers_reach_all_loops_and_stay_in_their_loop() {
    let record = Record::default();
    let server = start(record.service(), 4, 1000);
    let clients = connect_to_all_loops(&server, &record, 4);
    for mut client in &clients {
        client.write_all(b"x\n").unwrap();
        receive(client);
    }
    let count = clients.len();
    drop(clients);
    drop(server.stopper);
    let tally = server.thread.join().unwrap().unwrap();
    assert_eq!(tally.accepted, count as u64);
    assert_eq!(tally.served, count as u64);
    let opened: usize = record.loops().values().map(|this| this.opened).sum();
    assert_eq!(opened, count);
}

/// The declared deviation: a peer waits for the loop that the kernel chose, even if another loop has no peer to serve.
/// With two loops and a limit of two, each loop serves one peer at a time. All peers are served in the end.
#[test]
fn peer_waits_for_its_own_loop() {
    let record = Record::default();
    let server = start(record.service(), 2, 2);
    let held = ask(server.address);
    receive(&held);
    let clients: Vec<_> = (0..MANY).map(|_| ask(server.address)).collect();
    let (answered, answers) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        for client in clients {
            let answered = answered.clone();
            scope.spawn(move || {
                receive(&client);
                answered.send(()).unwrap();
            });
        }
        // The other loop serves its peers one after another. The loop of the held peer serves no other until it leaves.
        answers.recv().unwrap();
        drop(held);
        for _ in 1..MANY {
            answers.recv().unwrap();
        }
    });
    drop(server.stopper);
    let tally = server.thread.join().unwrap().unwrap();
    assert_eq!(tally.served, 1 + MANY as u64, "{tally}");
    let loops = record.loops();
    assert_eq!(loops.len(), 2, "{loops:?}");
    for this in loops.values() {
        assert_eq!(this.most_open, 1, "{loops:?}");
    }
}

/// With more loops than the connection limit has slots, the limit is kept.
#[test]
fn more_loops_than_slots_keep_the_limit() {
    let record = Record::default();
    let server = start(record.service(), 8, 3);
    // A reply shows that all listeners are open. Peers that connected before were sent to the first loop.
    let held = ask(server.address);
    receive(&held);
    let clients: Vec<_> = (0..MANY).map(|_| ask(server.address)).collect();
    drop(held);
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(move || receive(&client));
        }
    });
    drop(server.stopper);
    let tally = server.thread.join().unwrap().unwrap();
    assert_eq!(tally.served, 1 + MANY as u64, "{tally}");
    let loops = record.loops();
    assert_eq!(loops.len(), 3, "{loops:?}");
    for this in loops.values() {
        assert_eq!(this.most_open, 1, "{loops:?}");
    }
}

/// A broken listener ends its loop and the other loops at once, and not only when its loop has finished with its own
/// peers.
#[test]
fn broken_listener_ends_all_loops() {
    let record = Record::default();
    let server = start(record.service(), 4, 1000);
    let mut clients = Vec::new();
    let opened_by_first = || {
        let first = |this: &&Loop| this.name == "loop 0";
        let loops = record.loops();
        loops.values().find(first).map_or(0, |first| first.opened)
    };
    // A peer of the first loop that takes no replies, so that the loop has to wait for it.
    let stuck = loop {
        assert!(clients.len() < 10 * MANY, "{:?}", record.loops());
        let before = opened_by_first();
        let client = ask(server.address);
        receive(&client);
        if opened_by_first() > before {
            break client;
        }
        clients.push(client);
    };
    fill(&stuck);
    clients.extend(connect_to_all_loops(&server, &record, 4));
    SockRef::from(&server.listener)
        .shutdown(Shutdown::Both)
        .unwrap();
    for mut client in &clients {
        assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
    }
    drop(stuck);
    let ended = server.thread.join().unwrap();
    assert!(ended.is_err(), "{ended:?}");
}

/// Sends until the server has taken nothing for 300 ms.
fn fill(mut client: &TcpStream) {
    let limit = Some(Duration::from_millis(300));
    client.set_write_timeout(limit).unwrap();
    while client.write(&b"x\n".repeat(32 * 1024)).is_ok() {}
}

/// With enough CPUs each loop is pinned to a CPU of its own. With too few, each loop may run on all CPUs.
#[test]
#[cfg(target_os = "linux")]
fn loops_are_pinned_if_there_are_enough_cpus() {
    use std::collections::HashSet;

    use rustix::thread::{CpuSet, sched_getaffinity};

    let cpus = || -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        let all = 0..CpuSet::MAX_CPU;
        all.filter(|cpu| set.is_set(*cpu)).collect()
    };
    let here = cpus();
    for loops in [here.len(), here.len() + 1] {
        let record = Record::default();
        let found = Arc::new(Mutex::new(HashSet::new()));
        let service = {
            let (echo, found) = (record.service(), Arc::clone(&found));
            Service::new(move || {
                found.lock().unwrap().insert(cpus());
                echo.open()
            })
        };
        let server = start(service, loops, 1000);
        let clients = connect_to_all_loops(&server, &record, loops);
        drop(clients);
        drop(server.stopper);
        server.thread.join().unwrap().unwrap();
        let found = found.lock().unwrap();
        if loops == here.len() {
            assert_eq!(found.len(), loops, "{found:?}");
            assert!(found.iter().all(|cpus| cpus.len() == 1), "{found:?}");
        } else {
            assert_eq!(*found, HashSet::from([here.clone()]));
        }
    }
}
