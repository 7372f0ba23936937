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
    let mut child = Command::new(env!("CARGO_BIN_EXE_server-fork"))
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

/// One of three processes is killed in the middle of its peer's request. The others continue, new peers are served, no
/// zombie is left, and the tally counts the killed connection as failed.
#[test]
fn killed_process_ends_its_own_connection_only() {
    let (mut server, mut lines, address) = start(&[]);

    let first = connect(&address);
    ask(&first, "one\n");
    let before = children(&server.0);
    let mut victim = connect(&address);
    ask(&victim, "two\n");
    victim.write_all(b"half a li").unwrap();
    let added = children(&server.0);
    let serving_victim: Vec<_> = added
        .iter()
        .filter(|child| !before.contains(child))
        .collect();
    assert_eq!(
        serving_victim.len(),
        1,
        "a process per connection: {added:?}"
    );
    let third = connect(&address);
    ask(&third, "three\n");

    kill(Pid::from_raw(*serving_victim[0]), Signal::SIGKILL).unwrap();
    // With unread input the connection ends by RST, otherwise by FIN. In both cases the peer notices at once.
    assert!(matches!(victim.read(&mut [0]), Ok(0) | Err(_)));
    eventually("the killed process is reaped", || {
        children(&server.0).len() == 2
    });

    ask(&first, "four\n");
    ask(&third, "five\n");
    let last = connect(&address);
    ask(&last, "six\n");
    drop((first, third, last));
    eventually("all processes are reaped", || {
        children(&server.0).is_empty()
    });

    kill(Pid::from_raw(server.0.id() as i32), Signal::SIGTERM).unwrap();
    let tally: Tally = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let expected = Tally {
        accepted: 4,
        served: 3,
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

/// No child outlives the server, even if the server is killed.
#[test]
fn children_die_with_their_parent() {
    let (mut server, _lines, address) = start(&[]);
    let mut peer = connect(&address);
    ask(&peer, "one\n");
    assert_eq!(children(&server.0).len(), 1);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    // The child was the only process that had the connection open.
    assert!(matches!(peer.read(&mut [0]), Ok(0) | Err(_)));
}

/// A service manager that ends a service signals all its processes. The children ignore the signal, and their parent
/// lets them finish.
#[test]
fn stop_signal_to_all_processes_is_graceful() {
    let (mut server, mut lines, address) = start(&[]);
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
