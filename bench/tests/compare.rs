//! Tests `samewire compare` as a whole, with real servers and real loads: its files, its output, its exit status, and
//! that it leaves no process behind.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use contract::Capacity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use samewire::results::metric::Metric;
use samewire::results::{Method, Note, Results, Role, Run};
use samewire::workloads::Workload;

/// Longest time that a test waits for something. It is longer than anything takes on the slowest machine, so only a
/// hang reaches it.
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

/// Returns the runs of the models whose figures count: on a busy machine, some runs are measured once more.
fn counted(results: &Results) -> Vec<&Run> {
    let runs = results.runs.iter();
    runs.filter(|run| run.role == Role::Model && !run.superseded)
        .collect()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns a path to a directory that does not exist yet, and the temporary directory that contains it.
fn out() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep").join("out");
    (dir, out)
}

/// Returns the processes whose parent is this process.
fn children(parent: u32) -> Vec<i32> {
    processes(|stat| stat.ppid == parent as i32)
}

/// Returns the server and the processes that it forked: the processes of the group that it leads.
fn process_group(server: i32) -> Vec<i32> {
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

/// Waits until these processes have ended; zombies, which only wait for their parent, count as ended. Returns false if
/// one still runs after [`PATIENCE`].
fn have_ended(processes: &[i32]) -> bool {
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

/// A comparison that would run for an hour, and its standard error. It is killed when it is dropped.
struct LongComparison {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl LongComparison {
    fn start(out: &Path) -> LongComparison {
        LongComparison::of("mio,threads", out)
    }

    fn of(models: &str, out: &Path) -> LongComparison {
        LongComparison::with(&["--models", models, "--no-probe"], out)
    }

    fn with(arguments: &[&str], out: &Path) -> LongComparison {
        let mut child = samewire(&["compare", "--workloads", "max", "--no-twins"])
            .args(["--runs", "3600", "--duration", "300ms"])
            .args(["--out", path(out)])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        LongComparison { child, stderr }
    }

    /// Waits for the line that reports the end of a run.
    fn wait_for_run(&mut self) {
        let mut line = String::new();
        while !line.trim_start().starts_with('[') {
            line.clear();
            assert_ne!(self.stderr.read_line(&mut line).unwrap(), 0, "ended early");
        }
    }

    /// Waits until a server process exists, which may not listen yet, and returns all server processes.
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

    /// Waits for a server that has forked a process for each connection. Returns the server, and its process group.
    fn forked(&self) -> (i32, Vec<i32>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for server in children(self.child.id()) {
                let group = process_group(server);
                if group.len() > 100 {
                    return (server, group);
                }
            }
            assert!(Instant::now() < deadline, "the server forked no processes");
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for LongComparison {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn results_agree_with_each_other_and_report_prints_them_again() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--no-probe",
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
    // The models are in the order of the registry, whatever the order of the option.
    assert_eq!(results.options.models, ["threads", "mio"]);
    // Two models on two workloads, each with its twin, and the null server.
    assert_eq!(results.summary.len(), 4);
    for role in [Role::Model, Role::Twin, Role::Anchor] {
        let count = results
            .runs
            .iter()
            .filter(|run| run.role == role && !run.superseded);
        assert_eq!(count.count(), if role == Role::Anchor { 2 } else { 4 });
    }
    let mut steady_plan = None;
    for run in counted(&results) {
        let case = format!("{} {}", run.model, run.workload);
        assert!(run.valid(), "{case}: {:?}", run.problems);
        let client = run.client.as_ref().unwrap();
        assert!(client.replies > 0, "{case}");
        assert_eq!(run.method, Method::Slices, "{case}");
        let length: f64 = client.timeline.iter().map(|step| step.length_s).sum();
        assert!((length - client.window_s).abs() < 1e-6, "{case}: {length}");
        assert_eq!(client.errors.total(), 0, "{case}");
        assert_eq!(client.per_connection.len(), 20, "{case}");
        assert_eq!(
            client.per_connection.iter().sum::<u64>(),
            client.completed,
            "{case}"
        );
        // Every reply is in the histograms once; unanswered requests are in the response time too.
        let response = client.response_time.decode().unwrap();
        let service = client.service_time.decode().unwrap();
        assert_eq!(service.len(), client.replies, "{case}");
        assert_eq!(response.len(), client.replies + client.unanswered, "{case}");
        assert_eq!(response.len(), client.response_time.count, "{case}");
        // The protocol "pair" answers a line with up to two lines.
        assert!(client.sent_bytes >= 64 * client.replies, "{case}");
        assert!(
            client.received_bytes >= client.sent_bytes - 64 * 20,
            "{case}"
        );

        let server = run.server.as_ref().unwrap();
        let tally = server.tally.unwrap();
        assert!(tally.adds_up(), "{case}: {tally:?}");
        assert_eq!((tally.accepted, tally.failed), (20, 0), "{case}: {tally:?}");
        assert_eq!(server.exit.as_deref(), Some("exit status: 0"), "{case}");
        let expected = if run.model == "threads" { 21.. } else { 1.. };
        assert!(
            expected.contains(&server.threads.unwrap()),
            "{case}: {:?}",
            server.threads
        );

        let figure =
            |metric| run.figures[&metric].unwrap_or_else(|| panic!("{case}: no {metric:?}"));
        // The figure is unknown on a machine that is too busy to read a clock in time.
        if !run.notes.contains(&Note::EdgesMissed) {
            assert!(figure(Metric::CpuUsPerRequest) > 0.0, "{case}");
        }
        assert!(figure(Metric::PeakMemoryMib) > 0.0, "{case}");
        assert!(figure(Metric::ClientBusy) > 0.0, "{case}");
        if run.workload == Workload::Steady {
            // 1,000 requests per second over 20 connections, for 0.2 s, at random times, which are the same for all.
            let planned = client.replies + client.unanswered;
            assert!((140..260).contains(&planned), "{case}: {planned}");
            assert_eq!(planned, *steady_plan.get_or_insert(planned), "{case}");
        }
    }

    let report = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(
        report.contains("## max") && report.contains("--seed 42"),
        "{report}"
    );

    // `samewire report` prints the same tables and writes the same files.
    let csv = fs::read_to_string(out.join("summary.csv")).unwrap();
    assert!(csv.contains("steady,20,mio,response_p99_ms,"), "{csv}");
    fs::remove_file(out.join("report.md")).unwrap();
    fs::remove_file(out.join("summary.csv")).unwrap();
    let again = run(&["report", path(&out)]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    assert_eq!(text(&again.stdout), table);
    assert_eq!(fs::read_to_string(out.join("report.md")).unwrap(), report);
    assert_eq!(fs::read_to_string(out.join("summary.csv")).unwrap(), csv);

    // A second comparison does not overwrite the results.
    let second = run(&[
        "compare",
        "--no-probe",
        "--models",
        "mio",
        "--workloads",
        "max",
        "--out",
        path(&out),
    ]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("already contains results"),
        "{}",
        text(&second.stderr)
    );
    assert_eq!(Results::read(&out).unwrap(), results);
}

#[test]
fn run_of_a_model_that_serves_one_client_at_a_time_is_valid_but_not_ranked() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--no-probe",
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
    // Each of the five clients takes half a second or more.
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
    // The model serves one connection at a time, so the memory per connection is unknown, which is not zero.
    assert_eq!(
        summary("serial", Workload::Idle).figures[&Metric::KibPerConnection],
        None
    );
    let mio = &summary("mio", Workload::Idle).figures;
    assert!(mio[&Metric::KibPerConnection].unwrap().value > 0.0);
    // A server that sleeps uses almost no CPU time, also while another sleeping server is measured at the same time.
    let idle = mio[&Metric::IdleCpuMsPerS].map_or(0.0, |figure| figure.value);
    assert!(idle < 100.0, "{idle}");
    for run in counted(&results) {
        let other = if run.model == "mio" { "serial" } else { "mio" };
        let beside: &[&str] = match run.workload {
            Workload::Idle => &[other],
            _ => &[],
        };
        assert_eq!(run.beside, beside);
        let fewer = run.model == "serial";
        assert_eq!(run.notes.contains(&Note::FewerByDesign), fewer, "{run:?}");
    }
}

/// Every process of the tree is measured, and none is left.
#[test]
fn processes_that_a_server_forks_are_measured_and_ended_with_it() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--no-probe",
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
    for run in counted(&results) {
        let case = format!("{} {}", run.model, run.workload);
        let server = run.server.as_ref().unwrap();
        let connections = run.connections as u64;
        let processes = server.processes.unwrap();
        if run.model == "fork" {
            assert_eq!(processes, 1 + connections, "{case}");
            assert_eq!(server.peak_rss_bytes, None, "{case}");
        } else {
            assert_eq!(processes, 1, "{case}");
        }
    }
    // If the pages that a process shares with its parent were counted, each process would take megabytes.
    let idle = results
        .summary
        .iter()
        .find(|summary| summary.model == "fork" && summary.workload == Workload::Idle);
    let memory = idle.unwrap().figures[&Metric::KibPerConnection].unwrap();
    assert!((4.0..1_000.0).contains(&memory.value), "{memory:?}");
    let report = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("processes"), "{report}");
}

/// The number of workers is the default of the model, and not the number of CPUs.
#[test]
fn model_whose_workers_serve_one_peer_each_gets_its_default_number_of_workers() {
    let model = samewire::registry::models().find(|one| one.capacity == Capacity::Workers);
    let model = model.expect("prefork and pool have this capacity");
    let (_dir, out) = out();
    let names = format!("mio,{}", model.name);
    let done = run(&[
        "compare",
        "--no-probe",
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
        let limited = info.name == model.name;
        assert_eq!(info.max_concurrent, limited.then_some(200), "{info:?}");
        assert_eq!(info.workers == Some(200), limited, "{info:?}");
    }
    for run in counted(&results) {
        let server = run.server.as_ref().unwrap();
        let limited = run.model == model.name;
        assert_eq!(server.threads > Some(200), limited, "{run:?}");
        assert!(!run.notes.contains(&Note::FewerByDesign), "{run:?}");
    }
}

#[test]
fn sweep_prints_the_cost_by_number_of_connections() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--no-probe",
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
        "max by number of connections",
        "steady by number of connections",
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
    for run in counted(&results) {
        let server = run.server.as_ref().unwrap();
        assert_eq!(server.tally.unwrap().accepted, run.connections as u64);
        assert!(run.figures.contains_key(&Metric::CpuUsPerRequest));
    }
}

/// Big messages, and replies that wait or block. The figures must agree with each other.
#[test]
fn workloads_with_big_messages_or_work_are_measured_if_named() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--no-probe",
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
        "More than 4,000 requests/s are impossible",
        "block-offload was not measured for mio: the model cannot offload work: one thread does everything",
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
    for run in counted(&results) {
        let case = format!("{} {}", run.model, run.workload);
        assert!(run.valid(), "{case}: {:?}", run.problems);
        let client = run.client.as_ref().unwrap();
        let figure = |metric| run.figures.get(&metric).copied().flatten();
        assert!(figure(Metric::Availability) > Some(0.0), "{case}");
        let arguments = run.server_arguments.join(" ");
        match run.workload {
            Workload::Bulk => {
                assert_eq!(arguments, "--protocol bulk", "{case}");
                assert_eq!((client.replies, run.requests), (20, Some(20)), "{case}");
                let content = run.reply_bytes.unwrap();
                assert_eq!(content, 9 << 20, "{case}");
                assert!(client.received_bytes > 20 * content, "{case}");
                let bytes = figure(Metric::MbPerS).unwrap() * 1e6 * client.window_s;
                assert!((bytes / (20 * content) as f64 - 1.0).abs() < 1e-6, "{case}");
                assert!(figure(Metric::AllServedS) > Some(0.0), "{case}");
                assert!(figure(Metric::PeakMemoryMib) > Some(0.0), "{case}");
            }
            Workload::Wait => {
                assert!(arguments.contains("--work wait:5ms"), "{arguments}");
                // No reply arrives before the end of the wait; the histogram keeps three digits.
                let service = client.service_time.decode().unwrap();
                assert!(service.min() >= 4_990_000, "{case}: {}", service.min());
            }
            _ => {
                assert!(arguments.contains("--work block:5ms@10%"), "{arguments}");
                let offload = run.workload == Workload::BlockOffload;
                assert_eq!(arguments.contains("--offload"), offload, "{arguments}");
                // The window is three seconds despite --duration, because a shorter one has too few samples.
                let planned = client.replies + client.unanswered;
                assert!((1_790..=1_810).contains(&planned), "{case}: {planned}");
                // Nine requests in ten are bystanders.
                let bystanders = client.bystanders.count;
                assert!((1_500..1_750).contains(&bystanders), "{case}: {bystanders}");
                assert!(figure(Metric::BystandersP99Ms) > Some(0.0), "{case}");
            }
        }
    }
    let report = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(
        report.contains("; in bulk the protocol of that workload"),
        "{report}"
    );
}

/// Files over HTTP, sent in each of the ways that the models have: every byte is correct.
#[test]
fn files_over_http_are_measured_and_every_byte_is_checked() {
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--no-probe",
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
    assert_eq!(counted(&results).len(), 12);
    for run in counted(&results) {
        let case = format!("{} {}", run.model, run.workload);
        assert!(run.valid(), "{case}: {:?}", run.problems);
        let client = run.client.as_ref().unwrap();
        let size = match run.workload {
            Workload::Http13b => 13,
            Workload::Http13k => 13 << 10,
            _ => 13 << 20,
        };
        assert_eq!(run.reply_bytes, Some(size), "{case}");
        assert_eq!(client.errors.total(), 0, "{case}: {:?}", client.examples);
        assert!(client.replies >= 5, "{case}: {}", client.replies);
        // Beside the content, the client received only the heads.
        let heads = client.received_bytes - client.replies * size;
        assert!(heads > 100 * client.replies, "{case}: {heads}");
    }
}

/// More connections than the model serves and the kernel's queue holds: the rest never gets a connection. Only the
/// first run waits for that.
#[test]
fn connections_that_cannot_be_opened_are_reported_and_not_tried_again() {
    let limit = contract::raise_descriptor_limit();
    if !limit.allow(6_000) {
        return;
    }
    let (_dir, out) = out();
    let done = run(&[
        "compare",
        "--no-probe",
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
fn directory_that_cannot_be_written_is_an_error_before_the_first_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    // Not even root can create a directory below a file.
    let done = run(&["compare", "--out", path(&file.join("out"))]);
    assert_eq!(done.status.code(), Some(1));
    let stderr = text(&done.stderr);
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(
        stderr.contains("cannot write to") && stderr.contains("--out"),
        "{stderr}"
    );
    assert!(done.stdout.is_empty());
}

#[test]
fn wrong_usage_is_one_line_that_names_the_remedy() {
    let usage = |arguments: &[&str], part: &str| {
        let done = run(arguments);
        let stderr = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    };
    usage(&["compare", "--models", "mio,apache"], "threads");
    usage(&["compare", "--workloads", "max,min"], "steady");
    usage(&["compare", "--protocol", "bulk"], "--workloads bulk");
    usage(&["compare", "--runs", "0"], "--rounds");
    usage(&["compare", "--precision", "0"], "--precision");
    usage(&["compare", "--duel", "mio"], "two models");
    usage(&["compare", "--budget", "0s"], "--budget");
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
fn interrupted_comparison_keeps_its_runs_and_leaves_no_server() {
    let (_dir, out) = out();
    let mut long = LongComparison::start(&out);
    long.wait_for_run();
    let servers = long.servers();
    kill(long.pid(), Signal::SIGINT).unwrap();
    // The rest must be read: a full pipe would keep the comparison from ending.
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
    assert!(have_ended(&servers));
    let results = Results::read(&out).unwrap();
    assert!(!results.complete);
    assert!(!results.runs.is_empty());
    assert!(counted(&results).into_iter().all(Run::valid));
    assert!(table.contains("interrupted"), "{table}");
}

/// The first process is the null server of the probe, or an external server that never listens.
#[test]
fn comparison_interrupted_while_a_server_starts_ends_as_interrupted() {
    for arguments in [
        &["--models", "mio,threads"][..],
        &["--models", "none", "--with", "deaf=sleep {port}"],
    ] {
        let (_dir, out) = out();
        let mut long = LongComparison::with(arguments, &out);
        let servers = long.servers();
        kill(long.pid(), Signal::SIGINT).unwrap();
        let mut rest = String::new();
        long.stderr.read_to_string(&mut rest).unwrap();
        let code = long.child.wait().unwrap().code();
        assert_eq!(code, Some(130), "{arguments:?}: {rest}");
        assert!(have_ended(&servers));
        let began = out.join("results.json").exists();
        assert_eq!(out.join("report.md").exists(), began, "{rest}");
    }
}

#[test]
fn killed_comparison_leaves_no_server() {
    let (_dir, out) = out();
    let mut long = LongComparison::start(&out);
    long.wait_for_run();
    let servers = long.servers();
    kill(long.pid(), Signal::SIGKILL).unwrap();
    long.child.wait().unwrap();
    assert!(have_ended(&servers));
    // The runs of earlier blocks are in the file; a block of this comparison has two runs.
    assert!(!Results::read(&out).unwrap().complete);
}

/// This holds however the comparison ends, also if the server has no time to end the processes that it forked.
#[test]
fn ended_comparison_leaves_no_forked_process() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let (_dir, out) = out();
        let mut long = LongComparison::of("fork", &out);
        let (_, forked) = long.forked();
        kill(long.pid(), signal).unwrap();
        let mut rest = String::new();
        long.stderr.read_to_string(&mut rest).unwrap();
        long.child.wait().unwrap();
        assert!(have_ended(&forked), "{signal}: {rest}");
        if signal == Signal::SIGINT {
            // After SIGINT not even a zombie may be left.
            let left = processes(|stat| forked.contains(&stat.pgrp));
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

/// A killed server cannot wait for the processes that it forked, so this program does.
#[test]
fn orphans_of_a_killed_server_are_ended_and_waited_for() {
    let (_dir, out) = out();
    let mut long = LongComparison::of("fork", &out);
    let (server, forked) = long.forked();
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // A zombie counts as a process that still exists.
    while !processes(|stat| forked.contains(&stat.pid)).is_empty() {
        assert!(Instant::now() < deadline, "forked processes still exist");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The failed run is reported, and the comparison continues.
    long.wait_for_run();
    assert!(long.child.try_wait().unwrap().is_none());
}

/// Of two comparisons, only one may use a directory, even if they start at almost the same time.
#[test]
fn directory_in_use_by_a_comparison_is_refused() {
    let (_dir, out) = out();
    let mut first = LongComparison::start(&out);
    first.wait_for_run();
    let second = run(&["compare", "--models", "mio", "--out", path(&out)]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("not overwritten"),
        "{}",
        text(&second.stderr)
    );
}

#[test]
fn comparison_with_a_full_standard_error_keeps_its_results() {
    let (_dir, out) = out();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = samewire(&["compare", "--models", "mio", "--workloads", "max"])
        .args([
            "--no-probe",
            "--runs",
            "1",
            "--duration",
            "100ms",
            "--out",
            path(&out),
        ])
        .stdout(Stdio::null())
        .stderr(full)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(Results::read(&out).unwrap().complete);
}
