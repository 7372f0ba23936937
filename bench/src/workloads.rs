//! The workloads. Each has a module with its definition: its load, the server arguments that it needs, its figures and its
//! table.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use client::Arrivals;
use contract::cli::parse_work;
use protocol::http::{Content, Page};
use protocol::{Bulk, Protocol, WorkPlan};
use twox_hash::XxHash3_64;

use crate::measure::evaluate::Evaluation;
use crate::report::table::TableText;
use crate::results::Results;
use crate::results::metric::Metric;
pub use crate::results::workload::Workload;

mod block;
mod bulk;
mod compute;
mod crowd;
mod http_13m;
mod http_small;
mod idle;
mod max;
mod steady;
mod wait;

pub(crate) use block::BLOCK_RATE;
pub(crate) use idle::IDLE_CONNECTIONS;

/// File that one of the `http` workloads requests: one of the built-in files that servers have without `--root`.
pub(crate) struct BuiltIn {
    path: &'static str,
    /// Number of times that the file repeats [`LINE`].
    lines: usize,
}

/// The line that the built-in files repeat.
const LINE: &[u8] = b"Hello World!\n";

/// Longest time that `http-13m` and `bulk` may take; these loads end after an amount of data.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Many clients connect at once, send a few requests with pauses, and leave.
    Crowd,
    /// Each client requests a fixed amount of data at once and disconnects when it has received it.
    Transfer,
    /// Each client sends its next request when it has a reply.
    Closed,
    /// Requests are sent at a fixed rate, whatever the server does.
    Open,
    /// Connections without requests.
    Idle,
}

/// Way in which a workload is measured over several numbers of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sweep {
    /// Not at all: the workload is made for one number, or the number does not matter.
    No,
    /// In one table of the CPU time per request, for all numbers.
    Cost,
    /// In one table per number.
    Tables,
}

/// Slices of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slice {
    /// Of the length in the settings, after a tenth of it that is not counted.
    Short,
    /// Of this length, after a fifth of it that is not counted.
    Long(Duration),
}

/// Everything that distinguishes a workload from the others.
pub(crate) struct Definition {
    /// Name on the command line and in tables.
    name: &'static str,
    pub(crate) kind: Kind,
    /// Whether it is measured without `--workloads`.
    default: bool,
    /// Whether its figures hardly vary, so that few rounds are enough.
    pub(crate) few_rounds: bool,
    sweep: Sweep,
    /// Slices in which it is measured; `None`: as a whole.
    pub(crate) slice: Option<Slice>,
    /// Protocol that it requires; `None` if it works with every protocol of small messages.
    protocol: Option<&'static str>,
    file: Option<BuiltIn>,
    /// Work that the servers do before their replies, in the syntax of `--work`.
    work: Option<&'static str>,
    /// Whether servers move their work to threads where it delays no other peer (`--offload`).
    offloads: bool,
    /// Requests per second, over all connections; `None`: those of the settings.
    pub(crate) rate: Option<f64>,
    /// Spacing of the planned send times of an open loop.
    pub(crate) arrivals: Arrivals,
    /// Shortest measured window.
    pub(crate) least_duration: Duration,
    /// Number of requests of each client, by the number of connections, if the load ends by itself.
    pub(crate) messages: fn(usize) -> u64,
    /// Figure that answers the question of the workload. Its interval decides how many rounds are measured, and the
    /// conclusions are about it.
    main_metric: Metric,
    /// Figure whose column shows "failed" if all runs failed.
    pub(crate) first_metric: Metric,
    /// Figure that the progress shows for each run, and its unit.
    progress: (Metric, &'static str),
    /// Computes the figures of a run.
    pub(crate) evaluate: fn(&mut Evaluation<'_>),
    /// Returns the text above the table, and its columns.
    pub(crate) table: fn(&Results, usize) -> TableText,
}

impl Definition {
    /// Returns the definition of a workload that is not measured by default, whose question is the CPU time per request.
    const fn new(
        name: &'static str,
        kind: Kind,
        table: fn(&Results, usize) -> TableText,
    ) -> Definition {
        Definition {
            name,
            kind,
            default: false,
            few_rounds: false,
            sweep: Sweep::No,
            slice: None,
            protocol: None,
            file: None,
            work: None,
            offloads: false,
            rate: None,
            arrivals: Arrivals::Constant,
            least_duration: Duration::ZERO,
            messages: |_| 1,
            main_metric: Metric::CpuUsPerRequest,
            first_metric: Metric::RequestsPerS,
            progress: (Metric::CpuUsPerRequest, "µs of CPU time per request"),
            evaluate: |evaluation| evaluation.max(),
            table,
        }
    }

    /// Returns the definition of a transfer.
    const fn transfer(name: &'static str, table: fn(&Results, usize) -> TableText) -> Definition {
        Definition {
            main_metric: Metric::CpuMsPerGb,
            first_metric: Metric::MbPerS,
            progress: (Metric::MbPerS, "MB/s"),
            evaluate: |evaluation| evaluation.transfer(),
            ..Definition::new(name, Kind::Transfer, table)
        }
    }

    /// Returns the same definition, measured by default.
    const fn by_default(self) -> Definition {
        Definition {
            default: true,
            ..self
        }
    }
}

impl Workload {
    /// All workloads, in the order of the tables.
    pub(crate) const ALL: &[Workload] = &[
        Workload::Crowd,
        Workload::Max,
        Workload::Steady,
        Workload::Idle,
        Workload::Http13b,
        Workload::Http13k,
        Workload::Http13m,
        Workload::Bulk,
        Workload::Wait,
        Workload::Block,
        Workload::BlockOffload,
        Workload::Compute,
    ];

    /// Returns the definition of the workload.
    pub(crate) fn definition(self) -> &'static Definition {
        match self {
            Workload::Crowd => &crowd::CROWD,
            Workload::Max => &max::MAX,
            Workload::Steady => &steady::STEADY,
            Workload::Idle => &idle::IDLE,
            Workload::Http13b => &http_small::HTTP_13B,
            Workload::Http13k => &http_small::HTTP_13K,
            Workload::Http13m => &http_13m::HTTP_13M,
            Workload::Bulk => &bulk::BULK,
            Workload::Wait => &wait::WAIT,
            Workload::Block => &block::BLOCK,
            Workload::BlockOffload => &block::BLOCK_OFFLOAD,
            Workload::Compute => &compute::COMPUTE,
        }
    }

    /// Returns the name that the command line and the tables use.
    pub(crate) fn name(self) -> &'static str {
        self.definition().name
    }

    /// Returns whether the workload can be measured in a sweep, with one number of connections after the other.
    /// `crowd` and `idle` are made for one number, and in `block` the number of connections does not matter.
    pub(crate) fn sweeps(self) -> bool {
        self.definition().sweep != Sweep::No
    }

    /// Returns whether a sweep shows the CPU time per request in one table for all numbers of connections. In `max` all
    /// connections are busy, in `steady` a few of many: a cost that grows with the number of idle connections shows in
    /// `steady`.
    pub(crate) fn sweeps_cost(self) -> bool {
        self.definition().sweep == Sweep::Cost
    }

    /// Returns whether the load ends when all requests are answered, and not after a fixed time.
    pub(crate) fn ends_by_itself(self) -> bool {
        matches!(self.definition().kind, Kind::Crowd | Kind::Transfer)
    }

    /// Returns whether each client requests a fixed amount of data at once and disconnects when it has received it.
    pub(crate) fn is_transfer(self) -> bool {
        self.definition().kind == Kind::Transfer
    }

    /// Returns whether the load is an open loop: requests are sent at a fixed rate, whatever the server does.
    pub(crate) fn is_open_loop(self) -> bool {
        self.definition().kind == Kind::Open
    }

    /// Returns the figure that answers the question of the workload. Its interval decides how many rounds are measured,
    /// and the conclusions are about it.
    pub(crate) fn main_metric(self) -> Metric {
        self.definition().main_metric
    }

    /// Returns the figure that the progress shows for each run, and its unit.
    pub(crate) fn progress_figure(self) -> (Metric, &'static str) {
        self.definition().progress
    }

    /// Returns whether the workload is measured without `--workloads`.
    pub(crate) fn is_default(self) -> bool {
        self.definition().default
    }

    /// Returns the name of the protocol that the workload requires; `None` if it works with every protocol of small
    /// messages.
    pub(crate) fn own_protocol(self) -> Option<&'static str> {
        self.definition().protocol
    }

    /// Returns the protocol that the workload uses: its own, or else `small`, the protocol of `--protocol`.
    pub(crate) fn protocol(self, small: &'static Protocol) -> &'static Protocol {
        self.own_protocol()
            .and_then(Protocol::find)
            .unwrap_or(small)
    }

    /// Returns whether the workload requires a protocol other than `small`.
    pub(crate) fn protocol_differs(self, small: &Protocol) -> bool {
        self.own_protocol().is_some_and(|own| own != small.name)
    }

    /// Returns the number of content bytes in each reply of `http-13b`, `http-13k`, `http-13m` and `bulk`; `None` for
    /// the other workloads.
    pub(crate) fn reply_bytes(self) -> Option<u64> {
        let bulk = Bulk::default();
        match &self.definition().file {
            Some(file) => Some((file.lines * LINE.len()) as u64),
            None => (self == Workload::Bulk).then_some(bulk.size * bulk.count),
        }
    }

    /// Returns the page that the clients of an `http` workload request, with the length and the hash of its content.
    /// Because the content is known beforehand, a server that sends the same wrong file to all clients is detected.
    pub(crate) fn page(self, host: String) -> Arc<Page> {
        let Some(file) = &self.definition().file else {
            return Arc::default();
        };
        let body = LINE.repeat(file.lines);
        let content = Content {
            length: body.len() as u64,
            hash: XxHash3_64::oneshot(&body),
        };
        Arc::new(Page {
            path: file.path.to_string(),
            host,
            content: OnceLock::from(content),
        })
    }

    /// Returns the work that the servers do before their replies, in the syntax of `--work`; `None` if they do none.
    fn work(self) -> Option<&'static str> {
        self.definition().work
    }

    /// Returns whether the servers work before their replies.
    pub(crate) fn has_work(self) -> bool {
        self.work().is_some()
    }

    /// Returns the work before the replies for the client, which must draw the same random numbers as the server.
    pub(crate) fn work_plan(self, seed: u64) -> Option<WorkPlan> {
        let plan = self.work().and_then(|work| parse_work(work).ok());
        plan.map(|plan| plan.with_seed(seed))
    }

    /// Returns whether servers move their work to threads where it delays no other peer (`--offload`).
    pub(crate) fn offloads(self) -> bool {
        self.definition().offloads
    }

    /// Returns the arguments of the servers of this workload, in addition to the arguments that all servers get.
    pub(crate) fn server_arguments(self, small: &'static Protocol, seed: u64) -> Vec<String> {
        let mut arguments = vec![
            "--protocol".to_string(),
            self.protocol(small).name.to_string(),
        ];
        if let Some(work) = self.work() {
            arguments.extend(["--work", work, "--work-seed"].map(String::from));
            arguments.push(seed.to_string());
        }
        if self.offloads() {
            arguments.push("--offload".to_string());
        }
        arguments
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` applies the width of the format string.
        f.pad(self.name())
    }
}

/// Returns the parser of one value of `--workloads`: a name, or `all`. The possible values are listed so that shells
/// can complete them.
pub(crate) fn parser() -> impl TypedValueParser<Value = &'static [Workload]> {
    let names = Workload::ALL.iter().map(|one| one.name());
    PossibleValuesParser::new(names.chain(["all"])).map(|name| {
        let index = Workload::ALL.iter().position(|one| one.name() == name);
        // The only possible value without an index is "all".
        index.map_or(Workload::ALL, |index| &Workload::ALL[index..=index])
    })
}

#[cfg(test)]
pub(crate) fn defaults() -> Vec<Workload> {
    let all = Workload::ALL.iter().copied();
    all.filter(|workload| workload.is_default()).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use contract::cli::ServeArgs;

    use super::*;
    use crate::commands::compare::tests::settings;

    #[test]
    fn workload_has_the_same_name_in_json_and_on_the_command_line() {
        for &workload in Workload::ALL {
            let name = serde_json::to_value(workload).unwrap();
            assert_eq!(name, workload.name());
            let named = settings(&["--workloads", workload.name()]);
            assert_eq!(named.workloads, [workload]);
        }
    }

    /// An argument that a server does not know would make every run fail.
    #[test]
    fn server_arguments_are_parsed_and_agree_with_the_client() {
        #[derive(Debug, Parser)]
        struct Server {
            #[command(flatten)]
            args: ServeArgs,
        }
        let small = Protocol::find("pair").unwrap();
        for &workload in Workload::ALL {
            let arguments = workload.server_arguments(small, 42);
            let words = ["server".to_string()].into_iter().chain(arguments);
            let server = Server::parse_from(words).args;
            assert_eq!(server.protocol.name, workload.protocol(small).name);
            assert_eq!(server.offload, workload.offloads());
            assert_eq!(server.bulk.bulk(), Bulk::default());
            let client = workload.work_plan(42);
            assert_eq!(
                format!("{:?}", server.work.plan()),
                format!("{client:?}"),
                "{workload}"
            );
            assert_eq!(client.is_some(), workload.work().is_some());
        }
    }

    #[test]
    fn page_of_http_workload_has_the_length_and_hash_of_its_file() {
        for (workload, length) in [
            (Workload::Http13b, 13),
            (Workload::Http13k, 13 << 10),
            (Workload::Http13m, 13 << 20),
        ] {
            let page = workload.page("127.0.0.1:7".to_string());
            let content = page.content.get().unwrap();
            assert_eq!(content.length, length);
            assert_eq!(workload.reply_bytes(), Some(length));
            assert!(page.path.ends_with(&workload.name()["http-".len()..]));
        }
        let page = Workload::Http13b.page(String::new());
        let hash = XxHash3_64::oneshot(b"Hello World!\n");
        assert_eq!(page.content.get().unwrap().hash, hash);
        assert_eq!(Workload::Bulk.reply_bytes(), Some(9 << 20));
        assert_eq!(Workload::Max.reply_bytes(), None);
    }
}
