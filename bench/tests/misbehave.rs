//! `samewire drive --misbehave`, run as a user runs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn samewire(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_samewire"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    samewire(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A server of ours, killed if the test fails.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(arguments: &[&str]) -> Serving {
        let mut child = samewire(&["serve", "mio", "--listen", "127.0.0.1:0", "--json"])
            .args(arguments)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = child.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, output)
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        Serving {
            address: address.to_string(),
            child,
        }
    }

    /// Its tally.
    fn stop(mut self) -> Value {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        let mut rest = String::new();
        let output = self.child.stdout.as_mut().unwrap();
        output.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success());
        serde_json::from_str(&rest).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(output: &Output) -> Value {
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn kinds() -> Vec<String> {
    let listed: Value = serde_json::from_slice(&run(&["list", "--json"]).stdout).unwrap();
    let kinds = listed["misbehaviours"].as_array().unwrap();
    let name = |kind: &Value| kind["name"].as_str().unwrap().to_string();
    kinds.iter().map(name).collect()
}

#[test]
fn every_kind_gets_what_it_is_owed_by_a_server_of_ours() {
    let kinds = kinds();
    assert_eq!(kinds.len(), 16);
    let server = Serving::start(&[]);
    for kind in &kinds {
        let output = run(&[
            "drive",
            &server.address,
            "--misbehave",
            kind,
            "--connections",
            "6",
            "--duration",
            "100ms",
            "--json",
        ]);
        let result = json(&output);
        assert_eq!(output.status.code(), Some(0), "{result}");
        assert_eq!(result["misbehave"], kind.as_str());
        assert_eq!(result["clients"], 6);
        assert_eq!(result["owed_came"], true);
        assert!(result["connected"].as_u64().unwrap() >= 6, "{result}");
    }
    assert_eq!(server.stop()["failed"], 0);
}

#[test]
fn once_means_once_and_all_of_them() {
    let server = Serving::start(&[]);
    let output = run(&["drive", &server.address, "--misbehave", "storm", "--json"]);
    let result = json(&output);
    assert!(output.status.success(), "{result}");
    for figure in ["clients", "connected", "done"] {
        assert_eq!(result[figure], 2000, "{result}");
    }
    assert_eq!(result["stayed"], 0);
    assert_eq!(server.stop()["accepted"], 2000);
}

#[test]
fn who_stays_is_told_that_the_server_closed() {
    let server = Serving::start(&["--idle-timeout", "100ms"]);
    for kind in ["silent", "slowloris"] {
        let output = run(&[
            "drive",
            &server.address,
            "--misbehave",
            kind,
            "--connections",
            "5",
            "--transcript",
        ]);
        let told = text(&output.stdout);
        assert!(output.status.success(), "{told}");
        let line = told
            .lines()
            .find(|line| line.contains("closed by"))
            .unwrap();
        assert!(line.ends_with(" 5"), "{told}");
        assert!(told.contains("< FIN"), "{told}");
    }
    assert_eq!(server.stop()["timed_out"], 10);
}

/// Answers whatever comes with this, and leaves.
fn answers(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut input = [0; 100];
            let _ = stream.read(&mut input);
            let _ = stream.write_all(answer);
        }
    });
    address
}

#[test]
fn what_is_owed_and_does_not_come_is_told_byte_by_byte() {
    let address = answers(b"no\n");
    let arguments = [
        "drive",
        &address,
        "--misbehave",
        "storm",
        "--connections",
        "3",
    ];
    let output = run(&arguments);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for words in [
        "heard a wrong reply",
        "Hello World!:0",
        "< \"no\\n\" (3 bytes)",
    ] {
        assert!(told.contains(words), "no {words} in {told}");
    }
    let output = run(&[&arguments[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let result = json(&output);
    assert_eq!(result["owed_came"], false);
    assert_eq!(result["wrong_reply"], 3);
    assert!(
        result["fault"]["transcript"]
            .as_str()
            .unwrap()
            .contains("no\\n")
    );
}

#[test]
fn who_is_owed_nothing_can_be_sent_away() {
    let output = run(&[
        "drive",
        &answers(b""),
        "--misbehave",
        "slowloris",
        "--connections",
        "4",
    ]);
    assert!(output.status.success(), "{}", text(&output.stdout));
}

#[track_caller]
fn refused(arguments: &[&str], status: i32, words: &[&str]) {
    let output = run(&[&["drive"], arguments].concat());
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    for word in words {
        assert!(complaint.contains(word), "no \"{word}\" in: {complaint}");
    }
}

#[test]
fn what_can_not_be_is_refused_in_one_line() {
    let here = "127.0.0.1:1";
    refused(&[here, "--misbehave", "help"], 2, &["slowloris", "storm"]);
    refused(&[here, "--transcript"], 2, &["--misbehave"]);
    for option in ["--rate", "--messages", "--size", "--think", "--threads"] {
        let arguments = [here, "--misbehave", "storm", option, "40"];
        refused(&arguments, 2, &[option]);
    }
    let arguments = [here, "--misbehave", "slowloris", "--protocol", "upper"];
    refused(&arguments, 2, &["upper", "slowloris"]);
    // (Addresses that documentation may name, and nobody has.)
    let elsewhere = ["192.0.2.1:7000", "--misbehave", "storm"];
    refused(
        &elsewhere,
        2,
        &["not on this machine", "--not-only-loopback"],
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    refused(&[&nobody, "--misbehave", "silent"], 1, &["nobody listens"]);
}
