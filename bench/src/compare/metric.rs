//! The figures that the tables are made of: what they are called, and which way is better.

use serde::{Deserialize, Serialize};

use super::results::{ClientSide, Times};

/// One figure of a run. Its unit is part of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// From the first connect until all clients had their replies; the patience, as a lower bound, if they had not.
    AllServedS,
    /// Clients that got all they asked for.
    ClientsServed,
    /// Median over clients: from the connect to the first reply.
    FirstReplyP50Ms,
    /// The unluckiest client's.
    FirstReplyMaxMs,
    /// Right replies per second.
    RequestsPerS,
    /// CPU time of the server per right reply.
    CpuUsPerRequest,
    /// Content of right replies per second, in MB of 10⁶ bytes.
    MbPerS,
    /// CPU time of the server per GB (10⁹ bytes) of such content.
    CpuMsPerGb,
    /// Context switches of the server's threads per right reply.
    SwitchesPerRequest,
    /// Jain's index of the replies per connection.
    Fairness,
    /// Replies to the worst served connection.
    FewestRepliesPerConnection,
    /// Replies to the best served connection.
    MostRepliesPerConnection,
    /// Connections without any reply in the window.
    ConnectionsWithoutReply,
    /// Requests under way on average, by Little's law.
    MeanInFlight,
    /// Median response time, from the planned send.
    ResponseP50Ms,
    /// 99th percentile of it.
    ResponseP99Ms,
    /// 99.9th percentile of it.
    #[serde(rename = "response_p99_9_ms")]
    ResponseP999Ms,
    /// The longest response time.
    ResponseMaxMs,
    /// Median response time of the requests before whose replies the server had nothing to do.
    BystandersP50Ms,
    /// 99th percentile of it.
    BystandersP99Ms,
    /// 99th percentile of the service time, from the actual send: without the correction.
    ServiceP99Ms,
    /// Right replies over planned requests, 0 to 1.
    Availability,
    /// Planned requests without an answer at the end.
    UnansweredRequests,
    /// 99th percentile of how late the client itself was.
    LagP99Ms,
    /// Memory that one more idle connection takes in the server's processes.
    KibPerConnection,
    /// CPU time of the server in a second in which all connections are silent.
    IdleCpuMsPerS,
    /// Memory of its own, of all the server's processes.
    MemoryMib,
    /// Threads of the server under load, over all processes.
    Threads,
    /// Processes of the server under load.
    Processes,
    /// The most memory that was resident; only of a server that does not fork.
    PeakMemoryMib,
    /// By how much that grew with the load, per connection.
    PeakKibPerConnection,
    /// CPU time of the server over that of its CPUs, 0 to 1.
    ServerBusy,
    /// CPU time of the client over that of its threads, 0 to 1.
    ClientBusy,
    /// What others had of all CPUs in use, 0 to 1.
    OtherProgramsBusy,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

impl Metric {
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: [Metric; 34] = [
        Metric::AllServedS,
        Metric::ClientsServed,
        Metric::FirstReplyP50Ms,
        Metric::FirstReplyMaxMs,
        Metric::RequestsPerS,
        Metric::CpuUsPerRequest,
        Metric::MbPerS,
        Metric::CpuMsPerGb,
        Metric::SwitchesPerRequest,
        Metric::Fairness,
        Metric::FewestRepliesPerConnection,
        Metric::MostRepliesPerConnection,
        Metric::ConnectionsWithoutReply,
        Metric::MeanInFlight,
        Metric::ResponseP50Ms,
        Metric::ResponseP99Ms,
        Metric::ResponseP999Ms,
        Metric::ResponseMaxMs,
        Metric::BystandersP50Ms,
        Metric::BystandersP99Ms,
        Metric::ServiceP99Ms,
        Metric::Availability,
        Metric::UnansweredRequests,
        Metric::LagP99Ms,
        Metric::KibPerConnection,
        Metric::IdleCpuMsPerS,
        Metric::MemoryMib,
        Metric::Threads,
        Metric::Processes,
        Metric::PeakMemoryMib,
        Metric::PeakKibPerConnection,
        Metric::ServerBusy,
        Metric::ClientBusy,
        Metric::OtherProgramsBusy,
    ];

    /// Which way is better, for the figures by which models are compared; the others explain those.
    pub(super) fn better(self) -> Option<Better> {
        match self {
            Metric::RequestsPerS | Metric::MbPerS => Some(Better::Higher),
            Metric::AllServedS
            | Metric::FirstReplyMaxMs
            | Metric::CpuUsPerRequest
            | Metric::CpuMsPerGb
            | Metric::ResponseP99Ms
            | Metric::BystandersP99Ms
            | Metric::KibPerConnection
            | Metric::PeakKibPerConnection
            | Metric::IdleCpuMsPerS => Some(Better::Lower),
            _ => None,
        }
    }

    /// What it costs the server, and not how long it takes.
    pub(super) fn is_cost(self) -> bool {
        matches!(
            self,
            Metric::CpuUsPerRequest
                | Metric::CpuMsPerGb
                | Metric::KibPerConnection
                | Metric::PeakKibPerConnection
                | Metric::IdleCpuMsPerS
        )
    }

    /// How much is done: of a client that was the limit it is a lower bound, and no less true.
    pub(super) fn is_throughput(self) -> bool {
        matches!(self, Metric::RequestsPerS | Metric::MbPerS)
    }

    /// The histogram it is read from, and where; `None` for figures that are counted.
    pub(super) fn distribution(self) -> Option<Distribution> {
        let (times, quantile): (fn(&ClientSide) -> &Times, f64) = match self {
            Metric::FirstReplyP50Ms => (|client| &client.first_reply, 0.5),
            Metric::FirstReplyMaxMs => (|client| &client.first_reply, 1.0),
            Metric::ResponseP50Ms => (|client| &client.response_time, 0.5),
            Metric::ResponseP99Ms => (|client| &client.response_time, 0.99),
            Metric::ResponseP999Ms => (|client| &client.response_time, 0.999),
            Metric::ResponseMaxMs => (|client| &client.response_time, 1.0),
            Metric::BystandersP50Ms => (|client| &client.bystanders, 0.5),
            Metric::BystandersP99Ms => (|client| &client.bystanders, 0.99),
            Metric::ServiceP99Ms => (|client| &client.service_time, 0.99),
            Metric::LagP99Ms => (|client| &client.lag, 0.99),
            _ => return None,
        };
        Some(Distribution { times, quantile })
    }
}

/// Where in which histogram.
pub(super) struct Distribution {
    pub(super) times: fn(&ClientSide) -> &Times,
    /// 1 is the maximum.
    pub(super) quantile: f64,
}
