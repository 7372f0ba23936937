//! Tests of the museum of mistakes: `check` catches every mistake and passes every fix, and the pages quote the code,
//! the fixes and the verdicts exactly.

use std::fs;
use std::process::Command;

use clap::Parser;
use museum::{EXAMPLES, Example, ExampleOptions};
use serde_json::Value;

/// Generates a test for each example. Its name is that of the example, with underscores.
macro_rules! examples {
    ($($name:ident)*) => {
        /// Names of the examples that have a test, so that a missing one is found.
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        mod example_is_caught_and_its_fix_passes {
            $(
                #[test]
                fn $name() {
                    super::assert_caught_and_fixed(stringify!($name));
                }
            )*
        }
    };
}

examples! {
    short_write
    one_message_per_read
    edge_not_drained
    drops_a_byte
    answers_twice
    one_error_ends_all
    ignores_half_close
    accept_gives_up
    accept_spins
    always_writable
    no_limit
    unbounded_output
    one_slow_reader
    unbounded_line
    no_reuseaddr
    no_timeout
    pool_loses_workers
    starved_pool
    blocking_in_async
    lost_on_cancel
    no_drain_deadline
    stale_permit
    hangs_at_stop
    second_signal_ignored
    one_panic_ends_all
    lost_account
    leaks_descriptors
    leaks_threads
}

/// Asserts that `check` reports the wrong version as broken, that the fixed version passes, and that the page quotes
/// the verdict.
fn assert_caught_and_fixed(name: &str) {
    let name = name.replace('_', "-");
    let example = EXAMPLES.iter().find(|example| example.name == name);
    let example = example.expect("the example exists");
    let broken = assert_verdict(example, "", "broken");
    assert_verdict(example, "--fixed", "keeps");
    // On a busy machine another part of the check may fail first. A quote that never comes again is out of date.
    let mut quoted = is_quoted(example, &broken);
    for _ in 1..TRIES {
        if quoted.is_ok() {
            break;
        }
        quoted = is_quoted(example, &assert_verdict(example, "", "broken"));
    }
    assert_eq!(quoted, Ok(()));
}

/// Number of checks of an example in which the verdict that its page quotes must come once.
const TRIES: usize = 3;

/// Checks the guarantee that an example breaks, asserts the verdict, and returns the cell of the matrix.
/// `version` is the option that selects the wrong or the fixed version.
#[track_caller]
fn assert_verdict(example: &Example, version: &str, verdict: &str) -> Value {
    // Only the options that this check needs, so that nothing else is checked.
    let options = match example.caught_by {
        "idle" => "--idle-timeout {idle-timeout}",
        "limit" => "--max-connections {max-connections}",
        "stop" => "--drain {drain}",
        "panic" => "--panic \"{panic}\"",
        "tally" => "--idle-timeout {idle-timeout} --drain {drain} --panic \"{panic}\"",
        _ => "",
    };
    // 2,000 connections are enough to find a leak, and 20,000 threads are more than some systems allow. One kind of
    // misbehaving clients is enough to find that other clients are not served.
    let quick = matches!(example.caught_by, "leaks" | "isolation").then_some("--quick");
    let shell_quote = |word: &str| {
        shlex::try_quote(word)
            .expect("there is no NUL")
            .into_owned()
    };
    let arguments = format!(
        "{ARGUMENTS}={} {version} --port {{port}} {options}",
        example.name
    );
    let test = std::env::current_exe().expect("this test has a path");
    let test = test.to_str().expect("the path is UTF-8");
    let with = format!(
        "x=env {} {} child_process_runs_an_example --exact --ignored --nocapture",
        shell_quote(&arguments),
        shell_quote(test)
    );
    let output = Command::new(env!("CARGO_BIN_EXE_samewire"))
        .args(["check", "--with", &with, "--protocol", example.protocol])
        .args(["--guarantees", example.caught_by, "--seed", "1", "--json"])
        .args(quick)
        .output()
        .expect("samewire starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let results: Value = serde_json::from_str(&stdout).expect(&stdout);
    let cells = results["cells"].as_array().expect("there are cells");
    let verdicts: Vec<_> = cells.iter().map(|cell| &cell["verdict"]).collect();
    assert_eq!(verdicts, [verdict], "{with}\n{stdout}\n{stderr}");
    let status = i32::from(verdict == "broken");
    assert_eq!(output.status.code(), Some(status), "{with}\n{stdout}");
    cells[0].clone()
}

/// Returns whether the page of an example quotes the expectation and the observation of this cell. The page may quote
/// several pairs, if they are not the same on every run.
fn is_quoted(example: &Example, cell: &Value) -> Result<(), String> {
    let name = example.name;
    let page = read(&format!("docs/src/museum/{name}.md"));
    let quoted = |field: &str| -> Vec<String> {
        let key = format!("\"{field}\": ");
        let quotes = page.lines().filter_map(|line| line.strip_prefix(&key));
        let quotes = quotes.map(|quote| serde_json::from_str(quote).expect(quote));
        quotes.collect()
    };
    let reported = |field: &str| {
        let text = cell[field].as_str().expect("the field is a string");
        // The page quotes the museum program. Here this test binary serves the example.
        match text.split_once(" --nocapture: ") {
            Some((_, rest)) => format!("x: museum {name} --port 0: {rest}"),
            None => text.to_string(),
        }
    };
    let (expected, seen) = (reported("expected"), reported("seen"));
    let (all_expected, all_seen) = (quoted("expected"), quoted("seen"));
    let mut quotes = all_expected.iter().zip(&all_seen);
    if quotes.any(|(e, s)| same(e, s) == same(&expected, &seen)) {
        return Ok(());
    }
    Err(format!(
        "{name}: the page does not quote \"expected\": {}, \"seen\": {}",
        Value::from(expected),
        Value::from(seen)
    ))
}

/// Returns the parts of an expectation and an observation that are the same on every run.
fn same(expected: &str, seen: &str) -> (String, String) {
    let (expected, seen) = (gist(expected), gist(seen));
    // Which action fails first when a server ends, and with which error, differs from run to run.
    let is_gone = ["Connection re", "Broken pipe", "the end of the connection"];
    if is_gone.iter().any(|start| seen.starts_with(start)) {
        let peer = expected.split(": ").next().unwrap_or_default();
        return (peer.to_string(), "the connection is gone".to_string());
    }
    (expected, seen)
}

/// Returns the text without the bytes in quotes, and without figures and their units of time.
fn gist(text: &str) -> String {
    let mut gist = String::new();
    for (number, part) in text.split('"').enumerate() {
        if number % 2 == 1 {
            gist.push_str("\"\"");
            continue;
        }
        // An ellipsis after the quotes marks bytes that were cut off.
        let mut rest = part.trim_start_matches('…');
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            gist.push_str(&rest[..start]);
            gist.push('#');
            rest = rest[start..].trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            let unit = ["ms", "µs", "s"].into_iter().find(|unit| {
                let after = rest.strip_prefix(unit);
                after.is_some_and(|after| !after.starts_with(char::is_alphanumeric))
            });
            rest = &rest[unit.map_or(0, str::len)..];
        }
        gist.push_str(rest);
    }
    gist
}

#[test]
fn verdicts_are_compared_without_figures_and_bytes() {
    assert_eq!(
        gist("byte-by-byte: \"llo World!:0\\n\" at byte 2 of reply 1"),
        gist("byte-by-byte: \"Hello World!\"… at byte 0 of reply 12")
    );
    assert_eq!(gist("10 of 127.0.0.1:4711"), "# of #:#");
    assert_eq!(
        gist("the end 10.7ms after SIGTERM"),
        gist("the end 1s after SIGTERM")
    );
    assert_ne!(gist("4 peers"), gist("4 servers"));
    assert_eq!(
        same("a: a reply", "Connection reset by peer (os error 104)"),
        same("a: a connection", "Connection refused (os error 111)")
    );
    assert_ne!(same("a: b", "c"), same("a: d", "c"));
}

/// Environment variable with the command line of an example's process.
const ARGUMENTS: &str = "SAMEWIRE_MUSEUM_ARGUMENTS";

/// Runs an example. The process of an example is this test binary, which runs this function as a test: so the checks
/// run on the code that is compiled here.
#[test]
#[ignore = "the tests of the examples run this as a child process"]
fn child_process_runs_an_example() {
    // Without the variable, a user has started the ignored tests, and there is no example to run.
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let words = shlex::split(&arguments).expect("the quotes are closed");
    let words = ["museum".to_string()].into_iter().chain(words);
    let options = ExampleOptions::parse_from(words);
    // The test harness has begun a line. End it, so that the output of the example starts on a new line.
    println!();
    let status = match museum::run(&options) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    };
    // Exit before the test harness prints more: the last line of output must be the example's.
    std::process::exit(status);
}

#[test]
fn every_example_has_a_test() {
    let examples: Vec<_> = EXAMPLES.iter().map(|example| example.name).collect();
    let tested: Vec<_> = TESTED.iter().map(|name| name.replace('_', "-")).collect();
    let mut missing = examples.clone();
    missing.retain(|name| !tested.iter().any(|tested| tested == name));
    assert!(missing.is_empty(), "examples without a test: {missing:?}");
    assert_eq!(
        examples.len(),
        tested.len(),
        "a test has no example, or an example has two tests"
    );
}

/// Maximum number of lines that a fix removes, and that it adds. A larger fix teaches nothing.
const MAX_LINES: usize = 15;

#[test]
fn fix_of_an_example_changes_few_lines() {
    for example in EXAMPLES {
        let changes = changes(example.name);
        let removed = changes.iter().filter(|line| line.starts_with('-')).count();
        let added = changes.len() - removed;
        let name = example.name;
        assert!(!changes.is_empty(), "{name}: the fix changes nothing");
        assert!(
            removed <= MAX_LINES && added <= MAX_LINES,
            "{name}: the fix removes {removed} and adds {added} lines, more than {MAX_LINES}"
        );
    }
}

/// Examples that are not servers. `servers/museum/tests` shows what is wrong with them.
const NO_SERVERS: [&str; 3] = ["closed-loop-mean", "cannot-fail", "copied-protocol"];

#[test]
fn pages_show_the_code_and_the_fix_exactly() {
    let summary = read("docs/src/SUMMARY.md");
    let servers = EXAMPLES.iter().map(|example| example.name);
    for name in servers.chain(NO_SERVERS) {
        assert!(
            summary.contains(&format!("(museum/{name}.md)")),
            "{name} is not in SUMMARY.md"
        );
        let page = read(&format!("docs/src/museum/{name}.md"));
        let code = format!("{{{{#include ../../../servers/museum/src/{name}/wrong.rs}}}}");
        assert!(page.contains(&code), "{name}: the page lacks {code}");
        let mut diff = page.lines().skip_while(|line| *line != "```diff").skip(1);
        let diff = diff.by_ref().take_while(|line| *line != "```");
        let shown: Vec<_> = diff.filter(|line| line.starts_with(['-', '+'])).collect();
        assert_eq!(shown, changes(name), "{name}: the page shows another fix");
    }
}

/// Minimum number of underscores by which the name of a test is recognised.
const MIN_UNDERSCORES: usize = 3;

#[test]
fn tests_that_pages_name_exist() {
    for name in NO_SERVERS {
        let page = read(&format!("docs/src/museum/{name}.md"));
        let mut tests = Vec::new();
        for quoted in page.split('`').skip(1).step_by(2) {
            if quoted.matches('_').count() >= MIN_UNDERSCORES && !quoted.contains(['/', ' ']) {
                tests.push(format!("fn {quoted}()"));
            } else if quoted.ends_with(".rs") {
                let file = read(quoted);
                for test in tests.drain(..) {
                    assert!(file.contains(&test), "{name}: no {test} in {quoted}");
                }
            }
        }
        assert!(
            tests.is_empty(),
            "{name}: the page does not say in which file these tests are: {tests:?}"
        );
    }
}

/// Returns the lines that the fix changes, as diff(1) shows them, without the module documentation.
fn changes(name: &str) -> Vec<String> {
    let side = |side| read(&format!("servers/museum/src/{name}/{side}.rs"));
    diff(&lines(&side("wrong")), &lines(&side("fixed")))
}

fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with("//!"))
        .collect()
}

/// Returns the lines of both sides that are not in their longest common subsequence.
fn diff(left: &[&str], right: &[&str]) -> Vec<String> {
    // `common[l][r]`: the length of the longest common subsequence of `left[l..]` and `right[r..]`.
    let mut common = vec![vec![0; right.len() + 1]; left.len() + 1];
    for l in (0..left.len()).rev() {
        for r in (0..right.len()).rev() {
            common[l][r] = if left[l] == right[r] {
                common[l + 1][r + 1] + 1
            } else {
                common[l + 1][r].max(common[l][r + 1])
            };
        }
    }
    let (mut l, mut r) = (0, 0);
    let mut changes = Vec::new();
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() && left[l] == right[r] {
            l += 1;
            r += 1;
        } else if r == right.len() || (l < left.len() && common[l + 1][r] >= common[l][r + 1]) {
            changes.push(format!("-{}", left[l]));
            l += 1;
        } else {
            changes.push(format!("+{}", right[r]));
            r += 1;
        }
    }
    changes
}

/// Reads a file of this repository.
fn read(path: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    fs::read_to_string(format!("{root}/{path}")).unwrap_or_else(|error| panic!("{path}: {error}"))
}
