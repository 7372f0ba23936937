//! Servers that are not ours: compared, driven and checked. Those of the exercises run where their interpreter is.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use samewire::compare::results::Results;
use serde_json::Value;

const SAMEWIRE: &str = env!("CARGO_BIN_EXE_samewire");

/// Where the exercises are.
const EXERCISES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/external");

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(SAMEWIRE);
    let command = command.args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One of ours, as somebody else's: this needs no interpreter.
fn ours(model: &str) -> String {
    format!(
        "mine={SAMEWIRE} serve {model} --listen 127.0.0.1:{{port}} --idle-timeout {{idle-timeout}}s \
         --max-connections {{max-connections}}"
    )
}

#[test]
fn a_server_from_outside_takes_part_in_a_comparison() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let with = ours("mio");
    let done = run(&[
        "compare",
        "--models",
        "threads",
        "--with",
        &with,
        "--workloads",
        "crowd,max,steady,idle,bulk,wait",
        "--connections",
        "10",
        "--runs",
        "1",
        "--duration",
        "200ms",
        "--idle-duration",
        "200ms",
        "--rate",
        "200",
        "--out",
        out.to_str().unwrap(),
    ]);
    let shown = text(&done.stdout);
    assert!(done.status.success(), "{shown}{}", text(&done.stderr));
    assert!(shown.contains("mine is an external server"), "{shown}");
    let results = Results::read(&out).unwrap();
    assert_eq!(results.options.models, ["threads", "mine"]);
    let mine = &results.models[1];
    assert!(mine.command.as_ref().unwrap().contains("{port}"));
    assert_eq!(results.models[0].command, None);
    let workloads = |name: &str| -> Vec<String> {
        let runs = results.runs.iter().filter(|one| one.model == name);
        let mut names: Vec<_> = runs.map(|one| one.workload.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(workloads("mine"), ["crowd", "idle", "max", "steady"]);
    assert_eq!(workloads("threads").len(), 6);
    let mut left_out: Vec<_> = results
        .skipped
        .iter()
        .map(|one| (one.model.as_str(), one.workload.to_string()))
        .collect();
    left_out.sort();
    assert_eq!(
        left_out,
        [("mine", "bulk".to_string()), ("mine", "wait".to_string())]
    );
    for run in results.runs.iter().filter(|one| one.model == "mine") {
        let server = run.server.as_ref().unwrap();
        assert!(server.processes >= Some(1), "{}", run.workload);
    }
    // What is typed again starts the same.
    let words = shlex::split(&results.command).unwrap();
    assert!(words.contains(&with), "{}", results.command);
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("an external server: "), "{report}");
}

#[test]
fn only_servers_from_outside_can_be_compared_too() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let (one, two) = (ours("poll"), ours("threads").replace("mine=", "yours="));
    let done = run(&[
        "compare",
        "--models",
        "none",
        "--with",
        &one,
        "--with",
        &two,
        "--workloads",
        "max",
        "--connections",
        "5",
        "--runs",
        "1",
        "--duration",
        "100ms",
        "--out",
        out,
    ]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let results = Results::read(Path::new(out)).unwrap();
    assert_eq!(results.options.models, ["mine", "yours"]);
}

#[test]
fn who_cannot_take_part_is_told_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    for (with, status, part) in [
        (&["--with", "mio=x {port}"][..], 2, "a model of that name"),
        (
            &["--with", "a=x {port}", "--with", "a=y {port}"],
            2,
            "twice",
        ),
        (&[], 2, "nobody to compare"),
        (
            &["--with", "a=/nowhere/at-all {port}"],
            1,
            "/nowhere/at-all",
        ),
    ] {
        let done = run(&[&["compare", "--models", "none", "--out", out][..], with].concat());
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(status), "{said}");
        assert!(said.contains(part), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!Path::new(out).exists(), "nothing was to be written");
    }
}

#[test]
fn a_server_from_outside_is_started_driven_and_stopped() {
    let load = ["--connections", "5", "--messages", "3"];
    let done = run(&[&["drive", "--with", &ours("mio")][..], &load].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("15 of 15 requests"));

    let missing = run(&["drive", "--with", "a=/nowhere/at-all {port}"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere/at-all"));
    // Its complaints are told.
    let refused = run(&[
        "drive",
        "--with",
        &format!("a={SAMEWIRE} serve nobody {{port}}"),
    ]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("nobody"));
    let both = run(&["drive", "127.0.0.1:1", "--with", &ours("mio")]);
    assert_eq!(both.status.code(), Some(2));
}

/// Whether a program is there and new enough to be asked for its version; that it is not is said.
fn is_here(program: &str, argument: &str) -> bool {
    let here = Command::new(program).arg(argument).output().is_ok();
    if !here {
        eprintln!("{program} is not here: its exercise is not checked");
    }
    here
}

/// The verdicts of a quick check of some guarantees, or of all, by guarantee.
fn verdicts(command: &str, guarantees: &[&str]) -> BTreeMap<String, String> {
    let with = format!("it={command}");
    let mut arguments = vec!["check", "--with", &with, "--quick", "--jobs", "2", "--json"];
    arguments.extend(guarantees);
    let done = run(&arguments);
    let matrix: Value = serde_json::from_slice(&done.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&done.stderr)));
    let cells = matrix["cells"].as_array().unwrap();
    let verdict = |cell: &Value| {
        let verdict = cell["verdict"].as_str().unwrap().to_string();
        (cell["guarantee"].as_str().unwrap().to_string(), verdict)
    };
    let verdicts: BTreeMap<_, _> = cells.iter().map(verdict).collect();
    let good = !verdicts.values().any(|verdict| verdict == "broken");
    assert_eq!(done.status.success(), good, "{matrix:#}");
    verdicts
}

fn broken(verdicts: &BTreeMap<String, String>) -> Vec<&str> {
    let broken = verdicts.iter().filter(|(_, verdict)| *verdict == "broken");
    broken.map(|(guarantee, _)| guarantee.as_str()).collect()
}

/// The starter breaks what its page says, and the solution keeps all but what its page says nobody can keep there.
fn exercise(starter: &str, breaks: &[&str], solution: &str, cannot: &[&str]) {
    // Whether one that answers wrongly now and then does so beside those of the isolation is chance.
    let all_but_isolation = [
        "--guarantees",
        "exact,half-close,idle,limit,accept,memory,bad-input,stop,panic,tally,leaks,restart",
    ];
    let starter = verdicts(&format!("{starter} {{port}}"), &all_but_isolation);
    assert_eq!(broken(&starter), breaks, "{starter:#?}");
    let solution = verdicts(
        &format!(
            "{solution} --idle-timeout {{idle-timeout}} --drain {{drain}} --max-connections {{max-connections}} --panic \
         '{{panic}}' {{port}}"
        ),
        &[],
    );
    assert_eq!(broken(&solution), cannot, "{solution:#?}");
    let open: Vec<_> = solution
        .values()
        .filter(|verdict| !matches!(verdict.as_str(), "keeps" | "broken"))
        .collect();
    assert!(open.is_empty(), "it can be asked everything: {solution:#?}");
}

#[test]
fn the_exercise_in_python_breaks_and_keeps_what_its_page_says() {
    if is_here("python3", "--version") {
        let file = |name: &str| format!("python3 '{EXERCISES}/python/{name}.py'");
        exercise(
            &file("starter"),
            &["memory", "stop"],
            &file("solution"),
            &[],
        );
    }
}

#[test]
fn the_exercise_in_go_breaks_and_keeps_what_its_page_says() {
    if is_here("go", "version") {
        let dir = tempfile::tempdir().unwrap();
        let build = |name: &str| {
            let program = dir.path().join(name);
            let source = format!("{EXERCISES}/go/{name}.go");
            let mut command = Command::new("go");
            let command = command.arg("build").arg("-o").arg(&program).arg(source);
            let built = command.output().unwrap();
            assert!(built.status.success(), "{}", text(&built.stderr));
            format!("'{}'", program.display())
        };
        exercise(
            &build("starter"),
            &["accept", "half-close", "stop"],
            &build("solution"),
            &[],
        );
    }
}

#[test]
fn the_exercise_in_node_breaks_and_keeps_what_its_page_says() {
    if is_here("node", "--version") {
        let file = |name: &str| format!("node '{EXERCISES}/node/{name}.js'");
        exercise(
            &file("starter"),
            &[
                "accept",
                "bad-input",
                "exact",
                "half-close",
                "leaks",
                "memory",
                "stop",
            ],
            &file("solution"),
            &["accept"],
        );
    }
}
