//! Servers that are hard to observe: they leave their process group, hide behind a wrapper, choose the client's CPU, close
//! idle connections, serve late, or die. Each gets right figures, or none with the reason.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use samewire::results::metric::Metric;
use samewire::results::{Note, Results, Role, Run};
use samewire::workloads::Workload;

const SAMEWIRE: &str = env!("CARGO_BIN_EXE_samewire");

/// Longest time that a test waits for something that happens at once unless it never does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Our own server as an external one, with further options.
fn ours(options: &str) -> String {
    format!("{SAMEWIRE} serve mio --listen 127.0.0.1:{{port}} --idle-timeout 1h {options}")
}

/// Compares an external server with `threads`, in one round.
fn compare(command: &str, workload: &str, words: &[&str]) -> (Output, Results) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let done = Command::new(SAMEWIRE)
        .args(["compare", "--no-probe", "--no-twins", "--models", "threads"])
        .args([
            "--with",
            &format!("mine={command}"),
            "--workloads",
            workload,
        ])
        .args(["--rounds", "1", "--connections", "10"])
        .args(["--idle-duration", "1s", "--rate", "500"])
        .args(match words.contains(&"--duration") {
            true => &[][..],
            false => &["--duration", "200ms"],
        })
        .args(words)
        .args(["--out", out.to_str().unwrap()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let results = Results::read(&out)
        .unwrap_or_else(|error| panic!("{error:#}: {}", String::from_utf8_lossy(&done.stderr)));
    (done, results)
}

fn mine(results: &Results) -> &Run {
    let mut runs = results.runs.iter();
    runs.rfind(|run| run.model == "mine" && run.role == Role::Model && !run.superseded)
        .unwrap()
}

/// Returns the notes of a run, without that of a busy machine.
fn notes(run: &Run) -> Vec<Note> {
    let notes = run.notes.iter().copied();
    notes.filter(|note| *note != Note::Disturbed).collect()
}

fn figure(run: &Run, metric: Metric) -> Option<f64> {
    run.figures.get(&metric).copied().flatten()
}

fn shown(done: &Output) -> String {
    let text = String::from_utf8_lossy(&done.stdout);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A request costs a microsecond of CPU time at the very least: its system calls alone take longer.
fn assert_measured(run: &Run, processes: u64) {
    assert!(run.valid(), "{:?}", run.problems);
    assert!(notes(run).is_empty(), "{:?}", run.notes);
    assert!(
        figure(run, Metric::CpuUsPerRequest) > Some(1.0),
        "{:?}",
        run.figures
    );
    let server = run.server.as_ref().unwrap();
    assert_eq!(server.owns_listener, Some(true));
    assert!(
        server.processes >= Some(processes),
        "{:?}",
        server.processes
    );
}

#[test]
fn server_that_left_its_process_group_is_measured() {
    let command = format!("sh -c 'setsid {} & wait'", ours(""));
    for workload in ["max", "http-13m"] {
        let protocol: &[&str] = match workload {
            "max" => &[],
            _ => &["--protocol", "http"],
        };
        let command = match workload {
            "max" => command.clone(),
            _ => command.replace("serve mio", "serve mio --protocol http"),
        };
        let (_, results) = compare(&command, workload, protocol);
        let run = mine(&results);
        let server = run.server.as_ref().unwrap();
        assert!(server.processes >= Some(2), "{workload}: {run:?}");
        assert!(server.cpu_s > Some(0.0005), "{workload}: {server:?}");
    }
}

#[test]
fn server_behind_a_wrapper_is_measured() {
    let (_, results) = compare(&format!("sh -c '{}; :'", ours("")), "max", &[]);
    assert_measured(mine(&results), 2);
}

/// The CPU time of processes that have ended under a wrapper is counted by their parent, which is not the root.
#[test]
fn processes_that_ended_under_a_wrapper_are_counted() {
    let fork = ours("").replace("serve mio", "serve fork");
    let command = format!("sh -c '{fork}; :'");
    // In `crowd` each client disconnects at the end, and its process ends.
    let (_, results) = compare(&command, "crowd", &[]);
    let run = mine(&results);
    assert!(run.valid(), "{:?}", run.problems);
    let server = run.server.as_ref().unwrap();
    assert!(server.processes >= Some(12), "{:?}", server.processes);
    assert!(server.cpu_s > Some(0.0), "{server:?}");
}

/// A program that only writes the port to a file and waits; something else listens on the port.
struct Elsewhere {
    dir: tempfile::TempDir,
}

impl Elsewhere {
    fn new() -> Elsewhere {
        Elsewhere {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self) -> String {
        let dir = self.dir.path().display();
        format!("sh -c 'touch {dir}/{{port}}; exec sleep 600'")
    }

    /// Calls `serve` with each port, once, until `over` exists.
    fn serve(&self, mut serve: impl FnMut(u16)) {
        let deadline = Instant::now() + PATIENCE;
        let mut served = Vec::new();
        while !self.dir.path().join("over").exists() && Instant::now() < deadline {
            for entry in std::fs::read_dir(self.dir.path()).unwrap() {
                let name = entry.unwrap().file_name();
                let Ok(port) = name.to_string_lossy().parse() else {
                    continue;
                };
                if !served.contains(&port) {
                    served.push(port);
                    serve(port);
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(&self) {
        std::fs::write(self.dir.path().join("over"), "").unwrap();
    }
}

/// Server that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn server_whose_listener_belongs_to_another_program_has_no_cost() {
    let elsewhere = Elsewhere::new();
    let (done, results) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut servers = Vec::new();
            elsewhere.serve(|port| {
                let child = Command::new(SAMEWIRE)
                    .args(["serve", "mio", "--listen", &format!("127.0.0.1:{port}")])
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap();
                servers.push(Killed(child));
            });
        });
        let compared = compare(&elsewhere.command(), "max", &[]);
        elsewhere.end();
        compared
    });
    let run = mine(&results);
    assert!(run.valid(), "{:?}", run.problems);
    assert_eq!(notes(run), [Note::OtherListener]);
    assert_eq!(figure(run, Metric::CpuUsPerRequest), None);
    assert_eq!(figure(run, Metric::Threads), None);
    assert!(figure(run, Metric::RequestsPerS) > Some(0.0));
    let text = shown(&done);
    assert!(
        text.contains("no process of the server's tree has the listening socket"),
        "{text}"
    );
}

fn echo(stream: TcpStream) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|count| count > 0)
    {
        if writer.write_all(&line).is_err() {
            return;
        }
        line.clear();
    }
}

#[test]
fn server_that_listens_at_once_and_serves_later_is_measured_when_it_serves() {
    let elsewhere = Elsewhere::new();
    let (_, results) = thread::scope(|scope| {
        scope.spawn(|| {
            elsewhere.serve(|port| {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
                thread::spawn(move || {
                    // The kernel accepts connections for the listener meanwhile.
                    thread::sleep(Duration::from_millis(700));
                    for stream in listener.incoming() {
                        thread::spawn(move || echo(stream.unwrap()));
                    }
                });
            });
        });
        let compared = compare(&elsewhere.command(), "steady", &["--protocol", "echo"]);
        elsewhere.end();
        compared
    });
    let run = mine(&results);
    assert!(run.valid(), "{:?}", run.problems);
    let client = run.client.as_ref().unwrap();
    assert_eq!(client.unanswered, 0);
    // Its start is not measured: no reply took as long as the start.
    let longest = client.response_time.max_ns.unwrap();
    assert!(longest < 600_000_000, "{longest}");
}

#[test]
fn server_that_pins_itself_to_the_client_cpu_has_no_figures() {
    let cpus = rustix::thread::sched_getaffinity(None).unwrap();
    if cpus.count() < 2 {
        return;
    }
    let client = (0..1_024).find(|cpu| cpus.is_set(*cpu)).unwrap();
    for workload in ["max", "crowd"] {
        let (done, results) = compare(&ours(&format!("--cpus {client}")), workload, &[]);
        let run = mine(&results);
        assert_eq!(
            notes(run),
            [Note::SharedCpus],
            "{workload}: {:?}",
            run.problems
        );
        assert!(
            run.figures.values().all(Option::is_none),
            "{:?}",
            run.figures
        );
        assert!(shown(&done).contains("do not let the server choose its CPUs"));
    }
}

#[test]
fn server_that_closes_idle_connections_has_no_idle_cost() {
    let command = ours("").replace("--idle-timeout 1h", "--idle-timeout 300ms");
    let (done, results) = compare(&command, "idle", &[]);
    let run = mine(&results);
    assert!(
        run.notes.contains(&Note::ClosedWhileIdle),
        "{:?}",
        run.notes
    );
    for metric in [
        Metric::KibPerConnection,
        Metric::MemoryMib,
        Metric::IdleCpuMsPerS,
    ] {
        assert_eq!(figure(run, metric), None, "{metric:?}");
    }
    assert_eq!(run.server.as_ref().unwrap().open_connections, Some(0));
    assert!(shown(&done).contains("the server closed idle connections"));
    let threads = results
        .runs
        .iter()
        .find(|run| run.model == "threads")
        .unwrap();
    assert_eq!(
        threads.server.as_ref().unwrap().open_connections,
        Some(1_000)
    );
    assert!(figure(threads, Metric::KibPerConnection) > Some(0.0));
}

/// The run is measured once more, fails again, and the model is not ranked; the others keep their figures.
#[test]
fn server_that_dies_in_mid_round_is_not_ranked_and_the_others_are() {
    let command = format!("sh -c '{} & sleep 1; kill -9 $!; sleep 60'", ours(""));
    let (done, results) = compare(&command, "max", &["--duration", "2s"]);
    assert_eq!(done.status.code(), Some(1));
    let attempts: Vec<&Run> = results
        .runs
        .iter()
        .filter(|run| run.model == "mine")
        .collect();
    assert_eq!(attempts.len(), 2);
    assert!(attempts.iter().all(|run| !run.problems.is_empty()));
    assert_eq!(
        (attempts[0].superseded, attempts[1].superseded),
        (true, false)
    );
    let summary = |model: &str| {
        let mut all = results.summary.iter();
        all.find(|one| one.model == model && one.workload == Workload::Max)
            .unwrap()
    };
    assert!(!summary("mine").ranked && summary("threads").ranked);
    assert!(summary("threads").figure(Metric::CpuUsPerRequest).is_some());
    assert!(
        shown(&done).contains("so the model is not ranked"),
        "{}",
        shown(&done)
    );
}

/// Results that cannot be saved are reported, and the tables are printed all the same.
#[test]
fn comparison_that_cannot_save_its_results_prints_its_tables() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut child = Command::new(SAMEWIRE)
        .args([
            "compare",
            "--no-probe",
            "--models",
            "mio,poll",
            "--workloads",
            "max",
        ])
        .args([
            "--rounds",
            "2",
            "--duration",
            "200ms",
            "--out",
            out.to_str().unwrap(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Not even root can create a file in a directory that was removed.
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("[round 1]") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "ended early");
    }
    std::fs::remove_dir_all(&out).unwrap();
    let rest = thread::spawn(move || {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut lines, &mut rest).unwrap();
        rest
    });
    let done = child.wait_with_output().unwrap();
    let rest = rest.join().unwrap();
    assert_eq!(done.status.code(), Some(1), "{rest}");
    assert!(rest.contains("measuring continues"), "{rest}");
    assert!(
        shown(&done).contains("max: Closed loop"),
        "{}",
        shown(&done)
    );
}
