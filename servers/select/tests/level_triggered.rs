//! Tests of mistakes that only a level-triggered loop can make: the kernel reports an event again and again until the
//! loop handles it, and an interrupted wait leaves its arguments as the results.

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

/// Longest time that a test waits for an expected event before it fails.
const GUARD: Duration = Duration::from_secs(20);

/// Server process that is killed when this is dropped.
struct ServerProcess(Child);

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // After a normal end there is nothing to kill; after a failed check this ends the process.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl ServerProcess {
    /// Waits until the server sleeps. A loop whose waits all return at once never sleeps.
    fn wait_until_asleep(&self) {
        let deadline = Instant::now() + GUARD;
        let stat = format!("/proc/{}/stat", self.0.id());
        loop {
            let stat = fs::read_to_string(&stat).expect("the server process is gone");
            // The state is the first field after the name.
            if stat
                .rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('S'))
            {
                return;
            }
            assert!(Instant::now() < deadline, "the server process never sleeps");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A reply waits for room in the send buffer while more input is there. The loop does not wait for that input until the
/// reply is sent. The signal that then interrupts the wait ends only the server, with exit status 0.
#[test]
fn input_during_a_blocked_reply_does_not_wake_the_loop() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_server-select"))
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

    // The client reads nothing, and sends until the server, which has done all it can, takes no more.
    client.set_nonblocking(true).expect("not non-blocking");
    let lines = b"hello\n".repeat(10_000);
    let mut taken = true;
    while taken {
        server.wait_until_asleep();
        taken = false;
        loop {
            match client.write(&lines) {
                Ok(_) => taken = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    server.wait_until_asleep();

    let pid = Pid::from_raw(server.0.id().try_into().expect("a process number"));
    kill(pid, Signal::SIGTERM).expect("the server process is gone");
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

/// A signal that other code handles interrupts the wait (EINTR). Then no descriptor is ready, and no stop was
/// requested.
#[test]
fn unrelated_signal_does_not_disturb_the_wait() {
    let handled = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&handled)).unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap(), 1, Needs::NOTHING).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(GUARD)).unwrap();
    let (stopper, stop) = Stop::channel().unwrap();
    let echo = Protocol::find("echo").unwrap();
    let service = Service::of(echo, SessionOptions::default());
    let model = &server_select::MODELS[0];
    let server = thread::spawn(move || (model.serve)(listener, service, Limits::default(), stop));
    // Some of these signals arrive while the server waits.
    for _ in 0..200 {
        client.write_all(b"x\n").unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
        pthread_kill(server.as_pthread_t(), Signal::SIGUSR1).unwrap();
    }
    assert!(handled.load(Ordering::Relaxed));
    drop(stopper);
    assert_eq!(server.join().unwrap().unwrap().served, 1);
}
