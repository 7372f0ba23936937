//! Tests of mistakes that only a model with its own stacks can make: stacks that are too small, can't be allocated,
//! overflow, or are not unwound.

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

/// Longest time that a test waits for an expected event before it fails.
const GUARD: Duration = Duration::from_secs(20);

/// Session that answers every input with one byte, after it has used `stack` bytes of the stack.
struct Deep {
    stack: usize,
    owed: bool,
    ended: bool,
}

/// Uses slightly more than `bytes` bytes of the stack.
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

/// Sends a request. Returns the number of bytes of the reply, or 0 at the end of the connection.
fn ask(mut stream: &TcpStream) -> usize {
    stream.write_all(b"x\n").unwrap();
    stream.read(&mut [0; 10]).unwrap()
}

/// Process that is killed when this is dropped, so that a failed test does not leave it running.
struct KilledWhenDropped(Child);

impl Drop for KilledWhenDropped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs one of the ignored tests in a process of its own.
fn run(test: &str) -> ExitStatus {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args([test, "--exact", "--ignored", "--test-threads=1"]);
    child.env("RUST_BACKTRACE", "full");
    child.stdout(Stdio::null()).stderr(Stdio::null());
    child.status().unwrap()
}

#[test]
fn stack_is_as_large_as_the_limit() {
    let limits = Limits {
        stack: Some(1 << 20),
        ..Limits::default()
    };
    let server = Server::start(limits, deep(3 << 18));
    assert_eq!(ask(&connect(server.address)), 1);
    assert_eq!(server.stop().served, 1);
}

/// The page below a stack is not mapped: a session that reaches it ends the process at once. Without this guard page
/// the session would overwrite the stack of another coroutine.
#[test]
fn session_that_recurses_without_end_ends_the_process() {
    let status = run("recurse_without_end");
    assert_eq!(status.signal(), Some(Signal::SEGV.as_raw()), "{status}");
}

#[test]
#[ignore = "a child process: session_that_recurses_without_end_ends_the_process runs this, and it dies"]
fn recurse_without_end() {
    // The crash is expected, so it writes no core file.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).unwrap();
    let server = Server::start(Limits::default(), deep(usize::MAX));
    ask(&connect(server.address));
}

#[test]
fn least_stack_holds_a_panic_and_its_backtrace() {
    let status = run("panic_on_the_least_stack");
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "a child process: least_stack_holds_a_panic_and_its_backtrace runs this, and it panics"]
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

/// If no stack can be allocated for a peer, the peer is refused and the server continues.
#[test]
fn peer_without_a_stack_is_refused_and_the_server_continues() {
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
    // The limit leaves room for small allocations, but not for a stack.
    let process = Process::new(server.id().cast_signed()).unwrap();
    let limit = Rlimit {
        current: Some(process.stat().unwrap().vsize + STACK / 2),
        maximum: before.maximum,
    };
    prlimit(Some(pid), Resource::As, limit).unwrap();
    let second = connect(address);
    assert_eq!((&second).read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(ask(&first), 2);
    let reports_it =
        |line: String| line.contains("cannot allocate a stack for a peer: Cannot allocate memory");
    assert!(log.lines().map_while(Result::ok).any(reports_it));

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

/// A coroutine that is cut is in the middle of a call that never returns. All values on its stack are dropped all the
/// same.
#[test]
fn coroutine_cut_at_the_deadline_is_unwound() {
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

/// Session that sends more than a socket holds.
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
