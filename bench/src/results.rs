//! The format of `results.json`: everything that was measured, and everything that is needed to evaluate it.
//!
//! docs/src/results.md explains every field to readers that use other tools; a test compares the page with the fields.
//! Counters that could not be read are `null` and never 0, because a zero is a statement.

pub mod certificate;
pub mod metric;
pub(crate) mod samples;
pub mod summary;
pub mod workload;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::{Errors, Report, TimelineStep};
use contract::Tally;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::format;
use crate::probe::Probe;
use crate::resources::HostChange;
use crate::target::{ExternalServer, OtherBuild};
use certificate::Check;
use metric::Metric;
use summary::{Summary, TwinResult};
use workload::Workload;

/// Version of the format that is written, and the only version that is read. It grows by one when a field changes its
/// meaning or is removed; a new field does not change it.
pub const SCHEMA: u32 = 5;

/// Name of the results file in the directory of a comparison.
pub const FILE: &str = "results.json";

/// Results of one comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Results {
    /// Version of the format; see [`SCHEMA`].
    pub schema: u32,
    /// True if all planned runs were measured; false if the comparison was interrupted.
    pub complete: bool,
    /// Command line that repeats the comparison.
    pub command: String,
    /// Machine and build on which the comparison ran.
    pub environment: Environment,
    /// Options of the comparison.
    pub options: Options,
    /// Models and external servers that were compared, in the order of the tables.
    pub models: Vec<ModelInfo>,
    /// Measurements of the machine itself, before the first run; `null` with `--no-probe`.
    pub probe: Option<Probe>,
    /// All runs, in the order in which they were measured.
    pub runs: Vec<Run>,
    /// Planned cases that were not measured because they could not be, or because the figures would mean nothing.
    pub skipped: Vec<Skipped>,
    /// Summaries of the runs of each case, computed from `runs`. `samewire report` computes them again and does not use
    /// the ones in the file.
    pub summary: Vec<Summary>,
    /// Comparisons of models with themselves: what the same server, measured twice, differs by. Computed from `runs`,
    /// like `summary`.
    pub twins: Vec<TwinResult>,
    /// Comparisons of each model of this build with that of the other build (`--against`): by what factor this build is
    /// larger. Computed from `runs`, like `summary`.
    pub builds: Vec<TwinResult>,
    /// Conclusions in words, computed from `runs`, like `summary`.
    pub conclusions: Vec<String>,
}

/// Machine and build on which a comparison ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// Start of the comparison, UTC, in the format of RFC 3339.
    pub date: String,
    /// Version of this program.
    pub samewire_version: String,
    /// Source revision, with `-dirty` if the sources had changes; `None` if it was unknown when this program was built.
    pub commit: Option<String>,
    /// True if this program was built without optimisation: its figures are then worthless.
    pub debug_build: bool,
    /// Operating system, such as `linux`.
    pub os: String,
    /// Architecture of the CPU, such as `x86_64`.
    pub architecture: String,
    /// Release of the kernel; `None` if unknown.
    pub kernel: Option<String>,
    /// Name that the CPU reports; `None` if unknown.
    pub cpu_model: Option<String>,
    /// Number of CPUs that are online; `None` if unknown.
    pub cpus: Option<usize>,
    /// True if this machine is a virtual machine: other virtual machines may then have taken CPU time, which cannot be
    /// seen from here. `None` if unknown.
    pub virtual_machine: Option<bool>,
    /// Frequency governor of the server's first CPU; `None` if unknown, as in most virtual machines.
    pub governor: Option<String>,
    /// Number of CPUs that the quota of the cgroup grants; `None` without a quota.
    pub cpu_quota: Option<f64>,
    /// Setting of transparent huge pages: `always`, `madvise` or `never`; `None` if unknown.
    pub transparent_huge_pages: Option<String>,
    /// Setting of address space randomisation: 0 (off) to 2 (full); `None` if unknown.
    pub address_randomisation: Option<String>,
    /// Setting of simultaneous multithreading, such as `on` or `notsupported`; `None` if unknown.
    pub multithreading: Option<String>,
    /// Clock source of the kernel, such as `tsc` or `kvm-clock`; `None` if unknown.
    pub clock_source: Option<String>,
    /// SHA-256 of the program, which is both client and servers, in hexadecimal; `None` if it can't be read.
    pub binary_sha256: Option<String>,
    /// Load averages over 1, 5 and 15 minutes, at the start; `None` if unknown.
    pub load_average: Option<[f32; 3]>,
    /// CPUs of the client; empty if it was not pinned.
    pub client_cpus: Vec<usize>,
    /// CPUs of the server; empty if it was not pinned.
    pub server_cpus: Vec<usize>,
    /// True if client and server had CPUs of their own.
    pub pinned_apart: bool,
    /// True if a CPU of the client and a CPU of the server are threads of the same core; `None` if unknown, as in a
    /// virtual machine, whose topology need not be that of the hardware.
    pub share_a_core: Option<bool>,
    /// Number of event loops of the client.
    pub client_threads: usize,
    /// Arguments with which every server was started, after the name of the model. `--workers` is in [`ModelInfo`], and
    /// the arguments of a workload are in [`Run::server_arguments`].
    pub server_arguments: Vec<String>,
    /// Sentences that a reader must know before using a figure.
    pub warnings: Vec<String>,
}

/// Options of a comparison, completed with the defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Names of the models and external servers, in the order of the tables.
    pub models: Vec<String>,
    /// Workloads, in the order of the tables.
    pub workloads: Vec<Workload>,
    /// Number of rounds that was asked for (`--rounds`); `null` if the precision and the budget decide.
    pub rounds: Option<u32>,
    /// Number of rounds of the workloads whose figures hardly vary between rounds (`crowd`, `idle`).
    pub few_rounds: u32,
    /// Half width of the interval of the ratio to the best at which measuring stops, as a share.
    pub precision: f64,
    /// Time after which no further round begins, in seconds; `null` with `--rounds`.
    pub budget_s: Option<f64>,
    /// True if some models are measured twice, under hidden names.
    pub twins: bool,
    /// Length of the slices of `max`, `http-13b` and `http-13k`, in seconds. A tenth of it before each slice is not counted.
    pub slice_s: f64,
    /// Measured window of the loads that run for a time, per round, in seconds; except `idle`, `block` and
    /// `block-offload`.
    pub duration_s: f64,
    /// Measured window of `max`, `http-13b` and `http-13k` in slices, per model and round, in seconds.
    pub sliced_duration_s: f64,
    /// Measured window of `block` and `block-offload`, in seconds.
    pub block_duration_s: f64,
    /// Measured window of `idle`, in seconds.
    pub idle_duration_s: f64,
    /// Numbers of connections of all workloads except `idle`, ascending; more than one in a sweep.
    pub connections: Vec<usize>,
    /// Number of connections of `idle`.
    pub idle_connections: usize,
    /// Requests per second of `steady`, over all connections.
    pub rate_per_s: f64,
    /// Requests per second of `block` and `block-offload`, over all connections.
    pub block_rate_per_s: f64,
    /// Longest time that `crowd` waited for all clients to be served, in seconds.
    pub patience_s: f64,
    /// Longest time that `http-13m` and `bulk` waited for all clients to be served, in seconds.
    pub limit_s: f64,
    /// Protocol of the workloads that do not require a certain one.
    pub protocol: String,
    /// Bytes per request, including the end of the line.
    pub size_bytes: usize,
    /// Seed of the order of the runs and of all requests. It is text because JSON readers round numbers of this size.
    pub seed: String,
}

/// Description of a model or an external server that was compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelInfo {
    /// Name on the command line.
    pub name: String,
    /// Command that starts an external server, with its placeholders; `null` for one of our models. Files that were
    /// written before external servers existed have no such field.
    pub command: Option<String>,
    /// Description of the model, in one line.
    pub summary: String,
    /// Origin of the idea; empty for an external server.
    pub lineage: String,
    /// Main source file of the server, which reads top to bottom; empty for an external server.
    pub source: String,
    /// Limit of the number of peers that the model serves at a time: `limit`, `descriptors`, `shares`, `workers` or
    /// `one`; `unknown` for an external server.
    pub capacity: String,
    /// Number of workers that the server was started with (`--workers`), although not all models use it; `null` for an
    /// external server, which gets no such option.
    pub workers: Option<usize>,
    /// Number of peers that the model serves at a time by design (with `descriptors`: at least this number); `null` if
    /// only `--max-connections` limits it, or if it is unknown.
    pub max_concurrent: Option<usize>,
    /// Reason why the model cannot run here; `null` if it can.
    pub unavailable_reason: Option<String>,
}

impl ModelInfo {
    /// Returns the description of an external server, of which only the name and the command are known.
    pub(crate) fn external(external: &ExternalServer) -> ModelInfo {
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

impl ModelInfo {
    /// Returns the description of a model of another build; `infos` describe those of this build.
    pub(crate) fn of_build(build: &OtherBuild, infos: &[ModelInfo]) -> ModelInfo {
        let model = infos.iter().find(|info| info.name == build.model.name);
        ModelInfo {
            name: build.name(),
            command: Some(format!(
                "{} serve {}",
                build.program.display(),
                build.model.name
            )),
            summary: "the same model of another build".to_string(),
            lineage: String::new(),
            source: String::new(),
            capacity: model.map_or("unknown".to_string(), |model| model.capacity.clone()),
            workers: model.and_then(|model| model.workers),
            max_concurrent: model.and_then(|model| model.max_concurrent),
            unavailable_reason: None,
        }
    }
}

/// Case that was planned and not measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// Name of the model.
    pub model: String,
    /// Workload of the case.
    pub workload: Workload,
    /// Planned number of connections.
    pub connections: usize,
    /// Reason, as a clause that can follow "was not measured:".
    pub reason: String,
}

/// One run: a fresh server process under one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Position of the run in the comparison, from 1.
    pub order: usize,
    /// Number of the round, from 1. Every round of a workload measures every model once.
    pub round: u32,
    /// 1, or 2 if the run was measured once more because the first attempt failed or was disturbed.
    pub attempt: u32,
    /// True if the run was measured once more, so that its figures are not used.
    pub superseded: bool,
    /// Name of the model.
    pub model: String,
    /// Part that the server plays in the comparison.
    pub role: Role,
    /// Whether the run was measured in slices, or as a whole.
    pub method: Method,
    /// Workload of the run.
    pub workload: Workload,
    /// Number of connections of the load.
    pub connections: usize,
    /// Total number of requests; `null` for loads that run for a time.
    pub requests: Option<u64>,
    /// Content of each reply, in bytes; `null` if a reply is only a line or two.
    pub reply_bytes: Option<u64>,
    /// Arguments of the server for this workload, in addition to those of all servers; empty for an external server,
    /// whose arguments are in its command.
    pub server_arguments: Vec<String>,
    /// Names of the models whose runs were measured at the same time.
    pub beside: Vec<String>,
    /// Seed of the client's requests; the same for all models in a block.
    pub seed: String,
    /// Start of the run, in seconds after the start of the comparison.
    pub started_s: f64,
    /// Reasons why the figures of the run must not be used; empty if they may be used.
    pub problems: Vec<String>,
    /// True if the client was the limit and not the server: the throughput is then a lower bound.
    pub client_limited: bool,
    /// Further facts about the run that a reader should know.
    pub notes: Vec<Note>,
    /// Figures that the tables show; `null` if a figure is unknown.
    pub figures: BTreeMap<Metric, Option<f64>>,
    /// Figures that are lower bounds, because the measurement ended first.
    pub lower_bounds: Vec<Metric>,
    /// Conditions that were checked, with their values and limits.
    pub checks: Vec<Check>,
    /// Measurements of the client; `null` if the client sent no request.
    pub client: Option<ClientSide>,
    /// Measurements of the server; `null` if the server did not start.
    pub server: Option<ServerSide>,
}

/// Part that a server plays in a comparison.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A model or an external server that is compared.
    #[default]
    Model,
    /// A model that is measured a second time under a hidden name: it must not differ from itself.
    Twin,
    /// A server that is the same in every comparison: the null server. It is not ranked.
    Anchor,
}

/// Way in which a run was measured.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// In slices of some milliseconds: the servers of a round are all alive, and the client loads one after the other.
    Slices,
    /// In one piece, one server after the other (`idle`: a few at a time).
    #[default]
    Whole,
}

/// Fact about a run that a reader should know although its figures are used.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// The client had no CPU time to spare, but the server had.
    ClientBusy,
    /// The client sent its requests late.
    ClientLate,
    /// Not all connections were served at the same time.
    NotAllHeld,
    /// By design, the model served fewer connections at a time than the load has.
    FewerByDesign,
    /// Not all connections could be opened, because by design the server has no room for them.
    NotAllOpened,
    /// The first exchanges lasted into the window in which the connections should be idle.
    NotIdle,
    /// The harness read the CPU clock too late at an edge of the window.
    EdgesMissed,
    /// Other programs or other virtual machines used the CPUs too.
    Disturbed,
    /// No process of the server's tree has the listening socket, so that their CPU time and memory are not the server's.
    OtherListener,
    /// Threads of the server could run on the CPUs of the client.
    SharedCpus,
    /// The server closed connections while they were idle.
    ClosedWhileIdle,
}

impl Run {
    /// Returns whether the figures may be used: the run has no problems, and was not measured once more.
    pub fn valid(&self) -> bool {
        self.problems.is_empty() && !self.superseded
    }
}

/// Measurements of the client in a run. [`client::Report`] explains "in the window".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClientSide {
    /// Time from the first connect to the end of the last connection, in seconds.
    pub elapsed_s: f64,
    /// Length of the measured window, in seconds.
    pub window_s: f64,
    /// CPU time of the client's threads in the window, in seconds.
    pub client_cpu_s: f64,
    /// Number of requests in the window that were answered correctly.
    pub replies: u64,
    /// Number of correct replies that arrived within the window. The throughput is computed from it.
    pub completed: u64,
    /// In slices, number of correct replies since the first slice began, also outside of the window; `null` in whole
    /// runs.
    pub replies_in_all: Option<u64>,
    /// Number of requests in the window that were unanswered at the end.
    pub unanswered: u64,
    /// Failed requests in the window, by kind.
    #[schemars(with = "BTreeMap<String, u64>")]
    pub errors: Errors,
    /// Descriptions of the first few errors.
    pub examples: Vec<String>,
    /// Number of clients without any correct reply.
    pub never_served: u64,
    /// Number of clients that received all the replies that they requested.
    pub finished_clients: u64,
    /// Number of connections that were opened.
    pub connected: u64,
    /// Bytes sent over all connections, including the warm-up.
    pub sent_bytes: u64,
    /// Bytes received over all connections, including the warm-up.
    pub received_bytes: u64,
    /// `completed` of each client.
    pub per_connection: Vec<u64>,
    /// Mean number of requests under way, by Little's law.
    pub mean_in_flight: f64,
    /// Jain's fairness index of `per_connection`; `null` if all its values are 0.
    pub fairness: Option<f64>,
    /// Times from the planned send time to the last byte of the reply.
    pub response_time: Times,
    /// Times from the actual send time to the last byte of the reply.
    pub service_time: Times,
    /// Response times of the bystanders: the requests before whose replies the server had no work to do.
    pub bystanders: Times,
    /// Part of `response_time`: requests that were planned in a step of the time line without a late send.
    pub quiet_response_time: Times,
    /// Times by which the client sent later than planned.
    pub lag: Times,
    /// Times from the start of a connect to its completion.
    pub connect_time: Times,
    /// Times from the planned connect of a client to its first correct reply.
    pub first_reply: Times,
    /// Course of the window, in steps of 100 ms or a little more; empty for loads that end by themselves.
    pub timeline: Vec<TimelineEntry>,
}

/// TimelineEntry of the time line of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimelineEntry {
    /// Beginning of the step, in seconds since the beginning of the load.
    pub start_s: f64,
    /// Measured length of the step, in seconds.
    pub length_s: f64,
    /// Number of correct replies that arrived in the step.
    pub completed: u64,
    /// Number of requests that were planned in the step.
    pub planned: u64,
    /// Number of these requests that have no correct reply.
    pub unanswered: u64,
    /// Number of these requests that were sent over 100 µs late.
    pub late_sends: u64,
    /// 99th percentile of the response time of these requests, in milliseconds; `null` without requests.
    pub p99_ms: Option<f64>,
    /// Longest response time of these requests, in milliseconds; `null` without requests.
    pub max_ms: Option<f64>,
    /// CPU time of the client in the step, in seconds.
    pub client_cpu_s: f64,
    /// CPU time of the server in the step, in seconds; `null` if it was not read in the step.
    pub server_cpu_s: Option<f64>,
}

impl ClientSide {
    /// Converts the report of a client.
    ///
    /// # Errors
    ///
    /// Returns an error if a histogram cannot be encoded; see [`Times::of`].
    pub fn of(report: &Report) -> anyhow::Result<ClientSide> {
        Ok(ClientSide {
            elapsed_s: report.elapsed.as_secs_f64(),
            window_s: report.window.as_secs_f64(),
            client_cpu_s: report.cpu.as_secs_f64(),
            replies: report.replies,
            completed: report.completed,
            replies_in_all: None,
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
            quiet_response_time: Times::of(&report.quiet_response_time())?,
            lag: Times::of(&report.lag)?,
            connect_time: Times::of(&report.connect_time)?,
            first_reply: Times::of(&report.first_reply)?,
            timeline: Vec::new(),
        })
    }
}

/// Histogram of times: a few percentiles for readers, and the whole histogram for programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Times {
    /// Number of samples.
    pub count: u64,
    /// Median in nanoseconds; `null` with fewer than ten samples beyond it.
    pub p50_ns: Option<u64>,
    /// 90th percentile in nanoseconds; `null` with fewer than ten samples beyond it.
    pub p90_ns: Option<u64>,
    /// 99th percentile in nanoseconds; `null` with fewer than ten samples beyond it.
    pub p99_ns: Option<u64>,
    /// 99.9th percentile in nanoseconds; `null` with fewer than ten samples beyond it.
    pub p99_9_ns: Option<u64>,
    /// Largest sample in nanoseconds; `null` without samples.
    pub max_ns: Option<u64>,
    /// The histogram in nanoseconds, as HdrHistogram V2 with DEFLATE, in base64.
    pub histogram: String,
}

impl Times {
    /// Encodes a histogram.
    ///
    /// # Errors
    ///
    /// Returns an error if the histogram cannot be encoded, which only a lack of memory can cause.
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

    /// Decodes the histogram.
    ///
    /// # Errors
    ///
    /// Returns an error if the file was damaged or written by another program.
    pub fn decode(&self) -> anyhow::Result<Histogram<u64>> {
        let encoded = STANDARD
            .decode(&self.histogram)
            .context("a histogram is not base64")?;
        Deserializer::new()
            .deserialize(&mut encoded.as_slice())
            .map_err(|error| anyhow::anyhow!("a histogram cannot be decoded: {error}"))
    }
}

/// Measurements of the server in a run, over its whole process tree. `null`: the value could not be read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServerSide {
    /// Interval over which CPU time was counted, in seconds: the window, with its edges as the harness read them.
    pub interval_s: Option<f64>,
    /// CPU time in `interval_s`, in seconds, with a resolution of a nanosecond.
    pub cpu_s: Option<f64>,
    /// Interval over which the following counters were read, in seconds. It begins in the warm-up.
    pub counters_interval_s: Option<f64>,
    /// CPU time in user mode in `counters_interval_s`, in seconds; counted in the kernel's ticks of 10 ms.
    pub user_s: Option<f64>,
    /// CPU time in system mode in `counters_interval_s`, in seconds; counted in the kernel's ticks of 10 ms.
    pub system_s: Option<f64>,
    /// Number of context switches in `counters_interval_s` because a thread waited.
    pub voluntary_switches: Option<u64>,
    /// Number of context switches in `counters_interval_s` because it was another thread's turn.
    pub involuntary_switches: Option<u64>,
    /// Share of the time of all CPUs in use that was neither used by the client or the server nor idle, 0 to 1, in
    /// `counters_interval_s`.
    pub others_cpu: Option<f64>,
    /// Conditions of the machine in `counters_interval_s`.
    pub host: Host,
    /// CPU time while the client loaded other servers, as a share of that time; `null` in whole runs.
    pub rest_cpu: Option<f64>,
    /// CPUs on which threads of the server were allowed to run while it was measured; empty if unknown.
    pub cpus: Vec<usize>,
    /// Number of connections that the server had open at the end of the idle time. Only in `idle`; `null` if unknown.
    pub open_connections: Option<u64>,
    /// Whether a process of the server's tree has the listening socket; `null` if unknown.
    pub owns_listener: Option<bool>,
    /// Number of processes under load.
    pub processes: Option<u64>,
    /// Number of threads under load, over all processes.
    pub threads: Option<u64>,
    /// Anonymous and shared memory before the load, each page counted once, in bytes. Only in `idle`.
    pub memory_before_bytes: Option<u64>,
    /// Anonymous and shared memory at the end of the window, each page counted once, in bytes. Only in `idle`.
    pub memory_after_bytes: Option<u64>,
    /// Peak resident memory before the load, in bytes; `null` for a server that forks.
    pub peak_rss_before_bytes: Option<u64>,
    /// Peak resident memory, in bytes; `null` for a server that forks.
    pub peak_rss_bytes: Option<u64>,
    /// Exit status of the server, as text.
    pub exit: Option<String>,
    /// Tally that the server printed at its end; `null` if it printed none.
    #[schemars(with = "Option<BTreeMap<String, u64>>")]
    pub tally: Option<Tally>,
}

/// Conditions of the machine during a run. `null`: unknown here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Share of the time of the CPUs in use that the hypervisor gave to other virtual machines, 0 to 1.
    pub steal: Option<f64>,
    /// Share of the time in which a thread of the machine waited for a CPU, beside those of client and server, by the
    /// kernel's pressure stall information.
    pub cpu_pressure: Option<f64>,
    /// Time for which a CPU quota of the cgroup stopped this program or its servers, in seconds.
    pub throttled_s: Option<f64>,
    /// Number of connections that found the queue of a listening socket full, on the whole machine.
    pub listen_overflows: Option<u64>,
    /// Number of TCP segments that were sent again, on the whole machine.
    pub retransmits: Option<u64>,
}

impl Host {
    /// Converts the change of the counters over an interval.
    pub(crate) fn of(change: &HostChange) -> Host {
        Host {
            steal: change.steal,
            cpu_pressure: change.cpu_pressure,
            throttled_s: change.throttled.map(|time| time.as_secs_f64()),
            listen_overflows: change.listen_overflows,
            retransmits: change.retransmits,
        }
    }
}

impl TimelineEntry {
    /// Converts a step of the client's time line. The CPU time of the server is not known to the client.
    pub(crate) fn of(step: &TimelineStep) -> TimelineEntry {
        let times = &step.response_time;
        let ms = |time: u64| time as f64 / 1e6;
        TimelineEntry {
            start_s: step.start.as_secs_f64(),
            length_s: step.length.as_secs_f64(),
            completed: step.completed,
            planned: step.planned,
            unanswered: step.unanswered,
            late_sends: step.late_sends,
            p99_ms: (!times.is_empty()).then(|| ms(times.value_at_quantile(0.99))),
            max_ms: (!times.is_empty()).then(|| ms(times.max())),
            client_cpu_s: step.client_cpu.as_secs_f64(),
            server_cpu_s: None,
        }
    }
}

impl Results {
    /// Reads the comparison in `dir`, and computes its summaries again.
    ///
    /// # Errors
    ///
    /// Returns an error if the directory has no results, if they are damaged, or if they have another schema.
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
        let damaged = || {
            format!(
                "{} does not contain the results of a comparison, or is damaged",
                path.display()
            )
        };
        // The version is read first: a file of another schema would otherwise fail with an error about some field.
        let Version { schema } = serde_json::from_str(&text).with_context(damaged)?;
        if schema != SCHEMA {
            bail!(
                "{} has schema {schema}, but this version of samewire reads only schema {SCHEMA}; use the version that \
                 wrote the file",
                path.display()
            );
        }
        let mut results: Results = serde_json::from_str(&text).with_context(damaged)?;
        summary::complete(&mut results).with_context(damaged)?;
        Ok(results)
    }

    /// Returns the JSON Schema of `results.json` (draft 2020-12), generated from these types.
    ///
    /// # Errors
    ///
    /// Returns an error if the schema cannot be encoded, which only a lack of memory can cause.
    pub fn json_schema() -> anyhow::Result<String> {
        let schema = schemars::schema_for!(Results);
        let mut text = serde_json::to_string_pretty(&schema).context("cannot write the schema")?;
        text.push('\n');
        Ok(text)
    }

    /// Returns the results as one line of JSON, including the line break.
    ///
    /// # Errors
    ///
    /// Returns an error if the results cannot be encoded, which only a lack of memory can cause.
    pub fn to_json(&self) -> anyhow::Result<String> {
        let mut text = serde_json::to_string(self).context("cannot write the results as JSON")?;
        text.push('\n');
        Ok(text)
    }
}

/// Writes a file so that either the complete file exists afterwards or the file is unchanged: the text is written to a
/// temporary file in the same directory, which is then renamed.
///
/// # Errors
///
/// Returns an error if the disk is full, or if the directory was removed or is not writable.
pub fn write_atomically(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    // The name is hidden and contains the process id: two comparisons must not write to the same file.
    let unfinished = dir.join(format!(".{name}.{}", std::process::id()));
    let written = File::create(&unfinished)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            // Some file systems report only here that they are full.
            file.sync_all()
        })
        .and_then(|()| fs::rename(&unfinished, &path));
    written.map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        anyhow::Error::new(error).context(format!("cannot write {}", path.display()))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// Returns a valid run without figures.
    pub(crate) fn run(model: &str, workload: Workload) -> Run {
        Run {
            order: 1,
            round: 1,
            attempt: 1,
            superseded: false,
            model: model.to_string(),
            role: Role::Model,
            method: Method::Whole,
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
            checks: Vec::new(),
            client: None,
            server: None,
        }
    }

    /// Returns the measurements of a client in which all histograms except `lag` are this one.
    pub(crate) fn client_side(histogram: &Histogram<u64>) -> ClientSide {
        let times = Times::of(histogram).unwrap();
        let mut lag = client::histogram();
        lag.record_n(1_000, times.count).unwrap();
        ClientSide {
            elapsed_s: 1.0,
            window_s: 1.0,
            client_cpu_s: 0.5,
            replies: histogram.len(),
            completed: histogram.len(),
            replies_in_all: None,
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
            quiet_response_time: times.clone(),
            lag: Times::of(&lag).unwrap(),
            connect_time: times.clone(),
            first_reply: times,
            timeline: vec![TimelineEntry::default()],
        }
    }

    /// Returns results in which every optional part of the file is present.
    pub(crate) fn full() -> Results {
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
        one.checks = vec![Check::at_most(
            certificate::Condition::Steal,
            Some(0.0),
            0.01,
        )];
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
                workloads: crate::workloads::defaults(),
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
            probe: Some(Probe::default()),
            runs: vec![
                one.clone(),
                Run {
                    role: Role::Twin,
                    ..one
                },
            ],
            skipped: vec![Skipped {
                model: "serial".to_string(),
                workload: Workload::Max,
                connections: 100,
                reason: "by design it serves at most 1 at a time".to_string(),
            }],
            summary: Vec::new(),
            twins: Vec::new(),
            builds: Vec::new(),
            conclusions: Vec::new(),
        };
        summary::complete(&mut results).unwrap();
        results
    }

    #[test]
    fn results_are_read_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let results = full();
        write_atomically(dir.path(), FILE, &results.to_json().unwrap()).unwrap();
        assert_eq!(Results::read(dir.path()).unwrap(), results);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file may be left: {left:?}");
    }

    #[test]
    fn histogram_is_unchanged_after_encoding_and_decoding() {
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
    fn file_with_another_schema_or_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |text: Option<&str>| {
            if let Some(text) = text {
                fs::write(dir.path().join(FILE), text).unwrap();
            }
            format!("{:#}", Results::read(dir.path()).unwrap_err())
        };
        assert!(refused(None).contains("name a directory"));
        assert!(refused(Some("{\"schema\": 999}")).contains("schema 999"));
        assert!(refused(Some("[]")).contains("does not contain the results"));
        assert!(refused(Some("{\"schema\": 1}")).contains("schema 1"));
        assert!(refused(Some("{\"schema\": 2}")).contains("schema 2"));
        assert!(refused(Some("{\"schema\": 3}")).contains("schema 3"));
        assert!(refused(Some("{\"schema\": 4}")).contains("schema 4"));
        assert!(refused(Some("{\"schema\": 5}")).contains("missing field"));
    }

    #[test]
    fn failed_write_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        // The rename fails because a directory has the same name.
        fs::create_dir(dir.path().join("results.json")).unwrap();
        assert!(write_atomically(dir.path(), "results.json", "{}").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn schema_file_is_generated_from_the_types() {
        let written = include_str!("../../docs/src/results.schema.json");
        assert!(
            written == Results::json_schema().unwrap(),
            "docs/src/results.schema.json is out of date: samewire report --schema > docs/src/results.schema.json"
        );
    }

    #[test]
    fn results_keep_to_the_schema_and_damaged_results_do_not() {
        let schema: Value = serde_json::from_str(&Results::json_schema().unwrap()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let results: Value = serde_json::from_str(&full().to_json().unwrap()).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&results)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:?}");
        for (pointer, wrong) in [
            ("/schema", Value::from("5")),
            ("/runs/0/round", Value::Null),
            ("/runs/0/role", Value::from("visitor")),
            (
                "/summary/0/figures/cpu_us_per_request/mark",
                Value::from("best"),
            ),
            ("/summary/0/figures/cpu_us_per_request/value", Value::Null),
        ] {
            let mut damaged = results.clone();
            *damaged.pointer_mut(pointer).unwrap() = wrong;
            assert!(!validator.is_valid(&damaged), "{pointer}");
        }
    }

    /// Collects the keys of all objects in a JSON value.
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
    fn results_page_explains_every_field_and_no_other() {
        let page = include_str!("../../docs/src/results.md");
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
            "explained in docs/src/results.md, but not written: {gone:?}"
        );
    }
}
