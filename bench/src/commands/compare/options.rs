//! The options of `compare`, and the settings of a comparison that follow from them.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use contract::Model;
use contract::cli::{parse_connections, parse_protocol, parse_some_time};
use protocol::{PROTOCOLS, Protocol};

use crate::drive::{parse_rate, parse_size};
use crate::measure::plan::Settings;
use crate::registry;
use crate::target::{ExternalServer, quoted};
use crate::workloads::{self, Workload};

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
select above about 1,000. The budget of a sweep is ten minutes. http-*, bulk, wait and compute can be
swept, too: they print one table per value.

A comparison runs in rounds. Each round starts fresh server processes of all models. In max, steady,
http-13b, http-13k, wait and compute all of them are alive at the same time, and the client loads one
after the other for some milliseconds (a slice), again and again, in random order: what disturbs the
machine then disturbs all models alike. Measuring stops when the ratio to the best is known to the
--precision for all models, or when the --budget is used up.

Marks: * the leader (all others are worse), ≈ may be the best, = as good as the best (within 5 %),
~ not known yet, ? doubtful. There are no marks with fewer than six rounds. Two models are measured
twice under hidden names; if such a twin differs from its model, the machine was too noisy, and the
exit status is 1.

--quick measures eight models, one or two of each family: serial, threads, pool, mio, coroutines,
tokio, smol, uring.

Examples:
  samewire compare                                           all models, within eight minutes
  samewire compare --quick                                   a few models, within 150 seconds
  samewire compare --duel mio,uring                          two models, as exactly as possible
  samewire compare --models threads,mio --rounds 15          two models, a fixed number of rounds
  samewire compare --precision 2% --budget 30m               a finer comparison
  samewire compare --models poll,mio --connections 10,100,1000,10000
  samewire compare --workloads steady --rate 20000 --duration 10s --out results/steady
  samewire compare --workloads http-13m,bulk --connections 100,1000
  samewire compare --workloads block,block-offload --models threads,tokio,smol
  samewire compare --models threads,mio --with 'mine=python3 server.py {port}'
  samewire compare --models mio,uring --against ../before/target/release/samewire
  samewire compare --json > results.json

An external server (--with) must speak the protocol of --protocol. It runs only on the workloads
that need nothing but the chosen protocol.

Exit status: 0 if everything was measured, 1 if a run failed or a twin differs from its model, 2 for
wrong usage, 130 if interrupted. After an interrupt, the runs that were measured until then are kept. A second Ctrl-C
ends the comparison at once, without a report.")]
pub struct CompareArgs {
    /// Models to compare [default: all that can run here]; the word none: only the servers of --with
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = parse_selection)]
    pub(super) models: Vec<ModelSelection>,

    /// External server to compare, and the command that starts it; may be repeated. COMMAND must contain {port}, which is
    /// replaced by the port on which the server must listen; optional: {idle-timeout} and {drain} (in seconds), and
    /// {max-connections}
    #[arg(long, value_name = "NAME=COMMAND", value_parser = ExternalServer::parse)]
    pub(super) with: Vec<ExternalServer>,

    /// Another build of samewire: every model of it is measured in the same rounds as that of this build
    #[arg(long, value_name = "BINARY")]
    pub(super) against: Option<PathBuf>,

    /// Workloads to run; the word all: all of them [default: crowd,max,steady,idle; in a sweep (several values of
    /// --connections): max,steady]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        value_parser = workloads::parser(),
        hide_possible_values = true
    )]
    pub(super) workloads: Vec<&'static [Workload]>,

    /// Fewer models and shorter runs; --models, --duration and the like override that
    #[arg(long)]
    pub(super) quick: bool,

    /// Number of rounds, each with fresh server processes; replaces --precision and --budget. From 6 rounds on, the
    /// models have marks [default: as many as --precision needs and --budget allows; 3 in crowd and idle]
    #[arg(long, aliases = ["runs", "launches"], value_name = "N", value_parser = parse_rounds)]
    pub(super) rounds: Option<u32>,

    /// Stop when the interval of each ratio to the best is this narrow (its half width)
    #[arg(long, value_name = "PERCENT", default_value = "4%", value_parser = parse_percent)]
    pub(super) precision: f64,

    /// Begin no further round after this time; one round is always measured [default: 7m30s; 2m20s with --quick; 10m
    /// in a sweep]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    pub(super) budget: Option<Duration>,

    /// Compare just these two models, in slices of 5 ms; replaces --models
    #[arg(long, value_name = "A,B", value_delimiter = ',', num_args = 1, conflicts_with_all = ["models", "quick"], value_parser = parse_model)]
    pub(super) duel: Vec<&'static Model>,

    /// Measure no model twice
    #[arg(long)]
    pub(super) no_twins: bool,

    /// Do not measure the machine before the first round
    #[arg(long)]
    pub(super) no_probe: bool,

    /// Measured time per model and round of max, steady, http-13b, http-13k, wait, block, block-offload and compute; at
    /// least 3s in block and block-offload [default: 300ms in the slices of max, http-13b and http-13k; otherwise 800ms, or
    /// 500ms with --quick]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    pub(super) duration: Option<Duration>,

    /// Measured time per model and round of idle [default: 5s; 3s with --quick]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    pub(super) idle_duration: Option<Duration>,

    /// Number of connections, in all workloads except idle; several values, such as 10,100,1000, run a sweep, which
    /// measures each workload with one number after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "100", value_parser = parse_connections)]
    pub(super) connections: Vec<NonZero<usize>>,

    /// Requests per second of steady, over all connections; choose a rate that every model can serve
    #[arg(long, value_name = "N", default_value = "5000", value_parser = parse_rate)]
    pub(super) rate: f64,

    /// How long crowd waits at most for all clients to be served [default: 3s]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    pub(super) patience: Option<Duration>,

    /// Protocol of the workloads that work with any protocol of small messages (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    pub(super) protocol: &'static Protocol,

    /// Bytes per request, including the end of the line; from 32
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = parse_size)]
    pub(super) size: usize,

    /// Seed of the order of the runs and of the requests; the same seed repeats both [default: random]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,

    /// Directory for the results; must not contain results yet [default: results/DATE]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,

    /// Print results.json instead of the tables
    #[arg(long)]
    pub(super) json: bool,
}

/// Default amount of measuring.
#[derive(Debug, Clone, Copy)]
struct Defaults {
    /// Rounds of the workloads whose figures hardly vary.
    few_rounds: u32,
    budget: Duration,
    duration: Duration,
    sliced_duration: Duration,
    idle_duration: Duration,
    patience: Duration,
}

/// Defaults with which all models take less than eight minutes.
const FULL: Defaults = Defaults {
    few_rounds: 3,
    budget: Duration::from_secs(450),
    duration: Duration::from_millis(800),
    // The figures of a model differ more from process to process than from slice to slice, so many short rounds tell
    // more than a few long ones.
    sliced_duration: Duration::from_millis(300),
    idle_duration: Duration::from_secs(5),
    patience: Duration::from_secs(3),
};

/// Defaults of `--quick`, with which the models of [`QUICK_MODELS`] take less than two and a half minutes.
const QUICK: Defaults = Defaults {
    few_rounds: 2,
    budget: Duration::from_secs(140),
    duration: Duration::from_millis(500),
    idle_duration: Duration::from_secs(3),
    ..FULL
};

/// Budget of a sweep.
const SWEEP_BUDGET: Duration = Duration::from_secs(600);

/// Length of the slices of closed loops.
const SLICE: Duration = Duration::from_millis(10);

/// Length of the slices of closed loops in a duel.
const DUEL_SLICE: Duration = Duration::from_millis(5);

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
        if let [first, second] = args.duel[..]
            && first.name == second.name
        {
            return Err("--duel needs two different models; with --models, a twin of each model is measured beside it".to_string());
        } else if args.duel.len() == 1 || args.duel.len() > 2 {
            return Err("--duel needs two models, separated by a comma".to_string());
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
            true => one.is_default() && (one.sweeps() || !sweep),
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
            rounds: args.rounds,
            few_rounds: args.rounds.unwrap_or(defaults.few_rounds),
            precision: args.precision,
            budget: match (args.budget, args.rounds) {
                (Some(budget), _) => Some(budget),
                (None, Some(_)) => None,
                (None, None) if sweep => Some(SWEEP_BUDGET),
                (None, None) => Some(defaults.budget),
            },
            twins: !args.no_twins && !sweep,
            slice: if args.duel.is_empty() {
                SLICE
            } else {
                DUEL_SLICE
            },
            duration: args.duration.unwrap_or(defaults.duration),
            sliced_duration: args.duration.unwrap_or(defaults.sliced_duration),
            idle_duration: args.idle_duration.unwrap_or(defaults.idle_duration),
            connections,
            rate: args.rate,
            patience: args.patience.unwrap_or(defaults.patience),
            protocol: args.protocol,
            size: args.size,
        })
    }
}

/// Returns the settings of `compare` without any option.
///
/// # Errors
///
/// Returns an error if the defaults do not fit together, which a test excludes.
pub(crate) fn default_settings() -> anyhow::Result<Settings> {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        args: CompareArgs,
    }
    let defaults = <Defaults as clap::Parser>::try_parse_from(["compare"])?;
    Settings::of(&defaults.args).map_err(anyhow::Error::msg)
}

/// Returns the names of the workloads that match, separated by commas as on the command line.
fn names(wanted: impl Fn(&Workload) -> bool) -> String {
    let wanted = Workload::ALL.iter().copied().filter(wanted);
    wanted.map(Workload::name).collect::<Vec<_>>().join(",")
}

/// One value of `--models`.
#[derive(Debug, Clone, Copy)]
pub(super) enum ModelSelection {
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

fn parse_rounds(text: &str) -> Result<u32, String> {
    let rounds = text.parse().ok().filter(|one| (1..=10_000).contains(one));
    rounds.ok_or_else(|| "write a number from 1 to 10000".to_string())
}

/// Parses a share that is written in percent, such as `4%`.
pub(crate) fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let percent: Option<f64> = number.parse().ok();
    percent
        .filter(|percent| (0.1..=100.0).contains(percent))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| "write a percentage from 0.1% to 100%".to_string())
}

/// Returns the command line that repeats this comparison.
pub(crate) fn command(
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
    // With --rounds there is no precision and, unless it is given, no budget.
    let amount = match settings.rounds {
        Some(rounds) => format!(" --rounds {rounds}"),
        None => format!(" --precision {}%", settings.precision * 100.0),
    };
    let budget = settings
        .budget
        .map(|budget| format!(" --budget {}", time(budget)));
    // The default depends on how a workload is measured.
    let duration = args
        .duration
        .map(|given| format!(" --duration {}", time(given)));
    let against = args.against.as_ref().map_or(String::new(), |program| {
        format!(" --against {}", quoted(&program.to_string_lossy()))
    });
    let switch = |given: bool, name: &str| {
        if given {
            format!(" {name}")
        } else {
            String::new()
        }
    };
    let with = args
        .with
        .iter()
        .map(|external| format!(" --with {}", quoted(&external.text())));
    let names = list(models.iter().map(|model| model.name));
    let models = match models {
        [] => "--models none".to_string(),
        _ if !args.duel.is_empty() => format!("--duel {names}"),
        _ => format!("--models {names}"),
    };
    format!(
        "samewire compare {models}{}{against}{} --workloads {}{amount}{}{}{}{} --idle-duration {} --connections {} \
         --rate {} --patience {} --protocol {} --size {} --seed {seed}",
        with.collect::<String>(),
        switch(args.quick, "--quick"),
        list(&settings.workloads),
        budget.unwrap_or_default(),
        switch(args.no_twins, "--no-twins"),
        switch(args.no_probe, "--no-probe"),
        duration.unwrap_or_default(),
        time(settings.idle_duration),
        list(&settings.connections),
        settings.rate,
        time(settings.patience),
        settings.protocol.name,
        settings.size,
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::measure::plan::QUICK_MODELS;

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
    fn default_settings_are_those_of_no_option() {
        let given = settings(&[]);
        assert_eq!(
            format!("{:?}", default_settings().unwrap()),
            format!("{given:?}")
        );
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
            &[
                "--precision",
                "2.5%",
                "--budget",
                "30m",
                "--no-twins",
                "--no-probe",
            ],
            &["--rounds", "7", "--budget", "1h", "--duration", "1s"],
            &["--workloads", "idle", "--idle-duration", "1s500ms"],
            &["--workloads", "all"],
            &["--against", "an old/samewire"],
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
            assert_eq!(again.against, given.against);
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
