//! What came of it.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// What one drive measured. Times are in nanoseconds.
///
/// "In the window" means: the planned send time lies in the measured part of the load (after the warm-up). For
/// [`Load::Messages`](crate::Load::Messages) that is all of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// From the first connect to the end of the last connection.
    pub elapsed: Duration,
    /// The measured part.
    pub window: Duration,
    /// Requests in the window that were answered, completely and correctly.
    pub replies: u64,
    /// Right replies whose last byte came within the window: what throughput is made of.
    pub completed: u64,
    /// Requests in the window that failed, by kind. In loads that run for a time, connects that failed before the
    /// clock started are in it too: a server that nobody can reach must not look flawless. In the warm-up, failures are
    /// not counted (but may be in `examples`).
    pub errors: Errors,
    /// Requests in the window that were planned or sent and had no reply when the drive ended. Their age at the end
    /// is in `response_time` as a lower bound, so that a starved client makes the tail longer and not shorter. In an
    /// open loop these are all that were planned, also for clients that gave up: `replies`, `errors` and `unanswered`
    /// together are the plan (and the failed connects before it).
    pub unanswered: u64,
    /// From the planned send time to the reply's last byte (response time). A client that is not connected plans to
    /// send at the time when it means to connect, so that its connect counts. In a closed loop without think time the
    /// plan is to send at once, so both clocks agree. Failed requests are in it too, with their age when they failed;
    /// but not those that never left this machine (`refused`, `local`), which would only make the tail look short.
    pub response_time: Histogram<u64>,
    /// From the actual send to the reply's last byte (service time): the figure without the correction.
    pub service_time: Histogram<u64>,
    /// Of [`response_time`](Report::response_time), the requests before whose replies the server had nothing to do: what
    /// they had to wait for was somebody else's. Only those that were asked: what a request that was never sent would have
    /// been, nobody knows. Empty without [`Plan::work`](crate::Plan::work), or if that is before all replies.
    pub bystanders: Histogram<u64>,
    /// How late the client itself was: the actual send minus the planned time, for requests whose connection was free
    /// at the planned time. If this is large, the client was the limit. Empty if nothing was planned ahead, as in a
    /// closed loop without think time.
    pub lag: Histogram<u64>,
    /// From `connect` to connected.
    pub connect_time: Histogram<u64>,
    /// From the time at which a client meant to connect to its first right reply: how long the unluckiest waited.
    /// Clients that never got one are in it with their age at the end, and counted in `never_served`.
    pub first_reply: Histogram<u64>,
    /// Clients that got no right reply at all (per round, for repeated rounds).
    pub never_served: u64,
    /// Clients that gave up: the server refused them from the first, or failed them several times in a row. What they
    /// had left to ask is not in any figure, unless it had been planned already.
    pub gave_up: u64,
    /// Clients that got all they asked for and disconnected (per round). In loads that run for a time: that were
    /// served, and had no failure and nothing owed at the end.
    pub finished_clients: u64,
    /// `completed`, client by client: what fairness is computed from.
    pub per_connection: Vec<u64>,
    /// Connections that were opened, over the whole drive.
    pub connected: u64,
    /// CPU time that the client's own threads used in the window.
    pub cpu: Duration,
    /// Bytes sent and received over the whole drive.
    pub sent: u64,
    /// Bytes received over the whole drive.
    pub received: u64,
    /// The first few errors in words, for people (a wrong reply says which byte).
    pub examples: Vec<String>,
}

impl Report {
    /// How many errors are kept in words.
    pub const EXAMPLES: usize = 5;

    /// Nothing measured yet, of `connections` clients.
    pub(crate) fn new(connections: usize) -> Self {
        Report {
            elapsed: Duration::ZERO,
            window: Duration::ZERO,
            replies: 0,
            completed: 0,
            errors: Errors::default(),
            unanswered: 0,
            response_time: histogram(),
            service_time: histogram(),
            bystanders: histogram(),
            lag: histogram(),
            connect_time: histogram(),
            first_reply: histogram(),
            never_served: 0,
            gave_up: 0,
            finished_clients: 0,
            per_connection: vec![0; connections],
            connected: 0,
            cpu: Duration::ZERO,
            sent: 0,
            received: 0,
            examples: Vec::new(),
        }
    }

    /// The share of requests that were answered rightly, from 0 to 1; `None` if nothing was asked.
    pub fn availability(&self) -> Option<f64> {
        let asked = self.replies + self.errors.total() + self.unanswered;
        (asked > 0).then(|| self.replies as f64 / asked as f64)
    }

    /// Right replies per second of the window.
    pub fn throughput(&self) -> f64 {
        if self.window.is_zero() {
            return 0.0;
        }
        self.completed as f64 / self.window.as_secs_f64()
    }

    /// How evenly the connections were served; `None` if nobody was.
    pub fn fairness(&self) -> Option<Fairness> {
        let counts = &self.per_connection;
        let slowest = *counts.iter().min()?;
        let fastest = *counts.iter().max()?;
        if fastest == 0 {
            return None;
        }
        let sum: f64 = counts.iter().map(|&count| count as f64).sum();
        let squares: f64 = counts.iter().map(|&count| (count as f64).powi(2)).sum();
        Some(Fairness {
            jain: sum * sum / (counts.len() as f64 * squares),
            slowest,
            fastest,
        })
    }

    /// How many requests were under way (or waited for their connection) on average, by Little's law: throughput
    /// times mean response time. Compare it with what the plan meant to have under way: a closed loop without think
    /// time has as many as connections, and if this is far below, the measurement is not what it says.
    pub fn mean_in_flight(&self) -> f64 {
        self.throughput() * self.response_time.mean() / 1e9
    }

    /// Adds what another part of the same load measured at the same time: counts add up, histograms are added cell by
    /// cell (never averaged), times that passed are the longer ones. Clients keep their numbers: those that another
    /// part drove have zero in [`per_connection`](Report::per_connection).
    ///
    /// # Panics
    ///
    /// If a histogram was replaced by one that is not made by [`histogram`].
    pub fn merge(&mut self, other: &Report) {
        self.elapsed = self.elapsed.max(other.elapsed);
        self.window = self.window.max(other.window);
        self.replies += other.replies;
        self.completed += other.completed;
        self.errors.merge(&other.errors);
        self.unanswered += other.unanswered;
        for (mine, others) in [
            (&mut self.response_time, &other.response_time),
            (&mut self.service_time, &other.service_time),
            (&mut self.bystanders, &other.bystanders),
            (&mut self.lag, &other.lag),
            (&mut self.connect_time, &other.connect_time),
            (&mut self.first_reply, &other.first_reply),
        ] {
            mine.add(others).expect("all have the same bounds");
        }
        self.never_served += other.never_served;
        self.gave_up += other.gave_up;
        self.finished_clients += other.finished_clients;
        let clients = self.per_connection.len().max(other.per_connection.len());
        self.per_connection.resize(clients, 0);
        for (mine, others) in self.per_connection.iter_mut().zip(&other.per_connection) {
            *mine += others;
        }
        self.connected += other.connected;
        self.cpu += other.cpu;
        self.sent += other.sent;
        self.received += other.received;
        let room = Self::EXAMPLES.saturating_sub(self.examples.len());
        self.examples
            .extend(other.examples.iter().take(room).cloned());
    }
}

/// An empty histogram as all in a report are: nanoseconds up to an hour (what is longer counts as an hour), and three
/// significant digits at every length. Histograms with the same bounds can be added without loss.
pub fn histogram() -> Histogram<u64> {
    const HOUR: u64 = 3_600_000_000_000;
    Histogram::new_with_bounds(1, HOUR, 3).expect("the bounds are constant and right")
}

/// How evenly connections were served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fairness {
    /// Jain's index: (sum of x)^2 / (n * sum of x^2), where x is what each connection completed. 1 if all had the
    /// same; k/n if k of n had it all. R. Jain, D.-M. Chiu, W. Hawe: "A Quantitative Measure of Fairness and
    /// Discrimination for Resource Allocation in Shared Computer Systems", DEC-TR-301, 1984.
    pub jain: f64,
    /// What the worst served connection completed.
    pub slowest: u64,
    /// What the best served connection completed.
    pub fastest: u64,
}

/// Failed requests by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// Nobody listens there (ECONNREFUSED).
    pub refused: u64,
    /// The server broke the connection off (ECONNRESET, EPIPE).
    pub reset: u64,
    /// No connection or no complete reply within the time-out.
    pub timed_out: u64,
    /// A reply with a byte that should not have been there.
    pub wrong_reply: u64,
    /// The server closed (FIN) before the reply was complete.
    pub closed_early: u64,
    /// What this machine refused to the client: descriptors, local ports.
    pub local: u64,
}

impl Errors {
    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.refused
            + self.reset
            + self.timed_out
            + self.wrong_reply
            + self.closed_early
            + self.local
    }

    /// Each kind that occurred: how often, and in words.
    pub fn kinds(&self) -> impl Iterator<Item = (u64, &'static str)> {
        [
            (self.refused, "refused"),
            (self.reset, "reset"),
            (self.timed_out, "timed out"),
            (self.wrong_reply, "wrong reply"),
            (self.closed_early, "closed early"),
            (self.local, "refused by this machine to the client"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
    }

    fn merge(&mut self, other: &Errors) {
        self.refused += other.refused;
        self.reset += other.reset;
        self.timed_out += other.timed_out;
        self.wrong_reply += other.wrong_reply;
        self.closed_early += other.closed_early;
        self.local += other.local;
    }

    pub(crate) fn count(&mut self, kind: ErrorKind) {
        *match kind {
            ErrorKind::Refused => &mut self.refused,
            ErrorKind::Reset => &mut self.reset,
            ErrorKind::TimedOut => &mut self.timed_out,
            ErrorKind::WrongReply => &mut self.wrong_reply,
            ErrorKind::ClosedEarly => &mut self.closed_early,
            ErrorKind::Local => &mut self.local,
        } += 1;
    }
}

/// The kinds that [`Errors`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    Refused,
    Reset,
    TimedOut,
    WrongReply,
    ClosedEarly,
    Local,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(counts: &[u64]) -> Report {
        let mut report = Report::new(counts.len());
        report.per_connection = counts.to_vec();
        report
    }

    #[test]
    fn fairness_is_one_for_equals_and_k_of_n_for_the_lucky() {
        let jain = |counts: &[u64]| served(counts).fairness().map(|fairness| fairness.jain);
        assert_eq!(jain(&[5, 5, 5, 5]), Some(1.0));
        assert_eq!(jain(&[8, 0, 0, 0]), Some(0.25));
        assert_eq!(jain(&[3, 3, 0, 0]), Some(0.5));
        assert_eq!(jain(&[0, 0]), None);
        assert_eq!(jain(&[]), None);
        let fairness = served(&[2, 9, 4]).fairness().unwrap();
        assert_eq!((fairness.slowest, fairness.fastest), (2, 9));
    }

    #[test]
    fn rates_of_nothing_are_not_a_number_games() {
        let nothing = Report::new(1);
        assert_eq!(nothing.availability(), None);
        assert_eq!(nothing.throughput(), 0.0);
        assert_eq!(nothing.mean_in_flight(), 0.0);
    }

    #[test]
    fn littles_law_and_availability() {
        let mut report = Report::new(1);
        report.window = Duration::from_secs(2);
        report.completed = 200;
        report.replies = 198;
        report.unanswered = 1;
        report.errors.closed_early = 1;
        report.response_time.record_n(50_000_000, 200).unwrap();
        assert_eq!(report.availability(), Some(0.99));
        assert_eq!(report.throughput(), 100.0);
        // 100 per second, 50 ms each: 5 at a time, to the histogram's three digits.
        assert!((report.mean_in_flight() - 5.0).abs() < 0.01);
    }

    #[test]
    fn merged_parts_equal_the_whole() {
        let mut whole = Report::new(2);
        let mut parts = [Report::new(2), Report::new(2)];
        for value in 0..10_000u64 {
            let time = value * value;
            whole.response_time.saturating_record(time);
            parts[(value % 2) as usize]
                .response_time
                .saturating_record(time);
        }
        parts[0].per_connection = vec![7, 0];
        parts[1].per_connection = vec![0, 8];
        parts[0].examples = vec!["a".into(); 4];
        parts[1].examples = vec!["b".into(); 4];
        let [mut merged, other] = parts;
        merged.merge(&other);
        assert_eq!(merged.response_time, whole.response_time);
        assert_eq!(merged.per_connection, [7, 8]);
        assert_eq!(merged.examples.len(), Report::EXAMPLES);
    }
}
