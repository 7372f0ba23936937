//! `samewire compare`: runs models on workloads and compares them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use anyhow::{Context, bail};
use contract::{Descriptors, Model, raise_descriptor_limit};
use protocol::PROTOCOLS;

use crate::measure::contest::{self, Contest};
use crate::measure::plan::{self, QUICK_MODELS, Settings};
use crate::measure::run::Runner;
use crate::measure::{Measurement, environment};
use crate::placement::Placement;
use crate::probe::{self, ProbeLength};
use crate::report::{csv, markdown, table};
use crate::results::{self, ModelInfo, Options, Results, SCHEMA, write_atomically};
use crate::target::{ExternalServer, OtherBuild, Target};
use crate::workloads::{BLOCK_RATE, IDLE_CONNECTIONS, LIMIT, Workload};
use crate::{interrupt, list, output, registry, target};

mod options;

pub use options::CompareArgs;
use options::{ModelSelection, command};
pub(crate) use options::{default_settings, parse_percent};

/// Runs a comparison, prints its tables or its JSON, and writes `results.json`, `report.md` and `summary.csv`.
///
/// The exit code is 0 if everything was measured, 1 if a run failed or a twin differs from its model, 2 for wrong usage,
/// and 130 after an interrupt.
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
    let setup = Setup::of(args, &settings)?;
    let mut results = setup.results(args, &settings);
    setup.announce(&settings, &results);
    setup.measure(args, &settings, &mut results)?;
    finish(args, &setup.out, &results)
}

/// Everything that a comparison needs before its first run.
struct Setup {
    out: PathBuf,
    seed: u64,
    descriptors: Descriptors,
    placement: Placement,
    interrupted: Arc<AtomicBool>,
    models: Vec<&'static Model>,
    infos: Vec<ModelInfo>,
    contests: Vec<Contest>,
    skipped: Vec<results::Skipped>,
}

impl Setup {
    /// Checks and reserves everything that can fail, before minutes of measuring and not after.
    fn of(args: &CompareArgs, settings: &Settings) -> anyhow::Result<Setup> {
        let out = args.out.clone().unwrap_or_else(|| {
            let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            Path::new("results").join(now.replace(':', ""))
        });
        let descriptors = raise_descriptor_limit();
        require_descriptors(settings, args, descriptors)?;
        let interrupted = Arc::new(AtomicBool::new(false));
        interrupt::catch(&interrupted)?;
        // Every process and thread that this process starts from here on runs on the CPUs of the client, until it sets
        // its own CPUs.
        let placement = Placement::take();
        crate::child::adopt_orphans();
        try_external_servers(&args.with, &placement)?;
        claim_directory(&out)?;
        let (models, mut infos) = models(args, &placement);
        let mut targets: Vec<Target> = models.iter().copied().map(Target::Model).collect();
        if let Some(program) = &args.against {
            let program = fs::canonicalize(program)
                .with_context(|| format!("--against {}", program.display()))?;
            for model in &models {
                let build = OtherBuild {
                    model,
                    program: program.clone(),
                };
                try_build(&build, &placement)?;
                infos.push(ModelInfo::of_build(&build, &infos));
                targets.push(Target::OtherBuild(build));
            }
        }
        for external in &args.with {
            targets.push(Target::ExternalServer(external.clone()));
            infos.push(ModelInfo::external(external));
        }
        let workers = |model: &Model| placement.workers_of(model);
        let (contests, skipped) = contest::contests(&targets, workers, settings);
        Ok(Setup {
            out,
            seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
            descriptors,
            placement,
            interrupted,
            models,
            infos,
            contests,
            skipped,
        })
    }

    /// Returns the results before the first run.
    fn results(&self, args: &CompareArgs, settings: &Settings) -> Results {
        Results {
            schema: SCHEMA,
            complete: false,
            command: command(args, settings, &self.models, self.seed),
            environment: environment::read_environment(settings, &self.placement),
            options: Options {
                models: self.infos.iter().map(|model| model.name.clone()).collect(),
                workloads: settings.workloads.clone(),
                rounds: settings.rounds,
                few_rounds: settings.few_rounds,
                precision: settings.precision,
                budget_s: settings.budget.map(|budget| budget.as_secs_f64()),
                twins: settings.twins,
                slice_s: settings.slice.as_secs_f64(),
                duration_s: settings.duration.as_secs_f64(),
                sliced_duration_s: settings.sliced_duration.as_secs_f64(),
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
                seed: self.seed.to_string(),
            },
            models: self.infos.clone(),
            probe: None,
            runs: Vec::new(),
            skipped: self.skipped.clone(),
            summary: Vec::new(),
            twins: Vec::new(),
            builds: Vec::new(),
            conclusions: Vec::new(),
        }
    }

    fn announce(&self, settings: &Settings, results: &Results) {
        let amount = match (settings.rounds, settings.budget) {
            (Some(rounds), _) => format!("rounds: {rounds}"),
            (None, Some(budget)) => format!(
                "until ratios are known to ±{} %, at most {}",
                settings.precision * 100.0,
                humantime::format_duration(budget)
            ),
            (None, None) => format!(
                "until ratios are known to ±{} %",
                settings.precision * 100.0
            ),
        };
        output::print_error(&format!(
            "{} servers on {} workloads; {amount}; seed {}",
            self.infos
                .iter()
                .filter(|model| model.unavailable_reason.is_none())
                .count(),
            settings.workloads.len(),
            self.seed
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

    /// Measures the machine, and then the rounds of all contests.
    fn measure(
        &self,
        args: &CompareArgs,
        settings: &Settings,
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        if !args.no_probe {
            let probe = probe::measure(&self.placement, ProbeLength::Short, &self.interrupted);
            results.probe = match probe {
                // The results are written after an interrupt, too.
                Err(_) if self.interrupted.load(Ordering::Relaxed) => None,
                measured => measured?,
            };
            if let Some(probe) = &results.probe {
                output::print_error(&probe.sentence());
            }
        }
        let save =
            |results: &Results| write_atomically(&self.out, results::FILE, &results.to_json()?);
        let first = |results: &Results| {
            if !args.json {
                output::print_error("results of the first round; those of all rounds follow:\n");
                // Incomplete results have the note that the comparison was interrupted.
                let so_far = Results {
                    complete: true,
                    ..results.clone()
                };
                output::print_error(&table::to_text(&so_far, output::width()));
            }
        };
        Measurement {
            runner: Runner {
                settings,
                placement: &self.placement,
                began,
                interrupted: &self.interrupted,
            },
            contests: self.contests.clone(),
            descriptors: self.descriptors,
            random: fastrand::Rng::with_seed(self.seed),
            save: &save,
            first: &first,
        }
        .run(results)
    }
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
        if !args.duel.is_empty() {
            args.duel.iter().any(|one| one.name == model.name)
        } else if args.models.is_empty() {
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

/// Starts and stops a model of another build once.
fn try_build(build: &OtherBuild, placement: &Placement) -> anyhow::Result<()> {
    let settings = target::TargetSettings::default();
    let target = Target::OtherBuild(build.clone());
    let running = target
        .start(&PROTOCOLS[0], &settings, placement)
        .with_context(|| {
            format!(
                "--against {}: it must be a build of samewire that has the model {}",
                build.program.display(),
                build.model.name
            )
        })?;
    drop(running.stop());
    Ok(())
}

/// Checks that the descriptor limit allows the connections: each is one descriptor in this process and one in the
/// server.
fn require_descriptors(
    settings: &Settings,
    args: &CompareArgs,
    limit: Descriptors,
) -> anyhow::Result<()> {
    // In slices, the connections to all servers are open at the same time.
    let servers = match (args.duel.len(), args.models.len()) {
        (0, 0) => registry::models().count(),
        (duel, models) => duel.max(models),
    };
    let slices = settings
        .workloads
        .iter()
        .filter(|workload| **workload != Workload::Idle)
        .flat_map(|workload| settings.connections(*workload))
        .filter(|connections| **connections < contest::MANY_CONNECTIONS)
        .max();
    let together = slices.map_or(0, |most| {
        most * (servers * (1 + usize::from(args.against.is_some())) + args.with.len() + 3)
    });
    let most = settings.most_connections().max(together);
    if !limit.allow(most) {
        bail!(
            "{most} connections need more open files than the limit of {}, which this process may not raise; \
             raise the limit (ulimit -n), or leave out idle with --workloads and use fewer --connections",
            limit.now.unwrap_or(u64::MAX)
        );
    }
    Ok(())
}

/// Prints the results, then writes the files; a failure of one does not prevent the others.
fn finish(args: &CompareArgs, out: &Path, results: &Results) -> anyhow::Result<ExitCode> {
    let json = results.to_json()?;
    let printed = if args.json {
        output::print(&json)
    } else {
        output::print(&table::to_text(results, output::width()))
    };
    write_atomically(out, results::FILE, &json)?;
    write_atomically(out, markdown::NAME, &markdown::to_markdown(results))?;
    write_atomically(out, csv::NAME, &csv::to_csv(results))?;
    output::print_error(&format!(
        "written to {}: {}, {} and {}",
        out.display(),
        results::FILE,
        markdown::NAME,
        csv::NAME
    ));
    printed?;
    let failed = |run: &results::Run| !run.superseded && !run.problems.is_empty();
    let broken = results.twins.iter().any(|twin| twin.different);
    Ok(if !results.complete {
        ExitCode::from(interrupt::STATUS)
    } else if results.runs.iter().any(failed) || broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

#[cfg(test)]
pub(crate) use options::tests;
