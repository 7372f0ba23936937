//! `samewire check`, run as a user runs it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use contract::Guarantee;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use samewire::registry;
use serde_json::Value;

const SAMEWIRE: &str = env!("CARGO_BIN_EXE_samewire");

fn check(arguments: &[&str]) -> Command {
    let mut command = Command::new(SAMEWIRE);
    command
        .arg("check")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    check(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The matrix, as a program reads it.
#[track_caller]
fn json(output: &Output, status: i32) -> Value {
    let said = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(status),
        "{said}{}",
        text(&output.stderr)
    );
    serde_json::from_str(&said).unwrap()
}

fn verdicts(matrix: &Value) -> Vec<(&str, &str, &str)> {
    let cells = matrix["cells"].as_array().unwrap().iter();
    cells
        .map(|cell| {
            (
                cell["target"].as_str().unwrap(),
                cell["guarantee"].as_str().unwrap(),
                cell["verdict"].as_str().unwrap(),
            )
        })
        .collect()
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    for (arguments, words) in [
        (&["elsewhere"][..], &["no such model", "mio"][..]),
        (
            &["--guarantees", "speed"][..],
            &["no such guarantee", "half-close"],
        ),
        (&["--with", "python3 server.py"], &["NAME=COMMAND {port}"]),
        (&["--with", "py=python3 server.py"], &["{port}"]),
        (
            &["--with", "a=true {port}", "--with", "a=false {port}"],
            &["a", "twice"],
        ),
        (
            &["mio", "--with", "mio=true {port}"],
            &["mio", "there is a model"],
        ),
        (&["--at", "nowhere"], &["HOST:PORT"]),
        // Reserved for documentation (RFC 5737): nobody is there, and nobody is asked.
        (
            &["--at", "192.0.2.1:7000"],
            &["not on this machine", "--not-only-loopback"],
        ),
        (&["--at", "127.0.0.1:9", "--at", "127.0.0.1:9"], &["twice"]),
        (&["--json", "--markdown"], &["--markdown"]),
        (&["--jobs", "0"], &["1 to"]),
    ] {
        let output = run(arguments);
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
        for word in words {
            assert!(complaint.contains(word), "no \"{word}\" in: {complaint}");
        }
    }
}

#[test]
fn the_help_has_examples_and_every_promise_is_known_by_its_name() {
    let help = text(&run(&["--help"]).stdout);
    assert!(help.contains("Examples:") && help.contains("--with"));
    let names = text(&run(&["--guarantees", "x"]).stderr);
    assert_eq!(names.matches(", ").count() + 1, Guarantee::ALL.len());
}

#[test]
fn a_model_keeps_its_promises() {
    let output = run(&[
        "mio",
        "serial",
        "--guarantees",
        "exact,half-close",
        "--seed",
        "1",
        "--json",
    ]);
    let matrix = json(&output, 0);
    assert_eq!(
        verdicts(&matrix),
        [
            ("serial", "exact", "keeps"),
            ("serial", "half-close", "keeps"),
            ("mio", "exact", "keeps"),
            ("mio", "half-close", "keeps"),
        ]
    );
    assert_eq!(
        matrix["command"],
        "samewire check serial mio --protocol pair --guarantees exact,half-close --seed 1"
    );
}

/// Every guarantee, of one model of each idea. That of all models is for CI, in a release build.
#[test]
fn models_keep_all_promises_or_break_them_as_declared() {
    let output = run(&["serial", "threads", "mio", "tokio", "--quick", "--json"]);
    let matrix = json(&output, 0);
    let verdicts = verdicts(&matrix);
    assert_eq!(verdicts.len(), 4 * Guarantee::ALL.len());
    for (target, guarantee, verdict) in verdicts {
        let model = registry::find(target).unwrap();
        let columns = matrix["guarantees"].as_array().unwrap();
        let column = columns.iter().find(|column| column["name"] == guarantee);
        let number = column.unwrap()["number"].as_u64().unwrap();
        let declared = model
            .deviations
            .iter()
            .any(|deviation| deviation.guarantee as u64 == number);
        let expected = if declared { "by-design" } else { "keeps" };
        assert_eq!(verdict, expected, "{target}, {guarantee}");
    }
}

/// Somebody's server, told by its command line; here it is ours, which is as good as any.
#[test]
fn any_server_that_a_command_starts_is_checked() {
    let with = format!("it={SAMEWIRE} serve threads --listen 127.0.0.1:{{port}}");
    let output = run(&[
        "--with",
        &with,
        "--guarantees",
        "exact,idle,restart",
        "--json",
        "--seed",
        "1",
    ]);
    let matrix = json(&output, 0);
    assert_eq!(
        verdicts(&matrix),
        [
            ("it", "exact", "keeps"),
            // It was not told when.
            ("it", "idle", "not-applicable"),
            ("it", "restart", "keeps"),
        ]
    );
    let command = matrix["command"].as_str().unwrap();
    assert_eq!(
        shlex::split(command).unwrap(),
        [
            "samewire",
            "check",
            "--with",
            &with,
            "--protocol",
            "pair",
            "--guarantees",
            "exact,idle,restart",
            "--seed",
            "1"
        ]
    );
}

#[test]
fn what_is_broken_is_told_with_the_bytes_and_the_command() {
    // Asked for pairs, it echoes.
    let with = format!("it={SAMEWIRE} serve threads --protocol echo --listen 127.0.0.1:{{port}}");
    let arguments = ["--with", &with, "--guarantees", "exact", "--seed", "1"];
    let output = run(&arguments);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "BROKEN: it, exact",
        "expected ",
        "saw ",
        "again by   samewire check --with",
        "> \"",
        "< \"Hello World!",
        "1 broken",
    ] {
        assert!(said.contains(part), "no {part} in:\n{said}");
    }
    // In a pipe nothing is coloured.
    assert!(!said.contains('\u{1b}'), "{said}");
    let markdown = run(&[&arguments[..], &["--markdown"]].concat());
    assert_eq!(markdown.status.code(), Some(1));
    assert!(text(&markdown.stdout).contains("| `it` | **BROKEN** |"));
}

#[test]
fn a_command_that_starts_nothing_is_told_and_fails() {
    for (with, why) in [
        (
            "it=/no/such/program {port}",
            "cannot start /no/such/program",
        ),
        ("it=false {port}", "did not start"),
    ] {
        let output = run(&["--with", with, "--guarantees", "exact", "--json"]);
        let matrix = json(&output, 1);
        let cell = &matrix["cells"][0];
        assert_eq!(cell["verdict"], "unchecked");
        let said = cell["why"].as_str().unwrap();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_server_that_runs_already_is_checked_as_far_as_it_can_be() {
    let mut server = Command::new(SAMEWIRE)
        .args(["serve", "mio", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(server.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap();
    let output = run(&[
        "--at",
        address,
        "--guarantees",
        "exact,half-close,stop",
        "--json",
    ]);
    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
    server.wait().unwrap();
    let matrix = json(&output, 0);
    assert_eq!(
        verdicts(&matrix),
        [
            (address, "exact", "keeps"),
            (address, "half-close", "keeps"),
            (address, "stop", "not-applicable"),
        ]
    );
}

/// Neither does it hang, nor is anybody left who would keep the port.
#[test]
fn a_command_that_goes_into_the_background_is_told_to_stay() {
    let with =
        format!("it=sh -c 'setsid {SAMEWIRE} serve threads --listen 127.0.0.1:{{port}} & exit 0'");
    let output = run(&["--with", &with, "--guarantees", "exact", "--json"]);
    let matrix = json(&output, 1);
    let why = matrix["cells"][0]["why"].as_str().unwrap();
    assert!(why.contains("foreground"), "{why}");
}

#[test]
fn who_leaves_a_process_behind_has_not_ended() {
    let with = format!(
        "it=sh -c 'trap \"exit 0\" TERM; {SAMEWIRE} serve threads --listen 127.0.0.1:{{port}} & wait'"
    );
    let output = run(&[
        "--with",
        &with,
        "--guarantees",
        "stop,restart",
        "--quick",
        "--json",
    ]);
    let matrix = json(&output, 1);
    assert_eq!(
        verdicts(&matrix),
        [("it", "stop", "broken"), ("it", "restart", "broken")]
    );
    let seen = matrix["cells"][1]["seen"].as_str().unwrap();
    assert!(seen.contains("still there"), "{seen}");
}

/// What is checked already is shown, and no server is left behind.
#[test]
fn ctrl_c_ends_it_in_order() {
    let mut checking = check(&["threads", "fork", "--json"]).spawn().unwrap();
    let mut errors = BufReader::new(checking.stderr.take().unwrap());
    // Servers have been started by the time that it has one of its own processes.
    let pid = Pid::from_raw(checking.id() as i32);
    let children = || {
        let all = procfs::process::all_processes().unwrap();
        let stats = all.filter_map(|process| process.ok()?.stat().ok());
        stats
            .filter(|stat| stat.ppid == pid.as_raw())
            .map(|stat| stat.pid)
            .collect::<Vec<_>>()
    };
    while children().is_empty() {
        std::thread::yield_now();
    }
    let servers = children();
    kill(pid, Signal::SIGINT).unwrap();
    let mut said = String::new();
    errors.read_to_string(&mut said).unwrap();
    let output = checking.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted"), "{said}");
    let matrix: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(matrix["interrupted"], true);
    for server in servers {
        // Waited for: its number is nobody's, or somebody else's by now.
        let stat = procfs::process::Process::new(server).and_then(|process| process.stat());
        assert!(stat.is_err() || stat.unwrap().ppid != pid.as_raw());
    }
}

/// `just matrix` makes it anew: after a change of models or guarantees it must.
#[test]
fn the_matrix_in_the_docs_is_of_all_models_and_promises_and_nothing_in_it_is_broken() {
    let matrix = include_str!("../../docs/src/matrix.md");
    for model in registry::models() {
        assert!(matrix.contains(&format!("| `{}` |", model.name)));
        for deviation in model.deviations {
            // (In Markdown some signs are escaped.)
            let plain = matrix.replace(['\\', '\n'], "");
            assert!(
                plain.contains(&deviation.reason.replace('\n', "")),
                "{}",
                model.name
            );
        }
    }
    let complaint = text(&run(&["--guarantees", "x"]).stderr);
    let (_, names) = complaint.split_once("there are ").unwrap();
    for name in names.split(", ") {
        // (The last is followed by where to find help.)
        let name = name.split_whitespace().next().unwrap();
        assert!(matrix.contains(&format!(" {name} |")), "{name}");
    }
    assert!(matrix.contains(", 0 broken"), "something in it is broken");
}

#[test]
fn the_docs_name_every_kind_of_misbehaving_clients() {
    let page = include_str!("../../docs/src/check.md");
    for kind in client::misbehave::MISBEHAVIOURS {
        let row = format!("| `{}` | {} |", kind.name, kind.summary);
        assert!(page.contains(&row), "no {row}");
    }
}
