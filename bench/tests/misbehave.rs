//! Tests of `samewire drive --misbehave`, run as a user runs it.

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

/// A `mio` server process, killed if the test fails.
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

    /// Stops the server, and returns its tally.
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
fn server_meets_its_obligation_to_every_kind() {
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
fn storm_without_duration_runs_every_client_once() {
    let server = Serving::start(&[]);
    let output = run(&["drive", &server.address, "--misbehave", "storm", "--json"]);
    let result = json(&output);
    assert!(output.status.success(), "{result}");
    for key in ["clients", "connected", "done"] {
        assert_eq!(result[key], 2000, "{result}");
    }
    assert_eq!(result["stayed"], 0);
    assert_eq!(server.stop()["accepted"], 2000);
}

#[test]
fn clients_that_stay_report_that_the_server_closed() {
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
        let printed = text(&output.stdout);
        assert!(output.status.success(), "{printed}");
        let line = printed
            .lines()
            .find(|line| line.contains("closed by"))
            .unwrap();
        assert!(line.ends_with(" 5"), "{printed}");
        assert!(printed.contains("< FIN"), "{printed}");
    }
    assert_eq!(server.stop()["timed_out"], 10);
}

/// Starts a server that answers the first bytes of each connection with `answer` and closes, and returns its address.
fn answering(answer: &'static [u8]) -> String {
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
fn wrong_reply_is_reported_with_a_transcript() {
    let address = answering(b"no\n");
    let arguments = [
        "drive",
        &address,
        "--misbehave",
        "storm",
        "--connections",
        "3",
    ];
    let output = run(&arguments);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    for words in [
        "received a wrong reply",
        "Hello World!:0",
        "< \"no\\n\" (3 bytes)",
    ] {
        assert!(printed.contains(words), "no {words} in {printed}");
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
fn client_without_obligation_may_be_closed() {
    let output = run(&[
        "drive",
        &answering(b""),
        "--misbehave",
        "slowloris",
        "--connections",
        "4",
    ]);
    assert!(output.status.success(), "{}", text(&output.stdout));
}

/// Asserts that `drive` ends with this exit status and one line with these words.
#[track_caller]
fn assert_refused(arguments: &[&str], status: i32, words: &[&str]) {
    let output = run(&[&["drive"], arguments].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    for word in words {
        assert!(message.contains(word), "no \"{word}\" in: {message}");
    }
}

#[test]
fn invalid_options_and_missing_servers_are_refused_in_one_line() {
    let here = "127.0.0.1:1";
    assert_refused(&[here, "--misbehave", "help"], 2, &["slowloris", "storm"]);
    assert_refused(&[here, "--transcript"], 2, &["--misbehave"]);
    for option in ["--rate", "--messages", "--size", "--think", "--threads"] {
        let arguments = [here, "--misbehave", "storm", option, "40"];
        assert_refused(&arguments, 2, &[option]);
    }
    let arguments = [here, "--misbehave", "slowloris", "--protocol", "upper"];
    assert_refused(&arguments, 2, &["upper", "slowloris"]);
    // An address from a block that is reserved for documentation (RFC 5737): no machine has it.
    let elsewhere = ["192.0.2.1:7000", "--misbehave", "storm"];
    assert_refused(
        &elsewhere,
        2,
        &["not on this machine", "--not-only-loopback"],
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let unused = listener.local_addr().unwrap().to_string();
    drop(listener);
    assert_refused(
        &[&unused, "--misbehave", "silent"],
        1,
        &["no server answers"],
    );
}
