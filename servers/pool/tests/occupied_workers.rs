//! Tests of a bounded pool whose workers are all occupied: new peers wait without a reply, and the server keeps
//! working.
//!
//! The server runs in a process of its own, so that its descriptors, threads and CPU time can be measured.

#![cfg(target_os = "linux")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use contract::Tally;
use procfs::process::Process;
use rustix::process::{Pid, Signal, kill_process};

/// Longest time that a test waits for an expected event before it fails.
const GUARD: Duration = Duration::from_secs(20);

struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_server-pool"))
            .args(["--listen", "127.0.0.1:0", "--protocol", "echo", "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        let address = address.parse().unwrap();
        Server {
            child,
            output,
            address,
        }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        Client(stream)
    }

    fn process(&self) -> Process {
        Process::new(self.child.id().cast_signed()).unwrap()
    }

    /// Returns the number of open descriptors. `fd_count` would also count the one that a sleeping accept(2) has
    /// reserved.
    fn descriptors(&self) -> usize {
        self.process().fd().unwrap().count()
    }

    fn threads(&self) -> i64 {
        self.process().stat().unwrap().num_threads
    }

    fn cpu(&self) -> Duration {
        let stat = self.process().stat().unwrap();
        Duration::from_secs(stat.utime + stat.stime) / procfs::ticks_per_second() as u32
    }

    /// Waits until the server has `more` descriptors in addition to `before`, that is until it has accepted as many
    /// peers.
    fn wait_for_accepted(&self, before: usize, more: usize) {
        let since = Instant::now();
        while self.descriptors() != before + more {
            assert!(
                since.elapsed() < GUARD,
                "the server has {} descriptors instead of {before} + {more}",
                self.descriptors()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn stop(mut self) -> Tally {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut tally = String::new();
        self.output.read_to_string(&mut tally).unwrap();
        assert!(self.child.wait().unwrap().success());
        serde_json::from_str(&tally).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After a failed test this ends the process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client(TcpStream);

impl Client {
    fn send(&self) {
        (&self.0).write_all(b"x\n").unwrap();
    }

    fn receive(&self) {
        let mut reply = [0; 2];
        (&self.0).read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"x\n");
    }

    fn ask(&self) {
        self.send();
        self.receive();
    }

    fn expect_fin(&self) {
        assert_eq!((&self.0).read(&mut [0; 64]).unwrap(), 0);
    }

    fn leave(self) {
        self.0.shutdown(Shutdown::Write).unwrap();
        self.expect_fin();
    }

    fn has_no_input(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let peeked = self.0.peek(&mut [0]);
        self.0.set_nonblocking(false).unwrap();
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn served(count: u64) -> Tally {
    Tally {
        accepted: count,
        served: count,
        ..Tally::default()
    }
}

/// Two idle peers occupy the two workers. Further peers have a connection and no reply until one of the two leaves. No
/// thread spins meanwhile, and no thread is added.
#[test]
fn peer_waits_until_another_peer_leaves() {
    let server = Server::start(&["--workers", "2"]);
    let occupying = [server.connect(), server.connect()];
    occupying.iter().for_each(Client::ask);
    let (descriptors, threads) = (server.descriptors(), server.threads());
    // Two peers are in the queue, the acceptor holds one, and the others are in the backlog.
    let mut waiting: Vec<_> = (0..10).map(|_| server.connect()).collect();
    waiting.iter().for_each(Client::send);
    server.wait_for_accepted(descriptors, 3);
    let time = Duration::from_secs(1);
    let before = server.cpu();
    thread::sleep(time);
    let used = server.cpu() - before;
    assert!(
        used < time / 4,
        "the server used {used:?} of CPU time while it only waited for {time:?}"
    );
    for _ in 0..50 {
        occupying.iter().for_each(Client::ask);
    }
    assert_eq!(server.descriptors(), descriptors + 3);
    assert_eq!(server.threads(), threads);
    assert!(waiting.iter().all(Client::has_no_input));

    let [one, two] = occupying;
    one.leave();
    // The freed worker serves them one after the other, in the order in which they came.
    while !waiting.is_empty() {
        let next = waiting.remove(0);
        next.receive();
        assert!(waiting.iter().all(Client::has_no_input));
        next.leave();
    }
    two.ask();
    two.leave();
    assert_eq!(server.stop(), served(12));
}

/// If no peer leaves, the idle time-out ends the wait.
#[test]
fn peer_waits_until_idle_peers_are_closed() {
    let server = Server::start(&["--workers", "2", "--idle-timeout", "300ms"]);
    let occupying = [server.connect(), server.connect()];
    occupying.iter().for_each(Client::ask);
    let third = server.connect();
    third.ask();
    third.leave();
    occupying.iter().for_each(Client::expect_fin);
    let tally = Tally {
        timed_out: 2,
        served: 1,
        ..served(3)
    };
    assert_eq!(server.stop(), tally);
}

/// A peer in the queue is accepted. At the stop the requests that it has sent are answered, although no worker has
/// taken the connection before.
#[test]
fn peer_in_the_queue_at_the_stop_is_answered() {
    let server = Server::start(&["--workers", "2"]);
    let occupying = [server.connect(), server.connect()];
    occupying.iter().for_each(Client::ask);
    let descriptors = server.descriptors();
    let queued: Vec<_> = (0..3).map(|_| server.connect()).collect();
    queued.iter().for_each(Client::send);
    server.wait_for_accepted(descriptors, 3);
    assert_eq!(server.stop(), served(5));
    occupying.iter().for_each(Client::expect_fin);
    for client in &queued {
        client.receive();
        client.expect_fin();
    }
}
