//! The questions that are put to every model, and what each does to its servers.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use contract::cli::parse_work;
use protocol::http::{Content, Page};
use protocol::{Bulk, Protocol, WorkPlan};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// A question that is put to every model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Many clients come at once and take their time: how long until all are served?
    Crowd,
    /// As fast as the server answers: what is the most, and what does it cost?
    Max,
    /// One rate for all models, below their limits: how long do replies take?
    Steady,
    /// Many connections that are silent: what do they cost?
    Idle,
    /// A file of 13 bytes over HTTP, again and again: what does the protocol cost?
    #[serde(rename = "http-13b")]
    Http13b,
    /// Likewise a file of 13 KiB, which a socket takes at once.
    #[serde(rename = "http-13k")]
    Http13k,
    /// Each user wants a file of 13 MiB, all at once: are all served, and how fast?
    #[serde(rename = "http-13m")]
    Http13m,
    /// Each peer wants a few big messages, all at once.
    Bulk,
    /// Each reply waits for something slow, which needs nobody meanwhile: how many wait at a time?
    Wait,
    /// One reply in ten keeps its thread for a while: what have the others of it?
    Block,
    /// The same, and the servers may move it elsewhere.
    BlockOffload,
    /// Each reply takes CPU time: what is left of the differences?
    Compute,
}

/// The file that one of the `http` workloads asks for: one of those that servers have without `--root`.
struct BuiltIn {
    path: &'static str,
    /// How often its line is in it.
    lines: usize,
}

/// What the built-in files are made of.
const LINE: &[u8] = b"Hello World!\n";

/// Of `block`: requests per second, over all connections. One in ten takes 5 ms, so this keeps one thread busy for 30 %
/// of the time: nobody is overloaded, and who has the one thread keeps the others waiting all the same.
pub(super) const BLOCK_RATE: f64 = 600.0;

/// Of `block`: at that rate it takes two seconds to have samples enough for a 99th percentile of the others.
pub(super) const BLOCK_LEAST: Duration = Duration::from_secs(3);

/// How long the loads that end with an amount (`http-13m`, `bulk`) may take.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

impl Workload {
    /// All, in the order of the tables.
    pub(super) const ALL: &[Workload] = &[
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

    /// Those that are measured if nobody names any.
    pub(super) const DEFAULT: &[Workload] = &[
        Workload::Crowd,
        Workload::Max,
        Workload::Steady,
        Workload::Idle,
    ];

    /// What the command line and the tables call it.
    pub(super) fn name(self) -> &'static str {
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

    /// Whether it can be asked with one number of connections after another. (`crowd` and `idle` are about one number,
    /// and `block` about the requests, whoever sends them.)
    pub(super) fn sweeps(self) -> bool {
        !matches!(
            self,
            Workload::Crowd | Workload::Idle | Workload::Block | Workload::BlockOffload
        )
    }

    /// Whether its sweep is one table of costs. In `max` all connections are busy, in `steady` a few of many: a cost
    /// that grows with the silent ones shows in the second.
    pub(super) fn sweeps_cost(self) -> bool {
        matches!(self, Workload::Max | Workload::Steady)
    }

    /// Whether it ends when all is said, and not after a time.
    pub(super) fn has_an_end(self) -> bool {
        self == Workload::Crowd || self.is_transfer()
    }

    /// Whether each client wants so much at once, and leaves with it.
    pub(super) fn is_transfer(self) -> bool {
        matches!(self, Workload::Http13m | Workload::Bulk)
    }

    /// Whether it is asked at a rate, whatever the server does.
    pub(super) fn is_open_loop(self) -> bool {
        matches!(
            self,
            Workload::Steady | Workload::Block | Workload::BlockOffload
        )
    }

    /// The protocol that it is about; `None`: any of those with small messages.
    pub(super) fn own_protocol(self) -> Option<&'static str> {
        match self {
            Workload::Http13b | Workload::Http13k | Workload::Http13m => Some("http"),
            Workload::Bulk => Some("bulk"),
            _ => None,
        }
    }

    /// What it says, if `small` was asked for.
    pub(super) fn protocol(self, small: &'static Protocol) -> &'static Protocol {
        self.own_protocol()
            .and_then(Protocol::find)
            .unwrap_or(small)
    }

    /// Whether that is another one than `small`.
    pub(super) fn protocol_differs(self, small: &Protocol) -> bool {
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

    /// Bytes of content in each reply, where that is what it is about.
    pub(super) fn reply_bytes(self) -> Option<u64> {
        let bulk = Bulk::default();
        match self.file() {
            Some(file) => Some((file.lines * LINE.len()) as u64),
            None => (self == Workload::Bulk).then_some(bulk.size * bulk.count),
        }
    }

    /// What the clients of `http` ask for. What must come is known beforehand, so that a server that sends the wrong
    /// file to all of them is found out.
    pub(super) fn page(self, host: String) -> Arc<Page> {
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

    /// What its servers have to do before their replies, as the command line says it.
    fn work(self) -> Option<&'static str> {
        match self {
            Workload::Wait => Some("wait:5ms"),
            Workload::Block | Workload::BlockOffload => Some("block:5ms@10%"),
            Workload::Compute => Some("compute:200us"),
            _ => None,
        }
    }

    /// Whether they have any.
    pub(super) fn works(self) -> bool {
        self.work().is_some()
    }

    /// The same for the client, which must draw it as the server does.
    pub(super) fn work_plan(self, seed: u64) -> Option<WorkPlan> {
        let plan = self.work().and_then(|work| parse_work(work).ok());
        plan.map(|plan| plan.with_seed(seed))
    }

    /// Whether servers may move their work to where it keeps nobody.
    pub(super) fn offloads(self) -> bool {
        self == Workload::BlockOffload
    }

    /// What its servers are told, beside what all are.
    pub(super) fn server_arguments(self, small: &'static Protocol, seed: u64) -> Vec<String> {
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
        // `pad`, so that widths work.
        f.pad(self.name())
    }
}

/// Understands one of `--workloads`: a name, or `all`. That clap knows the names is for shells, which complete them.
pub(super) fn parser() -> impl TypedValueParser<Value = &'static [Workload]> {
    let names = Workload::ALL.iter().map(|one| one.name());
    PossibleValuesParser::new(names.chain(["all"])).map(|name| {
        let place = Workload::ALL.iter().position(|one| one.name() == name);
        // Nothing else is left than "all".
        place.map_or(Workload::ALL, |place| &Workload::ALL[place..=place])
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use contract::cli::ServeArgs;

    use super::*;
    use crate::compare::tests::settings;

    #[test]
    fn a_workload_has_one_name() {
        for &workload in Workload::ALL {
            let name = serde_json::to_value(workload).unwrap();
            assert_eq!(name, workload.name());
            let named = settings(&["--workloads", workload.name()]);
            assert_eq!(named.workloads, [workload]);
        }
    }

    /// A server that is told something it does not know fails every run.
    #[test]
    fn servers_understand_what_they_are_told_and_the_client_agrees() {
        #[derive(Debug, Parser)]
        struct Server {
            #[command(flatten)]
            args: ServeArgs,
        }
        let small = Protocol::find("pair").unwrap();
        for &workload in Workload::ALL {
            let told = workload.server_arguments(small, 42);
            let server = Server::parse_from(["server".to_string()].into_iter().chain(told)).args;
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
    fn the_files_are_known_beforehand() {
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
