//! What only a level-triggered loop can get wrong: it hears again and again of what it does not deal with. And what a
//! wait that is told everything anew can: when it is interrupted, what it was told is all that it knows.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::thread::JoinHandleExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use contract::{Limits, Needs, Service, Stop, Tally, listen};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::{Protocol, SessionOptions};

/// How long what must come may take.
const GUARD: Duration = Duration::from_secs(20);

/// Killed when dropped.
struct ServerProcess(Child);

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Nothing to kill when it has ended; after a failed check, nobody else would.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl ServerProcess {
    /// Waits until it sleeps. A loop that is told at once, whenever it asks, never does.
    fn sleeps(&self) {
        let deadline = Instant::now() + GUARD;
        let stat = format!("/proc/{}/stat", self.0.id());
        loop {
            let stat = fs::read_to_string(&stat).expect("it is gone");
            // The state is the first field behind the name.
            if stat
                .rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('S'))
            {
                return;
            }
            assert!(Instant::now() < deadline, "it never sleeps");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A reply waits for room, and more input is there: it is not asked for until the reply is gone. The signal that then
/// ends the wait ends nothing else.
#[test]
fn input_that_nobody_wants_yet() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_server-poll"))
        .args(["--listen", "127.0.0.1:0", "--protocol", "echo", "--json"])
        .args(["--idle-timeout", "1h", "--drain", "0s"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("no server process");
    let mut output = BufReader::new(child.stdout.take().expect("no output"));
    let mut server = ServerProcess(child);
    let mut line = String::new();
    output.read_line(&mut line).expect("no line");
    let address = line.trim_end().strip_prefix("listening on ");
    let mut client = TcpStream::connect(address.expect("another line")).expect("no connection");

    // It reads nothing, and sends until nothing more is taken, though the server has done all it can.
    client.set_nonblocking(true).expect("not non-blocking");
    let lines = b"hello\n".repeat(10_000);
    let mut taken = true;
    while taken {
        server.sleeps();
        taken = false;
        loop {
            match client.write(&lines) {
                Ok(_) => taken = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    server.sleeps();

    let pid = Pid::from_raw(server.0.id().try_into().expect("a process number"));
    kill(pid, Signal::SIGTERM).expect("it is gone");
    let mut line = String::new();
    output.read_to_string(&mut line).expect("no line");
    assert!(server.0.wait().expect("no child").success());
    let tally: Tally = serde_json::from_str(&line).expect("no tally");
    let cut = Tally {
        accepted: 1,
        cut: 1,
        ..Tally::default()
    };
    assert_eq!(tally, cut);
}

/// A signal that somebody else handles ends the wait (EINTR). Nobody is ready then, and nobody has said stop.
#[test]
fn a_signal_that_means_nothing() {
    let handled = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&handled)).unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap(), 1, Needs::NOTHING).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(GUARD)).unwrap();
    let (stopper, stop) = Stop::channel().unwrap();
    let echo = Protocol::find("echo").unwrap();
    let service = Service::of(echo, SessionOptions::default());
    let model = &server_poll::MODELS[0];
    let server = thread::spawn(move || (model.serve)(listener, service, Limits::default(), stop));
    // Some of them find it waiting.
    for _ in 0..200 {
        client.write_all(b"x\n").unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
        pthread_kill(server.as_pthread_t(), Signal::SIGUSR1).unwrap();
    }
    assert!(handled.load(Ordering::Relaxed));
    drop(stopper);
    assert_eq!(server.join().unwrap().unwrap().served, 1);
}
