//! `results.json`: all that was measured, and all that is needed to evaluate it.
//!
//! docs/src/results.md explains every field to those who read the file with other tools; a test keeps the two in step.
//! Counters that could not be read are `null`, never 0: a zero is a claim.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::{Errors, Report};
use contract::Tally;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use super::metric::Metric;
use super::plan::Case;
use super::summary::Summary;
use super::workload::Workload;
use crate::format;
use crate::target::ExternalServer;

/// What is written here, and the only one that is read. It grows by one when a field changes its meaning or goes; new
/// fields leave it as it is.
pub const SCHEMA: u32 = 4;

/// The file's name in the directory of a comparison.
pub const FILE: &str = "results.json";

/// One comparison, complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// Whether all that was planned was measured; false if it was interrupted.
    pub complete: bool,
    /// The command line that repeats it.
    pub command: String,
    /// On what it was measured.
    pub environment: Environment,
    /// What was asked for.
    pub options: Options,
    /// What was compared, in the order of the tables.
    pub models: Vec<ModelInfo>,
    /// Every run, in the order in which they were measured.
    pub runs: Vec<Run>,
    /// What was not measured because it could not be, or means nothing.
    pub skipped: Vec<Skipped>,
    /// The runs of one model on one workload, taken together. Computed from `runs`; `samewire report` computes
    /// it anew and does not believe what it reads.
    pub summary: Vec<Summary>,
}

/// On what it was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// When it began, UTC, RFC 3339.
    pub date: String,
    /// The version of this program.
    pub samewire_version: String,
    /// The source revision, if SAMEWIRE_COMMIT was set when this program was built.
    pub commit: Option<String>,
    /// Whether it was built without optimisation: then no figure is worth anything.
    pub debug_build: bool,
    /// `linux` and the like.
    pub os: String,
    /// `x86_64` and the like.
    pub architecture: String,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// What the CPU calls itself.
    pub cpu_model: Option<String>,
    /// CPUs that are online.
    pub cpus: Option<usize>,
    /// Whether a hypervisor runs this machine: others may then have taken CPU time unseen.
    pub virtual_machine: Option<bool>,
    /// The frequency governor of the server's first CPU.
    pub governor: Option<String>,
    /// Load averages over 1, 5 and 15 minutes, at the start.
    pub load_average: Option<[f32; 3]>,
    /// The CPUs of the client; empty if not pinned.
    pub client_cpus: Vec<usize>,
    /// The CPUs of the server; empty if not pinned.
    pub server_cpus: Vec<usize>,
    /// Whether client and server had CPUs of their own.
    pub pinned_apart: bool,
    /// Whether some CPU of the client and some of the server are threads of one core.
    pub share_a_core: Option<bool>,
    /// Event loops of the client.
    pub client_threads: usize,
    /// The arguments that every server was started with, after the model's name; beside `--workers`, and what its
    /// run tells.
    pub server_arguments: Vec<String>,
    /// What a reader must know before believing a figure, in sentences.
    pub warnings: Vec<String>,
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Names, in the order of the tables.
    pub models: Vec<String>,
    /// In the order of the tables.
    pub workloads: Vec<Workload>,
    /// Server processes per model and workload but `idle`.
    pub runs: u32,
    /// Server processes per model in `idle`.
    pub idle_runs: u32,
    /// The measured window of the loads that run for a time, in seconds; but of `idle` and `block`.
    pub duration_s: f64,
    /// That of `block` and `block-offload`, in seconds.
    pub block_duration_s: f64,
    /// The measured silence of `idle`, in seconds.
    pub idle_duration_s: f64,
    /// Connections of all workloads but `idle`, ascending; several in a sweep.
    pub connections: Vec<usize>,
    /// Connections of `idle`.
    pub idle_connections: usize,
    /// Requests per second of `steady`, over all connections.
    pub rate_per_s: f64,
    /// Requests per second of `block` and `block-offload`, over all connections.
    pub block_rate_per_s: f64,
    /// How long `crowd` waited at most, in seconds.
    pub patience_s: f64,
    /// How long `http-13m` and `bulk` waited at most, in seconds.
    pub limit_s: f64,
    /// What was said, in the workloads that are not about one protocol.
    pub protocol: String,
    /// Bytes per request.
    pub size_bytes: usize,
    /// What the order of the runs and all requests come from. As text: JSON readers round numbers of this size.
    pub seed: String,
}

/// A model that was asked for, or an external server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// As on the command line.
    pub name: String,
    /// Of an external server, the command that starts it, with its placeholders; `null`: a model of ours. Files that
    /// were written before there were any have no such field.
    pub command: Option<String>,
    /// Who answers, in one line.
    pub summary: String,
    /// Where the idea comes from; empty of an external server.
    pub lineage: String,
    /// The file that tells its story; empty of an external server.
    pub source: String,
    /// What bounds the peers that it converses with at a time: `limit`, `descriptors`, `shares`, `workers` or `one`;
    /// `unknown` of an external server.
    pub capacity: String,
    /// `--workers` that it was started with. Not all models have a use for it; an external server is told none, and
    /// has `null`.
    pub workers: Option<usize>,
    /// How many peers it converses with at a time, by design (with `descriptors`: at least); `null`: as many as it is
    /// allowed, or unknown.
    pub max_concurrent: Option<usize>,
    /// Why it cannot run here; `null`: it can.
    pub unavailable_reason: Option<String>,
}

impl ModelInfo {
    /// Of it nothing else is known than how to start it.
    pub(super) fn external(external: &ExternalServer) -> ModelInfo {
        ModelInfo {
            name: external.name.clone(),
            command: Some(external.command().to_string()),
            summary: "an external server".to_string(),
            lineage: String::new(),
            source: String::new(),
            capacity: "unknown".to_string(),
            workers: None,
            max_concurrent: None,
            unavailable_reason: None,
        }
    }
}

/// What was planned, and was not measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// The model's name.
    pub model: String,
    /// The workload.
    pub workload: Workload,
    /// Connections that were to be.
    pub connections: usize,
    /// Why, in words that follow "not measured:".
    pub reason: String,
}

impl Skipped {
    /// More connections than it max_concurrent.
    pub(super) fn by_design(case: &Case) -> Skipped {
        let most = case.max_concurrent.unwrap_or_default();
        let most = format::count(most as u64);
        Skipped::because(
            case,
            format!("it max_concurrent {most} at a time, by design"),
        )
    }

    /// An earlier run had no room for so many.
    pub(super) fn full(case: &Case) -> Skipped {
        Skipped::because(
            case,
            "they could not all be opened the first time".to_string(),
        )
    }

    /// It can't do that at all.
    pub(super) fn because(case: &Case, reason: String) -> Skipped {
        Skipped {
            model: case.target.name(),
            workload: case.workload,
            connections: case.connections,
            reason,
        }
    }
}

/// One server process under one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Place in the run, from 1.
    pub order: usize,
    /// Block, from 1; every block max_concurrent every model and workload once, in an order of its own.
    pub block: u32,
    /// The model's name.
    pub model: String,
    /// The workload.
    pub workload: Workload,
    /// Connections of the load.
    pub connections: usize,
    /// Requests in all; `null` for loads that run for a time.
    pub requests: Option<u64>,
    /// Content of each reply, in bytes; `null` where it is a line or two.
    pub reply_bytes: Option<u64>,
    /// What the server was told beside the arguments of all; empty of an external server, which was told what its
    /// command says.
    pub server_arguments: Vec<String>,
    /// The models whose runs were measured at the same time.
    pub beside: Vec<String>,
    /// Seed of the client's requests: the same for all models in a block.
    pub seed: String,
    /// Start, in seconds after the comparison's.
    pub started_s: f64,
    /// Why its figures must not be used; empty: they may.
    pub problems: Vec<String>,
    /// Whether the client, not the server, set the limit: the throughput is then a lower bound.
    pub client_limited: bool,
    /// What is worth knowing about this run beside that.
    pub notes: Vec<Note>,
    /// What the tables are made of; `null`: unknown here.
    pub figures: BTreeMap<Metric, Option<f64>>,
    /// Those of the figures that are lower bounds, because the measurement ended first.
    pub lower_bounds: Vec<Metric>,
    /// The client's account; `null` if it never got to ask.
    pub client: Option<ClientSide>,
    /// The server's account; `null` if it never started.
    pub server: Option<ServerSide>,
}

/// What is worth knowing about a run whose figures are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// The client had no CPU time to spare, and the server had.
    ClientBusy,
    /// The client itself sent late.
    ClientLate,
    /// Not as many requests were under way as connections were meant to ask.
    OtherInFlight,
    /// Not all connections were held at a time.
    NotAllHeld,
    /// It max_concurrent fewer connections at a time than there were, by design.
    FewerByDesign,
    /// Not all connections could be opened: it has no room for them, by design.
    NotAllOpened,
    /// The first exchanges lasted into the silence.
    NotIdle,
    /// The harness itself met the window's edges late.
    EdgesMissed,
    /// Others used the CPUs too.
    Disturbed,
}

impl Run {
    /// Whether its figures may be used.
    pub fn valid(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The client's account of a run. "In the window" is explained at [`client::Report`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientSide {
    /// From the first connect to the end of the last connection, in seconds.
    pub elapsed_s: f64,
    /// The measured part, in seconds.
    pub window_s: f64,
    /// CPU time of the client's threads in the window, in seconds.
    pub client_cpu_s: f64,
    /// Requests in the window that were answered rightly.
    pub replies: u64,
    /// Right replies that came within the window: what throughput is made of.
    pub completed: u64,
    /// Requests in the window without an answer at the end.
    pub unanswered: u64,
    /// Failed requests in the window, by kind.
    pub errors: Errors,
    /// The first few errors in words.
    pub examples: Vec<String>,
    /// Clients without a single right reply.
    pub never_served: u64,
    /// Clients that got all they asked for.
    pub finished_clients: u64,
    /// Connections opened.
    pub connected: u64,
    /// Bytes over all connections, warm-up included.
    pub sent_bytes: u64,
    /// Likewise.
    pub received_bytes: u64,
    /// `completed`, client by client.
    pub per_connection: Vec<u64>,
    /// Requests under way on average, by Little's law.
    pub mean_in_flight: f64,
    /// Jain's index of `per_connection`; `null` if all of it is 0.
    pub fairness: Option<f64>,
    /// From the planned send time to the reply's last byte.
    pub response_time: Times,
    /// From the actual send to the reply's last byte.
    pub service_time: Times,
    /// Of the response times, those of requests before whose replies the server had nothing to do.
    pub bystanders: Times,
    /// How late the client itself was.
    pub lag: Times,
    /// From connect to connected.
    pub connect_time: Times,
    /// From the time at which a client meant to connect to its first right reply.
    pub first_reply: Times,
}

impl ClientSide {
    /// Takes a report down.
    ///
    /// # Errors
    ///
    /// As [`Times::of`].
    pub fn of(report: &Report) -> anyhow::Result<ClientSide> {
        Ok(ClientSide {
            elapsed_s: report.elapsed.as_secs_f64(),
            window_s: report.window.as_secs_f64(),
            client_cpu_s: report.cpu.as_secs_f64(),
            replies: report.replies,
            completed: report.completed,
            unanswered: report.unanswered,
            errors: report.errors,
            examples: report.examples.clone(),
            never_served: report.never_served,
            finished_clients: report.finished_clients,
            connected: report.connected,
            sent_bytes: report.sent,
            received_bytes: report.received,
            per_connection: report.per_connection.clone(),
            mean_in_flight: report.mean_in_flight(),
            fairness: report.fairness().map(|fairness| fairness.jain),
            response_time: Times::of(&report.response_time)?,
            service_time: Times::of(&report.service_time)?,
            bystanders: Times::of(&report.bystanders)?,
            lag: Times::of(&report.lag)?,
            connect_time: Times::of(&report.connect_time)?,
            first_reply: Times::of(&report.first_reply)?,
        })
    }
}

/// A histogram: a few percentiles for people, all of it for programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Samples.
    pub count: u64,
    /// Percentiles in nanoseconds; `null` with fewer than ten samples beyond it.
    pub p50_ns: Option<u64>,
    /// Likewise.
    pub p90_ns: Option<u64>,
    /// Likewise.
    pub p99_ns: Option<u64>,
    /// Likewise.
    pub p99_9_ns: Option<u64>,
    /// The largest; `null` without samples.
    pub max_ns: Option<u64>,
    /// HdrHistogram, V2 with DEFLATE, in base64. In nanoseconds.
    pub histogram: String,
}

impl Times {
    /// Takes a histogram down.
    ///
    /// # Errors
    ///
    /// It cannot be encoded, which only a lack of memory can cause.
    pub fn of(histogram: &Histogram<u64>) -> anyhow::Result<Times> {
        let mut encoded = Vec::new();
        V2DeflateSerializer::new()
            .serialize(histogram, &mut encoded)
            .context("cannot encode a histogram")?;
        let at = |quantile| format::quantile(histogram, quantile);
        Ok(Times {
            count: histogram.len(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p99_9_ns: at(0.999),
            max_ns: (!histogram.is_empty()).then(|| histogram.max()),
            histogram: STANDARD.encode(encoded),
        })
    }

    /// The histogram itself.
    ///
    /// # Errors
    ///
    /// The file was damaged, or written by something else.
    pub fn decode(&self) -> anyhow::Result<Histogram<u64>> {
        let encoded = STANDARD
            .decode(&self.histogram)
            .context("a histogram is not base64")?;
        Deserializer::new()
            .deserialize(&mut encoded.as_slice())
            .map_err(|error| anyhow::anyhow!("a histogram cannot be decoded: {error}"))
    }
}

/// The server's account of a run, over its whole process tree.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerSide {
    /// The time over which CPU was counted: the window, as the harness saw its edges. In seconds.
    pub interval_s: Option<f64>,
    /// CPU time in it, in seconds, to the nanosecond.
    pub cpu_s: Option<f64>,
    /// The time over which the counters below were read, which begins in the warm-up. In seconds.
    pub counters_interval_s: Option<f64>,
    /// CPU time in user mode in it, in seconds; in the kernel's ticks of 10 ms.
    pub user_s: Option<f64>,
    /// CPU time in system mode in it, likewise.
    pub system_s: Option<f64>,
    /// Context switches in it because a thread waited.
    pub voluntary_switches: Option<u64>,
    /// Context switches in it because another thread's batch had come.
    pub involuntary_switches: Option<u64>,
    /// The share of all CPUs in use that went neither to the client nor to the server in it, nor was idle.
    pub others_cpu: Option<f64>,
    /// Processes under load.
    pub processes: Option<u64>,
    /// Threads under load, over all processes.
    pub threads: Option<u64>,
    /// Memory of its own before the load, in bytes: anonymous and shared pages, each counted once. Only in `idle`.
    pub memory_before_bytes: Option<u64>,
    /// The same at the end of the window.
    pub memory_after_bytes: Option<u64>,
    /// The most that was resident before the load, in bytes; `null` for a server that forks.
    pub peak_rss_before_bytes: Option<u64>,
    /// The most that was resident, in bytes; `null` for a server that forks.
    pub peak_rss_bytes: Option<u64>,
    /// How it ended.
    pub exit: Option<String>,
    /// Its own account; `null` if it gave none.
    pub tally: Option<Tally>,
}

impl Results {
    /// Reads the comparison in `dir`, and takes its runs together anew.
    ///
    /// # Errors
    ///
    /// There is none, it is damaged, or another version wrote it.
    pub fn read(dir: &Path) -> anyhow::Result<Results> {
        let path = dir.join(FILE);
        let text = fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; name a directory that samewire compare wrote",
                path.display()
            )
        })?;
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let damaged = || format!("{} is not a comparison's results", path.display());
        // First the version alone: a newer file would only fail over some field.
        let Version { schema } = serde_json::from_str(&text).with_context(damaged)?;
        if schema != SCHEMA {
            bail!(
                "{} has schema {schema}, and this samewire reads schema {SCHEMA}; use the version that wrote it",
                path.display()
            );
        }
        let mut results: Results = serde_json::from_str(&text).with_context(damaged)?;
        results.summary = super::summary::summarise(&results).with_context(damaged)?;
        Ok(results)
    }

    /// As JSON, with a line's end.
    ///
    /// # Errors
    ///
    /// Never, but for a lack of memory.
    pub fn to_json(&self) -> anyhow::Result<String> {
        let mut text = serde_json::to_string(self).context("cannot write the results as JSON")?;
        text.push('\n');
        Ok(text)
    }
}

/// Writes a file so that there is all of it or none.
///
/// # Errors
///
/// The disk is full, or the directory went away or was never writable.
pub fn write_whole(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    // Hidden, and of this process: two comparisons must not write into one file.
    let unfinished = dir.join(format!(".{name}.{}", std::process::id()));
    let written = File::create(&unfinished)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            // Some file systems say only here that they are full.
            file.sync_all()
        })
        .and_then(|()| fs::rename(&unfinished, &path));
    written.map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        anyhow::Error::new(error).context(format!("cannot write {}", path.display()))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::compare::summary::summarise;

    /// A valid run without figures.
    pub(in crate::compare) fn run(model: &str, workload: Workload) -> Run {
        Run {
            order: 1,
            block: 1,
            model: model.to_string(),
            workload,
            connections: 100,
            requests: None,
            reply_bytes: None,
            server_arguments: Vec::new(),
            beside: Vec::new(),
            seed: "1".to_string(),
            started_s: 0.0,
            problems: Vec::new(),
            client_limited: false,
            notes: Vec::new(),
            figures: BTreeMap::new(),
            lower_bounds: Vec::new(),
            client: None,
            server: None,
        }
    }

    /// A client whose every histogram is this one.
    pub(in crate::compare) fn client_side(histogram: &Histogram<u64>) -> ClientSide {
        let times = Times::of(histogram).unwrap();
        let mut lag = client::histogram();
        lag.record_n(1_000, times.count).unwrap();
        ClientSide {
            elapsed_s: 1.0,
            window_s: 1.0,
            client_cpu_s: 0.5,
            replies: histogram.len(),
            completed: histogram.len(),
            unanswered: 0,
            errors: Errors::default(),
            examples: Vec::new(),
            never_served: 0,
            finished_clients: 2,
            connected: 2,
            sent_bytes: 1,
            received_bytes: 1,
            per_connection: vec![histogram.len() / 2; 2],
            mean_in_flight: 2.0,
            fairness: Some(1.0),
            response_time: times.clone(),
            service_time: times.clone(),
            bystanders: times.clone(),
            lag: Times::of(&lag).unwrap(),
            connect_time: times.clone(),
            first_reply: times,
        }
    }

    /// Results in which every field that may be missing is there.
    pub(in crate::compare) fn full() -> Results {
        let mut histogram = client::histogram();
        for value in 1..=20_000 {
            histogram.record(value * 1_000).unwrap();
        }
        let mut one = run("mio", Workload::Max);
        one.figures = Metric::ALL
            .into_iter()
            .map(|metric| (metric, Some(1.5)))
            .collect();
        one.lower_bounds = vec![Metric::RequestsPerS];
        one.client = Some(client_side(&histogram));
        one.server = Some(ServerSide {
            cpu_s: Some(0.25),
            exit: Some("exit status: 0".to_string()),
            tally: Some(Tally::default()),
            ..ServerSide::default()
        });
        let mut results = Results {
            schema: SCHEMA,
            complete: true,
            command: "samewire compare".to_string(),
            environment: Environment::default(),
            options: Options {
                workloads: Workload::DEFAULT.to_vec(),
                connections: vec![100],
                ..Options::default()
            },
            models: vec![ModelInfo {
                name: "mio".to_string(),
                command: None,
                summary: "one thread".to_string(),
                lineage: "nginx".to_string(),
                source: "servers/mio/src/lib.rs".to_string(),
                capacity: "limit".to_string(),
                workers: Some(1),
                max_concurrent: None,
                unavailable_reason: None,
            }],
            runs: vec![one],
            skipped: vec![Skipped {
                model: "serial".to_string(),
                workload: Workload::Max,
                connections: 100,
                reason: "it max_concurrent one".to_string(),
            }],
            summary: Vec::new(),
        };
        results.summary = summarise(&results).unwrap();
        results
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let results = full();
        write_whole(dir.path(), FILE, &results.to_json().unwrap()).unwrap();
        assert_eq!(Results::read(dir.path()).unwrap(), results);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing unfinished is left: {left:?}");
    }

    #[test]
    fn histograms_survive_their_encoding() {
        let mut histogram = client::histogram();
        for value in [1, 999, 1_000_000, 3_600_000_000_000] {
            histogram.record_n(value, value % 7 + 1).unwrap();
        }
        assert_eq!(Times::of(&histogram).unwrap().decode().unwrap(), histogram);
        let empty = Times::of(&client::histogram()).unwrap();
        assert_eq!((empty.max_ns, empty.p50_ns), (None, None));
        assert!(empty.decode().unwrap().is_empty());
    }

    #[test]
    fn other_schemas_and_other_files_are_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |text: Option<&str>| {
            if let Some(text) = text {
                fs::write(dir.path().join(FILE), text).unwrap();
            }
            format!("{:#}", Results::read(dir.path()).unwrap_err())
        };
        assert!(refused(None).contains("name a directory"));
        assert!(refused(Some("{\"schema\": 999}")).contains("schema 999"));
        assert!(refused(Some("[]")).contains("not a comparison"));
        assert!(refused(Some("{\"schema\": 1}")).contains("schema 1"));
        assert!(refused(Some("{\"schema\": 2}")).contains("schema 2"));
        assert!(refused(Some("{\"schema\": 3}")).contains("schema 3"));
        assert!(refused(Some("{\"schema\": 4}")).contains("missing field"));
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        // A directory is in the way of the rename.
        fs::create_dir(dir.path().join("results.json")).unwrap();
        assert!(write_whole(dir.path(), "results.json", "{}").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// All keys of all objects.
    fn keys(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    found.insert(key.clone());
                    keys(value, found);
                }
            }
            Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_page_explains_every_field_and_no_other() {
        let page = include_str!("../../../docs/src/results.md");
        let documented: BTreeSet<String> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(key, _)| key.to_string())
            .collect();
        let mut written = BTreeSet::new();
        keys(&serde_json::to_value(full()).unwrap(), &mut written);
        let missing: Vec<_> = written.difference(&documented).collect();
        assert!(
            missing.is_empty(),
            "not explained in docs/src/results.md: {missing:?}"
        );
        let gone: Vec<_> = documented.difference(&written).collect();
        assert!(
            gone.is_empty(),
            "explained, but no longer written: {gone:?}"
        );
    }
}
