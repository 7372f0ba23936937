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

/// One of two processes is killed in the middle of its peer's request. The other goes on, another takes its place, and
/// the tally says what happened.
#[test]
fn a_killed_process_takes_its_own_peer_with_it_and_is_replaced() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_server-prefork"))
        .args(["--listen", "127.0.0.1:0", "--protocol", "echo", "--json"])
        .args(["--workers", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines.next().unwrap().unwrap().replace("listening on ", "");

    let mut peers = [connect(&address), connect(&address)];
    for peer in &mut peers {
        ask(peer, "one\n");
        peer.write_all(b"half a li").unwrap();
    }
    let before = children(&server);
    assert_eq!(before.len(), 2);
    let third = connect(&address);
    (&third).write_all(b"two\n").unwrap();

    // Each of them has one of the peers.
    kill(Pid::from_raw(before[0].0), Signal::SIGKILL).unwrap();
    eventually("another has taken its place", || {
        let now = children(&server);
        now.len() == 2 && !now.iter().any(|child| child.0 == before[0].0)
    });
    // The third is served by it: the other one is still held.
    let mut reply = [0; 4];
    (&third).read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"two\n");
    let mut alive = 0;
    for mut peer in &peers {
        let went_on = peer.write_all(b"ne\n").is_ok();
        let mut reply = [0; 12];
        if went_on && peer.read_exact(&mut reply).is_ok() {
            assert_eq!(&reply, b"half a line\n");
            alive += 1;
        }
    }
    assert_eq!(alive, 1, "one of two was killed");

    drop((peers, third));
    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
    let tally: Tally = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let expected = Tally {
        accepted: 3,
        served: 2,
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

/// SIGTERM to one process is meant for that one, though its parent's handler, which says stop to all, was copied too.
#[test]
fn a_process_that_is_told_to_end_ends_alone() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_server-prefork"))
        .args(["--listen", "127.0.0.1:0", "--protocol", "echo", "--json"])
        .args(["--workers", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines.next().unwrap().unwrap().replace("listening on ", "");
    let first = connect(&address);
    ask(&first, "one\n");
    drop(first);
    let before = children(&server);
    kill(Pid::from_raw(before[0].0), Signal::SIGTERM).unwrap();
    eventually("another has taken its place", || {
        let now = children(&server);
        now.len() == 1 && now[0].0 != before[0].0
    });
    let second = connect(&address);
    ask(&second, "two\n");
    drop(second);
    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
    let tally: Tally = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((tally.accepted, tally.adds_up()), (2, true));
    assert!(server.wait().unwrap().success());
}
