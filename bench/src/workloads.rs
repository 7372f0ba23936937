//! The workloads: the load that each applies to a server, and the server arguments that it needs.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use contract::cli::parse_work;
use protocol::http::{Content, Page};
use protocol::{Bulk, Protocol, WorkPlan};
use twox_hash::XxHash3_64;

pub use crate::results::workload::Workload;

/// File that one of the `http` workloads requests: one of the built-in files that servers have without `--root`.
struct BuiltIn {
    path: &'static str,
    /// Number of times that the file repeats [`LINE`].
    lines: usize,
}

/// The line that the built-in files repeat.
const LINE: &[u8] = b"Hello World!\n";

/// Requests per second of `block` and `block-offload`, over all connections. One request in ten takes 5 ms, so this
/// rate keeps one thread busy for 30 % of the time: no server is overloaded, but a server with one thread still keeps
/// the other requests waiting.
pub(crate) const BLOCK_RATE: f64 = 600.0;

/// Shortest measured window of `block` and `block-offload`. At [`BLOCK_RATE`] it takes two seconds to have enough
/// samples for a 99th percentile of the bystanders.
pub(crate) const BLOCK_LEAST: Duration = Duration::from_secs(3);

/// Longest time that `http-13m` and `bulk` may take; these loads end after an amount of data.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

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

    /// Workloads that are measured without `--workloads`.
    pub(crate) const DEFAULT: &[Workload] = &[
        Workload::Crowd,
        Workload::Max,
        Workload::Steady,
        Workload::Idle,
    ];

    /// Returns the name that the command line and the tables use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Workload::Crowd => "crowd",
            Workload::Max => "max",
            Workload::Steady => "steady",
            Workload::Idle => "idle",
            Workload::Http13b => "http-13b",
            Workload::Http13k => "http-13k",
            Workload::Http13m => "http-13m",
            Workload::Bulk => "bulk",
            Workload::Wait => "wait",
            Workload::Block => "block",
            Workload::BlockOffload => "block-offload",
            Workload::Compute => "compute",
        }
    }

    /// Returns whether the workload can be measured in a sweep, with one number of connections after the other.
    /// `crowd` and `idle` are made for one number, and in `block` the number of connections does not matter.
    pub(crate) fn sweeps(self) -> bool {
        !matches!(
            self,
            Workload::Crowd | Workload::Idle | Workload::Block | Workload::BlockOffload
        )
    }

    /// Returns whether a sweep shows the CPU time per request in one table for all numbers of connections. In `max` all
    /// connections are busy, in `steady` a few of many: a cost that grows with the number of idle connections shows in
    /// `steady`.
    pub(crate) fn sweeps_cost(self) -> bool {
        matches!(self, Workload::Max | Workload::Steady)
    }

    /// Returns whether the load ends when all requests are answered, and not after a fixed time.
    pub(crate) fn ends_by_itself(self) -> bool {
        self == Workload::Crowd || self.is_transfer()
    }

    /// Returns whether each client requests a fixed amount of data at once and disconnects when it has received it.
    pub(crate) fn is_transfer(self) -> bool {
        matches!(self, Workload::Http13m | Workload::Bulk)
    }

    /// Returns whether the load is an open loop: requests are sent at a fixed rate, whatever the server does.
    pub(crate) fn is_open_loop(self) -> bool {
        matches!(
            self,
            Workload::Steady | Workload::Block | Workload::BlockOffload
        )
    }

    /// Returns the name of the protocol that the workload requires; `None` if it works with every protocol of small
    /// messages.
    pub(crate) fn own_protocol(self) -> Option<&'static str> {
        match self {
            Workload::Http13b | Workload::Http13k | Workload::Http13m => Some("http"),
            Workload::Bulk => Some("bulk"),
            _ => None,
        }
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

    fn file(self) -> Option<BuiltIn> {
        let (path, lines) = match self {
            Workload::Http13b => ("/files/13b", 1),
            Workload::Http13k => ("/files/13k", 1 << 10),
            Workload::Http13m => ("/files/13m", 1 << 20),
            _ => return None,
        };
        Some(BuiltIn { path, lines })
    }

    /// Returns the number of content bytes in each reply of `http-13b`, `http-13k`, `http-13m` and `bulk`; `None` for
    /// the other workloads.
    pub(crate) fn reply_bytes(self) -> Option<u64> {
        let bulk = Bulk::default();
        match self.file() {
            Some(file) => Some((file.lines * LINE.len()) as u64),
            None => (self == Workload::Bulk).then_some(bulk.size * bulk.count),
        }
    }

    /// Returns the page that the clients of an `http` workload request, with the length and the hash of its content.
    /// Because the content is known beforehand, a server that sends the same wrong file to all clients is detected.
    pub(crate) fn page(self, host: String) -> Arc<Page> {
        let Some(file) = self.file() else {
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
        match self {
            Workload::Wait => Some("wait:5ms"),
            Workload::Block | Workload::BlockOffload => Some("block:5ms@10%"),
            Workload::Compute => Some("compute:200us"),
            _ => None,
        }
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
        self == Workload::BlockOffload
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
