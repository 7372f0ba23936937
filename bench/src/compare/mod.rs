//! `samewire compare`: runs models on workloads, and compares them. `samewire report` draws the reports again.
//!
//! Who reads on: `plan` is what is measured and in which order, `cell` one launch of it, `server` and `process` the
//! server in it and what it uses, `judge` what that means and whether to believe it; `results` is the file, `summary`
//! what several launches say together, `table` and `markdown` how it is shown.

mod cell;
mod environment;
mod judge;
mod markdown;
pub mod metric;
mod placement;
pub mod plan;
mod process;
mod progress;
pub mod results;
mod server;
mod stats;
pub mod summary;
mod table;

use std::fs;
use std::io::ErrorKind;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use contract::cli::{parse_connections, parse_protocol, parse_some_time};
use contract::{Model, raise_descriptor_limit};
use protocol::{PROTOCOLS, Protocol};

use crate::drive::{parse_rate, parse_size};
use crate::{interrupt, output, registry};
use cell::Bench;
use placement::Placement;
use plan::{Cell, IDLE_CONNECTIONS, Workload};
use progress::Progress;
use results::{ModelInfo, Options, Results, SCHEMA, write_whole};

/// Options of `compare`.
#[derive(Debug, Args)]
#[command(after_help = "Workloads:
  crowd    many clients come at once and take their time: how long until all are served?
  max      closed loop without pause: the most requests per second, and what one costs
  steady   open loop at one rate for all: how long replies take, from the planned send time
  idle     a thousand silent connections: what they cost

Examples:
  samewire compare                                           everything, within two minutes
  samewire compare --models threads,mio --launches 10        two models, more launches
  samewire compare --workloads steady --rate 20000 --duration 10s --out results/steady
  samewire compare --json > results.json

Exit status 0 if all was measured, 1 if a launch failed, 2 for wrong usage, 130 if it was interrupted; what was
measured until then is kept.")]
pub struct CompareArgs {
    /// Which models [default: all that can run here]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = registry::find)]
    models: Vec<&'static Model>,

    /// Which workloads
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        value_enum,
        default_value = "crowd,max,steady,idle",
        hide_possible_values = true
    )]
    workloads: Vec<Workload>,

    /// Server processes per model and workload; three are needed to see a spread
    #[arg(long, value_name = "N", default_value = "3", value_parser = parse_launches)]
    launches: u32,

    /// Measure max and steady for this long in each launch
    #[arg(long, value_name = "TIME", default_value = "900ms", value_parser = parse_some_time)]
    duration: Duration,

    /// Connections, in all workloads but idle
    #[arg(long, value_name = "N", default_value = "100", value_parser = parse_connections)]
    connections: NonZero<usize>,

    /// Requests per second of steady, over all connections: below what every model can do
    #[arg(long, value_name = "N", default_value = "5000", value_parser = parse_rate)]
    rate: f64,

    /// How long crowd waits for a server at most
    #[arg(long, value_name = "TIME", default_value = "6s", value_parser = parse_some_time)]
    patience: Duration,

    /// What to say (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    protocol: &'static Protocol,

    /// Bytes per request, with the line's end
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = parse_size)]
    size: usize,

    /// The same seed measures in the same order and asks the same [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Where the results go; must not hold any yet [default: results/DATE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print results.json instead of the tables
    #[arg(long)]
    json: bool,
}

fn parse_launches(text: &str) -> Result<u32, String> {
    let launches = text
        .parse()
        .ok()
        .filter(|launches| (1..=10_000).contains(launches));
    launches.ok_or_else(|| "write a number from 1 to 10000".to_string())
}

/// Options of `report`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  samewire report results/2026-01-31T120000Z")]
pub struct ReportArgs {
    /// The directory that `compare` wrote
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Draws the tables and the report of an earlier comparison again.
///
/// # Errors
///
/// There is none in that directory, or the report cannot be written.
pub fn report(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let results = Results::read(&args.dir)?;
    if results.launches.is_empty() {
        bail!(
            "nothing was measured in {}: it was interrupted before its first launch ended",
            args.dir.display()
        );
    }
    output::print(&table::to_text(&results))?;
    write_whole(&args.dir, markdown::NAME, &markdown::to_markdown(&results))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the comparison, shows it, and writes it down.
///
/// # Errors
///
/// In one line: what kept it from being measured at all, or from being written.
pub fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let out = args.out.clone().unwrap_or_else(|| {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Path::new("results").join(now.replace(':', ""))
    });
    let workloads: Vec<Workload> = Workload::ALL
        .into_iter()
        .filter(|workload| args.workloads.contains(workload))
        .collect();
    enough_descriptors(args, &workloads)?;
    // Before two minutes of work, not after.
    claim(&out)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;

    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    // Everything that this process starts from here on is on the client's CPUs, until it says otherwise.
    let placement = Placement::take();
    let (models, infos) = models(args);
    let cells = plan::cells(&models, &workloads, args, seed);
    let mut results = Results {
        schema: SCHEMA,
        complete: false,
        command: command(args, &infos, &workloads, seed),
        environment: environment::look(args, &placement),
        options: Options {
            models: infos.iter().map(|model| model.name.clone()).collect(),
            workloads,
            launches: args.launches,
            duration_s: args.duration.as_secs_f64(),
            connections: args.connections.get(),
            idle_connections: IDLE_CONNECTIONS,
            rate_per_s: args.rate,
            patience_s: args.patience.as_secs_f64(),
            protocol: args.protocol.name.to_string(),
            size_bytes: args.size,
            seed: seed.to_string(),
        },
        models: infos,
        launches: Vec::new(),
        summary: Vec::new(),
    };
    announce(&results, &cells);
    let save = |results: &Results| write_whole(&out, results::FILE, &results.to_json()?);
    measure(args, &placement, &cells, &interrupted, &mut results, &save);
    results.summary = summary::summarise(&results)?;
    finish(args, &out, &results)
}

/// Makes the directory, and takes it for this comparison: by a results.json that nobody else can have made first.
fn claim(dir: &Path) -> anyhow::Result<()> {
    let cannot = || {
        format!(
            "cannot write to {}; name another directory with --out",
            dir.display()
        )
    };
    fs::create_dir_all(dir).with_context(cannot)?;
    match fs::File::create_new(dir.join(results::FILE)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
            "{} holds results already, and they are not overwritten; name another directory with --out, \
             or see them with samewire report {}",
            dir.display(),
            dir.display()
        ),
        claimed => claimed.map(drop).with_context(cannot),
    }
}

/// What can be measured, and all that was asked for. Each once, in the order of the registry.
fn models(args: &CompareArgs) -> (Vec<&'static Model>, Vec<ModelInfo>) {
    let asked = |model: &&'static Model| {
        args.models.is_empty() || args.models.iter().any(|asked| asked.name == model.name)
    };
    let mut available = Vec::new();
    let mut infos = Vec::new();
    for model in registry::models().filter(asked) {
        let obstacle = (model.available)().err();
        if obstacle.is_none() {
            available.push(model);
        }
        infos.push(ModelInfo {
            name: model.name.to_string(),
            summary: model.summary.to_string(),
            source: model.source.to_string(),
            obstacle,
        });
    }
    (available, infos)
}

/// Each connection is one descriptor here and one in the server.
fn enough_descriptors(args: &CompareArgs, workloads: &[Workload]) -> anyhow::Result<()> {
    let limit = raise_descriptor_limit();
    let most = workloads
        .iter()
        .map(|workload| workload.connections(args))
        .max()
        .unwrap_or(0);
    if !limit.allow(most) {
        bail!(
            "{most} connections do not fit the limit of {} open files, and this process may not raise it; \
             raise it (ulimit -n), or leave out idle with --workloads and use fewer --connections",
            limit.now.unwrap_or(u64::MAX)
        );
    }
    Ok(())
}

/// The command line that repeats this comparison.
fn command(args: &CompareArgs, models: &[ModelInfo], workloads: &[Workload], seed: u64) -> String {
    let models: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
    let workloads: Vec<_> = workloads.iter().map(Workload::to_string).collect();
    let time = |time| {
        humantime::format_duration(time)
            .to_string()
            .replace(' ', "")
    };
    format!(
        "samewire compare --models {} --workloads {} --launches {} --duration {} --connections {} --rate {} \
         --patience {} --protocol {} --size {} --seed {seed}",
        models.join(","),
        workloads.join(","),
        args.launches,
        time(args.duration),
        args.connections,
        args.rate,
        time(args.patience),
        args.protocol.name,
        args.size,
    )
}

fn announce(results: &Results, cells: &[Cell]) {
    let estimate: Duration = cells.iter().map(|cell| cell.estimate).sum();
    output::complain(&format!(
        "{} launches, about {}; seed {}",
        cells.len(),
        humantime::format_duration(Duration::from_secs(estimate.as_secs().max(1))),
        results.options.seed
    ));
    if results.environment.debug_build {
        output::complain(
            "warning: this is a debug build: its figures are worthless; use cargo run --release",
        );
    }
    for model in &results.models {
        if let Some(obstacle) = &model.obstacle {
            output::complain(&format!("note: {} is left out: {obstacle}", model.name));
        }
    }
}

fn measure(
    args: &CompareArgs,
    placement: &Placement,
    cells: &[Cell],
    interrupted: &AtomicBool,
    results: &mut Results,
    save: &dyn Fn(&Results) -> anyhow::Result<()>,
) {
    let bench = Bench {
        args,
        placement,
        began: Instant::now(),
        interrupted,
    };
    let mut progress = Progress::start(cells);
    let mut block = 0;
    for (cell, order) in cells.iter().zip(1..) {
        // However this program may end, what was measured in earlier blocks is kept.
        if cell.block != block {
            block = cell.block;
            if let Err(error) = save(results) {
                output::complain(&format!("warning: {error:#}; measuring goes on"));
            }
        }
        progress.begin(cell);
        let Some(launch) = bench.measure(cell, order) else {
            break;
        };
        progress.end(cell, &launch);
        results.launches.push(launch);
    }
    progress.finish();
    results.complete = results.launches.len() == cells.len();
}

/// Shows it and writes it down; the first is done whatever becomes of the second.
fn finish(args: &CompareArgs, out: &Path, results: &Results) -> anyhow::Result<ExitCode> {
    let json = results.to_json()?;
    let shown = if args.json {
        output::print(&json)
    } else {
        output::print(&table::to_text(results))
    };
    write_whole(out, results::FILE, &json)?;
    write_whole(out, markdown::NAME, &markdown::to_markdown(results))?;
    output::complain(&format!(
        "written: {} and {}",
        out.join(results::FILE).display(),
        out.join(markdown::NAME).display()
    ));
    shown?;
    Ok(if !results.complete {
        ExitCode::from(interrupt::STATUS)
    } else if results.launches.iter().all(results::Launch::valid) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: CompareArgs,
    }

    /// As from the command line.
    pub(super) fn args(words: &[&str]) -> CompareArgs {
        Command::parse_from(["compare"].iter().chain(words)).args
    }
}
