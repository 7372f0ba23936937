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

/// Parses the JSON output, after a check of the exit status.
#[track_caller]
fn json(output: &Output, status: i32) -> Value {
    let output_text = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(status),
        "{output_text}{}",
        text(&output.stderr)
    );
    serde_json::from_str(&output_text).unwrap()
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
fn invalid_arguments_are_refused_in_one_line() {
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
        // Reserved for documentation (RFC 5737): no host has this address, and no connection is opened.
        (
            &["--at", "192.0.2.1:7000"],
            &["not on this machine", "--not-only-loopback"],
        ),
        (&["--at", "127.0.0.1:9", "--at", "127.0.0.1:9"], &["twice"]),
        (&["--json", "--markdown"], &["--markdown"]),
        (&["--jobs", "0"], &["1 to"]),
    ] {
        let output = run(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        for word in words {
            assert!(error.contains(word), "no \"{word}\" in: {error}");
        }
    }
}

#[test]
fn help_has_examples_and_error_lists_every_guarantee() {
    let help = text(&run(&["--help"]).stdout);
    assert!(help.contains("Examples:") && help.contains("--with"));
    let names = text(&run(&["--guarantees", "x"]).stderr);
    assert_eq!(names.matches(", ").count() + 1, Guarantee::ALL.len());
}

#[test]
fn models_keep_the_chosen_guarantees() {
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

/// Checks every guarantee of one model of each idea. CI checks all models, in a release build.
#[test]
fn models_keep_all_guarantees_or_deviate_as_declared() {
    let output = run(&["serial", "threads", "mio", "tokio", "--quick", "--json"]);
    let matrix = json(&output, 0);
    let verdicts = verdicts(&matrix);
    assert_eq!(verdicts.len(), 4 * Guarantee::ALL.len());
    for (target, guarantee, verdict) in verdicts {
        let model = registry::find(target).unwrap();
        let declared = model
            .deviations
            .iter()
            .any(|deviation| deviation.guarantee.name() == guarantee);
        let expected = if declared { "by-design" } else { "keeps" };
        assert_eq!(verdict, expected, "{target}, {guarantee}");
    }
}

/// An external server is defined by its command line; here it is one of our models.
#[test]
fn external_server_is_checked_by_its_command() {
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
            // Its command has no placeholder for the idle time-out.
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
fn broken_guarantee_is_reported_with_transcript_and_command() {
    // The server echoes, but the clients send requests for `pair`.
    let with = format!("it={SAMEWIRE} serve threads --protocol echo --listen 127.0.0.1:{{port}}");
    let arguments = ["--with", &with, "--guarantees", "exact", "--seed", "1"];
    let output = run(&arguments);
    let output_text = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output_text}");
    for part in [
        "BROKEN: it, exact",
        "expected ",
        "saw ",
        "reproduce  samewire check --with",
        "> \"",
        "< \"Hello World!",
        "1 broken",
    ] {
        assert!(output_text.contains(part), "no {part} in:\n{output_text}");
    }
    // The output has no colours in a pipe.
    assert!(!output_text.contains('\u{1b}'), "{output_text}");
    let markdown = run(&[&arguments[..], &["--markdown"]].concat());
    assert_eq!(markdown.status.code(), Some(1));
    assert!(text(&markdown.stdout).contains("| `it` | **BROKEN** |"));
}

#[test]
fn command_that_starts_no_server_is_reported_as_unchecked() {
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
        let output_text = cell["why"].as_str().unwrap();
        assert!(output_text.contains(why), "{output_text}");
    }
}

#[test]
fn running_server_is_checked_without_its_process() {
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

/// The check does not hang, and no process is left that keeps the port.
#[test]
fn command_that_goes_into_the_background_is_an_error() {
    let with =
        format!("it=sh -c 'setsid {SAMEWIRE} serve threads --listen 127.0.0.1:{{port}} & exit 0'");
    let output = run(&["--with", &with, "--guarantees", "exact", "--json"]);
    let matrix = json(&output, 1);
    let why = matrix["cells"][0]["why"].as_str().unwrap();
    assert!(why.contains("foreground"), "{why}");
}

#[test]
fn server_that_leaves_a_process_behind_breaks_stop_and_restart() {
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

/// The results up to then are printed, and no server is left behind.
#[test]
fn ctrl_c_prints_results_and_ends_servers() {
    let mut checking = check(&["threads", "fork", "--json"]).spawn().unwrap();
    let mut errors = BufReader::new(checking.stderr.take().unwrap());
    // When the check has a child process, it has started servers.
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
    let mut output_text = String::new();
    errors.read_to_string(&mut output_text).unwrap();
    let output = checking.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output_text}");
    assert!(output_text.contains("interrupted"), "{output_text}");
    let matrix: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(matrix["interrupted"], true);
    for server in servers {
        // The server has been waited for: its number is unused, or belongs to another process by now.
        let stat = procfs::process::Process::new(server).and_then(|process| process.stat());
        assert!(stat.is_err() || stat.unwrap().ppid != pid.as_raw());
    }
}

/// `just matrix` writes this page again, which is necessary after each change of models or guarantees.
#[test]
fn matrix_in_docs_has_all_models_and_guarantees_and_none_broken() {
    let matrix = include_str!("../../docs/src/matrix.md");
    for model in registry::models() {
        assert!(matrix.contains(&format!("| `{}` |", model.name)));
        for deviation in model.deviations {
            // In Markdown some characters are escaped.
            let plain = matrix.replace(['\\', '\n'], "");
            assert!(
                plain.contains(&deviation.reason.replace('\n', "")),
                "{}",
                model.name
            );
        }
    }
    let error = text(&run(&["--guarantees", "x"]).stderr);
    let (_, names) = error.split_once("the guarantees are ").unwrap();
    for name in names.split(", ") {
        // The last name is followed by a hint at the help.
        let name = name.split_whitespace().next().unwrap();
        assert!(matrix.contains(&format!(" {name} |")), "{name}");
    }
    assert!(
        matrix.contains(", 0 broken"),
        "the matrix has a BROKEN cell"
    );
}

#[test]
fn docs_list_every_kind_of_misbehaving_clients() {
    let page = include_str!("../../docs/src/check.md");
    for kind in client::misbehave::MISBEHAVIOURS {
        let row = format!("| `{}` | {} |", kind.name, kind.summary);
        assert!(page.contains(&row), "no {row}");
    }
}
