//! `samewire drive`: asks a server, and checks every reply.

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

use crate::compare::results::{ClientSide, Times};
use crate::placement::Placement;
use crate::target::{ExternalServer, TargetSettings};
use crate::{child, format, interrupt, misbehave, output};

/// Options of `drive`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("timed").multiple(true))]
#[command(mut_arg("work", |arg| arg.help("What the server does before its replies, as it was told: with a share of the requests (wait:5ms@10%), the others' latency is told apart")))]
#[command(mut_arg("work_seed", |arg| arg.help("The server's --work-seed: which requests the share is made of")))]
#[command(after_help = "Examples:
  samewire drive 127.0.0.1:7000                          100 clients, 10 messages each
  samewire drive 127.0.0.1:7000 --think 1s --rounds 100  the original's load
  samewire drive 127.0.0.1:7000 --duration 10s           closed loop: as fast as the server answers
  samewire drive 127.0.0.1:7000 --rate 5000 --poisson    open loop: as users come, whatever the server does
  samewire drive 127.0.0.1:8686 --protocol hello --connections 20 --messages 1 --connect-first
  samewire drive 127.0.0.1:7000 --protocol bulk          3 clients, 3 messages of 3 MiB each
  samewire drive 127.0.0.1:7000 --protocol bulk --bulk-size 64K --bulk-count 100 --messages 10
  samewire drive 127.0.0.1:7000 --protocol http --path /files/13k --connections 50 --duration 10s
  samewire drive 127.0.0.1:7000 --misbehave slowloris --duration 30s
  samewire drive 127.0.0.1:7000 --work wait:50ms@10%     as the server was told: tells the other requests apart
  samewire drive --with 'mine=python3 server.py {port}'  starts a server that is not ours, and stops it afterwards

Exit status 0 if every request was answered rightly, 1 if not, 2 for wrong usage.")]
pub struct DriveArgs {
    /// Where the server listens, such as 127.0.0.1:7000
    #[arg(value_name = "ADDR", value_parser = parse_address, required_unless_present = "with")]
    address: Option<SocketAddr>,

    /// Start this server, drive it and stop it; {port} stands for the port it is to listen on, {idle-timeout}, {drain}
    /// (in seconds) and {max-connections} for what else it can be told
    #[arg(long, value_name = "NAME=COMMAND {port}", value_parser = ExternalServer::parse, conflicts_with = "address")]
    with: Option<ExternalServer>,

    /// What to say (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    pub(crate) protocol: &'static Protocol,

    /// Clients that ask at the same time [default: 100; of bulk: 3]
    #[arg(long, value_name = "N", value_parser = parse_connections)]
    pub(crate) connections: Option<NonZero<usize>>,

    /// Requests per client and round [default: 10; of bulk: 1]
    #[arg(long, value_name = "N", conflicts_with_all = ["duration", "rate"])]
    messages: Option<NonZero<u64>>,

    /// Repeat all of it
    #[arg(long, value_name = "N", default_value = "1", conflicts_with_all = ["duration", "rate"])]
    rounds: NonZero<u64>,

    /// Pause of a client after each reply
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_time, conflicts_with = "rate")]
    think: Duration,

    /// Ask for a time, not a number of messages [default with --rate: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time, group = "timed")]
    pub(crate) duration: Option<Duration>,

    /// With --duration or --rate: ask for this long before measuring
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "timed")]
    warmup: Option<Duration>,

    /// Open loop: requests per second over all connections, latency from the planned send time
    #[arg(long, value_name = "N", value_parser = parse_rate, group = "timed")]
    rate: Option<f64>,

    /// With --rate: requests come independently of one another, not evenly
    #[arg(long, requires = "rate")]
    poisson: bool,

    /// Open all connections before the first request
    #[arg(long)]
    connect_first: bool,

    /// Spread the connects over this time
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_time)]
    ramp: Duration,

    /// Give up a request, or a connect, after this time
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_some_time)]
    pub(crate) timeout: Duration,

    /// Bytes per request, with the line's end [default: short lines, Hello World!:0 and so on]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    size: Option<usize>,

    /// Of http: what to ask for; the first reply tells what it is, and all others must be the same [default: /files/13b]
    #[arg(long, value_name = "PATH", value_parser = parse_path)]
    path: Option<String>,

    /// What bulk is to send.
    #[command(flatten)]
    pub(crate) bulk: BulkArgs,

    /// What the server was told to do before its replies.
    #[command(flatten)]
    work: WorkArgs,

    /// The same seed asks the same [default: random]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Event loops
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_threads)]
    threads: NonZero<usize>,

    /// Not to ask but to let clients misbehave, such as slowloris or storm (see `samewire list`): as many as usual for
    /// that kind, or as --connections says; once, or again and again for --duration
    #[arg(long, value_name = "KIND", value_parser = Misbehaviour::find, conflicts_with_all = ["messages", "rounds", "think", "warmup", "rate", "connect_first", "ramp", "size", "path", "work", "threads"])]
    pub(crate) misbehave: Option<&'static Misbehaviour>,

    /// With --misbehave: print what one client said and heard, byte by byte, also if nothing went wrong
    #[arg(long, requires = "misbehave", conflicts_with = "json")]
    pub(crate) transcript: bool,

    /// With --misbehave: also against a server that is not on this machine, if you may do that
    #[arg(long, requires = "misbehave")]
    pub(crate) not_only_loopback: bool,

    /// Run on these CPUs only, such as 0 or 0,2 or 0-3
    #[arg(long, value_name = "LIST")]
    pub(crate) cpus: Option<CpuList>,

    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl DriveArgs {
    /// Options that mean nothing together.
    fn check(&self) -> Result<(), String> {
        check_work(self.protocol, self.work.work.as_ref())?;
        let name = self.protocol.name;
        if self.path.is_some() && name != "http" {
            return Err(format!("--path is for --protocol http, and this is {name}"));
        }
        if self.size.is_some() && matches!(name, "bulk" | "http") {
            return Err(format!(
                "--size has no meaning for --protocol {name}, whose requests are as long as they are"
            ));
        }
        Ok(())
    }

    pub(crate) fn page(&self, address: SocketAddr) -> Page {
        let page = Page::default();
        Page {
            path: self.path.clone().unwrap_or(page.path),
            host: address.to_string(),
            content: page.content,
        }
    }

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

pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= MAX_RATE => Ok(rate),
        _ => Err(format!(
            "write a number of requests per second, such as 5000, and {MAX_RATE} at most"
        )),
    }
}

/// The smallest holds any request's number and client; the largest is far above what servers take for a line.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let size = text
        .parse()
        .ok()
        .filter(|size| (32..=1 << 24).contains(size));
    size.ok_or_else(|| "write a number of bytes from 32 to 16777216".to_string())
}

/// A request's target. What would end it, or the line that it is in, can't be part of it.
fn parse_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("write a path with / at its beginning, such as /files/13b".to_string());
    }
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(
            "no spaces and no control characters in a path: write %20 for a space".to_string(),
        );
    }
    Ok(text.to_string())
}

/// Shows how far the drive has come, on a terminal.
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

/// Drives a server and prints what came of it.
///
/// # Errors
///
/// A plan that makes no sense, or a server that is not there. (Options that contradict each other are complained about
/// here, with their own status.)
pub fn run(args: &DriveArgs) -> anyhow::Result<ExitCode> {
    if let Err(why) = args.check() {
        output::print_error(&format!("error: {why} (see --help)"));
        return Ok(ExitCode::from(2));
    }
    match (args.address, &args.with) {
        (Some(address), _) => run_at(args, address),
        (None, Some(external)) => run_with(args, external),
        (None, None) => bail!("there is no server to drive"),
    }
}

/// Starts the server, and stops it whatever came of the drive. What it complains about is told, and is a failure.
fn run_with(args: &DriveArgs, external: &ExternalServer) -> anyhow::Result<ExitCode> {
    let settings = TargetSettings {
        max_connections: Some(10_000.max(args.connections.map_or(0, NonZero::get))),
        ..TargetSettings::default()
    };
    child::adopt_orphans();
    let placement = Placement::none("nobody asked for it".to_string());
    let server = external.start(&settings, &placement)?;
    let driven = run_at(args, server.address);
    let end = server.stop();
    // That a signal ends whoever has not learned to stop is no fault that the drive could have found.
    let problems = if end.by_the_signal() {
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

/// Drives whoever listens there.
fn run_at(args: &DriveArgs, address: SocketAddr) -> anyhow::Result<ExitCode> {
    if let Some(kind) = args.misbehave {
        return misbehave::run(args, address, kind);
    }
    let plan = args.plan(address);
    make_room(plan.connections);
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;

    let live = Live(if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner().with_style(
            ProgressStyle::with_template("{msg}").unwrap_or(ProgressStyle::default_spinner()),
        )
    } else {
        ProgressBar::hidden()
    });
    // As text: its causes are in it, and would be said twice.
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
            "nobody listens on {} (connection refused); start a server there, such as: samewire serve mio --listen {}",
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

/// Raises the limit on open files, and says so if it is still too low.
pub(crate) fn make_room(connections: usize) {
    let descriptors = raise_descriptor_limit();
    if !descriptors.allow(connections) {
        output::print_error(&format!(
            "warning: {} connections do not fit the limit of {} open files, {} of which are for other things, and \
             this process may not raise it; some connects may fail (see ulimit -Hn)",
            format::count(connections as u64),
            descriptors.now.unwrap_or(u64::MAX),
            Descriptors::SPARE,
        ));
    }
}

fn to_text(plan: &Plan, report: &Report, interrupted: bool) -> String {
    let mut text = String::new();
    let asked = report.replies + report.errors.total() + report.unanswered;
    let _ = writeln!(
        text,
        "{}: {} of {} requests answered rightly (availability {}) in {}",
        plan.address,
        format::count(report.replies),
        format::count(asked),
        report
            .availability()
            .map_or("n/a".to_string(), format::percent),
        format::time(nanos(report.window)),
    );
    if interrupted {
        text.push_str("  interrupted: what was under way is counted as unanswered, and what was to come is not\n");
    } else if asked == 0 {
        text.push_str("  nothing was measured: it ended before the measured time began\n");
    }
    if report.gave_up > 0 {
        let _ = writeln!(
            text,
            "  {} of {} clients gave up on the server, and did not ask all they were to ask",
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
            "; each got {} to {} (Jain's fairness index {:.3})",
            format::count(fairness.slowest),
            format::count(fairness.fastest),
            fairness.jain,
        );
    }
    text.push('\n');
    if sends_much(plan) {
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
    let at_least = |count: u64, what: &str| match count {
        0 => String::new(),
        count => format!("; at least, for {} {what}", format::count(count)),
    };
    let unanswered = at_least(report.unanswered, "unanswered");
    let unserved = at_least(report.never_served, "that never got one");
    row(
        "response",
        &report.response_time,
        &format!("from the planned send time to the reply, or to the failure{unanswered}"),
    );
    row(
        "service",
        &report.service_time,
        "from the actual send time, right replies only",
    );
    row(
        "others",
        &report.bystanders,
        "requests before which the server had nothing to do: what they waited for was somebody else's work",
    );
    row("client lag", &report.lag, "how late the client itself was");
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
                "  content      {content}, by the first whole reply; every other was held to it"
            );
        }
    }
    text
}

/// Whether what comes is counted in bytes rather than in replies.
fn sends_much(plan: &Plan) -> bool {
    matches!(plan.protocol.name, "bulk" | "http")
}

/// Of all bytes, those of heads and of the warm-up too.
fn received_per_s(report: &Report) -> f64 {
    let seconds = report.elapsed.as_secs_f64();
    if seconds > 0.0 {
        report.received as f64 / seconds
    } else {
        0.0
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// The figures of Siege's summary, for those who know how to read that. Times are response times, in seconds.
fn siege(text: &mut String, report: &Report) {
    let times = &report.response_time;
    let seconds = |nanos: f64| format!("{:.4} s", nanos / 1e9);
    let availability = report.availability();
    let _ = writeln!(text, "  in the manner of siege");
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

/// An empty histogram's is no time at all.
fn shortest(report: &Report) -> u64 {
    match report.response_time.is_empty() {
        true => 0,
        false => report.response_time.min(),
    }
}

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

/// The names are those of `results.json` (docs/src/results.md).
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
    if sends_much(plan) {
        json["received_bytes_per_s"] = json!(received_per_s(report));
    }
    if plan.work.is_some() {
        json["others"] = json!(Times::of(&report.bystanders)?);
    }
    if plan.protocol.name == "http" {
        json["path"] = json!(plan.page.path);
        json["mean_response_ns"] = json!(report.response_time.mean());
        json["longest_response_ns"] = json!(report.response_time.max());
        json["shortest_response_ns"] = json!(shortest(report));
    }
    Ok(json)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
