//! `samewire check`: checks the guarantees of the contract, and shows the verdicts as a matrix.

mod case;
mod guarantees;
mod matrix;
mod progress;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use client::misbehave::RequestSpec;
use contract::cli::{parse_address, parse_protocol, parse_threads};
use contract::{Model, raise_descriptor_limit};
use protocol::http::Page;
use protocol::{Bulk, PROTOCOLS, Protocol};

use crate::child::adopt_orphans;
use crate::placement::Placement;
use crate::target::{ExternalServer, Target, list, quoted};
use crate::{interrupt, output, registry};
use case::{CheckCase, CheckFailure, Passed};
use guarantees::{CHECKS, Check, RunsBeside};
use matrix::{CellStatus, Column, Matrix, MatrixCell};
use progress::CheckProgress;

/// Options of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  samewire check                                    all models, all guarantees
  samewire check --quick                            the same, in less time and less thoroughly
  samewire check mio tokio --guarantees stop,leaks  two models, two guarantees
  samewire check --protocol http --markdown         as a table for a decision record
  samewire check --with 'mine=python3 server.py {port}'
  samewire check --at 127.0.0.1:7000                a server that runs already

Exit status: 0 if every guarantee is kept, or a declared deviation was seen (by design); 1 if not;
2 for wrong usage; 130 after Ctrl-C, with the results up to then.")]
pub struct CheckArgs {
    /// Models to check [default: all that can run here; with --with or --at: none]
    #[arg(value_name = "MODEL", value_parser = registry::find)]
    models: Vec<&'static Model>,

    /// Guarantees to check, by the heads of the matrix's columns (exact, half-close, idle, …) [default: all]
    #[arg(long, alias = "promises", value_name = "NAMES", value_delimiter = ',', value_parser = parse_check)]
    guarantees: Vec<&'static Check>,

    /// Protocol that the clients and the server speak (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    protocol: &'static Protocol,

    /// External server to check, and the command that starts it; may be repeated. COMMAND must contain {port}, which is
    /// replaced by the port on which the server must listen. Optional: {idle-timeout} and {drain} (in seconds),
    /// {max-connections}, and {panic}, which is replaced by the line that must make a session panic
    #[arg(long, value_name = "NAME=COMMAND", value_parser = ExternalServer::parse)]
    with: Vec<ExternalServer>,

    /// Address of a server to check that runs already; may be repeated
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    at: Vec<SocketAddr>,

    /// With --at: also check a server that is not on this machine, if you are permitted to attack it
    #[arg(long, requires = "at")]
    not_only_loopback: bool,

    /// Check less: fewer connections and fewer kinds of misbehaving clients, in under a minute
    #[arg(long)]
    quick: bool,

    /// Number of servers that are checked at the same time; the check of isolation measures latency and runs alone
    #[arg(long, value_name = "N", default_value = "8", value_parser = parse_threads)]
    jobs: NonZero<usize>,

    /// Seed of the requests; the same seed generates the same requests [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Print everything that was measured, too
    #[arg(short, long, conflicts_with_all = ["json", "markdown"])]
    verbose: bool,

    /// Print the results as JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,

    /// Print the matrix as a Markdown table
    #[arg(long)]
    markdown: bool,
}

fn parse_check(name: &str) -> Result<&'static Check, String> {
    CHECKS
        .iter()
        .find(|check| check.guarantee.name() == name)
        .ok_or_else(|| {
            let names: Vec<_> = CHECKS.iter().map(|check| check.guarantee.name()).collect();
            format!("no such guarantee; the guarantees are {}", names.join(", "))
        })
}

/// Size and number of the messages of `bulk` in a check: small, since there are thousands of conversations.
pub(crate) const BULK: Bulk = Bulk {
    size: 64 * 1024,
    count: 3,
};

/// Runs the checks, and prints their results.
///
/// # Errors
///
/// Fails if nothing can be checked, or if the results can't be printed.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    if let Err(why) = validate(args) {
        output::print_error(&format!("error: {why} (see --help)"));
        return Ok(ExitCode::from(2));
    }
    let targets = targets(args);
    if targets.is_empty() {
        bail!("there is nothing to check: none of the chosen models can run here");
    }
    let placement = Placement::take();
    let parallel_jobs = jobs(args)?;
    adopt_orphans();
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let started = Instant::now();
    let spec = RequestSpec {
        protocol: args.protocol,
        seed,
        bulk: BULK,
        page: Arc::new(Page::default()),
    };
    let checks: Vec<&Check> = if args.guarantees.is_empty() {
        CHECKS.iter().collect()
    } else {
        CHECKS
            .iter()
            .filter(|check| {
                args.guarantees
                    .iter()
                    .any(|chosen| chosen.guarantee == check.guarantee)
            })
            .collect()
    };
    let runner = CheckRunner {
        args,
        placement: &placement,
        spec: &spec,
        interrupted: &interrupted,
        seed,
        progress: CheckProgress::start(targets.len(), checks.len()),
    };
    let mut cells = Vec::new();
    for runs_beside in RunsBeside::ALL {
        let jobs = targets.iter().flat_map(|target| {
            let checks = checks
                .iter()
                .filter(|check| check.runs_beside == runs_beside);
            checks.map(move |check| (target, *check))
        });
        let threads = match runs_beside {
            RunsBeside::Any | RunsBeside::Quiet => parallel_jobs,
            RunsBeside::None => 1,
        };
        cells.extend(runner.carry_out(jobs.collect(), threads));
    }
    runner.progress.finish();
    let interrupted = interrupted.load(Ordering::Relaxed);
    let mut matrix = Matrix {
        schema: Matrix::SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        command: runner.command(&targets, &checks),
        conditions: conditions(&targets, &checks, args, &placement),
        protocol: args.protocol.name,
        quick: args.quick,
        seed: seed.to_string(),
        seconds: started.elapsed().as_secs_f64(),
        interrupted,
        guarantees: checks.iter().map(|check| column(check)).collect(),
        targets: targets.iter().map(Target::name).collect(),
        cells,
    };
    matrix.sort();
    output::print(&if args.json {
        matrix.json()?
    } else if args.markdown {
        matrix.markdown()
    } else {
        matrix.text(args.verbose)
    })?;
    if interrupted {
        output::print_error("interrupted: checks that are missing in the matrix were not done");
        return Ok(ExitCode::from(interrupt::STATUS));
    }
    Ok(if matrix.good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Refuses external servers with equal names, addresses that are given twice, and addresses on other machines, unless
/// they were allowed.
fn validate(args: &CheckArgs) -> Result<(), String> {
    ExternalServer::distinct(&args.with)?;
    for (index, address) in args.at.iter().enumerate() {
        if args.at[..index].contains(address) {
            return Err(format!(
                "--at {address} is given twice; give each address once"
            ));
        }
        if !address.ip().is_loopback() && !args.not_only_loopback {
            return Err(format!(
                "{address} is not on this machine, and the checks attack the server: if the server is yours, add --not-only-loopback"
            ));
        }
    }
    Ok(())
}

/// Number of descriptors that the largest check needs for its peers.
const MOST_PEERS: u64 = 2_500;

/// Returns the number of checks that run at the same time: as many as `--jobs` asks for and as the limit on descriptors
/// allows.
fn jobs(args: &CheckArgs) -> anyhow::Result<usize> {
    let limit = raise_descriptor_limit().now.unwrap_or(u64::MAX);
    if limit < MOST_PEERS {
        bail!(
            "some checks need {MOST_PEERS} descriptors for their peers, and this process may open {limit}: raise the limit (ulimit -n)"
        );
    }
    let fit = usize::try_from(limit / MOST_PEERS).unwrap_or(usize::MAX);
    Ok(args.jobs.get().min(fit))
}

fn column(check: &Check) -> Column {
    Column {
        name: check.guarantee.name(),
        summary: check.summary,
    }
}

/// Describes in a sentence or two what was checked, and where.
fn conditions(
    targets: &[Target],
    checks: &[&Check],
    args: &CheckArgs,
    placement: &Placement,
) -> String {
    let count = |count: usize, one: &str| match count {
        1 => format!("1 {one}"),
        more => format!("{more} {one}s"),
    };
    let mut text = format!(
        "{} × {}, protocol {}; samewire {} ({} build)",
        count(targets.len(), "server"),
        count(checks.len(), "guarantee"),
        args.protocol.name,
        env!("CARGO_PKG_VERSION"),
        if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
    );
    match &placement.warning {
        Some(warning) => text.push_str(&format!(". Note: {warning}.")),
        None => text.push_str(&format!(
            ", servers on CPU {}, clients on CPU {}.",
            list(&placement.server),
            list(&placement.client)
        )),
    }
    if args.quick {
        text.push_str(" Quick: fewer connections, and fewer kinds of misbehaving clients.");
    }
    text
}

fn targets(args: &CheckArgs) -> Vec<Target> {
    let mut targets = Vec::new();
    let external_only = !args.with.is_empty() || !args.at.is_empty();
    for model in registry::models() {
        let named = args.models.iter().any(|chosen| chosen.name == model.name);
        if !named && (external_only || !args.models.is_empty()) {
            continue;
        }
        match (model.available)() {
            Ok(()) => targets.push(Target::Model(model)),
            Err(why) => output::print_error(&format!("note: {} is left out: {why}", model.name)),
        }
    }
    targets.extend(args.with.iter().cloned().map(Target::ExternalServer));
    targets.extend(args.at.iter().copied().map(Target::At));
    targets
}

/// Conditions under which all targets are checked.
struct CheckRunner<'a> {
    args: &'a CheckArgs,
    placement: &'a Placement,
    spec: &'a RequestSpec,
    interrupted: &'a Arc<AtomicBool>,
    seed: u64,
    progress: CheckProgress,
}

impl CheckRunner<'_> {
    /// Carries out the jobs, on this number of threads.
    fn carry_out(
        &self,
        jobs: VecDeque<(&Target, &'static Check)>,
        threads: usize,
    ) -> Vec<MatrixCell> {
        let jobs = Mutex::new(jobs);
        let cells = Mutex::new(Vec::new());
        let take = || {
            jobs.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front()
        };
        thread::scope(|scope| {
            for _ in 0..threads {
                // This thread must live longer than the servers that it starts: the kernel kills a server when its
                // starter ends.
                scope.spawn(|| {
                    while let Some((target, check)) = take() {
                        if self.interrupted.load(Ordering::Relaxed) {
                            return;
                        }
                        let cell = self.check(target, check);
                        cells
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .extend(cell);
                    }
                });
            }
        });
        cells.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, target: &Target, check: &'static Check) -> Option<MatrixCell> {
        let started = Instant::now();
        self.progress.begin(&target.name(), check.guarantee.name());
        // The content of the page is learned from the first reply of each server. Each server has its own page.
        let spec = RequestSpec {
            page: Arc::new(Page::default()),
            ..self.spec.clone()
        };
        let case = CheckCase {
            target,
            guarantee: check.guarantee,
            spec: &spec,
            placement: self.placement,
            quick: self.args.quick,
            interrupted: self.interrupted,
        };
        let status = match (check.check)(&case) {
            Ok(passed) => self.status(&case, check, passed),
            Err(CheckFailure::NotApplicable(why)) => CellStatus::NotApplicable { why },
            Err(CheckFailure::Broken(broken)) => CellStatus::Broken {
                expected: broken.expected,
                seen: broken.seen,
                transcript: broken.transcript,
                reproduce: self.reproduce(target, check),
            },
            Err(CheckFailure::CheckError(error)) => CellStatus::Unchecked {
                why: format!("{error:#}"),
            },
            Err(CheckFailure::Interrupted) => return None,
        };
        let cell = MatrixCell {
            target: target.name(),
            guarantee: check.guarantee.name(),
            status,
            seconds: started.elapsed().as_secs_f64(),
        };
        self.progress.done(&cell);
        Some(cell)
    }

    /// Compares the observed behaviour with the declared one: a declared deviation must be seen, and a deviation that
    /// is seen must be declared.
    fn status(&self, case: &CheckCase<'_>, check: &'static Check, passed: Passed) -> CellStatus {
        match (passed.by_design, case.deviation()) {
            (None, None) => CellStatus::Keeps {
                figure: passed.figure,
                details: passed.details,
            },
            (Some(seen), Some(deviation)) => CellStatus::ByDesign {
                reason: deviation.reason.to_string(),
                seen,
                figure: passed.figure,
                details: passed.details,
            },
            (None, Some(deviation)) => CellStatus::Broken {
                expected: format!(
                    "the deviation that the model declares: {}",
                    deviation.reason
                ),
                seen: "the guarantee is kept".to_string(),
                transcript: None,
                reproduce: self.reproduce(case.target, check),
            },
            (Some(seen), None) => CellStatus::Broken {
                expected: "the guarantee is kept, because the model declares no deviation"
                    .to_string(),
                seen,
                transcript: None,
                reproduce: self.reproduce(case.target, check),
            },
        }
    }

    /// Returns the command that repeats this check.
    fn reproduce(&self, target: &Target, check: &'static Check) -> String {
        self.command(std::slice::from_ref(target), &[check])
    }

    /// Returns the command that repeats these checks.
    fn command(&self, targets: &[Target], checks: &[&Check]) -> String {
        let mut words = vec!["samewire".to_string(), "check".to_string()];
        for target in targets {
            match target {
                Target::Model(model) => words.push(model.name.to_string()),
                Target::ExternalServer(external) => {
                    words.extend(["--with".to_string(), external.text()]);
                }
                Target::At(address) => words.extend(["--at".to_string(), address.to_string()]),
                // `check` has no option for it.
                Target::Null | Target::OtherBuild(_) => {}
            }
        }
        words.push("--protocol".to_string());
        words.push(self.spec.protocol.name.to_string());
        if checks.len() < CHECKS.len() {
            let names: Vec<_> = checks.iter().map(|check| check.guarantee.name()).collect();
            words.extend(["--guarantees".to_string(), names.join(",")]);
        }
        words.extend(["--seed".to_string(), self.seed.to_string()]);
        if self.args.quick {
            words.push("--quick".to_string());
        }
        let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
        words.join(" ")
    }
}
