//! What only a model with stacks of its own making can get wrong: too small, too many, too deep, left behind.

#![cfg(target_os = "linux")]

use std::env;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use contract::{LEAST_STACK, Limits, Needs, Service, Stop, Stopper, Tally, listen};
use procfs::process::Process;
use protocol::{CloseReason, Session, Step};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit, setrlimit};

/// How long is waited for what must come, before the test is given up.
const GUARD: Duration = Duration::from_secs(20);

/// Answers everything with one byte, after some use of the stack.
struct Deep {
    stack: usize,
    owed: bool,
    ended: bool,
}

/// Uses that many bytes of the stack, and some more.
fn use_stack(bytes: usize) -> usize {
    let mut frame = [1_u8; 1024];
    black_box(&mut frame);
    match bytes.checked_sub(frame.len()) {
        Some(left) => use_stack(left) + usize::from(frame[7]),
        None => 0,
    }
}

impl Session for Deep {
    fn receive(&mut self, _: &[u8]) {
        black_box(use_stack(self.stack));
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
    }

    fn mid_request(&self) -> bool {
        false
    }
}

struct Server {
    address: SocketAddr,
    stopper: Stopper,
    thread: JoinHandle<std::io::Result<Tally>>,
}

impl Server {
    fn start(limits: Limits, service: Service) -> Server {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 10, Needs::NOTHING).unwrap();
        let address = listener.local_addr().unwrap();
        let (stopper, stop) = Stop::channel().unwrap();
        let serve = server_coroutines::MODELS[0].serve;
        Server {
            address,
            stopper,
            thread: thread::spawn(move || serve(listener, service, limits, stop)),
        }
    }

    fn stop(self) -> Tally {
        drop(self.stopper);
        self.thread.join().unwrap().unwrap()
    }
}

fn deep(stack: usize) -> Service {
    Service::new(move || {
        Box::new(Deep {
            stack,
            owed: false,
            ended: false,
        })
    })
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream
}

/// What comes for a request: a reply, or the end.
fn ask(mut stream: &TcpStream) -> usize {
    stream.write_all(b"x\n").unwrap();
    stream.read(&mut [0; 10]).unwrap()
}

/// A process that a failed test does not leave behind.
struct KilledWhenDropped(Child);

impl Drop for KilledWhenDropped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs one of the ignored tests as a process of its own.
fn run(test: &str) -> ExitStatus {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args([test, "--exact", "--ignored", "--test-threads=1"]);
    child.env("RUST_BACKTRACE", "full");
    child.stdout(Stdio::null()).stderr(Stdio::null());
    child.status().unwrap()
}

#[test]
fn a_stack_is_as_large_as_was_asked_for() {
    let limits = Limits {
        stack: Some(1 << 20),
        ..Limits::default()
    };
    let server = Server::start(limits, deep(3 << 18));
    assert_eq!(ask(&connect(server.address)), 1);
    assert_eq!(server.stop().served, 1);
}

/// The page below a stack is nobody's: a session that goes there ends the process, at once. Without that page it would
/// write over the stack of somebody else.
#[test]
fn a_session_that_recurses_without_end_ends_the_process() {
    let status = run("recurse_without_end");
    assert_eq!(status.signal(), Some(Signal::SEGV.as_raw()), "{status}");
}

#[test]
#[ignore = "a child process: a_session_that_recurses_without_end_ends_the_process runs this, and it dies"]
fn recurse_without_end() {
    // It is expected to happen, and worth no file.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).unwrap();
    let server = Server::start(Limits::default(), deep(usize::MAX));
    ask(&connect(server.address));
}

#[test]
fn the_least_stack_holds_a_panic_and_its_backtrace() {
    let status = run("panic_on_the_least_stack");
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "a child process: the_least_stack_holds_a_panic_and_its_backtrace runs this, and it panics"]
fn panic_on_the_least_stack() {
    struct Panics;
    impl Session for Panics {
        fn receive(&mut self, input: &[u8]) {
            panic!("for {} bytes", input.len());
        }
        fn end_of_input(&mut self) {}
        fn step(&mut self) -> Step<'_> {
            Step::Read
        }
        fn sent(&mut self, _: usize) {}
        fn mid_request(&self) -> bool {
            false
        }
    }
    let limits = Limits {
        stack: Some(LEAST_STACK),
        ..Limits::default()
    };
    let server = Server::start(limits, Service::new(|| Box::new(Panics)));
    for _ in 0..2 {
        assert_eq!(ask(&connect(server.address)), 0);
    }
    assert_eq!(server.stop().failed, 2);
}

/// A stack that can't be had: that peer is refused, and the server goes on.
#[test]
fn without_a_stack_a_peer_is_refused_and_the_server_lives() {
    const STACK: u64 = 1 << 20;
    let server = Command::new(env!("CARGO_BIN_EXE_server-coroutines"))
        .args(["--listen", "127.0.0.1:0", "--protocol", "echo", "--json"])
        .args(["--stack", "1M"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut server = KilledWhenDropped(server.unwrap());
    let server = &mut server.0;
    let mut output = BufReader::new(server.stdout.take().unwrap()).lines();
    let log = BufReader::new(server.stderr.take().unwrap());
    let address = output.next().unwrap().unwrap();
    let address = address.strip_prefix("listening on ").unwrap();
    let address = address.parse().unwrap();
    let pid = Pid::from_child(server);
    let before = rustix::process::getrlimit(Resource::As);

    let first = connect(address);
    assert_eq!(ask(&first), 2);
    // Room for all that is small, and for no stack.
    let process = Process::new(server.id().cast_signed()).unwrap();
    let limit = Rlimit {
        current: Some(process.stat().unwrap().vsize + STACK / 2),
        maximum: before.maximum,
    };
    prlimit(Some(pid), Resource::As, limit).unwrap();
    let second = connect(address);
    assert_eq!((&second).read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(ask(&first), 2);
    let told = |line: String| line.contains("no stack for a peer: Cannot allocate memory");
    assert!(log.lines().map_while(Result::ok).any(told));

    prlimit(Some(pid), Resource::As, before).unwrap();
    let third = connect(address);
    assert_eq!(ask(&third), 2);
    kill_process(pid, Signal::TERM).unwrap();
    let tally: Tally = serde_json::from_str(&output.next().unwrap().unwrap()).unwrap();
    let expected = Tally {
        accepted: 3,
        served: 2,
        refused: 1,
        ..Tally::default()
    };
    assert_eq!(tally, expected);
    assert!(server.wait().unwrap().success());
}

/// A coroutine that is cut is in the middle of a call, and never comes back from it. Whatever lies on its stack is
/// dropped all the same.
#[test]
fn who_is_cut_is_unwound() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let service = Service::new({
        let dropped = Arc::clone(&dropped);
        move || {
            Box::new(Stuck {
                reply: vec![0; 16 << 20],
                dropped: Arc::clone(&dropped),
            })
        }
    });
    let limits = Limits {
        drain: Duration::ZERO,
        ..Limits::default()
    };
    let server = Server::start(limits, service);
    let stuck: Vec<_> = (0..3).map(|_| connect(server.address)).collect();
    for stream in &stuck {
        assert!((&mut &*stream).read(&mut [0; 10]).unwrap() > 0);
    }
    let tally = server.stop();
    assert_eq!((tally.accepted, tally.cut), (3, 3), "{tally}");
    assert_eq!(dropped.load(Ordering::Relaxed), 3);
}

/// Sends more than any socket holds.
struct Stuck {
    reply: Vec<u8>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Session for Stuck {
    fn receive(&mut self, _: &[u8]) {}
    fn end_of_input(&mut self) {}
    fn step(&mut self) -> Step<'_> {
        Step::Write(&self.reply)
    }
    fn sent(&mut self, _: usize) {}
    fn mid_request(&self) -> bool {
        true
    }
}
