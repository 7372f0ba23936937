//! What only processes can do: be killed, one by one.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use contract::Tally;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

const GUARD: Duration = Duration::from_secs(20);

/// A server that does not outlive a failed test. (What it has forked does not outlive it.)
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it; gives also what it says, of which the first line is read, and where it listens.
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

/// The children of a process that have not ended, or have and nobody has asked how.
fn children(parent: &Child) -> Vec<(i32, char)> {
    let all = procfs::process::all_processes().unwrap();
    let stats = all.filter_map(|process| process.ok()?.stat().ok());
    let children = stats.filter(|stat| stat.ppid == parent.id() as i32);
    children.map(|stat| (stat.pid, stat.state)).collect()
}

fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed() < GUARD, "in vain: {what}");
        sleep(Duration::from_millis(1));
    }
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream
}

fn ask(mut stream: &TcpStream, line: &str) {
    stream.write_all(line.as_bytes()).unwrap();
    let mut reply = vec![0; line.len()];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply, line.as_bytes());
}

/// One of three processes is killed in the middle of its peer's request. The others go on, new peers are served, no
/// zombie is left, and the tally says what happened.
#[test]
fn a_killed_process_takes_its_own_peer_with_it_and_nobody_else() {
    let (mut server, mut lines, address) = start(&[]);

    let first = connect(&address);
    ask(&first, "one\n");
    let before = children(&server.0);
    let mut victim = connect(&address);
    ask(&victim, "two\n");
    victim.write_all(b"half a li").unwrap();
    let added = children(&server.0);
    let serves_him: Vec<_> = added
        .iter()
        .filter(|child| !before.contains(child))
        .collect();
    assert_eq!(serves_him.len(), 1, "a process per connection: {added:?}");
    let third = connect(&address);
    ask(&third, "three\n");

    kill(Pid::from_raw(serves_him[0].0), Signal::SIGKILL).unwrap();
    // With unread input it is a reset, without it the end: either way he hears of it at once.
    assert!(matches!(victim.read(&mut [0]), Ok(0) | Err(_)));
    eventually("it is reaped", || children(&server.0).len() == 2);

    ask(&first, "four\n");
    ask(&third, "five\n");
    let last = connect(&address);
    ask(&last, "six\n");
    drop((first, third, last));
    eventually("all are reaped", || children(&server.0).is_empty());

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
    let mut said = String::new();
    let mut stderr = server.0.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("SIGKILL"), "{said}");
}

/// Nobody outlives the server, however it ends.
#[test]
fn the_children_die_with_their_parent() {
    let (mut server, _lines, address) = start(&[]);
    let mut peer = connect(&address);
    ask(&peer, "one\n");
    assert_eq!(children(&server.0).len(), 1);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    // Its process was the last that had the connection.
    assert!(matches!(peer.read(&mut [0]), Ok(0) | Err(_)));
}

/// A service manager that ends a service tells all its processes. They leave it to their parent, who lets them finish.
#[test]
fn a_stop_that_is_told_to_all_of_them_is_graceful_too() {
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
