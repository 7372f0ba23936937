//! The load to drive, complete and replayable.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::http::Page;
use protocol::{Bulk, Protocol, WorkPlan};

use crate::DriveError;

/// Complete description of a load: the same plan sends the same requests in the same order.
///
/// A failed request fails alone: its connection is closed, and the client opens a new connection for the next request,
/// after a pause (10 ms, doubled with each failure in a row, at most 1 s). A failed connect is the failure of the
/// request that it was for. A connection that the server closes while no request is under way fails the next request: a
/// client with blocking calls would find it out then. A client gives up after 5 failures in a row, or if it is refused
/// before its first correct reply; if all clients have given up, the drive ends.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Address on which the server listens.
    pub address: SocketAddr,
    /// Protocol of the requests and replies.
    pub protocol: &'static Protocol,
    /// Number of clients that send requests at the same time, each on a connection of its own.
    pub connections: usize,
    /// Size of a request, in bytes; `None` for the original's short lines.
    pub size: Option<usize>,
    /// Messages that `bulk` is to send.
    pub bulk: Bulk,
    /// Page that is requested over `http`.
    pub page: Arc<Page>,
    /// Work that the server was configured to do before its replies. The requests before whose replies it has no work
    /// to do are then reported separately too: see [`Report::bystanders`](crate::Report::bystanders).
    pub work: Option<WorkPlan>,
    /// Load model: when the requests are sent.
    pub load: Load,
    /// Whether all connections are opened before the first request is sent. Loads that run for a time always do so.
    pub connect_first: bool,
    /// Time over which the connects are spread evenly; zero: all at once.
    pub ramp: Duration,
    /// Longest time from sending a request to its complete reply, and longest time of a connect. After it, the request
    /// has failed and the connection is closed, so that a dead server never hangs the client.
    pub timeout: Duration,
    /// Seed of everything that is random: the contents of the requests and the arrivals of an open loop.
    pub seed: u64,
    /// Number of event loops; the connections are distributed evenly.
    pub threads: usize,
    /// CPUs on which the event loops may run; if empty, the system chooses.
    pub cpus: Vec<usize>,
}

/// Load model: when the requests are sent.
#[derive(Debug, Clone)]
pub enum Load {
    /// Each client connects, sends `messages` requests with a pause of `think` after every reply (the last one too),
    /// and disconnects. When all clients have done so, the next of `rounds` begins. This is the original's load.
    Messages {
        /// Number of requests per client and round.
        messages: u64,
        /// Pause after a reply, before the next request or the disconnect.
        think: Duration,
        /// Number of rounds.
        rounds: u64,
        /// Time after which the drive ends even if not all requests are sent; a request without a reply is then counted
        /// as unanswered. `None`: no limit.
        limit: Option<Duration>,
    },
    /// Closed loop: each client sends a request, waits for the reply, pauses, and sends the next request, until the
    /// time is over. At most one request per connection is under way, so a slow server gets fewer requests: good for a
    /// ceiling, and misleading for latency.
    Closed {
        /// Pause after a reply.
        think: Duration,
        /// Time at the start in which requests are sent but not measured.
        warmup: Duration,
        /// Measured time.
        duration: Duration,
    },
    /// Open loop: requests are planned at a rate, whatever the server does, and latency is counted from the planned
    /// time (coordinated omission, Gil Tene: "How not to measure latency"). Each connection follows a plan of its own
    /// at `rate / connections`. A request whose connection is still waiting for a reply is sent as soon as that reply
    /// has arrived, and its wait counts.
    Open {
        /// Requests per second over all connections.
        rate: f64,
        /// Spacing of the planned times.
        arrivals: Arrivals,
        /// Time at the start in which requests are sent but not measured.
        warmup: Duration,
        /// Measured time.
        duration: Duration,
    },
}

/// Spacing of the planned send times of an open loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// Even spacing, over all connections together.
    Constant,
    /// Spacing independent of one another: gaps are exponentially distributed, as those of many independent users.
    Poisson,
}

impl Plan {
    /// Returns the server's work if it is done before some of its replies. If it is done before all of them, there are
    /// no bystanders to report separately.
    pub(crate) fn some_work(&self) -> Option<&WorkPlan> {
        self.work.as_ref().filter(|work| work.percent() < 100)
    }

    /// Checks that the plan makes sense.
    pub(crate) fn check(&self) -> Result<(), DriveError> {
        self.check_load()?;
        let measured = match self.load {
            Load::Messages { limit, .. } => limit.unwrap_or(Duration::MAX),
            Load::Closed { duration, .. } | Load::Open { duration, .. } => duration,
        };
        if measured.is_zero() {
            return Err(DriveError::NoDuration);
        }
        Ok(())
    }

    /// Checks everything but the duration.
    pub(crate) fn check_load(&self) -> Result<(), DriveError> {
        if self.connections == 0 {
            return Err(DriveError::NoConnections);
        }
        if self.threads == 0 {
            return Err(DriveError::NoThreads);
        }
        if self.timeout.is_zero() {
            return Err(DriveError::NoTimeout);
        }
        match self.load {
            Load::Messages {
                messages, rounds, ..
            } if messages == 0 || rounds == 0 => Err(DriveError::NothingToAsk),
            Load::Open { rate, .. } if !(rate > 0.0 && rate <= crate::MAX_RATE) => {
                Err(DriveError::Rate(rate))
            }
            Load::Messages { .. } | Load::Closed { .. } | Load::Open { .. } => Ok(()),
        }
    }
}
