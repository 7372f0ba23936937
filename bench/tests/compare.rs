//! `samewire compare` as a whole: real servers, real loads, and what is left of both.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use contract::Capacity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use samewire::compare::metric::Metric;
use samewire::compare::results::{Note, Results, Run};
use samewire::compare::workload::Workload;

/// Longer than anything here takes on the slowest machine; only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(60);

fn samewire(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_samewire"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    samewire(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory that is not there yet.
fn out() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep").join("out");
    (dir, out)
}

/// The processes that have this one as their parent.
fn children(parent: u32) -> Vec<i32> {
    processes(|stat| stat.ppid == parent as i32)
}

/// What a server has forked, itself included: it leads a group.
fn family(server: i32) -> Vec<i32> {
    processes(|stat| stat.pgrp == server)
}

fn processes(wanted: impl Fn(&procfs::process::Stat) -> bool) -> Vec<i32> {
    procfs::process::all_processes()
        .unwrap()
        .filter_map(|process| process.ok()?.stat().ok())
        .filter(wanted)
        .map(|stat| stat.pid)
        .collect()
}

/// Waits until these processes are gone (or are zombies, which only wait for whoever started them to look).
fn gone(processes: &[i32]) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let runs = |&pid: &i32| {
        let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
    };
    while processes.iter().any(runs) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A comparison that would run for an hour, and its standard error. Dropped, it is killed.
struct Long {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Long {
    fn start(out: &Path) -> Long {
        Long::of("mio,threads", out)
    }

    fn of(models: &str, out: &Path) -> Long {
        let mut child = samewire(&["compare", "--models", models, "--workloads", "max"])
            .args(["--runs", "3600", "--duration", "300ms", "--out", path(out)])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Long { child, stderr }
    }

    /// Waits for the line that tells that a run is over.
    fn first_run(&mut self) {
        let mut line = String::new();
        while !line.trim_start().starts_with('[') {
            line.clear();
            assert_ne!(self.stderr.read_line(&mut line).unwrap(), 0, "ended early");
        }
    }

    /// Waits until the next server process is there, however far it has come.
    fn servers(&self) -> Vec<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let servers = children(self.child.id());
            if !servers.is_empty() {
                return servers;
            }
            assert!(Instant::now() < deadline, "no server was started");
        }
    }

    /// Waits for a server that has forked as many as its connections are, and gives it and them all.
    fn forked(&self) -> (i32, Vec<i32>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for server in children(self.child.id()) {
                let family = family(server);
                if family.len() > 100 {
                    return (server, family);
                }
            }
            assert!(Instant::now() < deadline, "nothing was forked");
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_results_are_true() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--models",
        "threads,mio",
        "--workloads",
        "steady,max",
        "--runs",
        "1",
        "--duration",
        "200ms",
        "--connections",
        "20",
        "--rate",
        "1000",
        "--seed",
        "42",
        "--out",
        path(&out),
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let table = text(&done.stdout);
    assert!(
        table.contains("max: Closed loop") && table.contains("steady: Open loop"),
        "{table}"
    );

    let results = Results::read(&out).unwrap();
    assert!(results.complete);
    assert!(
        results.command.ends_with("--seed 42"),
        "{}",
        results.command
    );
    // In the registry's order, however they were named.
    assert_eq!(results.options.models, ["threads", "mio"]);
    assert_eq!(results.runs.len(), 4);
    assert_eq!(results.summary.len(), 4);
    for run in &results.runs {
        let what = format!("{} {}", run.model, run.workload);
        assert!(run.valid(), "{what}: {:?}", run.problems);
        let client = run.client.as_ref().unwrap();
        assert!(client.replies > 0, "{what}");
        assert_eq!(client.errors.total(), 0, "{what}");
        assert_eq!(client.per_connection.len(), 20, "{what}");
        assert_eq!(
            client.per_connection.iter().sum::<u64>(),
            client.completed,
            "{what}"
        );
        // Every reply is in the histograms once; what was owed at the end is in the response time too.
        let response = client.response_time.decode().unwrap();
        let service = client.service_time.decode().unwrap();
        assert_eq!(service.len(), client.replies, "{what}");
        assert_eq!(response.len(), client.replies + client.unanswered, "{what}");
        assert_eq!(response.len(), client.response_time.count, "{what}");
        // "pair" answers a line with up to two.
        assert!(client.sent_bytes >= 64 * client.replies, "{what}");
        assert!(
            client.received_bytes >= client.sent_bytes - 64 * 20,
            "{what}"
        );

        let server = run.server.as_ref().unwrap();
        let tally = server.tally.unwrap();
        assert!(tally.adds_up(), "{what}: {tally:?}");
        assert_eq!((tally.accepted, tally.failed), (20, 0), "{what}: {tally:?}");
        assert_eq!(server.exit.as_deref(), Some("exit status: 0"), "{what}");
        let expected = if run.model == "threads" { 21.. } else { 1.. };
        assert!(
            expected.contains(&server.threads.unwrap()),
            "{what}: {:?}",
            server.threads
        );

        let figure =
            |metric| run.figures[&metric].unwrap_or_else(|| panic!("{what}: no {metric:?}"));
        // On a machine that is too busy to read a clock in time this is not told.
        if !run.notes.contains(&Note::EdgesMissed) {
            assert!(figure(Metric::CpuUsPerRequest) > 0.0, "{what}");
        }
        assert!(figure(Metric::PeakMemoryMib) > 0.0, "{what}");
        assert!(figure(Metric::ClientBusy) > 0.0, "{what}");
        if run.workload == Workload::Steady {
            // 20 connections at 1,000 per second for 0.2 s.
            let planned = client.replies + client.unanswered;
            assert!((195..=205).contains(&planned), "{what}: {planned}");
        }
    }

    let report = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(
        report.contains("## max") && report.contains("--seed 42"),
        "{report}"
    );

    // Drawn again it is the same.
    fs::remove_file(out.join("report.md")).unwrap();
    let again = run(&["report", path(&out)]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    assert_eq!(text(&again.stdout), table);
    assert_eq!(fs::read_to_string(out.join("report.md")).unwrap(), report);

    // And never overwritten.
    let second = run(&[
        "compare",
        "--models",
        "mio",
        "--workloads",
        "max",
        "--out",
        path(&out),
    ]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("max_concurrent results already"),
        "{}",
        text(&second.stderr)
    );
    assert_eq!(Results::read(&out).unwrap().runs.len(), 4);
}

#[test]
fn one_at_a_time_starves_the_others_and_that_is_a_result() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--models",
        "serial,mio",
        "--workloads",
        "crowd,idle",
        "--runs",
        "1",
        "--patience",
        "1s",
        "--idle-duration",
        "200ms",
        "--connections",
        "5",
        "--json",
        "--out",
        path(&out),
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert_eq!(
        text(&done.stdout),
        fs::read_to_string(out.join("results.json")).unwrap()
    );
    let results = Results::read(&out).unwrap();
    let summary = |model: &str, workload| {
        let mut summaries = results.summary.iter();
        summaries
            .find(|summary| summary.model == model && summary.workload == workload)
            .unwrap()
    };
    let serial = summary("serial", Workload::Crowd);
    let served = serial.figures[&Metric::AllServedS].unwrap();
    // Each client takes half a second or more, and there are five.
    assert_eq!(
        (served.value, served.lower_bound, serial.ranked),
        (1.0, true, false)
    );
    assert!(serial.figures[&Metric::ClientsServed].unwrap().value < 5.0);
    assert!(
        !summary("mio", Workload::Crowd).figures[&Metric::ClientsServed]
            .unwrap()
            .lower_bound
    );
    // It max_concurrent one connection: there is no memory per connection, and that is not zero.
    assert_eq!(
        summary("serial", Workload::Idle).figures[&Metric::KibPerConnection],
        None
    );
    let mio = &summary("mio", Workload::Idle).figures;
    assert!(mio[&Metric::KibPerConnection].unwrap().value > 0.0);
    // A server that sleeps, beside another one that does: no more than a rounding of what a CPU can do.
    let idle = mio[&Metric::IdleCpuMsPerS].map_or(0.0, |figure| figure.value);
    assert!(idle < 100.0, "{idle}");
    for run in &results.runs {
        let other = if run.model == "mio" { "serial" } else { "mio" };
        let company: &[&str] = match run.workload {
            Workload::Idle => &[other],
            _ => &[],
        };
        assert_eq!(run.beside, company);
        let starves = run.model == "serial";
        assert_eq!(run.notes.contains(&Note::FewerByDesign), starves, "{run:?}");
    }
}

/// Every process of the tree is measured, and none is left.
#[test]
fn what_a_server_forks_is_measured_with_it_and_ends_with_it() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--models",
        "fork,threads",
        "--workloads",
        "crowd,max,idle",
        "--runs",
        "1",
        "--duration",
        "300ms",
        "--idle-duration",
        "200ms",
        "--connections",
        "20",
        "--out",
        path(&out),
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let results = Results::read(&out).unwrap();
    for run in &results.runs {
        let what = format!("{} {}", run.model, run.workload);
        let server = run.server.as_ref().unwrap();
        let connections = run.connections as u64;
        let processes = server.processes.unwrap();
        if run.model == "fork" {
            assert_eq!(processes, 1 + connections, "{what}");
            assert_eq!(server.peak_rss_bytes, None, "{what}");
        } else {
            assert_eq!(processes, 1, "{what}");
        }
    }
    // A process that would count all it shares with its parent takes megabytes.
    let idle = results
        .summary
        .iter()
        .find(|summary| summary.model == "fork" && summary.workload == Workload::Idle);
    let memory = idle.unwrap().figures[&Metric::KibPerConnection].unwrap();
    assert!((4.0..1_000.0).contains(&memory.value), "{memory:?}");
    let report = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("processes"), "{report}");
}

/// Its workers are as many as it has by default, and not as many as there are CPUs.
#[test]
fn who_is_held_by_a_peer_gets_as_many_as_it_needs() {
    let model = samewire::registry::models().find(|one| one.capacity == Capacity::Workers);
    let model = model.expect("prefork and pool are such models");
    let (_dir, out) = out();
    let names = format!("mio,{}", model.name);
    let done = run(&[
        "compare",
        "--models",
        &names,
        "--workloads",
        "max",
        "--runs",
        "1",
        "--duration",
        "200ms",
        "--connections",
        "20",
        "--out",
        path(&out),
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(
        text(&done.stdout).contains("200 workers"),
        "{}",
        text(&done.stdout)
    );
    let results = Results::read(&out).unwrap();
    for info in &results.models {
        let held = info.name == model.name;
        assert_eq!(info.max_concurrent, held.then_some(200), "{info:?}");
        assert_eq!(info.workers == Some(200), held, "{info:?}");
    }
    for run in &results.runs {
        let server = run.server.as_ref().unwrap();
        let held = run.model == model.name;
        assert_eq!(server.threads > Some(200), held, "{run:?}");
        assert!(!run.notes.contains(&Note::FewerByDesign), "{run:?}");
    }
}

#[test]
fn several_numbers_of_connections_are_a_table_of_costs() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--models",
        "serial,mio",
        "--runs",
        "1",
        "--duration",
        "100ms",
        "--rate",
        "1000",
        "--connections",
        "20,1,5",
        "--out",
        path(&out),
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let table = text(&done.stdout);
    for part in [
        "max by connections",
        "steady by connections",
        "growth",
        "serial was not measured with 5 and 20 connections",
    ] {
        assert!(
            table
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .contains(part),
            "{part}: {table}"
        );
    }
    let results = Results::read(&out).unwrap();
    assert_eq!(results.options.connections, [1, 5, 20]);
    let measured = |model: &str, workload| -> Vec<usize> {
        let all = results.summary.iter();
        all.filter(|one| one.model == model && one.workload == workload)
            .map(|one| one.connections)
            .collect()
    };
    for workload in [Workload::Max, Workload::Steady] {
        assert_eq!(measured("mio", workload), [1, 5, 20]);
        assert_eq!(measured("serial", workload), [1]);
    }
    assert_eq!(results.skipped.len(), 4);
    for run in &results.runs {
        let server = run.server.as_ref().unwrap();
        assert_eq!(server.tally.unwrap().accepted, run.connections as u64);
        assert!(run.figures.contains_key(&Metric::CpuUsPerRequest));
    }
}

/// What is done over connections: big messages, and replies that wait or block. And the figures add up.
#[test]
fn big_messages_and_work_are_measured_if_they_are_named() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--models",
        "threads,mio",
        "--workloads",
        "bulk,wait,block,block-offload",
        "--runs",
        "1",
        "--duration",
        "300ms",
        "--connections",
        "20",
        "--out",
        path(&out),
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let table = text(&done.stdout);
    let table = table.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "bulk: 20 peers",
        "MB: 10⁶ bytes",
        "More than 4,000 requests/s there can't be",
        "block-offload: not measured: mio: there is nowhere to move work to: one thread does everything",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let results = Results::read(&out).unwrap();
    assert!(results.complete);
    let measured: Vec<_> = (results.summary.iter())
        .map(|one| (one.workload, one.model.as_str()))
        .collect();
    let wanted = [
        (Workload::Bulk, "threads"),
        (Workload::Bulk, "mio"),
        (Workload::Wait, "threads"),
        (Workload::Wait, "mio"),
        (Workload::Block, "threads"),
        (Workload::Block, "mio"),
        (Workload::BlockOffload, "threads"),
    ];
    assert_eq!(measured, wanted);
    assert_eq!(results.skipped.len(), 1, "{:?}", results.skipped);
    for run in &results.runs {
        let what = format!("{} {}", run.model, run.workload);
        assert!(run.valid(), "{what}: {:?}", run.problems);
        let client = run.client.as_ref().unwrap();
        let figure = |metric| run.figures.get(&metric).copied().flatten();
        assert!(figure(Metric::Availability) > Some(0.0), "{what}");
        let arguments = run.server_arguments.join(" ");
        match run.workload {
            Workload::Bulk => {
                assert_eq!(arguments, "--protocol bulk", "{what}");
                assert_eq!((client.replies, run.requests), (20, Some(20)), "{what}");
                let content = run.reply_bytes.unwrap();
                assert_eq!(content, 9 << 20, "{what}");
                assert!(client.received_bytes > 20 * content, "{what}");
                let bytes = figure(Metric::MbPerS).unwrap() * 1e6 * client.window_s;
                assert!((bytes / (20 * content) as f64 - 1.0).abs() < 1e-6, "{what}");
                assert!(figure(Metric::AllServedS) > Some(0.0), "{what}");
                assert!(figure(Metric::PeakMemoryMib) > Some(0.0), "{what}");
            }
            Workload::Wait => {
                assert!(arguments.contains("--work wait:5ms"), "{arguments}");
                // Nobody is answered sooner than after the wait; the histogram keeps three digits.
                let service = client.service_time.decode().unwrap();
                assert!(service.min() >= 4_990_000, "{what}: {}", service.min());
            }
            _ => {
                assert!(arguments.contains("--work block:5ms@10%"), "{arguments}");
                let offload = run.workload == Workload::BlockOffload;
                assert_eq!(arguments.contains("--offload"), offload, "{arguments}");
                // Three seconds, whatever was asked for: else there are too few.
                let planned = client.replies + client.unanswered;
                assert!((1_790..=1_810).contains(&planned), "{what}: {planned}");
                // Nine in ten, and all of them told apart.
                let others = client.bystanders.count;
                assert!((1_500..1_750).contains(&others), "{what}: {others}");
                assert!(figure(Metric::BystandersP99Ms) > Some(0.0), "{what}");
            }
        }
    }
    let report = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("; in bulk what its name says"), "{report}");
}

/// Files over HTTP, by each of the ways in which a model can send one: every byte of them is right.
#[test]
fn files_are_measured_and_every_byte_is_checked() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--models",
        "threads,mio,coroutines,tokio",
        "--workloads",
        "http-13b,http-13k,http-13m",
        "--runs",
        "1",
        "--duration",
        "200ms",
        "--connections",
        "5",
        "--out",
        path(&out),
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let results = Results::read(&out).unwrap();
    assert_eq!(results.runs.len(), 12);
    for run in &results.runs {
        let what = format!("{} {}", run.model, run.workload);
        assert!(run.valid(), "{what}: {:?}", run.problems);
        let client = run.client.as_ref().unwrap();
        let size = match run.workload {
            Workload::Http13b => 13,
            Workload::Http13k => 13 << 10,
            _ => 13 << 20,
        };
        assert_eq!(run.reply_bytes, Some(size), "{what}");
        assert_eq!(client.errors.total(), 0, "{what}: {:?}", client.examples);
        assert!(client.replies >= 5, "{what}: {}", client.replies);
        // Heads come on top, and nothing else.
        let heads = client.received_bytes - client.replies * size;
        assert!(heads > 100 * client.replies, "{what}: {heads}");
    }
}

/// More than it max_concurrent and the kernel's queue beside: the rest never gets a connection, and that takes no longer to find
/// out than it must.
#[test]
fn what_cannot_be_opened_is_told_and_not_tried_again() {
    let limit = contract::raise_descriptor_limit();
    if !limit.allow(6_000) {
        return;
    }
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--models",
        "serial",
        "--workloads",
        "max",
        "--runs",
        "2",
        "--duration",
        "100ms",
        "--connections",
        "6000",
        "--out",
        path(&out),
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let results = Results::read(&out).unwrap();
    assert!(results.complete);
    assert_eq!(results.runs.len(), 1);
    let run = &results.runs[0];
    assert_eq!(run.notes, [Note::NotAllOpened], "{:?}", run.problems);
    assert!(run.figures.is_empty() && !results.summary[0].ranked);
    assert!(run.client.as_ref().unwrap().connected < 6_000);
    assert_eq!(results.skipped.len(), 1);
    let table = text(&done.stdout);
    assert!(
        table.contains("no room") && table.contains("n/a"),
        "{table}"
    );
}

#[test]
fn what_cannot_be_written_is_told_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    // Below a file there is no directory, for root neither.
    let done = run(&["compare", "--out", path(&file.join("out"))]);
    assert_eq!(done.status.code(), Some(1));
    let said = text(&done.stderr);
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(
        said.contains("cannot write to") && said.contains("--out"),
        "{said}"
    );
    assert!(done.stdout.is_empty());
}

#[test]
fn wrong_usage_is_one_line_that_helps() {
    let usage = |arguments: &[&str], part: &str| {
        let done = run(arguments);
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        assert!(said.contains(part), "{said}");
    };
    usage(&["compare", "--models", "mio,apache"], "threads");
    usage(&["compare", "--workloads", "max,min"], "steady");
    usage(&["compare", "--protocol", "bulk"], "--workloads bulk");
    usage(&["compare", "--runs", "0"], "--runs");
    usage(&["compare", "--duration", "0s"], "--duration");
    usage(&["compare", "--rate=-1"], "rate");
    usage(&["compare", "--connections", "10,x"], "--connections");
    usage(
        &[
            "compare",
            "--connections",
            "10,20",
            "--workloads",
            "max,crowd",
        ],
        "crowd",
    );
    let nothing = run(&["report", "/nonexistent"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(
        text(&nothing.stderr).contains("name a directory"),
        "{}",
        text(&nothing.stderr)
    );
}

#[test]
fn an_interrupt_keeps_what_was_measured_and_leaves_no_server() {
    let (_dir, out) = out();
    let mut long = Long::start(&out);
    long.first_run();
    let servers = long.servers();
    kill(long.pid(), Signal::SIGINT).unwrap();
    // Read on, or a full pipe would keep it from ending.
    let mut rest = String::new();
    long.stderr.read_to_string(&mut rest).unwrap();
    let mut table = String::new();
    long.child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut table)
        .unwrap();
    assert_eq!(long.child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(gone(&servers));
    let results = Results::read(&out).unwrap();
    assert!(!results.complete);
    assert!(!results.runs.is_empty());
    assert!(results.runs.iter().all(Run::valid));
    assert!(table.contains("interrupted"), "{table}");
}

#[test]
fn no_server_outlives_a_comparison_that_is_killed() {
    let (_dir, out) = out();
    let mut long = Long::start(&out);
    long.first_run();
    let servers = long.servers();
    kill(long.pid(), Signal::SIGKILL).unwrap();
    long.child.wait().unwrap();
    assert!(gone(&servers));
    // What earlier blocks measured is there; a block of this comparison is two runs.
    assert!(!Results::read(&out).unwrap().complete);
}

/// However it is ended, and also if a server has no time to end what it forked.
#[test]
fn nothing_that_a_server_forked_outlives_a_comparison() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let (_dir, out) = out();
        let mut long = Long::of("fork", &out);
        let (_, forked) = long.forked();
        kill(long.pid(), signal).unwrap();
        let mut rest = String::new();
        long.stderr.read_to_string(&mut rest).unwrap();
        long.child.wait().unwrap();
        assert!(gone(&forked), "{signal}: {rest}");
        if signal == Signal::SIGINT {
            // Not even one that only waits for somebody to look.
            let left = processes(|stat| forked.contains(&stat.pgrp));
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

/// A server that was killed could not wait for what it had forked, so this program does.
#[test]
fn the_orphans_of_a_server_are_ended_and_waited_for() {
    let (_dir, out) = out();
    let mut long = Long::of("fork", &out);
    let (server, forked) = long.forked();
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // As long as it is there at all, also as a zombie.
    while !processes(|stat| forked.contains(&stat.pid)).is_empty() {
        assert!(Instant::now() < deadline, "they are still there");
        std::thread::sleep(Duration::from_millis(5));
    }
    // It was told, and the comparison went on.
    long.first_run();
    assert!(long.child.try_wait().unwrap().is_none());
}

/// Only one of two may have the directory, however close they start.
#[test]
fn two_comparisons_do_not_share_a_directory() {
    let (_dir, out) = out();
    let mut first = Long::start(&out);
    first.first_run();
    let second = run(&["compare", "--models", "mio", "--out", path(&out)]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("not overwritten"),
        "{}",
        text(&second.stderr)
    );
}

#[test]
fn a_full_standard_error_loses_no_results() {
    let (_dir, out) = out();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = samewire(&["compare", "--models", "mio", "--workloads", "max"])
        .args(["--runs", "1", "--duration", "100ms", "--out", path(&out)])
        .stdout(Stdio::null())
        .stderr(full)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(Results::read(&out).unwrap().complete);
}
