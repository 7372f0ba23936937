//! `samewire compare`: runs models on workloads, and compares them. `samewire report` draws the reports again.
//!
//! Who reads on: `workload` is what is asked, `plan` how much of it and in which order, `case` how one run of it is
//! measured, `server` and `process` the server in it and what it uses, `evaluate` what that means and whether to believe
//! it; `results` is the file, `summary` what several runs say together, `table` and `markdown` how it is shown.

mod environment;
mod evaluate;
mod markdown;
pub mod metric;
pub mod plan;
mod progress;
pub mod results;
mod runner;
mod stats;
pub mod summary;
mod table;
pub mod workload;

use std::collections::BTreeMap;
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
use contract::{Descriptors, Model, raise_descriptor_limit};
use protocol::{PROTOCOLS, Protocol};

use crate::drive::{parse_rate, parse_size};
use crate::placement::Placement;
use crate::target::{ExternalServer, Target, quoted};
use crate::{interrupt, list, output, registry, target};
use plan::{Batch, Case, IDLE_CONNECTIONS, QUICK_MODELS, Settings};
use progress::CompareProgress;
use results::{ModelInfo, Note, Options, Results, SCHEMA, Skipped, write_whole};
use runner::Runner;
use workload::{BLOCK_RATE, LIMIT, Workload};

/// Options of `compare`.
#[derive(Debug, Args)]
#[command(after_help = "Workloads:
  crowd    many clients come at once and take their time: how long until all are served?
  max      closed loop without pause: the most requests per second, and what one costs
  steady   open loop at one rate for all: how long replies take, from the planned send time
  idle     a thousand silent connections: what they cost

And, if --workloads names them (all: everything):
  http-13b, http-13k  a small file over HTTP/1.1, in a closed loop
  http-13m            a file of 13 MiB for each user at once: are all served, how fast, at what cost?
  bulk                the same with 3 messages of 3 MiB for each peer (--protocol bulk)
  wait                each reply waits 5 ms for something slow: how many can wait at a time?
  block               one reply in ten keeps its thread for 5 ms: how long do the others take?
  block-offload       the same, moved to other threads (--offload), of the models that can
  compute             each reply takes 200 µs of CPU time: what is left of the differences?

Several numbers of --connections are a sweep: what a request costs the server, by the number of
connections, in max (all are busy) and steady (a few of many are). What a model cannot hold at a
time by design (serial, and those of a fixed number of workers) is left out of it. All models with
four numbers take ten minutes. Of http-*, bulk, wait and compute there is a table for each number.

The models of --quick are one of each idea: serial, threads, pool, mio, coroutines, tokio, smol,
uring.

Examples:
  samewire compare                                           all models, within four minutes
  samewire compare --quick                                   a few models, within a minute and a half
  samewire compare --models threads,mio --runs 10        two models, more runs
  samewire compare --models poll,mio --connections 10,100,1000,10000
  samewire compare --workloads steady --rate 20000 --duration 10s --out results/steady
  samewire compare --workloads http-13m,bulk --connections 100,1000
  samewire compare --workloads block,block-offload --models threads,tokio,smol
  samewire compare --models threads,mio --with 'mine=python3 server.py {port}'
  samewire compare --json > results.json

A server of --with is asked to speak the --protocol, on the workloads that need nothing else of it.

Exit status 0 if all was measured, 1 if a run failed, 2 for wrong usage, 130 if it was interrupted; what was
measured until then is kept.")]
pub struct CompareArgs {
    /// Which models [default: all that can run here]; none: only those of --with
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = parse_asked)]
    models: Vec<ModelSelection>,

    /// A server that is not ours, and how to start it; may be repeated. {port} stands for the port it is to listen on;
    /// {idle-timeout}, {drain} (in seconds) and {max-connections} for what else it can be told
    #[arg(long, value_name = "NAME=COMMAND {port}", value_parser = ExternalServer::parse)]
    with: Vec<ExternalServer>,

    /// Which workloads [default: the first four; max and steady with several numbers of --connections]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        value_parser = workload::parser(),
        hide_possible_values = true
    )]
    workloads: Vec<&'static [Workload]>,

    /// Fewer models and shorter windows; --models, --duration and the like override that
    #[arg(long)]
    quick: bool,

    /// ChildServer processes per model and workload; three are needed to see a spread [default: 3; 1 in idle]
    #[arg(long, alias = "launches", value_name = "N", value_parser = parse_runs)]
    runs: Option<u32>,

    /// Measure max, steady and what else has no end for this long in each run; block for 3s at least [default:
    /// 800ms; 500ms with --quick]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    duration: Option<Duration>,

    /// Measure the silence of idle for this long in each run
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_some_time)]
    idle_duration: Duration,

    /// Connections, in all workloads but idle; several numbers are a sweep
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "100", value_parser = parse_connections)]
    connections: Vec<NonZero<usize>>,

    /// Requests per second of steady, over all connections: below what every model can do
    #[arg(long, value_name = "N", default_value = "5000", value_parser = parse_rate)]
    rate: f64,

    /// How long crowd waits for a server at most [default: 3s]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    patience: Option<Duration>,

    /// What to say (see `samewire list`), in the workloads that are not about one protocol
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

/// One of `--models`.
#[derive(Debug, Clone, Copy)]
enum ModelSelection {
    Model(&'static Model),
    /// So that external servers can be compared with nobody else.
    Nobody,
}

fn parse_asked(name: &str) -> Result<ModelSelection, String> {
    match name {
        "none" => Ok(ModelSelection::Nobody),
        name => parse_model(name).map(ModelSelection::Model),
    }
}

/// Who names a model wants it: it is not left out with a note.
fn parse_model(name: &str) -> Result<&'static Model, String> {
    runs_here(registry::find(name)?)
}

fn runs_here(model: &'static Model) -> Result<&'static Model, String> {
    match (model.available)() {
        Ok(()) => Ok(model),
        Err(why) => Err(format!("it cannot run here: {why}")),
    }
}

fn parse_runs(text: &str) -> Result<u32, String> {
    let runs = text.parse().ok().filter(|runs| (1..=10_000).contains(runs));
    runs.ok_or_else(|| "write a number from 1 to 10000".to_string())
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
    if results.runs.is_empty() {
        bail!(
            "nothing was measured in {}: {}",
            args.dir.display(),
            if results.complete {
                "these models can do nothing of what was asked for"
            } else {
                "it was interrupted before its first run ended"
            }
        );
    }
    output::print(&table::to_text(&results, output::width()))?;
    write_whole(&args.dir, markdown::NAME, &markdown::to_markdown(&results))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the comparison, shows it, and writes it down.
///
/// # Errors
///
/// In one line: what kept it from being measured at all, or from being written.
pub fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let settings = match Settings::of(args) {
        Ok(settings) => settings,
        Err(wrong) => {
            output::print_error(&format!("error: {wrong} (see --help)"));
            return Ok(ExitCode::from(2));
        }
    };
    let out = args.out.clone().unwrap_or_else(|| {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Path::new("results").join(now.replace(':', ""))
    });
    let descriptors = raise_descriptor_limit();
    enough_descriptors(&settings, descriptors)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;

    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    // Everything that this process starts from here on is on the client's CPUs, until it says otherwise.
    let placement = Placement::take();
    crate::child::adopt_orphans();
    // Both before minutes of work, not after.
    try_out(&args.with, &placement)?;
    claim(&out)?;
    let (models, mut infos) = models(args, &placement);
    let mut targets: Vec<Target> = models.iter().copied().map(Target::Model).collect();
    for external in &args.with {
        targets.push(Target::ExternalServer(external.clone()));
        infos.push(ModelInfo::external(external));
    }
    let workers = |model: &Model| placement.workers_of(model);
    let (batches, skipped) = plan::batches(&targets, workers, &settings, seed, descriptors);
    let mut results = Results {
        schema: SCHEMA,
        complete: false,
        command: command(args, &settings, &models, seed),
        environment: environment::look(&settings, &placement),
        options: Options {
            models: infos.iter().map(|model| model.name.clone()).collect(),
            workloads: settings.workloads.clone(),
            runs: settings.runs,
            idle_runs: settings.idle_runs,
            duration_s: settings.duration.as_secs_f64(),
            block_duration_s: settings.duration(Workload::Block).as_secs_f64(),
            idle_duration_s: settings.idle_duration.as_secs_f64(),
            connections: settings.connections.clone(),
            idle_connections: IDLE_CONNECTIONS,
            rate_per_s: settings.rate,
            block_rate_per_s: BLOCK_RATE,
            patience_s: settings.patience.as_secs_f64(),
            limit_s: LIMIT.as_secs_f64(),
            protocol: settings.protocol.name.to_string(),
            size_bytes: settings.size,
            seed: seed.to_string(),
        },
        models: infos,
        runs: Vec::new(),
        skipped,
        summary: Vec::new(),
    };
    announce(&results, &batches);
    let save = |results: &Results| write_whole(&out, results::FILE, &results.to_json()?);
    let bench = Runner {
        settings: &settings,
        placement: &placement,
        began: Instant::now(),
        interrupted: &interrupted,
    };
    measure(&bench, &batches, &mut results, &save);
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
            "{} max_concurrent results already, and they are not overwritten; name another directory with --out, \
             or see them with samewire report {}",
            dir.display(),
            dir.display()
        ),
        claimed => claimed.map(drop).with_context(cannot),
    }
}

/// What can be measured, and all that was asked for. Each once, in the order of the registry.
fn models(args: &CompareArgs, placement: &Placement) -> (Vec<&'static Model>, Vec<ModelInfo>) {
    let asked = |model: &&'static Model| {
        if args.models.is_empty() {
            !args.quick || QUICK_MODELS.contains(&model.name)
        } else {
            let named = |asked: &ModelSelection| matches!(asked, ModelSelection::Model(one) if one.name == model.name);
            args.models.iter().any(named)
        }
    };
    let mut available = Vec::new();
    let mut infos = Vec::new();
    for model in registry::models().filter(asked) {
        let unavailable_reason = (model.available)().err();
        if unavailable_reason.is_none() {
            available.push(model);
        }
        let workers = placement.workers_of(model);
        infos.push(ModelInfo {
            name: model.name.to_string(),
            command: None,
            summary: model.summary.to_string(),
            lineage: model.lineage.to_string(),
            source: model.source.to_string(),
            capacity: list::name_of(model.capacity).to_string(),
            workers: Some(workers),
            max_concurrent: plan::max_concurrent(model, workers),
            unavailable_reason,
        });
    }
    (available, infos)
}

/// Whoever can't be started with that command is told at once.
fn try_out(with: &[ExternalServer], placement: &Placement) -> anyhow::Result<()> {
    for external in with {
        let server = external.start(&target::TargetSettings::default(), placement)?;
        drop(server.stop());
    }
    Ok(())
}

/// Each connection is one descriptor here and one in the server.
fn enough_descriptors(settings: &Settings, limit: Descriptors) -> anyhow::Result<()> {
    let most = settings.most_connections();
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
fn command(
    args: &CompareArgs,
    settings: &Settings,
    models: &[&'static Model],
    seed: u64,
) -> String {
    fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
        let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
        all.join(",")
    }
    let time = |time| {
        humantime::format_duration(time)
            .to_string()
            .replace(' ', "")
    };
    // What was left open stands for different numbers in different workloads.
    let runs = args.runs.map(|number| format!(" --runs {number}"));
    let with = args
        .with
        .iter()
        .map(|external| format!(" --with {}", quoted(&external.text())));
    let models = match models {
        [] => "none".to_string(),
        models => list(models.iter().map(|model| model.name)),
    };
    format!(
        "samewire compare --models {models}{} --workloads {}{} --duration {} --idle-duration {} --connections {} --rate {} \
         --patience {} --protocol {} --size {} --seed {seed}",
        with.collect::<String>(),
        list(&settings.workloads),
        runs.unwrap_or_default(),
        time(settings.duration),
        time(settings.idle_duration),
        list(&settings.connections),
        settings.rate,
        time(settings.patience),
        settings.protocol.name,
        settings.size,
    )
}

fn announce(results: &Results, batches: &[Batch]) {
    let estimate: Duration = batches.iter().map(|batch| batch.estimate).sum();
    let runs: usize = batches.iter().map(|batch| batch.cases.len()).sum();
    output::print_error(&format!(
        "{runs} runs, about {}; seed {}",
        humantime::format_duration(Duration::from_secs(estimate.as_secs().max(1))),
        results.options.seed
    ));
    if results.environment.debug_build {
        output::print_error(
            "warning: this is a debug build: its figures are worthless; use cargo run --release",
        );
    }
    for model in &results.models {
        if let Some(unavailable_reason) = &model.unavailable_reason {
            output::print_error(&format!(
                "note: {} is left out: {unavailable_reason}",
                model.name
            ));
        }
    }
}

fn measure(
    bench: &Runner,
    batches: &[Batch],
    results: &mut Results,
    save: &dyn Fn(&Results) -> anyhow::Result<()>,
) {
    let mut progress = CompareProgress::start(batches);
    let mut block = 0;
    // By model: so many connections could not be opened. To try again would take as long, and tell the same.
    let mut full: BTreeMap<String, usize> = BTreeMap::new();
    for batch in batches {
        // However this program may end, what was measured in earlier blocks is kept.
        if batch.block != block {
            block = batch.block;
            if let Err(error) = save(results) {
                output::print_error(&format!("warning: {error:#}; measuring goes on"));
            }
        }
        let is_full = |case: &Case| {
            let most = full.get(&case.target.name());
            case.opening().is_some() && most.is_some_and(|most| case.connections >= *most)
        };
        if batch.cases.iter().all(is_full) {
            for skipped in batch.cases.iter().map(Skipped::full) {
                if !results.skipped.contains(&skipped) {
                    results.skipped.push(skipped);
                }
            }
            progress.skip(batch);
            continue;
        }
        progress.begin(batch);
        let Some(runs) = bench.measure(batch, results.runs.len() + 1) else {
            progress.finish();
            return;
        };
        for (case, run) in batch.cases.iter().zip(runs) {
            if run.notes.contains(&Note::NotAllOpened) {
                let most = full.entry(case.target.name()).or_insert(case.connections);
                *most = case.connections.min(*most);
            }
            progress.measured(&run);
            results.runs.push(run);
        }
        progress.end(batch);
    }
    progress.finish();
    results.complete = true;
}

/// Shows it and writes it down; the first is done whatever becomes of the second.
fn finish(args: &CompareArgs, out: &Path, results: &Results) -> anyhow::Result<ExitCode> {
    let json = results.to_json()?;
    let shown = if args.json {
        output::print(&json)
    } else {
        output::print(&table::to_text(results, output::width()))
    };
    write_whole(out, results::FILE, &json)?;
    write_whole(out, markdown::NAME, &markdown::to_markdown(results))?;
    output::print_error(&format!(
        "written: {} and {}",
        out.join(results::FILE).display(),
        out.join(markdown::NAME).display()
    ));
    shown?;
    Ok(if !results.complete {
        ExitCode::from(interrupt::STATUS)
    } else if results.runs.iter().all(results::Run::valid) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

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

    /// Likewise, with everything decided.
    pub(super) fn settings(words: &[&str]) -> Settings {
        Settings::of(&args(words)).unwrap()
    }

    #[test]
    fn the_help_names_the_models_of_quick() {
        let help = Command::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(&QUICK_MODELS.join(", ")), "{help}");
    }

    #[test]
    fn the_command_repeats_it() {
        for words in [
            &["--quick"][..],
            &["--runs", "2", "--connections", "5,7"],
            &["--workloads", "idle", "--idle-duration", "1s500ms"],
            &["--workloads", "all"],
            &[
                "--with",
                "mine=run 'my server' it\\'s {port}",
                "--with",
                "b=b {port}",
            ],
        ] {
            let given = args(words);
            let settings = Settings::of(&given).unwrap();
            let models: Vec<_> = registry::models().take(2).collect();
            let command = command(&given, &settings, &models, 42);
            let words = shlex::split(&command).unwrap();
            let words: Vec<_> = words.iter().skip(2).map(String::as_str).collect();
            let again = args(&words);
            assert_eq!(again.models.len(), 2);
            assert_eq!(again.with, given.with);
            assert_eq!(again.seed, Some(42));
            let again = Settings::of(&again).unwrap();
            assert_eq!(format!("{again:?}"), format!("{settings:?}"));
        }
    }

    #[test]
    fn who_cannot_run_here_is_no_choice() {
        static ELSEWHERE: Model = Model {
            name: "elsewhere",
            summary: "",
            lineage: "",
            source: "",
            serve: |_, _, _, _| unreachable!("it is not here"),
            available: || Err("no such system call".to_string()),
            capacity: contract::Capacity::Limit,
            offload: contract::Offload::Nowhere("nothing is here"),
            needs: contract::Needs::NOTHING,
            deviations: &[],
        };
        let wrong = runs_here(&ELSEWHERE).unwrap_err();
        assert_eq!(wrong, "it cannot run here: no such system call");
        assert!(parse_model("mio").is_ok());
        assert!(parse_model("elsewhere").is_err());
    }
}
