//! The figures of a run: their names, which direction is better, and the histogram that each is read from.

use serde::{Deserialize, Serialize};

use crate::results::{ClientSide, Times};

/// Kind of figure of a run. The unit is part of the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Time from the first connect until all clients had their replies, in seconds. If they had not, the longest time
    /// that was waited for them, as a lower bound.
    AllServedS,
    /// Number of clients that received all the replies that they requested.
    ClientsServed,
    /// Median over the clients of the time from the connect to the first reply, in milliseconds.
    FirstReplyP50Ms,
    /// Time from the connect to the first reply of the client that waited longest, in milliseconds.
    FirstReplyMaxMs,
    /// Number of correct replies per second.
    RequestsPerS,
    /// CPU time of the server per correct reply, in microseconds.
    CpuUsPerRequest,
    /// Content of correct replies per second, in MB of 10⁶ bytes.
    MbPerS,
    /// CPU time of the server per GB (10⁹ bytes) of content in correct replies, in milliseconds.
    CpuMsPerGb,
    /// Number of context switches of the server's threads per correct reply.
    SwitchesPerRequest,
    /// Jain's fairness index of the replies per connection: 1 if all connections received the same number.
    Fairness,
    /// Number of replies on the connection that received the fewest.
    FewestRepliesPerConnection,
    /// Number of replies on the connection that received the most.
    MostRepliesPerConnection,
    /// Number of connections without any reply in the window.
    ConnectionsWithoutReply,
    /// Mean number of requests under way, by Little's law.
    MeanInFlight,
    /// Median response time, from the planned send time, in milliseconds.
    ResponseP50Ms,
    /// 99th percentile of the response time, in milliseconds.
    ResponseP99Ms,
    /// 99.9th percentile of the response time, in milliseconds.
    #[serde(rename = "response_p99_9_ms")]
    ResponseP999Ms,
    /// Longest response time, in milliseconds.
    ResponseMaxMs,
    /// Median response time of the bystanders, in milliseconds. Bystanders are the requests before whose replies the
    /// server had no work to do.
    BystandersP50Ms,
    /// 99th percentile of the response time of the bystanders, in milliseconds.
    BystandersP99Ms,
    /// 99th percentile of the service time, in milliseconds: from the actual send time, without the correction for
    /// coordinated omission.
    ServiceP99Ms,
    /// Correct replies divided by planned requests, 0 to 1.
    Availability,
    /// Number of planned requests that were unanswered at the end.
    UnansweredRequests,
    /// 99th percentile of the lag of the client (actual send time minus planned send time), in milliseconds.
    LagP99Ms,
    /// Memory that one more idle connection takes in the server's processes, in KiB.
    KibPerConnection,
    /// CPU time of the server per second while all connections are idle, in milliseconds.
    IdleCpuMsPerS,
    /// Anonymous and shared memory of all processes of the server, each page counted once, in MiB.
    MemoryMib,
    /// Number of threads of the server under load, over all processes.
    Threads,
    /// Number of processes of the server under load.
    Processes,
    /// Peak resident memory of the server, in MiB; only for a server that does not fork.
    PeakMemoryMib,
    /// Growth of the peak resident memory under the load, per connection, in KiB.
    PeakKibPerConnection,
    /// CPU time of the server divided by the time of the CPUs that it can use, 0 to 1.
    ServerBusy,
    /// CPU time of the client divided by the time of its threads, 0 to 1.
    ClientBusy,
    /// Share of the time of all CPUs in use that other programs had, 0 to 1.
    OtherProgramsBusy,
}

/// Direction in which a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// A larger value is better.
    Higher,
    /// A smaller value is better.
    Lower,
}

impl Metric {
    /// All figures.
    #[cfg(test)]
    pub(crate) const ALL: [Metric; 34] = [
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

    /// Returns the direction in which a figure is better; `None` for figures by which models are not ranked because
    /// they only explain the others.
    pub(crate) fn better(self) -> Option<Better> {
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

    /// Returns whether the figure is a cost of the server (CPU time or memory), and not a time that a client waits.
    pub(crate) fn is_cost(self) -> bool {
        matches!(
            self,
            Metric::CpuUsPerRequest
                | Metric::CpuMsPerGb
                | Metric::KibPerConnection
                | Metric::PeakKibPerConnection
                | Metric::IdleCpuMsPerS
        )
    }

    /// Returns whether the figure is a throughput. If the client was the limit, a throughput is a valid lower bound.
    pub(crate) fn is_throughput(self) -> bool {
        matches!(self, Metric::RequestsPerS | Metric::MbPerS)
    }

    /// Returns the histogram and the quantile that the figure is read from; `None` for figures that are not read from a
    /// histogram.
    pub(crate) fn distribution(self) -> Option<Distribution> {
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

/// Histogram and quantile that a figure is read from.
pub(crate) struct Distribution {
    /// Function that returns the histogram of a client.
    pub(crate) times: fn(&ClientSide) -> &Times,
    /// Quantile, 0 to 1; 1 is the maximum.
    pub(crate) quantile: f64,
}
