//! The bug museum: `check` catches every mistake, and lets every mend through. And what the pages show of them is so.

use std::fs;
use std::process::Command;

use clap::Parser;
use museum::{EXAMPLES, Example, ExampleOptions};
use serde_json::Value;

/// A test for each example; their names are those of the examples, with underscores.
macro_rules! examples {
    ($($name:ident)*) => {
        /// So that none is forgotten.
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        mod check_catches_it_and_lets_its_mend_through {
            $(
                #[test]
                fn $name() {
                    super::is_caught_and_mended(stringify!($name));
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

fn is_caught_and_mended(name: &str) {
    let name = name.replace('_', "-");
    let example = EXAMPLES.iter().find(|example| example.name == name);
    let example = example.expect("there is no such example");
    let broken = assert_verdict(example, "", "broken");
    assert_verdict(example, "--fixed", "keeps");
    // On a busy machine another part of the check may be the first that fails. What is never seen again is out of date.
    let mut quoted = is_quoted(example, &broken);
    for _ in 1..TRIES {
        if quoted.is_ok() {
            break;
        }
        quoted = is_quoted(example, &assert_verdict(example, "", "broken"));
    }
    assert_eq!(quoted, Ok(()));
}

/// So often is an example asked for the verdict that its page quotes.
const TRIES: usize = 3;

/// Checks the guarantee that an example is there for, and gives the cell.
#[track_caller]
fn assert_verdict(example: &Example, how: &str, verdict: &str) -> Value {
    // What the check has to tell the server; nothing else, so that nothing else is looked at.
    let told = match example.caught_by {
        "idle" => "--idle-timeout {idle-timeout}",
        "limit" => "--max-connections {max-connections}",
        "stop" => "--drain {drain}",
        "panic" => "--panic \"{panic}\"",
        "tally" => "--idle-timeout {idle-timeout} --drain {drain} --panic \"{panic}\"",
        _ => "",
    };
    // A leak is one after 2,000 connections too (and 20,000 threads are more than some systems have), and who is starved
    // is that beside one kind of others.
    let quick = matches!(example.caught_by, "leaks" | "isolation").then_some("--quick");
    let quoted = |word: &str| shlex::try_quote(word).expect("no NUL").into_owned();
    let show = format!("{SHOW}={} {how} --port {{port}} {told}", example.name);
    let test = std::env::current_exe().expect("no path of this test");
    let test = test.to_str().expect("a path that can be written");
    let with = format!(
        "x=env {} {} the_process_of_an_exhibit --exact --ignored --nocapture",
        quoted(&show),
        quoted(test)
    );
    let output = Command::new(env!("CARGO_BIN_EXE_samewire"))
        .args(["check", "--with", &with, "--protocol", example.protocol])
        .args(["--guarantees", example.caught_by, "--seed", "1", "--json"])
        .args(quick)
        .output()
        .expect("samewire does not start");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let results: Value = serde_json::from_str(&said).expect(&said);
    let cells = results["cells"].as_array().expect("no cells");
    let verdicts: Vec<_> = cells.iter().map(|cell| &cell["verdict"]).collect();
    assert_eq!(verdicts, [verdict], "{with}\n{said}\n{complaints}");
    let status = i32::from(verdict == "broken");
    assert_eq!(output.status.code(), Some(status), "{with}\n{said}");
    cells[0].clone()
}

/// Whether the page of an example quotes what was expected and what was seen. Where that is something else now and then,
/// it may quote several.
fn is_quoted(example: &Example, cell: &Value) -> Result<(), String> {
    let name = example.name;
    let page = read(&format!("docs/src/museum/{name}.md"));
    let quoted = |what: &str| -> Vec<String> {
        let key = format!("\"{what}\": ");
        let quotes = page.lines().filter_map(|line| line.strip_prefix(&key));
        let quotes = quotes.map(|quote| serde_json::from_str(quote).expect(quote));
        quotes.collect()
    };
    let came = |what: &str| {
        let came = cell[what].as_str().expect("a text");
        // The page has it from the program, and this from itself.
        match came.split_once(" --nocapture: ") {
            Some((_, rest)) => format!("x: museum {name} --port 0: {rest}"),
            None => came.to_string(),
        }
    };
    let (expected, seen) = (came("expected"), came("seen"));
    let (all_expected, all_seen) = (quoted("expected"), quoted("seen"));
    let mut quotes = all_expected.iter().zip(&all_seen);
    if quotes.any(|(e, s)| same(e, s) == same(&expected, &seen)) {
        return Ok(());
    }
    Err(format!(
        "{name}: its page does not quote \"expected\": {}, \"seen\": {}",
        Value::from(expected),
        Value::from(seen)
    ))
}

/// What is the same each time of what was expected and what was seen.
fn same(expected: &str, seen: &str) -> (String, String) {
    let (expected, seen) = (gist(expected), gist(seen));
    // Who does what when a server ends, and how they are told, is a matter of moments.
    let is_gone = ["Connection re", "Broken pipe", "the end of the connection"];
    if is_gone.iter().any(|start| seen.starts_with(start)) {
        let who = expected.split(": ").next().unwrap_or_default();
        return (who.to_string(), "the connection is gone".to_string());
    }
    (expected, seen)
}

/// Without bytes, which are in quotes, and figures, with the units of times.
fn gist(text: &str) -> String {
    let mut gist = String::new();
    for (number, part) in text.split('"').enumerate() {
        if number % 2 == 1 {
            gist.push_str("\"\"");
            continue;
        }
        // Bytes that are cut off have dots behind them.
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

/// What an example's process is told.
const SHOW: &str = "SAMEWIRE_MUSEUM_SHOW";

/// An example's process is this test binary, which runs this as a test: so what is checked is what is compiled here.
#[test]
#[ignore = "a child process: those that check an example run this"]
fn the_process_of_an_exhibit() {
    // Whoever runs ignored tests by hand has not said which.
    let Ok(told) = std::env::var(SHOW) else {
        return;
    };
    let words = shlex::split(&told).expect("quotes that are closed");
    let words = ["museum".to_string()].into_iter().chain(words);
    let options = ExampleOptions::parse_from(words);
    // The test harness has begun a line, which is to be no part of the example's.
    println!();
    let status = match museum::show(&options) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    };
    // Before the test harness says anything more: the last line is the example's.
    std::process::exit(status);
}

#[test]
fn no_exhibit_lacks_its_test() {
    let examples: Vec<_> = EXAMPLES.iter().map(|example| example.name).collect();
    let tested: Vec<_> = TESTED.iter().map(|name| name.replace('_', "-")).collect();
    let mut missing = examples.clone();
    missing.retain(|name| !tested.iter().any(|tested| tested == name));
    assert!(missing.is_empty(), "not tested: {missing:?}");
    assert_eq!(examples.len(), tested.len(), "tested twice, or not there");
}

/// A mend that changes more than this is no lesson.
const MOST: usize = 15;

#[test]
fn a_mend_changes_little() {
    for example in EXAMPLES {
        let changes = changes(example.name);
        let removed = changes.iter().filter(|line| line.starts_with('-')).count();
        let added = changes.len() - removed;
        let name = example.name;
        assert!(!changes.is_empty(), "{name}: the mend changes nothing");
        assert!(
            removed <= MOST && added <= MOST,
            "{name}: -{removed} +{added}"
        );
    }
}

/// Examples that are tests and benchmarks; what is wrong with them is shown in servers/museum/tests.
const NO_SERVERS: [&str; 3] = ["closed-loop-mean", "cannot-fail", "copied-protocol"];

#[test]
fn every_page_shows_the_code_and_its_mend_as_they_are() {
    let summary = read("docs/src/SUMMARY.md");
    let servers = EXAMPLES.iter().map(|example| example.name);
    for name in servers.chain(NO_SERVERS) {
        assert!(
            summary.contains(&format!("(museum/{name}.md)")),
            "{name} is not in SUMMARY.md"
        );
        let page = read(&format!("docs/src/museum/{name}.md"));
        let code = format!("{{{{#include ../../../servers/museum/src/{name}/wrong.rs}}}}");
        assert!(page.contains(&code), "{name}: its page lacks {code}");
        let mut diff = page.lines().skip_while(|line| *line != "```diff").skip(1);
        let diff = diff.by_ref().take_while(|line| *line != "```");
        let shown: Vec<_> = diff.filter(|line| line.starts_with(['-', '+'])).collect();
        assert_eq!(shown, changes(name), "{name}: its page shows another mend");
    }
}

/// Names with so many underscores are those of tests.
const LONG: usize = 3;

#[test]
fn what_pages_refer_to_is_there() {
    for name in NO_SERVERS {
        let page = read(&format!("docs/src/museum/{name}.md"));
        let mut tests = Vec::new();
        for quoted in page.split('`').skip(1).step_by(2) {
            if quoted.matches('_').count() >= LONG && !quoted.contains(['/', ' ']) {
                tests.push(format!("fn {quoted}()"));
            } else if quoted.ends_with(".rs") {
                let file = read(quoted);
                for test in tests.drain(..) {
                    assert!(file.contains(&test), "{name}: no {test} in {quoted}");
                }
            }
        }
        assert!(tests.is_empty(), "{name}: where are {tests:?}?");
    }
}

/// What the mend changes, line by line, as diff(1) shows it; but for what the files say of themselves.
fn changes(name: &str) -> Vec<String> {
    let side = |side| read(&format!("servers/museum/src/{name}/{side}.rs"));
    diff(&lines(&side("wrong")), &lines(&side("fixed")))
}

fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with("//!"))
        .collect()
}

/// The lines of either that are not in the longest sequence of lines that both have.
fn diff(left: &[&str], right: &[&str]) -> Vec<String> {
    // How many lines the rests from there on have in common.
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

/// A file of this repository.
fn read(path: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    fs::read_to_string(format!("{root}/{path}")).unwrap_or_else(|error| panic!("{path}: {error}"))
}
