//! `samewire capacity`: the highest rate at which a server keeps a promise about its response times.
//!
//! It is a command and not a workload of `compare`: every model is loaded relative to its own maximum, so that there is no
//! common load to compare round by round.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use client::{Arrivals, Load, Plan, Report};
use contract::cli::{parse_connections, parse_protocol, parse_some_time, parse_time};
use contract::{Model, raise_descriptor_limit};
use protocol::{PROTOCOLS, Protocol};
use serde::Serialize;

use crate::commands::compare::parse_percent;
use crate::placement::Placement;
use crate::results::summary::lag_limit_ms;
use crate::statistics::isotonic::{Crossing, crossing};
use crate::target::{ExternalServer, Target, TargetSettings};
use crate::{format, interrupt, output, registry};

/// Options of `capacity`.
#[derive(Debug, Args)]
#[command(
    after_help = "The promise (--slo) is an upper limit of the 99th percentile of the response time, counted from the planned
send time, and a lower limit of the share of the requests that are answered. The capacity is the highest rate
that keeps it: eight rates from 0.3 to 0.95 of the highest rate of a closed loop, in random order, then rates
around the crossing until it is known to ±5 %. ≥ means that the client was late or busy there, so that the
server may be capable of more. Goodput is the number of replies per second within the limit, at 1.5 times the
capacity: a server that collapses under overload has little of it.

Examples:
  samewire capacity mio threads
  samewire capacity tokio --slo p99=20ms,answered=99.9% --connections 1000
  samewire capacity --with 'mine=python3 server.py {port}'

Exit status: 0, or 130 if interrupted."
)]
pub struct CapacityArgs {
    /// Models to measure
    #[arg(value_name = "MODEL", value_parser = registry::find, required_unless_present = "with")]
    models: Vec<&'static Model>,

    /// External server to measure; may be repeated
    #[arg(long, value_name = "NAME=COMMAND", value_parser = ExternalServer::parse)]
    with: Vec<ExternalServer>,

    /// The promise
    #[arg(long, value_name = "SLO", default_value = "p99=5ms,answered=99.9%", value_parser = parse_slo)]
    slo: Slo,

    /// Number of connections
    #[arg(long, value_name = "N", default_value = "100", value_parser = parse_connections)]
    connections: std::num::NonZero<usize>,

    /// Measured time of each rate
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_some_time)]
    duration: Duration,

    /// Protocol (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    protocol: &'static Protocol,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Promise about the replies of a server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Slo {
    /// Largest 99th percentile of the response time, in milliseconds.
    p99_ms: f64,
    /// Smallest share of the requests that are answered.
    answered: f64,
}

/// Parses `p99=TIME,answered=PERCENT`; each part may be left out.
fn parse_slo(text: &str) -> Result<Slo, String> {
    let form = "write p99=TIME,answered=PERCENT, such as p99=5ms,answered=99.9%";
    let mut slo = Slo {
        p99_ms: 5.0,
        answered: 0.999,
    };
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("p99", time)) => {
                let time = parse_time(time).map_err(|why| format!("{why}; {form}"))?;
                if time.is_zero() {
                    return Err(format!("p99 must be greater than zero; {form}"));
                }
                slo.p99_ms = time.as_secs_f64() * 1e3;
            }
            Some(("answered", share)) => {
                slo.answered = parse_percent(share).map_err(|why| format!("{why}; {form}"))?;
            }
            _ => return Err(format!("unknown part \"{part}\"; {form}")),
        }
    }
    Ok(slo)
}

/// Capacity of one server.
#[derive(Debug, Serialize)]
struct Capacity {
    server: String,
    slo: Slo,
    /// Requests per second of a closed loop.
    closed_loop_per_s: f64,
    /// Highest rate that keeps the promise; `null` if no measured rate keeps it.
    capacity_per_s: Option<f64>,
    /// Highest measured rate that keeps the promise.
    kept_per_s: Option<f64>,
    /// Lowest measured rate that breaks it; `null` if none does.
    broken_per_s: Option<f64>,
    /// True if the client was the limit, so that the capacity may be larger.
    lower_bound: bool,
    /// Replies per second within the limit at 1.5 times the capacity.
    goodput_per_s: Option<f64>,
    /// The measured rates, with the 99th percentile of the response time in milliseconds.
    rates: Vec<(f64, f64)>,
}

/// Share of the time from which on the client has none to spare.
const BUSY: f64 = 0.9;

/// Half width of the bracket of the capacity at which measuring stops.
const PRECISION: f64 = 0.05;

/// Number of rounds around the crossing, at most.
const ROUNDS: usize = 6;

/// Runs `samewire capacity`.
///
/// # Errors
///
/// Returns an error if a server does not start or answers wrongly, or if the output can't be written.
pub fn run(args: &CapacityArgs) -> anyhow::Result<ExitCode> {
    raise_descriptor_limit();
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;
    let placement = Placement::take();
    crate::child::adopt_orphans();
    let models = args.models.iter().copied().map(Target::Model);
    let external = args.with.iter().cloned().map(Target::ExternalServer);
    let mut all = Vec::new();
    for target in models.chain(external) {
        let bench = Bench {
            args,
            target: &target,
            placement: &placement,
            interrupted: &interrupted,
        };
        let capacity = bench.capacity().with_context(|| target.name())?;
        let Some(capacity) = capacity else {
            output::print_error("interrupted");
            return Ok(ExitCode::from(interrupt::STATUS));
        };
        if !args.json {
            output::print(&to_text(&capacity))?;
        }
        all.push(capacity);
    }
    if args.json {
        let json = serde_json::to_string_pretty(&all).context("cannot write JSON")?;
        output::print(&(json + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Measurements of one server.
struct Bench<'b> {
    args: &'b CapacityArgs,
    target: &'b Target,
    placement: &'b Placement,
    interrupted: &'b AtomicBool,
}

/// Outcome of one rate.
struct Measured {
    rate: f64,
    /// 99th percentile in milliseconds; far above the limit if too few requests were answered.
    p99_ms: f64,
    client_limited: bool,
    report: Report,
}

impl Bench<'_> {
    /// Returns the capacity; `None` after an interrupt.
    fn capacity(&self) -> anyhow::Result<Option<Capacity>> {
        let slo = self.args.slo;
        let closed = self.drive(Load::Closed {
            think: Duration::ZERO,
            warmup: WARM_UP,
            duration: self.args.duration,
        })?;
        let most = closed.throughput();
        if most <= 0.0 {
            bail!("the server answered no request");
        }
        let mut rates: Vec<f64> = (0..8)
            .map(|step| most * (0.3 + 0.65 * f64::from(step) / 7.0))
            .collect();
        fastrand::shuffle(&mut rates);
        let mut measured = Vec::new();
        for rate in rates {
            output::print_error(&format!(
                "{}: {} requests/s",
                self.target.name(),
                format::count(rate as u64)
            ));
            measured.push(self.at(rate)?);
            if self.interrupted.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        for _ in 0..ROUNDS {
            let Some(now) = find(&measured, slo) else {
                break;
            };
            let (Some(kept), Some(broken)) = (now.kept, now.broken) else {
                break;
            };
            if (broken / kept).sqrt() - 1.0 <= PRECISION {
                break;
            }
            for factor in [0.97, 1.0, 1.03] {
                let rate = (now.rate * factor).clamp(kept, broken);
                output::print_error(&format!(
                    "{}: {} requests/s",
                    self.target.name(),
                    format::count(rate as u64)
                ));
                measured.push(self.at(rate)?);
                if self.interrupted.load(Ordering::Relaxed) {
                    return Ok(None);
                }
            }
        }
        let found = find(&measured, slo);
        let capacity = found
            .filter(|found| found.kept.is_some())
            .map(|found| found.rate);
        let near =
            |one: &&Measured| capacity.is_some_and(|rate| (one.rate / rate).ln().abs() < 0.2);
        let goodput = match capacity {
            Some(rate) => Some(self.goodput(1.5 * rate)?),
            None => None,
        };
        let mut points: Vec<(f64, f64)> =
            measured.iter().map(|one| (one.rate, one.p99_ms)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Some(Capacity {
            server: self.target.name(),
            slo,
            closed_loop_per_s: most,
            capacity_per_s: capacity,
            kept_per_s: found.and_then(|found| found.kept),
            broken_per_s: found.and_then(|found| found.broken),
            lower_bound: found.is_some_and(|found| found.broken.is_none())
                || measured.iter().filter(near).any(|one| one.client_limited),
            goodput_per_s: goodput,
            rates: points,
        }))
    }

    /// Measures one rate, with a fresh server.
    fn at(&self, rate: f64) -> anyhow::Result<Measured> {
        let report = self.drive(Load::Open {
            rate,
            arrivals: Arrivals::Poisson,
            warmup: WARM_UP,
            duration: self.args.duration,
        })?;
        let slo = self.args.slo;
        let p99 = format::quantile(&report.response_time, 0.99)
            .context("too few requests for a 99th percentile; use a longer --duration")?;
        let p99_ms = p99 as f64 / 1e6;
        let lag = format::quantile(&report.lag, 0.99).map_or(0.0, |lag| lag as f64 / 1e6);
        let threads = self.placement.client_threads() as f64;
        let busy = report.cpu.as_secs_f64() / (report.window.as_secs_f64() * threads);
        let answered = report.availability().unwrap_or(0.0);
        Ok(Measured {
            rate,
            p99_ms: match answered >= slo.answered {
                true => p99_ms,
                // The promise is broken, whatever the time is.
                false => p99_ms.max(slo.p99_ms * 10.0),
            },
            client_limited: busy >= BUSY || lag > lag_limit_ms(slo.p99_ms),
            report,
        })
    }

    /// Returns the replies per second within the limit at a rate.
    fn goodput(&self, rate: f64) -> anyhow::Result<f64> {
        let Measured { report, .. } = self.at(rate)?;
        let limit = (self.args.slo.p99_ms * 1e6) as u64;
        let within = report
            .service_time
            .len()
            .min(report.response_time.count_between(0, limit));
        Ok(within as f64 / report.window.as_secs_f64())
    }

    fn drive(&self, load: Load) -> anyhow::Result<Report> {
        let connections = self.args.connections.get();
        let settings = TargetSettings {
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connections: Some((2 * connections).max(10_000)),
            ..TargetSettings::default()
        };
        let server = self
            .target
            .start(self.args.protocol, &settings, self.placement)?;
        let plan = Plan {
            address: server.address,
            protocol: self.args.protocol,
            connections,
            size: Some(64),
            bulk: Default::default(),
            page: Default::default(),
            work: None,
            load,
            connect_first: true,
            ramp: Duration::ZERO,
            timeout: self.args.duration + Duration::from_secs(15),
            seed: fastrand::u64(..),
            threads: self.placement.client_threads(),
            cpus: self.placement.client.clone(),
        };
        let report = client::drive(&plan, &(), self.interrupted)?;
        drop(server.stop());
        if report.errors.wrong_reply > 0 {
            bail!("wrong replies: {}", report.examples.join("; "));
        }
        Ok(report)
    }
}

/// Time in which requests are sent but not measured.
const WARM_UP: Duration = Duration::from_millis(300);

fn find(measured: &[Measured], slo: Slo) -> Option<Crossing> {
    let points: Vec<(f64, f64)> = measured.iter().map(|one| (one.rate, one.p99_ms)).collect();
    crossing(&points, slo.p99_ms)
}

fn to_text(capacity: &Capacity) -> String {
    let rate = |rate: f64| format::count(rate.round() as u64);
    let promise = format!(
        "p99 at most {} ms and {} answered",
        capacity.slo.p99_ms,
        format::percent(capacity.slo.answered)
    );
    let name = &capacity.server;
    let Some(most) = capacity.capacity_per_s else {
        return format!(
            "{name}: no measured rate keeps the promise ({promise}); the lowest was {} requests/s\n",
            capacity
                .rates
                .first()
                .map_or("none".to_string(), |one| rate(one.0))
        );
    };
    let sign = if capacity.lower_bound { "≥ " } else { "" };
    let between = match (capacity.kept_per_s, capacity.broken_per_s) {
        (Some(kept), Some(broken)) => format!("between {} and {}", rate(kept), rate(broken)),
        _ => "no measured rate broke the promise".to_string(),
    };
    format!(
        "{name}: {sign}{} requests/s ({between}) with {promise}; closed loop {} requests/s; goodput at 1.5 times the capacity \
         {} requests/s\n",
        rate(most),
        rate(capacity.closed_loop_per_s),
        capacity.goodput_per_s.map_or("n/a".to_string(), rate),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promise_is_parsed_and_a_wrong_one_names_the_form() {
        let slo = parse_slo("p99=20ms,answered=99%").unwrap();
        assert_eq!((slo.p99_ms, slo.answered), (20.0, 0.99));
        assert_eq!(parse_slo("answered=90%").unwrap().p99_ms, 5.0);
        for wrong in ["p99", "p99=0s", "p50=1ms", "answered=200%", "p99=fast"] {
            let message = parse_slo(wrong).unwrap_err();
            assert!(message.contains("write p99=TIME"), "{wrong}: {message}");
        }
    }

    #[test]
    fn text_says_what_bounds_the_capacity() {
        let mut capacity = Capacity {
            server: "mio".to_string(),
            slo: parse_slo("p99=5ms,answered=99.9%").unwrap(),
            closed_loop_per_s: 200_000.0,
            capacity_per_s: Some(150_000.0),
            kept_per_s: Some(148_000.0),
            broken_per_s: Some(152_000.0),
            lower_bound: false,
            goodput_per_s: Some(90_000.0),
            rates: vec![(60_000.0, 0.2)],
        };
        let text = to_text(&capacity);
        assert!(
            text.starts_with("mio: 150,000 requests/s (between 148,000 and 152,000)"),
            "{text}"
        );
        assert!(text.contains("99.90 % answered"), "{text}");
        capacity.lower_bound = true;
        assert!(to_text(&capacity).starts_with("mio: ≥ 150,000"));
        capacity.capacity_per_s = None;
        assert!(to_text(&capacity).contains("no measured rate keeps the promise"));
    }
}
