//! Results of a drive.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::timeline::TimelineStep;

/// Measurements of one drive. Times are in nanoseconds.
///
/// "In the window" means: the planned send time lies in the measured part of the load (after the warm-up). For
/// [`Load::Messages`](crate::Load::Messages) that is all of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// Time from the first connect to the end of the last connection.
    pub elapsed: Duration,
    /// Length of the measured part.
    pub window: Duration,
    /// Number of requests in the window that got a complete and correct reply.
    pub replies: u64,
    /// Number of correct replies whose last byte arrived within the window. Throughput is computed from it.
    pub completed: u64,
    /// Failed requests in the window, by kind. In loads that run for a time, connects that failed before the clock
    /// started are included: a server that no client can reach must not look flawless. Failures in the warm-up are not
    /// counted (but may be in `examples`).
    pub errors: Errors,
    /// Number of requests in the window that were planned or sent and had no reply when the drive ended. Their age at
    /// the end is in `response_time` as a lower bound, so that a client without a reply makes the tail longer and not
    /// shorter. In an open loop these are all requests that were planned, also those of clients that gave up:
    /// `replies`, `errors` and `unanswered` together are the plan (and the failed connects before it).
    pub unanswered: u64,
    /// Time from the planned send time to the reply's last byte (response time). A client that is not connected plans
    /// to send at the time when it means to connect, so that its connect counts. In a closed loop without think time
    /// the plan is to send at once, so response time and service time agree. Failed requests are included, with their
    /// age when they failed; but not those that never left this machine (`refused`, `local`), which would only make the
    /// tail look short.
    pub response_time: Histogram<u64>,
    /// Time from the actual send to the reply's last byte (service time): the figure without the correction.
    pub service_time: Histogram<u64>,
    /// Part of [`response_time`](Report::response_time): the requests before whose replies the server had no work to
    /// do, so that their wait was caused by other requests. Only requests that were sent are included: it is unknown
    /// whether a request that was never sent would have been one of them. Empty without
    /// [`Plan::work`](crate::Plan::work), or if the work is done before all replies.
    pub bystanders: Histogram<u64>,
    /// Lateness of the client itself: the actual send time minus the planned time, for requests whose connection was
    /// free at the planned time. If this is large, the client was the limit. Empty if nothing was planned ahead, as in
    /// a closed loop without think time.
    pub lag: Histogram<u64>,
    /// Time from `connect` to connected.
    pub connect_time: Histogram<u64>,
    /// Time from when a client meant to connect to its first correct reply; the maximum is the slowest first reply.
    /// Clients that never got one are included with their age at the end, and counted in `never_served`.
    pub first_reply: Histogram<u64>,
    /// Number of clients that got no correct reply at all (per round, for repeated rounds).
    pub never_served: u64,
    /// Number of clients that gave up: the server refused them from the first, or failed them several times in a row.
    /// The requests that they had not yet sent are in no figure, unless they had been planned already.
    pub gave_up: u64,
    /// Number of clients that got all the replies they asked for and disconnected (per round). In loads that run for a
    /// time: clients that were served, and had no failure and no unanswered request at the end.
    pub finished_clients: u64,
    /// `completed` of each client: fairness is computed from it.
    pub per_connection: Vec<u64>,
    /// Number of connections that were opened, over the whole drive.
    pub connected: u64,
    /// CPU time that the client's own threads used in the window.
    pub cpu: Duration,
    /// Number of bytes sent over the whole drive.
    pub sent: u64,
    /// Number of bytes received over the whole drive.
    pub received: u64,
    /// Course of the window in steps. Empty for loads that end by themselves.
    pub timeline: Vec<TimelineStep>,
    /// The first few errors as text, for readers (for a wrong reply, the text names the byte).
    pub examples: Vec<String>,
}

impl Report {
    /// Number of errors that are kept as text.
    pub const EXAMPLES: usize = 5;

    /// Creates an empty report of `connections` clients.
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
            timeline: Vec::new(),
            examples: Vec::new(),
        }
    }

    /// Returns the response times of the requests that were planned in steps of the time line in which nothing was sent
    /// late: what the server did while the client was punctual. Two significant digits.
    pub fn quiet_response_time(&self) -> Histogram<u64> {
        let mut quiet = histogram();
        for step in self.timeline.iter().filter(|step| step.late_sends == 0) {
            quiet
                .add(&step.response_time)
                .expect("the bounds include those of the steps");
        }
        quiet
    }

    /// Returns the share of requests that got a correct reply, from 0 to 1; `None` if there were no requests.
    pub fn availability(&self) -> Option<f64> {
        let asked = self.replies + self.errors.total() + self.unanswered;
        (asked > 0).then(|| self.replies as f64 / asked as f64)
    }

    /// Returns the number of correct replies per second of the window; 0 if the window is empty.
    pub fn throughput(&self) -> f64 {
        if self.window.is_zero() {
            return 0.0;
        }
        self.completed as f64 / self.window.as_secs_f64()
    }

    /// Returns how evenly the connections were served; `None` if none of them was.
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

    /// Returns the average number of requests that were under way (or waited for their connection), by Little's law:
    /// throughput times mean response time. Compare it with the number that the plan meant to have under way: a closed
    /// loop without think time has as many as connections, and if the result is far below that, the measurement is not
    /// of the load that the plan describes.
    pub fn mean_in_flight(&self) -> f64 {
        self.throughput() * self.response_time.mean() / 1e9
    }

    /// Adds the measurements of another part of the same load, taken at the same time: counts add up, histograms are
    /// added bucket by bucket (never averaged), and of two elapsed times the longer one is kept. Clients keep their
    /// numbers: those that another part drove have zero in [`per_connection`](Report::per_connection).
    ///
    /// # Panics
    ///
    /// Panics if a histogram was replaced by one that [`histogram`] did not make.
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
            mine.add(others)
                .expect("all histograms have the same bounds");
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
        for (step, others) in other.timeline.iter().enumerate() {
            match self.timeline.get_mut(step) {
                Some(mine) => mine.merge(others),
                None => self.timeline.push(others.clone()),
            }
        }
        let room = Self::EXAMPLES.saturating_sub(self.examples.len());
        self.examples
            .extend(other.examples.iter().take(room).cloned());
    }
}

/// Returns an empty histogram with the bounds of all histograms in a report: nanoseconds up to an hour (longer times
/// count as an hour), and three significant digits at every length. Histograms with the same bounds can be added
/// without loss.
pub fn histogram() -> Histogram<u64> {
    const HOUR: u64 = 3_600_000_000_000;
    Histogram::new_with_bounds(1, HOUR, 3).expect("the bounds are constant and valid")
}

/// Measure of how evenly connections were served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fairness {
    /// Jain's index: (sum of x)^2 / (n * sum of x^2), where x is the number of replies that each connection completed.
    /// It is 1 if all had the same; k/n if k of n connections had it all. R. Jain, D.-M. Chiu, W. Hawe: "A Quantitative
    /// Measure of Fairness and Discrimination for Resource Allocation in Shared Computer Systems", DEC-TR-301, 1984.
    pub jain: f64,
    /// Number of replies that the worst served connection completed.
    pub slowest: u64,
    /// Number of replies that the best served connection completed.
    pub fastest: u64,
}

/// Failed requests by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// Number of connects that were refused, because no server listens at the address (ECONNREFUSED).
    pub refused: u64,
    /// Number of requests that failed because the server reset the connection (ECONNRESET, EPIPE).
    pub reset: u64,
    /// Number of requests without a connection or without a complete reply within the time-out.
    pub timed_out: u64,
    /// Number of replies with a byte that should not have been there.
    pub wrong_reply: u64,
    /// Number of requests that failed because the server closed the connection (FIN) before the reply was complete.
    pub closed_early: u64,
    /// Number of requests for which this machine refused the client a resource: a descriptor, a local port.
    pub local: u64,
}

impl Errors {
    /// Returns the sum of all kinds.
    pub fn total(&self) -> u64 {
        self.refused
            + self.reset
            + self.timed_out
            + self.wrong_reply
            + self.closed_early
            + self.local
    }

    /// Returns each kind that occurred: how often, and its name.
    pub fn kinds(&self) -> impl Iterator<Item = (u64, &'static str)> {
        [
            (self.refused, "refused"),
            (self.reset, "reset"),
            (self.timed_out, "timed out"),
            (self.wrong_reply, "wrong reply"),
            (self.closed_early, "closed early"),
            (self.local, "refused by the client's own machine"),
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

    /// Returns the errors that were counted after `earlier`.
    pub(crate) fn since(&self, earlier: &Errors) -> Errors {
        Errors {
            refused: self.refused - earlier.refused,
            reset: self.reset - earlier.reset,
            timed_out: self.timed_out - earlier.timed_out,
            wrong_reply: self.wrong_reply - earlier.wrong_reply,
            closed_early: self.closed_early - earlier.closed_early,
            local: self.local - earlier.local,
        }
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

/// Kinds of errors that [`Errors`] counts.
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
    fn fairness_is_one_for_equal_counts_and_k_of_n_if_k_have_all() {
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
    fn empty_report_has_zero_rates_and_no_availability() {
        let empty = Report::new(1);
        assert_eq!(empty.availability(), None);
        assert_eq!(empty.throughput(), 0.0);
        assert_eq!(empty.mean_in_flight(), 0.0);
    }

    #[test]
    fn mean_in_flight_and_availability_follow_their_formulas() {
        let mut report = Report::new(1);
        report.window = Duration::from_secs(2);
        report.completed = 200;
        report.replies = 198;
        report.unanswered = 1;
        report.errors.closed_early = 1;
        report.response_time.record_n(50_000_000, 200).unwrap();
        assert_eq!(report.availability(), Some(0.99));
        assert_eq!(report.throughput(), 100.0);
        // 100 per second, 50 ms each: 5 under way on average, to the histogram's three digits.
        assert!((report.mean_in_flight() - 5.0).abs() < 0.01);
    }

    #[test]
    fn merged_parts_equal_one_report_of_all_values() {
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
