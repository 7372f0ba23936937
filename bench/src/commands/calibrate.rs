//! `samewire calibrate`: tests the method of measuring itself on this machine, with servers whose differences are known.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use client::{Arrivals, Load, Plan, Report};
use contract::raise_descriptor_limit;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::PROTOCOLS;
use serde::Serialize;

use crate::child::ChildServer;
use crate::commands::compare::default_settings;
use crate::measure::contest::Batch;
use crate::measure::plan::{Case, QUICK_MODELS, Settings};
use crate::measure::run::Runner;
use crate::placement::Placement;
use crate::results::certificate::Condition;
use crate::results::metric::Metric;
use crate::results::{Method, Role, Run};
use crate::statistics::interval::{moments, ratio};
use crate::statistics::ranking::{self, Better, Mark, Row};
use crate::target::Target;
use crate::workloads::Workload;
use crate::{format, interrupt, output, registry};

/// Options of `calibrate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each test has a known answer: a server against itself, a server that costs 5 % more, a server that
is stopped for 200 ms, a program that takes the server's CPU. It takes about five minutes on a machine
that does nothing else.

  R1  mio against itself: the spread in slices is at most a third of that in whole runs, and the mean
      ratio is within 1 %
  R2  eight models, each measured twice: at most one pair in twenty is called different
  R3  mio with 5 % more work: found in nine of ten comparisons
  R4  a stop of 200 ms in 4 s of an open loop shows in p99: as the length of the stop less 1 % of 4 s, and
      the time in which the requests of that 1 % are answered; within 1 %
  R5  the same stop in a closed loop does not show in p99
  R6  a program on the server's CPU for a fifth of a run: the certificate fails, and only there
  R7  slices leave CPU time per request and p50 as in 4 s of one server alone, within 2 %
  R8  every model rests while others are loaded

Examples:
  samewire calibrate
  samewire calibrate --only R1,R3

Exit status: 0 if all tests passed, 1 if one failed, 130 if interrupted."
)]
pub struct CalibrateArgs {
    /// Run only these tests
    #[arg(long, value_name = "TESTS", value_delimiter = ',', value_parser = ["R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8"])]
    only: Vec<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Outcome of one test.
#[derive(Debug, Serialize)]
struct Outcome {
    test: &'static str,
    passed: bool,
    /// Measurements in words.
    seen: String,
}

type Test = (
    &'static str,
    fn(&Calibration<'_>) -> anyhow::Result<(bool, String)>,
);

const TESTS: [Test; 8] = [
    ("R1", same_server_in_slices_and_whole),
    ("R2", eight_models_twice),
    ("R3", five_percent_more),
    ("R4", stop_in_an_open_loop),
    ("R5", stop_in_a_closed_loop),
    ("R6", other_program),
    ("R7", slices_and_long_window),
    ("R8", every_model_rests),
];

/// Everything that the tests share.
struct Calibration<'c> {
    settings: Settings,
    placement: &'c Placement,
    interrupted: &'c AtomicBool,
}

/// Runs `samewire calibrate`.
///
/// # Errors
///
/// Returns an error if a server does not start or fails, or if the output can't be written.
pub fn run(args: &CalibrateArgs) -> anyhow::Result<ExitCode> {
    raise_descriptor_limit();
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;
    let placement = Placement::take();
    crate::child::adopt_orphans();
    if cfg!(debug_assertions) {
        output::print_error("warning: this is a debug build; calibrate a release build");
    }
    let calibration = Calibration {
        settings: default_settings()?,
        placement: &placement,
        interrupted: &interrupted,
    };
    let mut outcomes = Vec::new();
    for (test, run) in TESTS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == test) {
            continue;
        }
        output::print_error(&format!("{test} …"));
        let result = run(&calibration);
        if interrupted.load(Ordering::Relaxed) {
            output::print_error("interrupted");
            break;
        }
        let (passed, seen) = result.with_context(|| format!("test {test}"))?;
        if !args.json {
            let verdict = if passed { "passed" } else { "FAILED" };
            output::print(&format!("{test}  {verdict}  {seen}\n"))?;
        }
        outcomes.push(Outcome { test, passed, seen });
    }
    if args.json {
        let json = serde_json::to_string_pretty(&outcomes).context("cannot write JSON")?;
        output::print(&(json + "\n"))?;
    }
    Ok(if interrupted.load(Ordering::Relaxed) {
        ExitCode::from(interrupt::STATUS)
    } else if outcomes.iter().all(|outcome| outcome.passed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Server of a calibration: a model, and CPU time that each request costs in addition.
#[derive(Clone, Copy)]
struct Server {
    model: &'static str,
    burn: Option<Duration>,
}

fn plain(model: &'static str) -> Server {
    Server { model, burn: None }
}

impl Calibration<'_> {
    fn runner<'r>(&'r self, settings: &'r Settings) -> Runner<'r> {
        Runner {
            settings,
            placement: self.placement,
            began: Instant::now(),
            interrupted: self.interrupted,
        }
    }

    fn case(&self, server: Server, workload: Workload, method: Method) -> anyhow::Result<Case> {
        let model = registry::find(server.model).map_err(anyhow::Error::msg)?;
        Ok(Case {
            target: Target::Model(model),
            role: Role::Model,
            method,
            workload,
            connections: self.settings.connections(workload)[0],
            seed: fastrand::u64(..),
            max_concurrent: None,
            burn: server.burn,
        })
    }

    /// Measures one round of `max` with a window of this length, and returns the runs in the order of the servers.
    fn round(
        &self,
        servers: &[Server],
        method: Method,
        window: Duration,
    ) -> anyhow::Result<Vec<Run>> {
        let settings = Settings {
            duration: window,
            sliced_duration: window,
            ..self.settings.clone()
        };
        // In a random order, as in a comparison: a server must not be favoured by its place.
        let mut order: Vec<usize> = (0..servers.len()).collect();
        fastrand::shuffle(&mut order);
        let cases = order
            .iter()
            .map(|&index| self.case(servers[index], Workload::Max, method))
            .collect::<anyhow::Result<Vec<Case>>>()?;
        let runner = self.runner(&settings);
        let batch = |cases| Batch {
            round: 1,
            attempt: 1,
            cases,
        };
        let batches: Vec<Batch> = match method {
            Method::Slices => vec![batch(cases)],
            Method::Whole => cases.into_iter().map(|case| batch(vec![case])).collect(),
        };
        let mut runs = Vec::new();
        for batch in batches {
            runs.extend(runner.measure(&batch, 1).context("interrupted")?);
        }
        for run in &runs {
            if let Some(problem) = run.problems.first() {
                bail!("{}: {problem}", run.model);
            }
        }
        let mut runs: Vec<(usize, Run)> = order.into_iter().zip(runs).collect();
        runs.sort_by_key(|(index, _)| *index);
        Ok(runs.into_iter().map(|(_, run)| run).collect())
    }

    /// Returns the CPU time per request of each server, by round.
    fn costs(
        &self,
        servers: &[Server],
        method: Method,
        rounds: usize,
        window: Duration,
    ) -> anyhow::Result<Vec<Vec<f64>>> {
        let mut costs = vec![Vec::new(); servers.len()];
        for _ in 0..rounds {
            let runs = self.round(servers, method, window)?;
            for (costs, run) in costs.iter_mut().zip(&runs) {
                costs.push(cost(run)?);
            }
        }
        Ok(costs)
    }

    /// Drives `mio` for 4 s, and calls `meanwhile` with its process in the middle.
    fn drive(
        &self,
        load: fn(Duration) -> Load,
        meanwhile: impl FnOnce(Pid) + Send,
    ) -> anyhow::Result<Report> {
        let arguments = [
            "mio",
            "--listen",
            "127.0.0.1:0",
            "--json",
            "--protocol",
            PROTOCOLS[0].name,
        ];
        let mut arguments = arguments.map(String::from).to_vec();
        if !self.placement.server.is_empty() {
            arguments.push("--cpus".to_string());
            arguments.push(contract::CpuList(self.placement.server.clone()).to_string());
        }
        let server = ChildServer::start(&arguments)?;
        let process = Pid::from_raw(server.pid());
        let plan = Plan {
            address: server.address,
            protocol: &PROTOCOLS[0],
            connections: 100,
            size: Some(64),
            bulk: Default::default(),
            page: Default::default(),
            work: None,
            load: load(LONG),
            connect_first: true,
            ramp: Duration::ZERO,
            timeout: Duration::from_secs(20),
            seed: 1,
            threads: self.placement.client_threads(),
            cpus: self.placement.client.clone(),
        };
        let report = thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(LONG / 2);
                meanwhile(process);
            });
            client::drive(&plan, &(), self.interrupted)
        })?;
        drop(server.stop());
        Ok(report)
    }
}

/// Window of the loads that are not in slices.
const LONG: Duration = Duration::from_secs(4);

/// Length of the stop of a server.
const STOP: Duration = Duration::from_millis(200);

fn cost(run: &Run) -> anyhow::Result<f64> {
    let cost = run.figures.get(&Metric::CpuUsPerRequest).copied().flatten();
    cost.with_context(|| format!("the CPU time per request of {} is unknown", run.model))
}

/// Returns the mean ratio and the standard deviation of its logarithm.
fn spread(values: &[f64], reference: &[f64]) -> anyhow::Result<(f64, f64)> {
    let logarithms: Vec<f64> = values
        .iter()
        .zip(reference)
        .map(|(value, reference)| (value / reference).ln())
        .collect();
    let (freedom, mean, error) = moments(&logarithms).context("too few rounds")?;
    Ok((mean.exp(), error * (freedom + 1.0).sqrt()))
}

fn same_server_in_slices_and_whole(this: &Calibration<'_>) -> anyhow::Result<(bool, String)> {
    // Enough for a standard error of the mean well under one percent.
    const ROUNDS: usize = 20;
    let window = Duration::from_millis(800);
    let both = [plain("mio"), plain("mio")];
    let slices = this.costs(&both, Method::Slices, ROUNDS, window)?;
    let whole = this.costs(&both, Method::Whole, ROUNDS, window)?;
    let (mean, in_slices) = spread(&slices[0], &slices[1])?;
    let (_, as_whole) = spread(&whole[0], &whole[1])?;
    Ok((
        in_slices <= as_whole / 3.0 && (mean - 1.0).abs() <= 0.01,
        format!(
            "standard deviation of ln: {in_slices:.4} in slices, {as_whole:.4} in whole runs; mean ratio in slices {mean:.4}"
        ),
    ))
}

/// Returns the marks of two servers against each other, in a table of this number of servers.
fn marks(costs: &[f64], others: &[f64], servers: usize) -> [Option<Mark>; 2] {
    let values = [others, costs].map(|costs| costs.iter().copied().map(Some).collect::<Vec<_>>());
    let rows = values.each_ref().map(|values| Row {
        values,
        doubtful: false,
    });
    let settings = ranking::Settings::default();
    // A ranking of two compares each with one other, and a table of all compares each with all others.
    let settings = ranking::Settings {
        alpha: settings.alpha / (servers - 1) as f64,
        ..settings
    };
    let ranking = ranking::rank(&rows, Better::Lower, &settings);
    [ranking.rows[0].mark, ranking.rows[1].mark]
}

fn eight_models_twice(this: &Calibration<'_>) -> anyhow::Result<(bool, String)> {
    let models: Vec<&'static str> = QUICK_MODELS
        .into_iter()
        .filter(|model| *model != "serial" && runs_here(model))
        .chain(["poll"])
        .collect();
    let servers: Vec<Server> = models
        .iter()
        .chain(&models)
        .map(|model| plain(model))
        .collect();
    let costs = this.costs(&servers, Method::Slices, 10, Duration::from_millis(400))?;
    let different: Vec<&str> = models
        .iter()
        .enumerate()
        .filter(|(index, _)| {
            let twin = &costs[index + models.len()];
            let marks = marks(&costs[*index], twin, servers.len());
            marks.contains(&Some(Mark::Worse))
        })
        .map(|(_, model)| *model)
        .collect();
    Ok((
        different.len() * 20 <= models.len(),
        format!(
            "{} of {} pairs called different{}",
            different.len(),
            models.len(),
            if different.is_empty() {
                String::new()
            } else {
                format!(": {}", different.join(", "))
            }
        ),
    ))
}

fn runs_here(model: &str) -> bool {
    registry::find(model).is_ok_and(|model| (model.available)().is_ok())
}

fn five_percent_more(this: &Calibration<'_>) -> anyhow::Result<(bool, String)> {
    const COMPARISONS: usize = 10;
    const ROUNDS: usize = 12;
    let window = Duration::from_millis(400);
    // Two pilots: to learn what a request costs, and by how much a burn really raises it. A server that takes longer for
    // each request finds more of them at once when it waits, and saves a part of the burn there.
    let pilot = this.costs(&[plain("mio")], Method::Slices, 3, window)?;
    let base = pilot[0].iter().sum::<f64>() / pilot[0].len() as f64;
    let first = Duration::from_secs_f64(base * 0.1 / 1e6);
    let burning = |burn| Server {
        model: "mio",
        burn: Some(burn),
    };
    let pilot = this.costs(&[plain("mio"), burning(first)], Method::Slices, 10, window)?;
    let raised = (spread(&pilot[1], &pilot[0])?.0 - 1.0).max(0.02);
    let wanted = first.mul_f64(0.05 / raised);
    let mut found = 0;
    let mut ratios = Vec::new();
    for _ in 0..COMPARISONS {
        let costs = this.costs(
            &[plain("mio"), burning(wanted)],
            Method::Slices,
            ROUNDS,
            window,
        )?;
        let [_, marked] = marks(&costs[1], &costs[0], 2);
        found += usize::from(marked == Some(Mark::Worse));
        ratios.push(spread(&costs[1], &costs[0])?.0);
    }
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    Ok((
        found * 10 >= COMPARISONS * 9,
        format!(
            "found in {found} of {COMPARISONS} comparisons of {ROUNDS} rounds; the control costs ×{mean:.3} on average \
             ({:.0} ns more per request)",
            wanted.as_secs_f64() * 1e9
        ),
    ))
}

/// Stops a process, and returns for how long.
fn stop(process: Pid) -> Duration {
    let begin = Instant::now();
    if kill(process, Signal::SIGSTOP).is_err() {
        return Duration::ZERO;
    }
    while let Some(left) = STOP.checked_sub(begin.elapsed()) {
        thread::sleep(left);
    }
    let _ = kill(process, Signal::SIGCONT);
    begin.elapsed()
}

fn stop_in_an_open_loop(this: &Calibration<'_>) -> anyhow::Result<(bool, String)> {
    const RATE: f64 = 5_000.0;
    let open = |duration| Load::Open {
        rate: RATE,
        arrivals: Arrivals::Constant,
        warmup: Duration::ZERO,
        duration,
    };
    let at_once = this.drive(closed, |_| {})?.throughput();
    let mut stopped = Duration::ZERO;
    let report = this.drive(open, |process| stopped = stop(process))?;
    // Of the requests of 4 s, one hundredth is those of 40 ms: of the requests that were planned during the stop, as many
    // waited longer than p99. They are answered first, as fast as server and client can, and the others wait for that.
    let longer = RATE * LONG.as_secs_f64() / 100.0;
    let expected = stopped.saturating_sub(LONG / 100).as_secs_f64() + longer / at_once;
    let (p99, expected) = (p99(&report)?, expected * 1e3);
    Ok((
        (p99 / expected - 1.0).abs() <= 0.01,
        format!(
            "stopped for {:.1} ms: p99 {p99:.2} ms, expected {expected:.2} ms",
            stopped.as_secs_f64() * 1e3
        ),
    ))
}

fn closed(duration: Duration) -> Load {
    Load::Closed {
        think: Duration::ZERO,
        warmup: Duration::ZERO,
        duration,
    }
}

/// Returns the 99th percentile of the response time, in milliseconds.
fn p99(report: &Report) -> anyhow::Result<f64> {
    let p99 = format::quantile(&report.response_time, 0.99).context("too few samples")?;
    Ok(p99 as f64 / 1e6)
}

fn stop_in_a_closed_loop(this: &Calibration<'_>) -> anyhow::Result<(bool, String)> {
    let report = this.drive(closed, |process| {
        stop(process);
    })?;
    let p99 = p99(&report)?;
    let max = report.response_time.max() as f64 / 1e6;
    Ok((
        p99 < 20.0 && max >= STOP.as_secs_f64() * 1e3 * 0.9,
        format!("p99 {p99:.2} ms, although the longest reply took {max:.0} ms"),
    ))
}

fn other_program(this: &Calibration<'_>) -> anyhow::Result<(bool, String)> {
    let window = Duration::from_secs(2);
    let certificate = |burn: bool| -> anyhow::Result<(bool, f64)> {
        let cpu = this.placement.server.clone();
        let over = AtomicBool::new(false);
        let runs = thread::scope(|scope| {
            if burn {
                scope.spawn(|| burn_a_fifth(&cpu, &over));
            }
            let runs = this.round(&[plain("mio")], Method::Whole, window);
            over.store(true, Ordering::Relaxed);
            runs
        })?;
        let checks = runs.iter().flat_map(|run| &run.checks);
        let check = checks
            .into_iter()
            .find(|check| check.condition == Condition::OtherPrograms)
            .context("the certificate has no check of other programs")?;
        Ok((check.failed(), check.value.unwrap_or(f64::NAN)))
    };
    let (quiet, with) = (certificate(false)?, certificate(true)?);
    Ok((
        !quiet.0 && with.0,
        format!(
            "others used {:.1} % of the CPUs without the program and {:.1} % with it",
            quiet.1 * 100.0,
            with.1 * 100.0
        ),
    ))
}

/// Takes a fifth of the time of these CPUs, by a process of its own, because the time of this process is the client's.
fn burn_a_fifth(cpus: &[usize], over: &AtomicBool) {
    let spin = ["serve", "spin", "--listen", "127.0.0.1:0", "--json"];
    let mut arguments: Vec<String> = spin[1..].iter().map(ToString::to_string).collect();
    if !cpus.is_empty() {
        arguments.push("--cpus".to_string());
        arguments.push(contract::CpuList(cpus.to_vec()).to_string());
    }
    // A server that never sleeps, stopped for four fifths of the time.
    let Ok(server) = ChildServer::start(&arguments) else {
        return;
    };
    let process = Pid::from_raw(server.pid());
    while !over.load(Ordering::Relaxed) {
        let _ = kill(process, Signal::SIGCONT);
        thread::sleep(Duration::from_millis(40));
        let _ = kill(process, Signal::SIGSTOP);
        thread::sleep(Duration::from_millis(60));
    }
    let _ = kill(process, Signal::SIGCONT);
    drop(server.stop());
}

fn slices_and_long_window(this: &Calibration<'_>) -> anyhow::Result<(bool, String)> {
    const ROUNDS: usize = 12;
    let servers = [
        plain("mio"),
        plain("threads"),
        plain("poll"),
        plain("tokio"),
    ];
    let (mut slices, mut alone) = (Vec::new(), Vec::new());
    let (mut p50_slices, mut p50_alone) = (Vec::new(), Vec::new());
    let p50 = |run: &Run| -> anyhow::Result<f64> {
        let client = run.client.as_ref().context("the client measured nothing")?;
        Ok(client.response_time.p50_ns.context("too few samples")? as f64)
    };
    for _ in 0..ROUNDS {
        let in_slices = this.round(&servers, Method::Slices, Duration::from_millis(800))?;
        let whole = this.round(&servers[..1], Method::Whole, LONG)?;
        slices.push(cost(&in_slices[0])?);
        alone.push(cost(&whole[0])?);
        p50_slices.push(p50(&in_slices[0])?);
        p50_alone.push(p50(&whole[0])?);
    }
    let cost = ratio(&slices, &alone, 0.95).context("too few rounds")?;
    let p50 = ratio(&p50_slices, &p50_alone, 0.95).context("too few rounds")?;
    // A ratio that is known to less than 2 % says nothing about 2 %.
    let within = |ratio: crate::statistics::interval::Estimate| {
        ratio.low <= 1.02 && ratio.high >= 0.98 && ratio.half_width() <= 0.1
    };
    Ok((
        within(cost) && within(p50),
        format!(
            "slices over 4 s alone: CPU time per request {:.3} ({:.3}–{:.3}), p50 {:.3} ({:.3}–{:.3})",
            cost.value, cost.low, cost.high, p50.value, p50.low, p50.high
        ),
    ))
}

fn every_model_rests(this: &Calibration<'_>) -> anyhow::Result<(bool, String)> {
    let servers: Vec<Server> = registry::models()
        .filter(|model| model.name != "serial" && (model.available)().is_ok())
        .map(|model| plain(model.name))
        .collect();
    let runs = this.round(&servers, Method::Slices, Duration::from_millis(400))?;
    let rest = |run: &Run| run.server.as_ref().and_then(|server| server.rest_cpu);
    let most = runs
        .iter()
        .filter_map(|run| Some((rest(run)?, run.model.as_str())))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let restless: Vec<&str> = runs
        .iter()
        .filter(|run| {
            let failed = |check: &crate::results::certificate::Check| {
                check.condition == Condition::Rested && check.failed()
            };
            run.checks.iter().any(failed) || rest(run).is_none()
        })
        .map(|run| run.model.as_str())
        .collect();
    let (most, model) = most.context("no model was measured")?;
    Ok((
        restless.is_empty(),
        format!(
            "{} models in slices; the one that rests least is {model}, with {:.4} % of the time{}",
            runs.len(),
            most * 100.0,
            if restless.is_empty() {
                String::new()
            } else {
                format!("; restless: {}", restless.join(", "))
            }
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_of_the_help_exists_once() {
        let names: Vec<&str> = TESTS.iter().map(|test| test.0).collect();
        assert_eq!(names, ["R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8"]);
    }

    #[test]
    fn dearer_server_is_marked_and_the_same_server_is_not() {
        let base = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98];
        let same = [1.01, 1.0, 1.0, 0.99, 1.0, 1.0];
        let dearer = base.map(|cost| cost * 1.2);
        assert_eq!(marks(&dearer, &same, 2)[1], Some(Mark::Worse));
        assert!(!marks(&base, &same, 2).contains(&Some(Mark::Worse)));
        let (mean, deviation) = spread(&dearer, &base).unwrap();
        assert!((mean - 1.2).abs() < 1e-9 && deviation < 1e-9);
    }
}
