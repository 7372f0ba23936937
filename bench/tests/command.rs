//! Tests of the `samewire` command, run as a user runs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use samewire::registry;
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

/// Asserts what is true of every error: one line, with this exit status, and these words in the message.
#[track_caller]
fn assert_error(output: &Output, status: i32, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.starts_with("error: "), "{message}");
    for word in words {
        assert!(message.contains(word), "no \"{word}\" in: {message}");
    }
}

/// A server process, killed if the test fails.
struct Serving {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
}

impl Serving {
    fn start(arguments: &[&str]) -> Serving {
        let mut command = samewire(&["serve"]);
        Serving::of(command.args(arguments).args(["--listen", "127.0.0.1:0"]))
    }

    fn of(command: &mut Command) -> Serving {
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        Serving {
            address: address.parse().unwrap(),
            child,
            output,
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Sends the signal, and returns the exit status and the output after the first line.
    fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns an address without a server: a port that was free a moment ago.
fn unused_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn list_names_every_model_and_protocol() {
    let listed = run(&["list"]);
    assert!(listed.status.success());
    let listed = text(&listed.stdout);
    for model in registry::models() {
        assert!(listed.contains(model.name));
        assert!(listed.contains(model.source));
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        assert!(std::path::Path::new(root).join(model.source).is_file());
    }
    let json: Value = serde_json::from_slice(&run(&["list", "--json"]).stdout).unwrap();
    let models = json["models"].as_array().unwrap();
    assert_eq!(models.len(), registry::models().count());
    let serial = models.iter().find(|model| model["name"] == "serial");
    let serial = serial.unwrap();
    assert_eq!(serial["capacity"], "one");
    assert_eq!(serial["available"], true);
    let deviations = serial["deviations"].as_array().unwrap();
    assert!(
        deviations
            .iter()
            .any(|deviation| deviation["guarantee"] == "limit")
    );
    for deviation in registry::models().flat_map(|model| model.deviations) {
        // The list wraps long reasons into several lines.
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            words(&listed).contains(&words(deviation.reason)),
            "{}",
            deviation.reason
        );
    }
    assert_eq!(json["protocols"][0]["name"], "pair");
}

/// `println!` would panic.
#[test]
fn output_to_a_closed_pipe_is_no_error() {
    for arguments in [&["list"][..], &["completions", "bash"]] {
        let mut child = samewire(arguments).spawn().unwrap();
        drop(child.stdout.take());
        assert!(child.wait().unwrap().success());
        let mut errors = String::new();
        child.stderr.unwrap().read_to_string(&mut errors).unwrap();
        assert_eq!(errors, "");
    }
}

/// Returns true if the model is available on this machine. If not, asserts that the commands refuse it in one line,
/// before the server listens.
fn runs_here(model: &contract::Model) -> bool {
    if let Err(why) = (model.available)() {
        let refused = run(&["serve", model.name, "--listen", "127.0.0.1:0"]);
        assert_error(&refused, 1, &[model.name, "cannot run here", &why]);
        assert_error(
            &run(&["compare", "--models", model.name]),
            2,
            &["cannot run here", &why],
        );
        println!("{} cannot run here: {why}", model.name);
        return false;
    }
    true
}

#[test]
fn help_has_examples() {
    for command in ["serve", "drive", "compare"] {
        let help = run(&[command, "--help"]);
        assert!(help.status.success());
        assert!(
            text(&help.stdout).contains(&format!("samewire {command}")),
            "{command}"
        );
    }
}

#[test]
fn completions_contain_the_commands() {
    let script = run(&["completions", "bash"]);
    assert!(script.status.success());
    assert!(text(&script.stdout).contains("compare"));
}

#[test]
fn wrong_usage_is_one_line_and_status_2() {
    assert_error(&run(&["serve", "nosuch"]), 2, &["nosuch", "threads", "mio"]);
    assert_error(
        &run(&["serve", "mio", "--protocol", "nosuch"]),
        2,
        &["nosuch", "pair", "hello"],
    );
    assert_error(
        &run(&["serve", "mio", "--max-connections", "0"]),
        2,
        &["max-connections"],
    );
    assert_error(
        &run(&["serve", "mio", "--idle-timeout", "0s"]),
        2,
        &["idle-timeout"],
    );
    assert_error(&run(&["serve", "mio", "--cpus", "x"]), 2, &["CPU number"]);
    assert_error(
        &run(&["drive", "127.0.0.1:1", "--connections", "0"]),
        2,
        &["connections"],
    );
    assert_error(&run(&["drive", "127.0.0.1:1", "--rate=-5"]), 2, &["rate"]);
    assert_error(
        &run(&[
            "drive",
            "127.0.0.1:1",
            "--messages",
            "1",
            "--duration",
            "1s",
        ]),
        2,
        &["duration"],
    );
    assert_error(&run(&["drive", "nowhere"]), 2, &["HOST:PORT"]);
    assert_error(
        &run(&["drive", "127.0.0.1:1", "--conections", "5"]),
        2,
        &["--connections"],
    );
    assert_error(&run(&["nosuch"]), 2, &["nosuch"]);
}

/// Some options apply to one protocol only.
#[test]
fn options_of_another_protocol_are_wrong_usage() {
    let drive = |options: &[&str]| run(&[&["drive", "127.0.0.1:1"], options].concat());
    assert_error(
        &drive(&["--path", "/files/13b"]),
        2,
        &["--path", "http", "pair"],
    );
    for protocol in ["bulk", "http"] {
        assert_error(
            &drive(&["--protocol", protocol, "--size", "64"]),
            2,
            &["--size", protocol],
        );
    }
    for (path, words) in [
        ("files", "begins with /"),
        ("", "begins with /"),
        ("http://here/", "begins with /"),
        ("/a b", "no spaces"),
        ("/a\r\nHost: b", "no spaces"),
        ("/a\u{7f}", "control"),
    ] {
        assert_error(&drive(&["--protocol", "http", "--path", path]), 2, &[words]);
    }
    assert_error(&drive(&["--bulk-size", "7"]), 2, &["bulk-size", "8 bytes"]);
    assert_error(&drive(&["--bulk-count", "0"]), 2, &["bulk-count"]);
    assert_error(
        &drive(&["--work", "sleep:1s"]),
        2,
        &["no kind of work named sleep"],
    );
    assert_error(&drive(&["--work-seed", "1"]), 2, &["--work"]);
}

/// Values like these would overflow clocks, or use up the memory of the machine.
#[test]
fn numbers_out_of_range_are_wrong_usage() {
    let drive = |option: &str, value: &str| run(&["drive", "127.0.0.1:1", option, value]);
    let serve = |option: &str, value: &str| run(&["serve", "mio", option, value]);
    let most = "18446744073709551615";
    let ages = "18446744073709551615s";
    assert_error(
        &drive("--connections", most),
        2,
        &["connections", "1000000"],
    );
    assert_error(&drive("--threads", most), 2, &["threads"]);
    assert_error(&drive("--size", most), 2, &["size"]);
    assert_error(&drive("--size", "5"), 2, &["size", "32"]);
    assert_error(&drive("--rate", "1e18"), 2, &["rate"]);
    assert_error(&drive("--timeout", ages), 2, &["a year"]);
    assert_error(&drive("--warmup", "1s"), 2, &["duration", "rate"]);
    assert_error(&serve("--workers", "100000"), 2, &["workers", "1024"]);
    assert_error(&serve("--idle-timeout", ages), 2, &["a year"]);
    assert_error(&serve("--drain", ages), 2, &["a year"]);
    assert_error(&run(&["compare", "--patience", ages]), 2, &["a year"]);
    assert_error(&run(&["compare", "--runs", "4000000000"]), 2, &["rounds"]);
}

/// If the log can't be written, a server keeps working, and a command ends with the same exit status.
#[test]
fn full_standard_error_does_not_stop_server_or_change_exit_status() {
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    for model in ["mio", "threads", "tokio", "smol"] {
        let mut command = samewire(&["serve", model, "-vv", "--listen", "127.0.0.1:0", "--json"]);
        let serving = Serving::of(command.stderr(full()));
        let driven = run(&["drive", &serving.address.to_string(), "--connections", "5"]);
        assert!(driven.status.success(), "{model}: {}", text(&driven.stdout));
        let (status, tally) = serving.stop(Signal::SIGTERM);
        assert_eq!(status, Some(0), "{model}");
        assert!(tally.contains("\"served\":5"), "{model}: {tally}");
    }
    let status = |arguments: &[&str]| samewire(arguments).stderr(full()).status().unwrap().code();
    assert_eq!(status(&["drive", &unused_address()]), Some(1));
    assert_eq!(status(&["serve", "nosuch"]), Some(2));
}

#[test]
fn port_in_use_is_reported_with_a_remedy() {
    let serving = Serving::start(&["mio"]);
    let taken = serving.address.to_string();
    let second = run(&["serve", "threads", "--listen", &taken]);
    assert_error(&second, 1, &[&taken, "in use", "port 0"]);
    assert_error(
        &run(&["serve", "mio", "--listen", "192.0.2.1:7000"]),
        1,
        &["no interface"],
    );
}

#[test]
fn address_without_server_is_reported_at_once() {
    let address = unused_address();
    assert_error(
        &run(&["drive", &address]),
        1,
        &["no server listens", &address, "samewire serve"],
    );
    assert_error(
        &run(&["drive", &address, "--duration", "60s"]),
        1,
        &["no server listens"],
    );
    assert_error(
        &run(&["drive", &address, "--rate", "100"]),
        1,
        &["no server listens"],
    );
}

/// Every model answers every protocol of the client, and the server's tally agrees with the client's report.
#[test]
fn every_model_answers_every_protocol() {
    for model in registry::models().filter(|model| runs_here(model)) {
        for protocol in protocol::PROTOCOLS {
            // Larger messages of bulk would take longer and test nothing more.
            let small = ["--bulk-size", "5000", "--protocol", protocol.name, "--json"];
            let serving = Serving::start(&[&[model.name], &small[..]].concat());
            let address = serving.address.to_string();
            let drive = ["drive", &address, "--connections", "20", "--messages", "5"];
            let driven = run(&[&drive[..], &small].concat());
            assert!(
                driven.status.success(),
                "{} {}",
                model.name,
                text(&driven.stderr)
            );
            let report: Value = serde_json::from_slice(&driven.stdout).unwrap();
            assert_eq!(report["availability"], 1.0);
            let client = &report["client"];
            assert_eq!(client["replies"], 100, "{} {}", model.name, protocol.name);
            assert_eq!(client["response_time"]["count"], 100);

            let (status, tally) = serving.stop(Signal::SIGTERM);
            assert_eq!(status, Some(0));
            let tally: Value = serde_json::from_str(&tally).unwrap();
            assert_eq!(
                tally["accepted"], client["connected"],
                "{} {}",
                model.name, protocol.name
            );
            assert_eq!(tally["served"], tally["accepted"]);
        }
    }
}

#[test]
fn every_kind_of_load_is_reported_as_text() {
    let serving = Serving::start(&["threads"]);
    let address = serving.address.to_string();
    for load in [
        &["--rounds", "2", "--connect-first", "--ramp", "10ms"][..],
        &["--duration", "100ms", "--warmup", "10ms", "--think", "1ms"],
        &["--rate", "2000", "--duration", "100ms"],
        &[
            "--rate",
            "2000",
            "--poisson",
            "--duration",
            "100ms",
            "--threads",
            "2",
        ],
        &["--size", "64", "--seed", "7"],
    ] {
        let driven = run(&[&["drive", &address, "--connections", "10"], load].concat());
        let printed = text(&driven.stdout);
        let failed = printed.lines().find(|line| line.starts_with("  failed "));
        let failed = failed
            .expect("a line about failures")
            .trim_start_matches("  failed ")
            .trim();
        // An open loop does not wait for the server: on a busy machine its last requests may stay unanswered.
        let only_unanswered = !failed.contains(',') && failed.ends_with("unanswered at the end");
        if !(load.contains(&"--rate") && only_unanswered) {
            assert!(driven.status.success(), "{printed}{}", text(&driven.stderr));
            assert!(printed.contains("availability 100.00 %"), "{printed}");
            assert_eq!(failed, "none", "{printed}");
        }
        assert!(printed.contains("from the planned send time"), "{printed}");
    }
}

/// The load of the original: nine megabytes to each of three clients.
#[test]
fn bulk_without_options_has_the_load_of_the_original() {
    let serving = Serving::start(&["threads", "--protocol", "bulk"]);
    let address = serving.address.to_string();
    let drive = ["drive", &address, "--protocol", "bulk"];
    let driven = run(&drive);
    let printed = text(&driven.stdout);
    assert!(driven.status.success(), "{printed}{}", text(&driven.stderr));
    assert!(printed.contains("3 of 3 requests"), "{printed}");
    assert!(
        printed.contains("data         27.00 MiB received"),
        "{printed}"
    );
    let driven = run(&[&drive[..], &["--json"]].concat());
    let report: Value = serde_json::from_slice(&driven.stdout).unwrap();
    assert_eq!(report["connections"], 3);
    assert_eq!(report["client"]["received_bytes"], 9 * ((3 << 20) + 11));
    // Three start requests of 16 bytes, and a receipt of 21 bytes for each message.
    assert_eq!(report["client"]["sent_bytes"], 3 * 16 + 9 * 21);
    assert!(report["received_bytes_per_s"].as_f64().unwrap() > 0.0);
}

/// Client and server have to be given the same size; with another size the client reports a wrong reply.
#[test]
fn bulk_sizes_must_agree_between_client_and_server() {
    for (size, count) in [("8", "1"), ("9", "1000"), ("300001", "7")] {
        let same = [
            "--protocol",
            "bulk",
            "--bulk-size",
            size,
            "--bulk-count",
            count,
        ];
        let serving = Serving::start(&[&["threads"], &same[..]].concat());
        let address = serving.address.to_string();
        let drive = ["drive", &address, "--messages", "4", "--connections", "2"];
        let driven = run(&[&drive[..], &same].concat());
        let printed = text(&driven.stdout);
        assert!(driven.status.success(), "{printed}{}", text(&driven.stderr));
        assert!(printed.contains("8 of 8 requests"), "{printed}");

        let other = ["--protocol", "bulk", "--bulk-size", "100"];
        let driven = run(&[&drive[..], &other].concat());
        let printed = text(&driven.stdout);
        assert_eq!(driven.status.code(), Some(1), "{printed}");
        assert!(printed.contains("wrong reply"), "{printed}");
    }
}

/// A receipt or a start request in two parts does not end the conversation, and both parts are understood.
#[test]
fn bulk_receipt_and_start_in_two_parts_are_understood() {
    let options = [
        "--protocol",
        "bulk",
        "--bulk-size",
        "10",
        "--bulk-count",
        "2",
    ];
    let serving = Serving::start(&[&["threads", "--json"], &options[..]].concat());
    let mut peer = TcpStream::connect(serving.address).unwrap();
    peer.set_nodelay(true).unwrap();
    let expected = b"head..tail\r<--EOM-->\r".repeat(2);
    for parts in [
        ["start\r<--EOM-->\r", ""],
        [
            "received 1\r<--E",
            "OM-->\rreceived 2\r<--EOM-->\rstart\r<--EOM-->\r",
        ],
        ["received 3\r<--EOM-->\rsta", "rt\r<--EOM-->\r"],
    ] {
        for part in parts {
            peer.write_all(part.as_bytes()).unwrap();
        }
        let mut reply = vec![0; expected.len()];
        peer.read_exact(&mut reply).unwrap();
        assert_eq!(reply, expected);
    }
    drop(peer);
    let (status, tally) = serving.stop(Signal::SIGTERM);
    assert_eq!(status, Some(0));
    let tally: Value = serde_json::from_str(&tally).unwrap();
    assert_eq!(tally["served"], 1);
}

#[test]
fn bystanders_of_work_are_reported_separately() {
    let work = ["--work", "wait:1ms@50%", "--work-seed", "3"];
    let serving = Serving::start(&[&["threads"], &work[..]].concat());
    let address = serving.address.to_string();
    let drive = ["drive", &address, "--connections", "10", "--seed", "1"];
    let driven = run(&[&drive[..], &work].concat());
    let printed = text(&driven.stdout);
    assert!(driven.status.success(), "{printed}{}", text(&driven.stderr));
    let row = printed
        .lines()
        .find(|line| line.starts_with("  bystanders "));
    let row = row.expect("the report has a row for the bystanders");
    assert!(row.contains("the work of other requests"), "{row}");

    let driven = run(&[&drive[..], &work, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&driven.stdout).unwrap();
    let count = report["bystanders"]["count"].as_u64().unwrap();
    assert!((1..100).contains(&count), "{count} of 100");
    // The share selects requests by their bytes, so another seed selects other requests. Without --work there are no
    // bystanders.
    let driven = run(&[&drive[..], &["--json"]].concat());
    let report: Value = serde_json::from_slice(&driven.stdout).unwrap();
    assert_eq!(report["bystanders"], Value::Null);
    let all = run(&[&drive[..], &["--work", "wait:1ms"]].concat());
    assert!(
        !text(&all.stdout).contains("  bystanders "),
        "every request has work"
    );
}

/// Starts a server that passes each connection to `serve`, and returns its address.
fn wrong_server(serve: fn(TcpStream)) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // The thread ends with the process of the test.
    thread::spawn(move || {
        listener
            .incoming()
            .for_each(|stream| serve(stream.unwrap()));
    });
    address
}

#[test]
fn wrong_reply_is_counted_and_shown() {
    let address = wrong_server(|mut stream| {
        let mut line = [0; 100];
        if let Ok(count) = stream.read(&mut line) {
            line[2] ^= 1;
            let _ = stream.write_all(&line[..count]);
        }
    });
    let driven = run(&["drive", &address, "--connections", "1", "--messages", "1"]);
    let printed = text(&driven.stdout);
    assert_eq!(driven.status.code(), Some(1), "{printed}");
    assert!(printed.contains("1 wrong reply"), "{printed}");
    assert!(printed.contains("at byte 2"), "{printed}");
    assert!(printed.contains("availability 0.00 %"), "{printed}");
}

/// The server is written in the test: it answers each request head with a page.
#[test]
fn http_report_has_the_figures_of_siege() {
    let address = wrong_server(|stream| {
        thread::spawn(move || {
            let mut writer = stream.try_clone().unwrap();
            for line in BufReader::new(stream).lines() {
                match line {
                    Ok(line) if line.is_empty() => {}
                    Ok(line) => {
                        let is_request = line.starts_with("GET ");
                        assert!(!is_request || line == "GET /some/page?q=1 HTTP/1.1");
                        continue;
                    }
                    Err(_) => return,
                }
                let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
                if writer.write_all(reply).is_err() {
                    return;
                }
            }
        });
    });
    let options = ["--protocol", "http", "--path", "/some/page?q=1"];
    let drive = ["drive", &address, "--connections", "4", "--messages", "5"];
    let driven = run(&[&drive[..], &options].concat());
    let printed = text(&driven.stdout);
    assert!(driven.status.success(), "{printed}{}", text(&driven.stderr));
    for (name, value) in [
        ("transactions", "20"),
        ("availability", "100.00 %"),
        ("elapsed time", "s"),
        ("data transferred", "MiB"),
        ("response time", "s"),
        ("transaction rate", "/s"),
        ("throughput", "MiB/s"),
        ("concurrency", ""),
        ("successful transactions", "20"),
        ("failed transactions", "0"),
        ("longest transaction", "s"),
        ("shortest transaction", "s"),
    ] {
        let line = printed
            .lines()
            .find(|line| line.starts_with(&format!("    {name} ")));
        let line = line.unwrap_or_else(|| panic!("no {name} in: {printed}"));
        assert!(line.ends_with(value), "{line}");
    }
    // The expected content was not known before the first reply.
    let content = "  content      5 bytes with XXH3 ";
    assert!(
        printed.lines().any(|line| line.starts_with(content)),
        "{printed}"
    );
    let driven = run(&[&drive[..], &options, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&driven.stdout).unwrap();
    assert_eq!(report["path"], "/some/page?q=1");
    assert_eq!(
        report["client"]["received_bytes"],
        20 * "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".len()
    );
    let time = |name: &str| report[name].as_f64().unwrap();
    assert!(time("shortest_response_ns") <= time("mean_response_ns"));
    assert!(time("mean_response_ns") <= time("longest_response_ns"));
    assert!(time("received_bytes_per_s") > 0.0);

    // The server answers, but not with this page.
    let address = wrong_server(|mut stream| {
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    });
    let drive = [
        "drive",
        &address,
        "--protocol",
        "http",
        "--connections",
        "1",
    ];
    let driven = run(&[&drive[..], &["--messages", "1"]].concat());
    let printed = text(&driven.stdout);
    assert_eq!(driven.status.code(), Some(1), "{printed}");
    assert!(
        printed.contains("expected status 200, got 404 Not Found"),
        "{printed}"
    );
}

#[test]
fn unresponsive_server_does_not_block_the_client() {
    // The kernel completes the connections, which wait in the backlog and are never answered.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let arguments = ["drive", &address, "--connections", "2", "--messages", "1"];
    let driven = run(&[&arguments[..], &["--timeout", "100ms"]].concat());
    let printed = text(&driven.stdout);
    assert_eq!(driven.status.code(), Some(1), "{printed}");
    assert!(printed.contains("2 timed out"), "{printed}");
}

#[test]
fn ctrl_c_ends_a_drive_that_then_reports_its_measurements() {
    let serving = Serving::start(&["mio", "-vv"]);
    let mut driving = samewire(&[
        "drive",
        &serving.address.to_string(),
        "--duration",
        "10m",
        "--json",
    ])
    .spawn()
    .unwrap();
    // The drive has begun when the server has logged a connection.
    let mut serving = serving;
    let mut log = BufReader::new(serving.child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("connection opened") {
        line.clear();
        assert_ne!(
            log.read_line(&mut line).unwrap(),
            0,
            "the server's log ended"
        );
    }
    // Keep reading the log: if the pipe were full, the server would wait for this test.
    thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    kill(Pid::from_raw(driving.id() as i32), Signal::SIGINT).unwrap();
    let mut printed = String::new();
    driving
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut printed)
        .unwrap();
    assert_eq!(driving.wait().unwrap().code(), Some(130), "{printed}");
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["client"]["errors"]["wrong_reply"], 0);
}

#[test]
fn serve_stops_gracefully_at_sigint_and_sigterm() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let serving = Serving::start(&["tokio", "--json"]);
        let mut idle = TcpStream::connect(serving.address).unwrap();
        idle.write_all(b"one\n").unwrap();
        let mut reply = [0; 4];
        idle.read_exact(&mut reply).unwrap();
        let (status, printed) = serving.stop(signal);
        assert_eq!(status, Some(0));
        let tally: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(
            (&tally["accepted"], &tally["served"]),
            (&1.into(), &1.into())
        );
        assert_eq!(idle.read(&mut reply).unwrap(), 0);
    }
}

/// A peer that reads nothing can delay a stop for the whole time of `--drain`. A second signal ends the wait.
#[test]
fn second_signal_ends_the_server_at_once() {
    for model in registry::models().filter(|model| runs_here(model)) {
        let serving = Serving::start(&[model.name, "--drain", "10m", "--protocol", "upper"]);
        let mut peer = TcpStream::connect(serving.address).unwrap();
        peer.set_nonblocking(true).unwrap();
        // Write until both directions are full: then the server can't finish its replies.
        let mut blocked = 0;
        while blocked < 20 {
            match peer.write(&[b'x'; 64 * 1024]) {
                Ok(count) if count > 0 => blocked = 0,
                _ => {
                    blocked += 1;
                    thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
        serving.signal(Signal::SIGTERM);
        // Two pending signals of the same kind are delivered as one: wait until the first has been delivered.
        let process = procfs::process::Process::new(serving.child.id() as i32).unwrap();
        while process.status().unwrap().shdpnd != 0 {
            thread::yield_now();
        }
        let (status, printed) = serving.stop(Signal::SIGTERM);
        assert_eq!(
            (status, printed.as_str()),
            (Some(128 + 15), ""),
            "{}",
            model.name
        );
    }
}
