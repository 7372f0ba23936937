//! The figures of a run: their names, which direction is better, and the histogram that each is read from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::results::workload::Workload;
use crate::results::{ClientSide, Times};
use crate::statistics::ranking::Better;
use crate::workloads::Kind;

/// Kind of figure of a run. The unit is part of the name.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Time from the first connect until all clients had their replies, in seconds. If they had not, the longest time
    /// that was waited for them, as a lower bound.
    AllServedS,
    /// `all_served_s` without the pauses of the clients, in seconds: the time that the server took.
    AllServedExcessS,
    /// Number of clients that received all the replies that they requested.
    ClientsServed,
    /// Median over the clients of the time from the connect to the first reply, in milliseconds.
    FirstReplyP50Ms,
    /// Time from the connect to the first reply of the client that waited longest, in milliseconds.
    FirstReplyMaxMs,
    /// Number of correct replies per second.
    RequestsPerS,
    /// Number of correct replies per second, divided by the share of its CPUs that the server used: a bound on the
    /// throughput with a client that costs nothing.
    RequestsPerSBound,
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
    /// 99th percentile of the response time of the requests that were planned in steps of the time line without a late
    /// send, in milliseconds.
    QuietP99Ms,
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

impl Metric {
    /// All figures.
    pub(crate) const ALL: [Metric; 37] = [
        Metric::AllServedS,
        Metric::AllServedExcessS,
        Metric::ClientsServed,
        Metric::FirstReplyP50Ms,
        Metric::FirstReplyMaxMs,
        Metric::RequestsPerS,
        Metric::RequestsPerSBound,
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
        Metric::QuietP99Ms,
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

    /// Returns the direction in which a figure is better; `None` if models are not ranked by it in this workload:
    ///
    /// - Most figures only explain the others.
    /// - Response times of a closed loop leave out the requests that a slow server kept the client from sending
    ///   (coordinated omission).
    /// - Requests per second of a closed loop that uses all CPUs of client and server are those of the pair; the CPU
    ///   time per request is the server's alone. Where replies wait or compute, the server is the limit.
    pub(crate) fn better(self, workload: Workload) -> Option<Better> {
        match self {
            Metric::MbPerS if workload.is_transfer() => Some(Better::Higher),
            Metric::RequestsPerS
                if workload.has_work() && workload.definition().kind == Kind::Closed =>
            {
                Some(Better::Higher)
            }
            Metric::ResponseP99Ms if workload.is_open_loop() => Some(Better::Lower),
            Metric::AllServedExcessS
            | Metric::FirstReplyMaxMs
            | Metric::CpuUsPerRequest
            | Metric::CpuMsPerGb
            | Metric::BystandersP99Ms
            | Metric::KibPerConnection
            | Metric::PeakKibPerConnection
            | Metric::IdleCpuMsPerS => Some(Better::Lower),
            _ => None,
        }
    }

    /// Returns the smallest value that the figure can tell from zero: values are compared by their logarithms, and
    /// zero has none.
    pub(crate) fn resolution(self) -> f64 {
        match self {
            Metric::IdleCpuMsPerS | Metric::AllServedExcessS => 1e-3,
            Metric::KibPerConnection | Metric::PeakKibPerConnection => 1e-2,
            _ => f64::MIN_POSITIVE,
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

    /// Returns whether the figure is read from the processes of the server.
    pub(crate) fn is_of_the_processes(self) -> bool {
        self.is_cost()
            || matches!(
                self,
                Metric::RequestsPerSBound
                    | Metric::SwitchesPerRequest
                    | Metric::MemoryMib
                    | Metric::Threads
                    | Metric::Processes
                    | Metric::PeakMemoryMib
                    | Metric::ServerBusy
            )
    }

    /// Returns whether the figure is a time that a client waits.
    pub(crate) fn is_time(self) -> bool {
        matches!(
            self,
            Metric::AllServedS
                | Metric::AllServedExcessS
                | Metric::FirstReplyP50Ms
                | Metric::FirstReplyMaxMs
        ) || self.is_percentile()
    }

    /// Returns whether the figure is a response time that is read from a histogram.
    pub(crate) fn is_percentile(self) -> bool {
        matches!(
            self,
            Metric::ResponseP50Ms
                | Metric::ResponseP99Ms
                | Metric::QuietP99Ms
                | Metric::ResponseP999Ms
                | Metric::ResponseMaxMs
                | Metric::BystandersP50Ms
                | Metric::BystandersP99Ms
        )
    }

    /// Returns the histogram and the quantile that the figure is read from; `None` for figures that are not read from a
    /// histogram.
    pub(crate) fn distribution(self) -> Option<Distribution> {
        let (times, quantile): (fn(&ClientSide) -> &Times, f64) = match self {
            Metric::FirstReplyP50Ms => (|client| &client.first_reply, 0.5),
            Metric::FirstReplyMaxMs => (|client| &client.first_reply, 1.0),
            Metric::ResponseP50Ms => (|client| &client.response_time, 0.5),
            Metric::ResponseP99Ms => (|client| &client.response_time, 0.99),
            Metric::QuietP99Ms => (|client| &client.quiet_response_time, 0.99),
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
