//! What to ask: the load, complete and replayable.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::http::Page;
use protocol::{Bulk, Protocol, WorkPlan};

use crate::DriveError;

/// A load, complete: the same plan asks the same questions in the same order.
///
/// A request fails alone: its connection is closed, and the client connects anew for the next one, after a pause (10 ms,
/// doubled with each failure in a row, at most 1 s). A connect that fails is the failure of the request it was for. A
/// connection that the server closes while nothing is asked fails the next request: a client that blocks would find
/// it out then. A client gives up after 5 failures in a row, or if it is refused before its first right reply; if all
/// have given up, the drive ends.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the server listens.
    pub address: SocketAddr,
    /// What is said.
    pub protocol: &'static Protocol,
    /// How many clients ask at the same time, each on a connection of its own.
    pub connections: usize,
    /// Bytes per request; `None` for the original's short lines.
    pub size: Option<usize>,
    /// What `bulk` is to send.
    pub bulk: Bulk,
    /// What `http` is asked for.
    pub page: Arc<Page>,
    /// What the server was told to do before its replies. The others, before which it has nothing to do, are then
    /// reported apart too: see [`Report::others`](crate::Report::others).
    pub work: Option<WorkPlan>,
    /// When the requests are sent.
    pub load: Load,
    /// Open all connections before the first request goes out. Loads that run for a time always do.
    pub connect_first: bool,
    /// Spread the connects evenly over this time; zero: all at once.
    pub ramp: Duration,
    /// A request without a complete reply after this time (from when it was sent), or a connect that takes longer,
    /// is an error, and the connection is given up. So a dead server never hangs the client.
    pub timeout: Duration,
    /// Seed of all that is random: the requests' contents and the arrivals of an open loop.
    pub seed: u64,
    /// Event loops; the connections are dealt out evenly.
    pub threads: usize,
    /// CPUs that the event loops may run on; empty: where the system likes.
    pub cpus: Vec<usize>,
}

/// When the requests are sent.
#[derive(Debug, Clone)]
pub enum Load {
    /// Each client connects, asks `messages` times with `think` after every reply (the last one too), and
    /// disconnects; when all have, the next of `rounds` begins. This is the original's load.
    Messages {
        /// Requests per client and round.
        messages: u64,
        /// Pause after a reply, before the next request or the disconnect.
        think: Duration,
        /// How many times all of it is repeated.
        rounds: u64,
        /// End after this time even if not all is asked; what is still owed is counted as unanswered.
        limit: Option<Duration>,
    },
    /// Closed loop: each client asks, waits for the reply, thinks, and asks again, until the time is over. At most
    /// one request per connection is under way, so a slow server is asked less: good for a ceiling, and misleading
    /// for latency.
    Closed {
        /// Pause after a reply.
        think: Duration,
        /// Asked but not measured, at the start.
        warmup: Duration,
        /// Measured.
        duration: Duration,
    },
    /// Open loop: requests are planned at a rate, whatever the server does, and latency is counted from the planned
    /// time (coordinated omission, Gil Tene: "How not to measure latency"). Each connection follows a plan of its own
    /// at `rate / connections`; a request whose connection is still waiting for a reply is sent as soon as that came,
    /// and its wait counts.
    Open {
        /// Requests per second over all connections.
        rate: f64,
        /// How the planned times are spaced.
        arrivals: Arrivals,
        /// Asked but not measured, at the start.
        warmup: Duration,
        /// Measured.
        duration: Duration,
    },
}

/// How the planned send times of an open loop are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// Evenly, over all connections together.
    Constant,
    /// Independently of one another: gaps are exponentially distributed, as those of many independent users.
    Poisson,
}

impl Plan {
    /// What the server does before some of its replies. (If it is before all, there are no others to tell apart.)
    pub(crate) fn some_work(&self) -> Option<&WorkPlan> {
        self.work.as_ref().filter(|work| work.percent() < 100)
    }

    /// Whether it makes sense.
    pub(crate) fn check(&self) -> Result<(), DriveError> {
        if self.connections == 0 {
            return Err(DriveError::NoConnections);
        }
        if self.threads == 0 {
            return Err(DriveError::NoThreads);
        }
        if self.timeout.is_zero() {
            return Err(DriveError::NoTimeout);
        }
        let measured = match self.load {
            Load::Messages {
                messages,
                rounds,
                limit,
                ..
            } => {
                if messages == 0 || rounds == 0 {
                    return Err(DriveError::NothingToAsk);
                }
                limit.unwrap_or(Duration::MAX)
            }
            Load::Closed { duration, .. } => duration,
            Load::Open { rate, duration, .. } => {
                if !(rate > 0.0 && rate <= crate::MAX_RATE) {
                    return Err(DriveError::Rate(rate));
                }
                duration
            }
        };
        if measured.is_zero() {
            return Err(DriveError::NoDuration);
        }
        Ok(())
    }
}
