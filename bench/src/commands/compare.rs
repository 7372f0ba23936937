//! `samewire compare`: runs models on workloads and compares them.

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
use crate::measure::environment;
use crate::measure::plan::{self, Batch, Case, IDLE_CONNECTIONS, QUICK_MODELS, Settings};
use crate::measure::progress::CompareProgress;
use crate::measure::run::Runner;
use crate::placement::Placement;
use crate::report::{markdown, table};
use crate::results::{
    self, ModelInfo, Note, Options, Results, SCHEMA, Skipped, summary, write_atomically,
};
use crate::target::{ExternalServer, Target, quoted};
use crate::workloads::{self, BLOCK_RATE, LIMIT, Workload};
use crate::{interrupt, list, output, registry, target};

/// Options of `compare`.
#[derive(Debug, Args)]
#[command(after_help = "Workloads:
  crowd    many clients connect at once and pause between requests: how long until all are served?
  max      closed loop without pause: how many requests per second at most, at what CPU cost?
  steady   open loop at the same rate for all models: how long do replies take?
  idle     1,000 idle connections: how much memory and CPU time do they cost?

Workloads that run only if --workloads names them (or names all):
  http-13b, http-13k  a small file over HTTP/1.1, in a closed loop
  http-13m            all users download a 13 MiB file at the same time: are all served, how fast,
                      at what cost?
  bulk                like http-13m, with 3 messages of 3 MiB each over the protocol bulk
  wait                each reply waits 5 ms for something slow: how many slow replies can a server
                      handle at the same time?
  block               one reply in ten blocks its thread for 5 ms: how long do the other nine take?
  block-offload       like block, but the call runs on other threads (--offload), in the models that
                      support it
  compute             each reply takes 200 µs of CPU time: do the models still differ?

Several values of --connections run a sweep. It shows the CPU time per request by number of
connections, in max (all connections are busy) and in steady (a few of many are busy). A model is
skipped where it cannot serve that number of connections at a time: serial, prefork and pool, and
select above about 1,000. All models with four values take ten minutes. http-*, bulk, wait and
compute can be swept, too: they print one table per value.

--quick measures eight models, one or two of each family: serial, threads, pool, mio, coroutines,
tokio, smol, uring.

Examples:
  samewire compare                                           all models, within four minutes
  samewire compare --quick                                   a few models, within 90 seconds
  samewire compare --models threads,mio --runs 10            two models, more runs
  samewire compare --models poll,mio --connections 10,100,1000,10000
  samewire compare --workloads steady --rate 20000 --duration 10s --out results/steady
  samewire compare --workloads http-13m,bulk --connections 100,1000
  samewire compare --workloads block,block-offload --models threads,tokio,smol
  samewire compare --models threads,mio --with 'mine=python3 server.py {port}'
  samewire compare --json > results.json

An external server (--with) must speak the protocol of --protocol. It runs only on the workloads
that need nothing but the chosen protocol.

Exit status: 0 if everything was measured, 1 if a run failed, 2 for wrong usage, 130 if
interrupted. After an interrupt, the runs that were measured until then are kept. A second Ctrl-C
ends the comparison at once, without a report.")]
pub struct CompareArgs {
    /// Models to compare [default: all that can run here]; the word none: only the servers of --with
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = parse_selection)]
    models: Vec<ModelSelection>,

    /// External server to compare, and the command that starts it; may be repeated. COMMAND must contain {port}, which is
    /// replaced by the port on which the server must listen; optional: {idle-timeout} and {drain} (in seconds), and
    /// {max-connections}
    #[arg(long, value_name = "NAME=COMMAND", value_parser = ExternalServer::parse)]
    with: Vec<ExternalServer>,

    /// Workloads to run; the word all: all of them [default: crowd,max,steady,idle; in a sweep (several values of
    /// --connections): max,steady]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        value_parser = workloads::parser(),
        hide_possible_values = true
    )]
    workloads: Vec<&'static [Workload]>,

    /// Fewer models and shorter runs; --models, --duration and the like override that
    #[arg(long)]
    quick: bool,

    /// Runs per model and workload, each with a fresh server process; min–max is shown from 2 runs on, and
    /// with fewer than 3 the report warns that they cannot show how much the figures vary [default: 3; 1 in idle]
    #[arg(long, alias = "launches", value_name = "N", value_parser = parse_runs)]
    runs: Option<u32>,

    /// Measured time per run of max, steady, http-13b, http-13k, wait, block, block-offload and compute; at least 3s in
    /// block and block-offload [default: 800ms; 500ms with --quick]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    duration: Option<Duration>,

    /// Measured time per run of idle
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_some_time)]
    idle_duration: Duration,

    /// Number of connections, in all workloads except idle; several values, such as 10,100,1000, run a sweep, which
    /// measures each workload with one number after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "100", value_parser = parse_connections)]
    connections: Vec<NonZero<usize>>,

    /// Requests per second of steady, over all connections; choose a rate that every model can serve
    #[arg(long, value_name = "N", default_value = "5000", value_parser = parse_rate)]
    rate: f64,

    /// How long crowd waits at most for all clients to be served [default: 3s]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    patience: Option<Duration>,

    /// Protocol of the workloads that work with any protocol of small messages (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    protocol: &'static Protocol,

    /// Bytes per request, including the end of the line; from 32
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = parse_size)]
    size: usize,

    /// Seed of the order of the runs and of the requests; the same seed repeats both [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Directory for the results; must not contain results yet [default: results/DATE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print results.json instead of the tables
    #[arg(long)]
    json: bool,
}

/// Default amount of measuring. Three runs show a spread; together all runs take no longer than the help states, and a
/// window has enough requests for its percentiles.
#[derive(Debug, Clone, Copy)]
struct Defaults {
    runs: u32,
    /// Runs of `idle`. One is enough because its figures hardly vary, and each takes long.
    idle_runs: u32,
    duration: Duration,
    patience: Duration,
}

/// Defaults with which all models take less than four minutes.
const FULL: Defaults = Defaults {
    runs: 3,
    idle_runs: 1,
    duration: Duration::from_millis(800),
    patience: Duration::from_secs(3),
};

/// Defaults of `--quick`, with which the models of [`QUICK_MODELS`] take less than a minute and a half.
const QUICK: Defaults = Defaults {
    duration: Duration::from_millis(500),
    ..FULL
};

impl Settings {
    /// Completes the options with the defaults.
    ///
    /// # Errors
    ///
    /// Returns a message for the user if the options do not fit together.
    pub(crate) fn of(args: &CompareArgs) -> Result<Settings, String> {
        ExternalServer::distinct(&args.with)?;
        if args.with.is_empty()
            && args
                .models
                .iter()
                .any(|one| matches!(one, ModelSelection::ExternalOnly))
        {
            return Err("--models none requires --with: there is no server to compare".to_string());
        }
        let defaults = if args.quick { QUICK } else { FULL };
        let mut connections: Vec<usize> = args.connections.iter().map(|n| n.get()).collect();
        connections.sort_unstable();
        connections.dedup();
        let named = args.workloads.concat();
        let sweep = connections.len() > 1;
        if let Some(other) = named.iter().find(|one| sweep && !one.sweeps()) {
            return Err(format!(
                "{other} cannot be part of a sweep; give --connections one value, or choose from --workloads {}",
                names(|one| one.sweeps())
            ));
        }
        let wanted = |one: &Workload| match named.is_empty() {
            true => Workload::DEFAULT.contains(one) && (one.sweeps() || !sweep),
            false => named.contains(one),
        };
        let workloads: Vec<Workload> = Workload::ALL.iter().copied().filter(wanted).collect();
        // The rate and the request size of the other workloads are made for small messages.
        let protocol = args.protocol.name;
        let own = names(|one| one.own_protocol() == Some(protocol));
        let other = workloads.iter().find(|one| one.own_protocol().is_none());
        if let Some(other) = other.filter(|_| !own.is_empty()) {
            return Err(format!(
                "{other} needs a protocol with small messages; for {protocol} use --workloads {own}"
            ));
        }
        Ok(Settings {
            workloads,
            runs: args.runs.unwrap_or(defaults.runs),
            idle_runs: args.runs.unwrap_or(defaults.idle_runs),
            duration: args.duration.unwrap_or(defaults.duration),
            idle_duration: args.idle_duration,
            connections,
            rate: args.rate,
            patience: args.patience.unwrap_or(defaults.patience),
            protocol: args.protocol,
            size: args.size,
        })
    }
}

/// Returns the names of the workloads that match, separated by commas as on the command line.
fn names(wanted: impl Fn(&Workload) -> bool) -> String {
    let wanted = Workload::ALL.iter().copied().filter(wanted);
    wanted.map(Workload::name).collect::<Vec<_>>().join(",")
}

/// One value of `--models`.
#[derive(Debug, Clone, Copy)]
enum ModelSelection {
    Model(&'static Model),
    /// The value `none`: only the external servers are compared.
    ExternalOnly,
}

fn parse_selection(name: &str) -> Result<ModelSelection, String> {
    match name {
        "none" => Ok(ModelSelection::ExternalOnly),
        name => parse_model(name).map(ModelSelection::Model),
    }
}

/// Finds a model by its name. A model that cannot run here is an error because the user named it; without `--models`
/// such a model is left out with a note.
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

/// Runs a comparison, prints its tables or its JSON, and writes `results.json` and `report.md`.
///
/// The exit code is 0 if everything was measured, 1 if a run failed, 2 for wrong usage, and 130 after an interrupt.
///
/// # Errors
///
/// Returns an error if the comparison cannot be started (too few descriptors, an external server that does not start,
/// a directory that cannot be used), or if its output cannot be written.
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
    require_descriptors(&settings, descriptors)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;

    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    // Every process and thread that this process starts from here on runs on the CPUs of the client, until it sets its
    // own CPUs.
    let placement = Placement::take();
    crate::child::adopt_orphans();
    // Both can fail, and must fail before minutes of measuring and not after.
    try_external_servers(&args.with, &placement)?;
    claim_directory(&out)?;
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
        environment: environment::read_environment(&settings, &placement),
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
    let save = |results: &Results| write_atomically(&out, results::FILE, &results.to_json()?);
    let runner = Runner {
        settings: &settings,
        placement: &placement,
        began: Instant::now(),
        interrupted: &interrupted,
    };
    measure(&runner, &batches, &mut results, &save);
    results.summary = summary::summarise(&results)?;
    finish(args, &out, &results)
}

/// Creates the directory and reserves it for this comparison: it creates `results.json` and fails if that file exists,
/// so that of two comparisons only one gets the directory.
fn claim_directory(dir: &Path) -> anyhow::Result<()> {
    let cannot = || {
        format!(
            "cannot write to {}; name another directory with --out",
            dir.display()
        )
    };
    fs::create_dir_all(dir).with_context(cannot)?;
    match fs::File::create_new(dir.join(results::FILE)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
            "{} already contains results, which are not overwritten; name another directory with --out, \
             or print these results with samewire report {}",
            dir.display(),
            dir.display()
        ),
        claimed => claimed.map(drop).with_context(cannot),
    }
}

/// Returns the selected models that can run here, and a description of all selected models. Both contain each model
/// once, in the order of the registry.
fn models(args: &CompareArgs, placement: &Placement) -> (Vec<&'static Model>, Vec<ModelInfo>) {
    let selected = |model: &&'static Model| {
        if args.models.is_empty() {
            !args.quick || QUICK_MODELS.contains(&model.name)
        } else {
            let named = |one: &ModelSelection| matches!(one, ModelSelection::Model(one) if one.name == model.name);
            args.models.iter().any(named)
        }
    };
    let mut available = Vec::new();
    let mut infos = Vec::new();
    for model in registry::models().filter(selected) {
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

/// Starts and stops each external server once, so that a command that does not work is reported before the first run.
fn try_external_servers(with: &[ExternalServer], placement: &Placement) -> anyhow::Result<()> {
    for external in with {
        let server = external.start(&target::TargetSettings::default(), placement)?;
        drop(server.stop());
    }
    Ok(())
}

/// Checks that the descriptor limit allows the connections: each is one descriptor in this process and one in the
/// server.
fn require_descriptors(settings: &Settings, limit: Descriptors) -> anyhow::Result<()> {
    let most = settings.most_connections();
    if !limit.allow(most) {
        bail!(
            "{most} connections need more open files than the limit of {}, which this process may not raise; \
             raise the limit (ulimit -n), or leave out idle with --workloads and use fewer --connections",
            limit.now.unwrap_or(u64::MAX)
        );
    }
    Ok(())
}

/// Returns the command line that repeats this comparison.
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
    // Without --runs the number of runs differs between workloads, so the option must stay absent.
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
        "{runs} runs, estimated time {}, seed {}",
        humantime::format_duration(Duration::from_secs(estimate.as_secs().max(1))),
        results.options.seed
    ));
    if results.environment.debug_build {
        output::print_error(
            "warning: this is a debug build and its figures are worthless; use cargo run --release",
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
    runner: &Runner,
    batches: &[Batch],
    results: &mut Results,
    save: &dyn Fn(&Results) -> anyhow::Result<()>,
) {
    let mut progress = CompareProgress::start(batches);
    let mut block = 0;
    // For each model, the smallest number of connections that could not all be opened. Another attempt would take as
    // long and have the same result.
    let mut full: BTreeMap<String, usize> = BTreeMap::new();
    for batch in batches {
        // The runs of earlier blocks are kept however this program ends.
        if batch.block != block {
            block = batch.block;
            if let Err(error) = save(results) {
                output::print_error(&format!("warning: {error:#}; measuring continues"));
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
        let Some(runs) = runner.measure(batch, results.runs.len() + 1) else {
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

/// Prints the results, then writes both files; a failure of one does not prevent the other.
fn finish(args: &CompareArgs, out: &Path, results: &Results) -> anyhow::Result<ExitCode> {
    let json = results.to_json()?;
    let printed = if args.json {
        output::print(&json)
    } else {
        output::print(&table::to_text(results, output::width()))
    };
    write_atomically(out, results::FILE, &json)?;
    write_atomically(out, markdown::NAME, &markdown::to_markdown(results))?;
    output::print_error(&format!(
        "written: {} and {}",
        out.join(results::FILE).display(),
        out.join(markdown::NAME).display()
    ));
    printed?;
    Ok(if !results.complete {
        ExitCode::from(interrupt::STATUS)
    } else if results.runs.iter().all(results::Run::valid) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: CompareArgs,
    }

    /// Parses options as they are written on the command line.
    pub(crate) fn args(words: &[&str]) -> CompareArgs {
        Command::parse_from(["compare"].iter().chain(words)).args
    }

    /// Parses options and fills in the default of every option that is not given.
    pub(crate) fn settings(words: &[&str]) -> Settings {
        Settings::of(&args(words)).unwrap()
    }

    #[test]
    fn help_names_the_models_of_quick() {
        let help = Command::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(&QUICK_MODELS.join(", ")), "{help}");
    }

    #[test]
    fn command_parses_back_to_the_same_settings() {
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
    fn model_that_cannot_run_here_is_refused_by_name() {
        static ELSEWHERE: Model = Model {
            name: "elsewhere",
            summary: "",
            lineage: "",
            source: "",
            serve: |_, _, _, _| unreachable!("this model is not available"),
            available: || Err("no such system call".to_string()),
            capacity: contract::Capacity::Limit,
            offload: contract::Offload::Nowhere("this model is not available"),
            needs: contract::Needs::NOTHING,
            deviations: &[],
        };
        let wrong = runs_here(&ELSEWHERE).unwrap_err();
        assert_eq!(wrong, "it cannot run here: no such system call");
        assert!(parse_model("mio").is_ok());
        assert!(parse_model("elsewhere").is_err());
    }
}
