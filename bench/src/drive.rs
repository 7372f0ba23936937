//! `samewire drive`: sends load to a server, and checks every reply.

use std::fmt::Write;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use client::misbehave::Misbehaviour;
use client::{Arrivals, Load, MAX_RATE, Plan, Report, Snapshot, Watch};
use contract::cli::{
    BulkArgs, WorkArgs, check_work, parse_address, parse_connections, parse_protocol,
    parse_some_time, parse_threads, parse_time,
};
use contract::{CpuList, Descriptors, raise_descriptor_limit};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::http::Page;
use protocol::{PROTOCOLS, Protocol};
use serde_json::json;

use crate::placement::Placement;
use crate::results::{ClientSide, Times};
use crate::target::{ExternalServer, TargetSettings};
use crate::{child, format, interrupt, misbehave, output};

/// Options of `drive`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("timed").multiple(true))]
#[command(mut_arg("work", |arg| arg.help("The server's --work, so that the client can report requests without work (bystanders) separately; it causes no work by itself")))]
#[command(mut_arg("work_seed", |arg| arg.help("The server's --work-seed, which decides which requests get the work")))]
#[command(after_help = "Examples:
  samewire drive 127.0.0.1:7000                          100 clients, 10 messages each
  samewire drive 127.0.0.1:7000 --think 1s --rounds 100  the load of the article that samewire
                                                         began with (docs: originals)
  samewire drive 127.0.0.1:7000 --duration 10s           closed loop: each client waits for its
                                                         reply before the next request
  samewire drive 127.0.0.1:7000 --rate 5000 --poisson    open loop: 5,000 requests per second,
                                                         however slow the server is
  samewire drive 127.0.0.1:8686 --protocol hello --connections 20 --messages 1 --connect-first
                                                         port and load of an original (001)
  samewire drive 127.0.0.1:7000 --protocol bulk          3 clients, 3 messages of 3 MiB each
  samewire drive 127.0.0.1:7000 --protocol bulk --bulk-size 64K --bulk-count 100 --messages 10
  samewire drive 127.0.0.1:7000 --protocol http --path /files/13k --connections 50 --duration 10s
  samewire drive 127.0.0.1:7000 --misbehave slowloris --duration 30s
  samewire drive 127.0.0.1:7000 --work wait:50ms@10%     for a server with the same --work: reports
                                                         bystanders separately
  samewire drive --with 'mine=python3 server.py {port}'  starts the server, and stops it afterwards

Exit status: 0 if every request was answered correctly (with --misbehave: if the server did all
that it owes to clients of that kind), 1 if not, 2 for wrong usage, 130 after Ctrl-C.")]
pub struct DriveArgs {
    /// Address of the server, such as 127.0.0.1:7000
    #[arg(value_name = "ADDR", value_parser = parse_address, required_unless_present = "with")]
    address: Option<SocketAddr>,

    /// Instead of ADDR: start this external server, drive it and stop it. COMMAND must contain {port}, which is replaced by
    /// the port on which the server must listen; optional: {idle-timeout} and {drain} (in seconds), and {max-connections}
    #[arg(long, value_name = "NAME=COMMAND", value_parser = ExternalServer::parse, conflicts_with = "address")]
    with: Option<ExternalServer>,

    /// Protocol of the server (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    pub(crate) protocol: &'static Protocol,

    /// Number of clients, each with a connection of its own [default: 100; bulk: 3]
    #[arg(long, value_name = "N", value_parser = parse_connections)]
    pub(crate) connections: Option<NonZero<usize>>,

    /// Requests that each client sends in each round [default: 10; bulk: 1]
    #[arg(long, value_name = "N", conflicts_with_all = ["duration", "rate"])]
    messages: Option<NonZero<u64>>,

    /// How often the whole load is sent
    #[arg(long, value_name = "N", default_value = "1", conflicts_with_all = ["duration", "rate"])]
    rounds: NonZero<u64>,

    /// Pause of each client after each reply
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_time, conflicts_with = "rate")]
    think: Duration,

    /// Send requests for this time, instead of a number of messages. Without --rate this is a closed loop: each client waits
    /// for its reply before the next request [default with --rate: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time, group = "timed")]
    pub(crate) duration: Option<Duration>,

    /// With --duration or --rate: send requests for this time before the measurement begins
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "timed")]
    warmup: Option<Duration>,

    /// Open loop: send this number of requests per second over all connections, whether replies arrive or not; latency
    /// counts from the planned send time
    #[arg(long, value_name = "N", value_parser = parse_rate, group = "timed")]
    rate: Option<f64>,

    /// With --rate: requests arrive independently of one another (a Poisson process), not evenly spaced
    #[arg(long, requires = "rate")]
    poisson: bool,

    /// Open all connections before the first request
    #[arg(long)]
    connect_first: bool,

    /// Spread the connects evenly over this time
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_time)]
    ramp: Duration,

    /// Count a request or a connect as failed after this time
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_some_time)]
    pub(crate) timeout: Duration,

    /// Bytes per request, including the line end, from 32 to 16777216; the server's --max-line must allow it [default: short
    /// lines, Hello World!:0 and so on]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    size: Option<usize>,

    /// For http: path to request. The first reply defines the expected content, and all others must have the same
    /// [default: /files/13b]
    #[arg(long, value_name = "PATH", value_parser = parse_path)]
    path: Option<String>,

    /// Size and number of the messages of bulk.
    #[command(flatten)]
    pub(crate) bulk: BulkArgs,

    /// Work of the server before its replies.
    #[command(flatten)]
    work: WorkArgs,

    /// Seed of contents and arrivals: the same seed sends the same requests [default: random]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Number of event loops of the client, each with a thread of its own
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_threads)]
    threads: NonZero<usize>,

    /// Let clients misbehave instead of sending a load (kinds: see `samewire list`). --connections sets their number
    /// [default: per kind]. Each acts once; with --duration, again and again for that time
    #[arg(long, value_name = "KIND", value_parser = Misbehaviour::find, conflicts_with_all = ["messages", "rounds", "think", "warmup", "rate", "connect_first", "ramp", "size", "path", "work", "threads"])]
    pub(crate) misbehave: Option<&'static Misbehaviour>,

    /// With --misbehave: print what one of the clients sent and received, if that is long only its beginning and its end;
    /// without this option only after a failure
    #[arg(long, requires = "misbehave", conflicts_with = "json")]
    pub(crate) transcript: bool,

    /// With --misbehave: also against a server that is not on this machine, if you are permitted to do that
    #[arg(long, requires = "misbehave")]
    pub(crate) not_only_loopback: bool,

    /// Run the client on these CPUs only, such as 0 or 0,2 or 0-3
    #[arg(long, value_name = "LIST")]
    pub(crate) cpus: Option<CpuList>,

    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl DriveArgs {
    /// Checks combinations of options that the parser can't check.
    ///
    /// # Errors
    ///
    /// An option does not apply to the protocol; the message names both.
    fn check(&self) -> Result<(), String> {
        check_work(self.protocol, self.work.work.as_ref())?;
        let name = self.protocol.name;
        if self.path.is_some() && name != "http" {
            return Err(format!(
                "--path applies to --protocol http only, and the protocol is {name}"
            ));
        }
        if self.size.is_some() && matches!(name, "bulk" | "http") {
            return Err(format!(
                "--size does not apply to --protocol {name}, whose requests have a length of their own"
            ));
        }
        Ok(())
    }

    /// Returns the page that `http` requests from the server at `address`.
    pub(crate) fn page(&self, address: SocketAddr) -> Page {
        let page = Page::default();
        Page {
            path: self.path.clone().unwrap_or(page.path),
            host: address.to_string(),
            content: page.content,
        }
    }

    /// Returns the load that these options describe.
    fn plan(&self, address: SocketAddr) -> Plan {
        Plan {
            address,
            protocol: self.protocol,
            connections: self
                .connections
                .map_or(self.protocol.default_load.connections, NonZero::get),
            size: self.size,
            bulk: self.bulk.bulk(),
            page: Arc::new(self.page(address)),
            work: self.work.plan(),
            load: match (self.rate, self.duration) {
                (Some(rate), duration) => Load::Open {
                    rate,
                    arrivals: if self.poisson {
                        Arrivals::Poisson
                    } else {
                        Arrivals::Constant
                    },
                    warmup: self.warmup.unwrap_or_default(),
                    duration: duration.unwrap_or(Duration::from_secs(10)),
                },
                (None, Some(duration)) => Load::Closed {
                    think: self.think,
                    warmup: self.warmup.unwrap_or_default(),
                    duration,
                },
                (None, None) => Load::Messages {
                    messages: self
                        .messages
                        .map_or(self.protocol.default_load.messages, NonZero::get),
                    think: self.think,
                    rounds: self.rounds.get(),
                    limit: None,
                },
            },
            connect_first: self.connect_first,
            ramp: self.ramp,
            timeout: self.timeout,
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..)),
            threads: self.threads.get(),
            cpus: self.cpus.clone().map(|cpus| cpus.0).unwrap_or_default(),
        }
    }
}

/// Parses a rate in requests per second, greater than 0 and at most [`MAX_RATE`].
///
/// # Errors
///
/// The text is no such number; the message gives an example.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= MAX_RATE => Ok(rate),
        _ => Err(format!(
            "write a number of requests per second, such as 5000, at most {MAX_RATE}"
        )),
    }
}

/// Parses the size of a request, from 32 to 16,777,216 bytes. The smallest has room for every request's number and
/// client; the largest is far above the longest line that servers accept.
///
/// # Errors
///
/// The text is no such number; the message gives the range.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let size = text
        .parse()
        .ok()
        .filter(|size| (32..=1 << 24).contains(size));
    size.ok_or_else(|| "write a number of bytes from 32 to 16777216".to_string())
}

/// Parses the target of a request. Spaces and control characters are refused: they would end the target, or the line
/// that contains it.
///
/// # Errors
///
/// The path does not begin with `/`, or contains such a character; the message says how to write it.
fn parse_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("a path begins with /, such as /files/13b".to_string());
    }
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(
            "a path contains no spaces and no control characters; write %20 for a space"
                .to_string(),
        );
    }
    Ok(text.to_string())
}

/// Progress line of a drive, on a terminal.
struct Live(ProgressBar);

impl Watch for Live {
    fn progress(&self, now: Snapshot) {
        self.0.set_message(format!(
            "{:>6.1} s   {} replies   {} errors   {} connections",
            now.elapsed.as_secs_f64(),
            format::count(now.replies),
            format::count(now.errors),
            format::count(now.open),
        ));
        self.0.tick();
    }
}

/// Drives a server and prints the report.
///
/// Options that contradict each other are reported here, with exit status 2.
///
/// # Errors
///
/// The plan is invalid, or no server listens at the address.
pub fn run(args: &DriveArgs) -> anyhow::Result<ExitCode> {
    if let Err(why) = args.check() {
        output::print_error(&format!("error: {why} (see --help)"));
        return Ok(ExitCode::from(2));
    }
    match (args.address, &args.with) {
        (Some(address), _) => run_at(args, address),
        (None, Some(external)) => run_with(args, external),
        (None, None) => bail!("no server to drive: give its address, or start one with --with"),
    }
}

/// Starts an external server, drives it, and stops it whatever the result of the drive is. Problems of the server are
/// printed, and make the drive fail.
fn run_with(args: &DriveArgs, external: &ExternalServer) -> anyhow::Result<ExitCode> {
    let settings = TargetSettings {
        max_connections: Some(10_000.max(args.connections.map_or(0, NonZero::get))),
        ..TargetSettings::default()
    };
    child::adopt_orphans();
    let placement = Placement::none("drive does not pin the server".to_string());
    let server = external.start(&settings, &placement)?;
    let driven = run_at(args, server.address);
    let end = server.stop();
    // If the signal ended a server that has no graceful stop, this is no fault: the drive does not check stops.
    let problems = if end.ended_by_sigterm() {
        Vec::new()
    } else {
        end.problems
    };
    for problem in &problems {
        output::print_error(&format!("error: {}: {problem}", external.name));
    }
    match driven? {
        ExitCode::SUCCESS if !problems.is_empty() => Ok(ExitCode::FAILURE),
        status => Ok(status),
    }
}

/// Drives the server at an address.
fn run_at(args: &DriveArgs, address: SocketAddr) -> anyhow::Result<ExitCode> {
    if let Some(kind) = args.misbehave {
        return misbehave::run(args, address, kind);
    }
    let plan = args.plan(address);
    raise_open_file_limit(plan.connections);
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;

    let live = Live(if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner().with_style(
            ProgressStyle::with_template("{msg}").unwrap_or(ProgressStyle::default_spinner()),
        )
    } else {
        ProgressBar::hidden()
    });
    // As text, because the message contains its causes, and they would be printed twice.
    let report = client::drive(&plan, &live, &interrupted)
        .map_err(|error| anyhow::anyhow!(error.to_string()));
    live.0.finish_and_clear();
    let report = report?;
    let cut_short = interrupted.load(Ordering::Relaxed);

    if report.received == 0
        && report.errors.refused > 0
        && report.errors.refused == report.errors.total()
    {
        bail!(
            "no server listens on {} (connection refused); start one, for example: samewire serve mio --listen {}",
            plan.address,
            plan.address
        );
    }
    output::print(&if args.json {
        format!("{:#}\n", to_json(&plan, &report, cut_short)?)
    } else {
        to_text(&plan, &report, cut_short)
    })?;
    Ok(if cut_short {
        ExitCode::from(interrupt::STATUS)
    } else if report.availability() == Some(1.0) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Raises the limit on open files, and prints a warning if it is still too low for `connections`.
pub(crate) fn raise_open_file_limit(connections: usize) {
    let descriptors = raise_descriptor_limit();
    if !descriptors.allow(connections) {
        output::print_error(&format!(
            "warning: {} connections do not fit the limit of {} open files, {} of which are reserved for other files, and \
             this process may not raise the limit; some connects may fail (see ulimit -Hn)",
            format::count(connections as u64),
            descriptors.now.unwrap_or(u64::MAX),
            Descriptors::SPARE,
        ));
    }
}

/// Returns the report as text.
fn to_text(plan: &Plan, report: &Report, interrupted: bool) -> String {
    let mut text = String::new();
    let requests = report.replies + report.errors.total() + report.unanswered;
    let _ = writeln!(
        text,
        "{}: {} of {} requests answered correctly (availability {}) in {}",
        plan.address,
        format::count(report.replies),
        format::count(requests),
        report
            .availability()
            .map_or("n/a".to_string(), format::percent),
        format::time(nanos(report.window)),
    );
    if interrupted {
        text.push_str("  interrupted: requests under way are counted as unanswered, later ones are not counted\n");
    } else if requests == 0 {
        text.push_str("  nothing was measured: the drive ended before the measured time began\n");
    }
    if report.gave_up > 0 {
        let _ = writeln!(
            text,
            "  {} of {} clients gave up after failures, and did not send all of their requests",
            format::count(report.gave_up),
            format::count(plan.connections as u64),
        );
    }
    let _ = write!(
        text,
        "  throughput   {} replies/s on {} connections",
        format::digits(report.throughput()),
        format::count(plan.connections as u64),
    );
    if let Some(fairness) = report.fairness() {
        let _ = write!(
            text,
            "; {} to {} replies per connection (Jain's fairness index {:.3})",
            format::count(fairness.slowest),
            format::count(fairness.fastest),
            fairness.jain,
        );
    }
    text.push('\n');
    if counts_bytes(plan) {
        let _ = writeln!(
            text,
            "  data         {:.2} MiB received, {:.2} MiB/s",
            mib(report.received as f64),
            mib(received_per_s(report)),
        );
    }
    let _ = writeln!(text, "  failed       {}", failures(report));
    for example in &report.examples {
        let _ = writeln!(text, "               {example}");
    }
    let _ = writeln!(
        text,
        "  {:<12} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "latency", "p50", "p90", "p99", "p99.9", "max"
    );
    let mut row = |name: &str, histogram: &Histogram<u64>, meaning: &str| {
        if histogram.is_empty() {
            return;
        }
        let _ = write!(text, "  {name:<12}");
        for quantile in [0.5, 0.9, 0.99, 0.999] {
            let value = format::quantile(histogram, quantile);
            let _ = write!(text, " {:>10}", value.map_or("–".to_string(), format::time));
        }
        let _ = writeln!(text, " {:>10}   {meaning}", format::time(histogram.max()));
    };
    let lower_bound = |count: u64, what: &str| match count {
        0 => String::new(),
        count => format!("; for {what} ({}) a lower bound", format::count(count)),
    };
    let unanswered = lower_bound(report.unanswered, "unanswered requests");
    let unserved = lower_bound(report.never_served, "clients without a correct reply");
    row(
        "response",
        &report.response_time,
        &format!("from the planned send time to the reply, or to the failure{unanswered}"),
    );
    row(
        "service",
        &report.service_time,
        "from the actual send time to the reply, correct replies only",
    );
    row(
        "bystanders",
        &report.bystanders,
        "requests before whose replies the server has no work: any wait is due to the work of other requests",
    );
    row(
        "client lag",
        &report.lag,
        "from the planned to the actual send time: delay of the client itself",
    );
    row(
        "first reply",
        &report.first_reply,
        &format!("from a client's start to its first reply{unserved}"),
    );
    row("connect", &report.connect_time, "");
    if report.replies > 0 && !report.window.is_zero() {
        let _ = writeln!(
            text,
            "  client       {:.1} µs CPU per request, busy {:.0} % of the time; seed {}",
            report.cpu.as_secs_f64() * 1e6 / report.replies as f64,
            100.0 * report.cpu.as_secs_f64()
                / report.window.as_secs_f64()
                / plan.threads.min(plan.connections) as f64,
            plan.seed,
        );
    }
    if plan.protocol.name == "http" {
        siege(&mut text, report);
        if let Some(content) = plan.page.content.get() {
            let _ = writeln!(
                text,
                "  content      {content}, as in the first complete reply; every other reply had to have the same content"
            );
        }
    }
    text
}

/// Returns true if the report gives received bytes besides replies.
fn counts_bytes(plan: &Plan) -> bool {
    matches!(plan.protocol.name, "bulk" | "http")
}

/// Returns received bytes per second, including those of heads and of the warm-up.
fn received_per_s(report: &Report) -> f64 {
    let seconds = report.elapsed.as_secs_f64();
    if seconds > 0.0 {
        report.received as f64 / seconds
    } else {
        0.0
    }
}

/// Converts bytes to mebibytes.
fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Appends the figures of Siege's summary, for users of that program. Times are response times, in seconds.
fn siege(text: &mut String, report: &Report) {
    let times = &report.response_time;
    let seconds = |nanos: f64| format!("{:.4} s", nanos / 1e9);
    let availability = report.availability();
    let _ = writeln!(text, "  the figures in the format of siege");
    for (name, value) in [
        ("transactions", format::count(report.replies)),
        (
            "availability",
            availability.map_or("n/a".to_string(), format::percent),
        ),
        ("elapsed time", seconds(nanos(report.elapsed) as f64)),
        (
            "data transferred",
            format!("{:.2} MiB", mib(report.received as f64)),
        ),
        ("response time", seconds(times.mean())),
        ("transaction rate", format!("{:.2} /s", report.throughput())),
        (
            "throughput",
            format!("{:.2} MiB/s", mib(received_per_s(report))),
        ),
        ("concurrency", format!("{:.2}", report.mean_in_flight())),
        ("successful transactions", format::count(report.replies)),
        (
            "failed transactions",
            format::count(report.errors.total() + report.unanswered),
        ),
        ("longest transaction", seconds(times.max() as f64)),
        ("shortest transaction", seconds(shortest(report) as f64)),
    ] {
        let _ = writeln!(text, "    {name:<24} {value:>14}");
    }
}

/// Returns the shortest response time in nanoseconds; 0 if there is none.
fn shortest(report: &Report) -> u64 {
    match report.response_time.is_empty() {
        true => 0,
        false => report.response_time.min(),
    }
}

/// Returns the numbers of failed and unanswered requests by kind, or `none`.
fn failures(report: &Report) -> String {
    let unanswered = Some((report.unanswered, "unanswered at the end"));
    let failed: Vec<_> = report
        .errors
        .kinds()
        .chain(unanswered.filter(|(count, _)| *count > 0))
        .map(|(number, kind)| format!("{} {kind}", format::count(number)))
        .collect();
    if failed.is_empty() {
        "none".to_string()
    } else {
        failed.join(", ")
    }
}

/// Returns the report as JSON. The names are those of `results.json` (docs/src/results.md).
///
/// # Errors
///
/// As [`ClientSide::of`].
fn to_json(plan: &Plan, report: &Report, interrupted: bool) -> anyhow::Result<serde_json::Value> {
    let mut json = json!({
        "address": plan.address.to_string(),
        "protocol": plan.protocol.name,
        "connections": plan.connections,
        "seed": plan.seed.to_string(),
        "interrupted": interrupted,
        "gave_up": report.gave_up,
        "availability": report.availability(),
        "replies_per_s": report.throughput(),
        "client": ClientSide::of(report)?,
    });
    if counts_bytes(plan) {
        json["received_bytes_per_s"] = json!(received_per_s(report));
    }
    if plan.work.is_some() {
        json["bystanders"] = json!(Times::of(&report.bystanders)?);
    }
    if plan.protocol.name == "http" {
        json["path"] = json!(plan.page.path);
        json["mean_response_ns"] = json!(report.response_time.mean());
        json["longest_response_ns"] = json!(report.response_time.max());
        json["shortest_response_ns"] = json!(shortest(report));
    }
    Ok(json)
}

/// Converts a time to nanoseconds.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
