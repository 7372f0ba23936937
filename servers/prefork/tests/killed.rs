//! Tests of signals to the processes of a server: each process can be killed on its own.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use contract::Tally;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Longest time that a test waits for an expected event before it fails.
const GUARD: Duration = Duration::from_secs(20);

/// Server process that is killed when this is dropped. Its forked processes end with it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server. Returns its process, the lines of its output after the first one, and the address on which it
/// listens.
fn start(arguments: &[&str]) -> (Server, Lines<BufReader<ChildStdout>>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_server-prefork"))
        .args(["--listen", "127.0.0.1:0", "--protocol", "echo", "--json"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines.next().unwrap().unwrap().replace("listening on ", "");
    (Server(child), lines, address)
}

/// Returns the process ID of each child of a process. Zombies, which have not been waited for, are included.
fn children(parent: &Child) -> Vec<i32> {
    let all = procfs::process::all_processes().unwrap();
    let stats = all.filter_map(|process| process.ok()?.stat().ok());
    let children = stats.filter(|stat| stat.ppid == parent.id() as i32);
    children.map(|stat| stat.pid).collect()
}

/// Waits until a condition is true, at most for [`GUARD`].
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < GUARD, "waited {GUARD:?} in vain: {what}");
        sleep(Duration::from_millis(1));
    }
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream
}

/// Sends a line and reads exactly its echo.
fn ask(mut stream: &TcpStream, line: &str) {
    stream.write_all(line.as_bytes()).unwrap();
    let mut reply = vec![0; line.len()];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply, line.as_bytes());
}

/// One of two processes is killed in the middle of its peer's request. The other continues, a new process replaces the
/// killed one, and the tally counts the killed connection as failed.
#[test]
fn killed_process_ends_its_own_connection_and_is_replaced() {
    let (mut server, mut lines, address) = start(&["--workers", "2"]);

    let mut peers = [connect(&address), connect(&address)];
    for peer in &mut peers {
        ask(peer, "one\n");
        peer.write_all(b"half a li").unwrap();
    }
    let before = children(&server.0);
    assert_eq!(before.len(), 2);
    let third = connect(&address);
    (&third).write_all(b"two\n").unwrap();

    // Each process serves one of the peers.
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    eventually("a new process has replaced the killed one", || {
        let now = children(&server.0);
        now.len() == 2 && !now.contains(&before[0])
    });
    // The new process serves the third peer: the other process is still occupied by its peer.
    let mut reply = [0; 4];
    (&third).read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"two\n");
    let mut alive = 0;
    for mut peer in &peers {
        let sent = peer.write_all(b"ne\n").is_ok();
        let mut reply = [0; 12];
        if sent && peer.read_exact(&mut reply).is_ok() {
            assert_eq!(&reply, b"half a line\n");
            alive += 1;
        }
    }
    assert_eq!(alive, 1, "exactly one of the two processes was killed");

    drop((peers, third));
    kill(Pid::from_raw(server.0.id() as i32), Signal::SIGTERM).unwrap();
    let tally: Tally = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let expected = Tally {
        accepted: 3,
        served: 2,
        failed: 1,
        ..Tally::default()
    };
    assert_eq!(tally, expected);
    assert!(server.0.wait().unwrap().success());
    let mut log = String::new();
    let mut stderr = server.0.stderr.take().unwrap();
    stderr.read_to_string(&mut log).unwrap();
    assert!(log.contains("SIGKILL"), "{log}");
}

/// A service manager that ends a service signals all its processes. The children ignore the signal, and their parent
/// lets them finish.
#[test]
fn stop_signal_to_all_processes_is_graceful() {
    let (mut server, mut lines, address) = start(&["--workers", "2"]);
    let mut peers = [connect(&address), connect(&address)];
    for peer in &mut peers {
        ask(peer, "one\n");
    }
    killpg(Pid::from_raw(server.0.id() as i32), Signal::SIGTERM).unwrap();
    for peer in &mut peers {
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
    let tally: Tally = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((tally.accepted, tally.served), (2, 2));
    assert!(server.0.wait().unwrap().success());
}
