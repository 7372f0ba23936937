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
use client::{Arrivals, Load, MAX_RATE, Plan, Report, Snapshot, Watch};
use contract::cli::{
    parse_address, parse_connections, parse_protocol, parse_some_time, parse_threads, parse_time,
};
use contract::{CpuList, Descriptors, raise_descriptor_limit};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::{PROTOCOLS, Protocol};
use serde_json::json;

use crate::compare::results::ClientSide;
use crate::{figures, interrupt, output};

/// Options of `drive`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("timed").multiple(true))]
#[command(after_help = "Examples:
  samewire drive 127.0.0.1:7000                          100 clients, 10 messages each
  samewire drive 127.0.0.1:7000 --think 1s --rounds 100  the original's load
  samewire drive 127.0.0.1:7000 --duration 10s           closed loop: as fast as the server answers
  samewire drive 127.0.0.1:7000 --rate 5000 --poisson    open loop: as users come, whatever the server does
  samewire drive 127.0.0.1:8686 --protocol hello --connections 20 --messages 1 --connect-first

Exit status 0 if every request was answered rightly, 1 if not, 2 for wrong usage.")]
pub struct DriveArgs {
    /// Where the server listens, such as 127.0.0.1:7000
    #[arg(value_name = "ADDR", value_parser = parse_address)]
    address: SocketAddr,

    /// What to say (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    protocol: &'static Protocol,

    /// Clients that ask at the same time
    #[arg(long, value_name = "N", default_value = "100", value_parser = parse_connections)]
    connections: NonZero<usize>,

    /// Requests per client and round [default: 10]
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
    duration: Option<Duration>,

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
    timeout: Duration,

    /// Bytes per request, with the line's end [default: short lines, Hello World!:0 and so on]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    size: Option<usize>,

    /// The same seed asks the same [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Event loops
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_threads)]
    threads: NonZero<usize>,

    /// Run on these CPUs only, such as 0 or 0,2 or 0-3
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,

    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

impl DriveArgs {
    fn plan(&self) -> Plan {
        Plan {
            address: self.address,
            protocol: self.protocol,
            connections: self.connections.get(),
            size: self.size,
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
                    messages: self.messages.map_or(10, NonZero::get),
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

/// Shows how far the drive has come, on a terminal.
struct Live(ProgressBar);

impl Watch for Live {
    fn progress(&self, now: Snapshot) {
        self.0.set_message(format!(
            "{:>6.1} s   {} replies   {} errors   {} connections",
            now.elapsed.as_secs_f64(),
            figures::count(now.replies),
            figures::count(now.errors),
            figures::count(now.open),
        ));
        self.0.tick();
    }
}

/// Drives a server and prints what came of it.
///
/// # Errors
///
/// A plan that makes no sense, or a server that is not there.
pub fn run(args: &DriveArgs) -> anyhow::Result<ExitCode> {
    let plan = args.plan();
    let descriptors = raise_descriptor_limit();
    if !descriptors.allow(plan.connections) {
        output::complain(&format!(
            "warning: {} connections do not fit the limit of {} open files, {} of which are for other things, and \
             this process may not raise it; some connects may fail (see ulimit -Hn)",
            figures::count(plan.connections as u64),
            descriptors.now.unwrap_or(u64::MAX),
            Descriptors::SPARE,
        ));
    }
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

fn to_text(plan: &Plan, report: &Report, interrupted: bool) -> String {
    let mut text = String::new();
    let asked = report.replies + report.errors.total() + report.unanswered;
    let _ = writeln!(
        text,
        "{}: {} of {} requests answered rightly (availability {}) in {}",
        plan.address,
        figures::count(report.replies),
        figures::count(asked),
        report
            .availability()
            .map_or("n/a".to_string(), figures::percent),
        figures::time(nanos(report.window)),
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
            figures::count(report.gave_up),
            figures::count(plan.connections as u64),
        );
    }
    let _ = write!(
        text,
        "  throughput   {} replies/s on {} connections",
        figures::digits(report.throughput()),
        figures::count(plan.connections as u64),
    );
    if let Some(fairness) = report.fairness() {
        let _ = write!(
            text,
            "; each got {} to {} (Jain's fairness index {:.3})",
            figures::count(fairness.slowest),
            figures::count(fairness.fastest),
            fairness.jain,
        );
    }
    let _ = writeln!(text, "\n  failed       {}", failures(report));
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
            let value = figures::quantile(histogram, quantile);
            let _ = write!(
                text,
                " {:>10}",
                value.map_or("–".to_string(), figures::time)
            );
        }
        let _ = writeln!(text, " {:>10}   {meaning}", figures::time(histogram.max()));
    };
    let at_least = |count: u64, what: &str| match count {
        0 => String::new(),
        count => format!("; at least, for {} {what}", figures::count(count)),
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
    text
}

fn failures(report: &Report) -> String {
    let unanswered = Some((report.unanswered, "unanswered at the end"));
    let failed: Vec<_> = report
        .errors
        .kinds()
        .chain(unanswered.filter(|(count, _)| *count > 0))
        .map(|(number, kind)| format!("{} {kind}", figures::count(number)))
        .collect();
    if failed.is_empty() {
        "none".to_string()
    } else {
        failed.join(", ")
    }
}

/// The names are those of `results.json` (docs/src/results.md).
fn to_json(plan: &Plan, report: &Report, interrupted: bool) -> anyhow::Result<serde_json::Value> {
    Ok(json!({
        "address": plan.address.to_string(),
        "protocol": plan.protocol.name,
        "connections": plan.connections,
        "seed": plan.seed.to_string(),
        "interrupted": interrupted,
        "gave_up": report.gave_up,
        "availability": report.availability(),
        "replies_per_s": report.throughput(),
        "client": ClientSide::of(report)?,
    }))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
