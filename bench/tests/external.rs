//! External servers: compared, driven and checked. The tests of the exercises need the interpreters or compilers of
//! their languages.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use samewire::results::{Results, Role, Run};
use serde_json::Value;

const SAMEWIRE: &str = env!("CARGO_BIN_EXE_samewire");

/// Directory of the exercises.
const EXERCISES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/external");

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(SAMEWIRE);
    let command = command.args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the option for one of our models as an external server: this needs no interpreter.
fn ours(model: &str) -> String {
    format!(
        "mine={SAMEWIRE} serve {model} --listen 127.0.0.1:{{port}} --idle-timeout {{idle-timeout}}s \
         --max-connections {{max-connections}}"
    )
}

#[test]
fn external_server_is_compared_with_models() {
    let _machine = machine();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let with = ours("mio");
    let done = run(&[
        "compare",
        "--no-probe",
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
        // On a busy machine, some runs are measured once more.
        let counted = |one: &&Run| one.model == name && !one.superseded && one.role == Role::Model;
        let runs = results.runs.iter().filter(counted);
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
    // The command that is recorded starts the same server again.
    let words = shlex::split(&results.command).unwrap();
    assert!(words.contains(&with), "{}", results.command);
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("an external server: "), "{report}");
}

#[test]
fn external_servers_are_compared_without_models() {
    let _machine = machine();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let (one, two) = (ours("poll"), ours("threads").replace("mine=", "yours="));
    let done = run(&[
        "compare",
        "--no-probe",
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
fn invalid_external_server_is_refused_before_any_measurement() {
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
        (&[], 2, "no server to compare"),
        (
            &["--with", "a=/nowhere/at-all {port}"],
            1,
            "/nowhere/at-all",
        ),
    ] {
        let done = run(&[&["compare", "--models", "none", "--out", out][..], with].concat());
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(status), "{error}");
        assert!(error.contains(part), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!Path::new(out).exists(), "no results may be written");
    }
}

#[test]
fn external_server_is_started_driven_and_stopped() {
    let load = ["--connections", "5", "--messages", "3"];
    let done = run(&[&["drive", "--with", &ours("mio")][..], &load].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("15 of 15 requests"));

    let missing = run(&["drive", "--with", "a=/nowhere/at-all {port}"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere/at-all"));
    // The error output of the server is reported.
    let refused = run(&[
        "drive",
        "--with",
        &format!("a={SAMEWIRE} serve no-such-model {{port}}"),
    ]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("no-such-model"));
    let both = run(&["drive", "127.0.0.1:1", "--with", &ours("mio")]);
    assert_eq!(both.status.code(), Some(2));
}

/// Returns whether a program is installed; prints a note if it is not.
fn is_here(program: &str, argument: &str) -> bool {
    let here = Command::new(program).arg(argument).output().is_ok();
    if !here {
        eprintln!("{program} is not installed: its exercise is not checked");
    }
    here
}

/// Returns the verdicts of a quick check by guarantee, for some guarantees or for all.
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

/// Returns the guarantees that are broken.
fn broken(verdicts: &BTreeMap<String, String>) -> Vec<&str> {
    let broken = verdicts.iter().filter(|(_, verdict)| *verdict == "broken");
    broken.map(|(guarantee, _)| guarantee.as_str()).collect()
}

/// Held while a server is compared or checked: a time-out of 300 ms in an interpreter is not kept if six such tests share two
/// CPUs.
static MACHINE: Mutex<()> = Mutex::new(());

fn machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks that the starter breaks the guarantees that its page names, and that the solution keeps all guarantees except
/// for those that, according to its page, no server can keep there.
fn exercise(starter: &str, breaks: &[&str], solution: &str, cannot: &[&str]) {
    let _machine = machine();
    // It depends on chance whether a starter that sends wrong replies now and then does so under the load of
    // `isolation`.
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
    assert!(
        open.is_empty(),
        "every guarantee can be checked: {solution:#?}"
    );
}

#[test]
fn python_exercise_has_the_verdicts_of_its_page() {
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
fn go_exercise_has_the_verdicts_of_its_page() {
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
fn node_exercise_has_the_verdicts_of_its_page() {
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
