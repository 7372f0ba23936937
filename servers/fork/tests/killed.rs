//! What only processes can do: be killed, one by one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use contract::Tally;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const GUARD: Duration = Duration::from_secs(20);

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
    let mut server = Command::new(env!("CARGO_BIN_EXE_server-fork"))
        .args(["--listen", "127.0.0.1:0", "--protocol", "echo", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines.next().unwrap().unwrap().replace("listening on ", "");

    let first = connect(&address);
    ask(&first, "one\n");
    let before = children(&server);
    let mut victim = connect(&address);
    ask(&victim, "two\n");
    victim.write_all(b"half a li").unwrap();
    let added = children(&server);
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
    eventually("it is reaped", || children(&server).len() == 2);

    ask(&first, "four\n");
    ask(&third, "five\n");
    let last = connect(&address);
    ask(&last, "six\n");
    drop((first, third, last));
    eventually("all are reaped", || children(&server).is_empty());

    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
    let tally: Tally = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let expected = Tally {
        accepted: 4,
        served: 3,
        failed: 1,
        ..Tally::default()
    };
    assert_eq!(tally, expected);
    assert!(server.wait().unwrap().success());
    let mut said = String::new();
    let mut stderr = server.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("SIGKILL"), "{said}");
}

/// Nobody outlives the server, however it ends.
#[test]
fn the_children_die_with_their_parent() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_server-fork"))
        .args(["--listen", "127.0.0.1:0", "--protocol", "echo"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines.next().unwrap().unwrap().replace("listening on ", "");
    let mut peer = connect(&address);
    ask(&peer, "one\n");
    assert_eq!(children(&server).len(), 1);
    server.kill().unwrap();
    server.wait().unwrap();
    // Its process was the last that had the connection.
    assert!(matches!(peer.read(&mut [0]), Ok(0) | Err(_)));
}
