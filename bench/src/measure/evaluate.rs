//! Computes the figures of a run from its raw measurements, and checks whether they may be used.

use crate::format;
use crate::measure::plan::{CROWD_MESSAGES, CROWD_THINK, Case, Settings};
use crate::placement::Placement;
use crate::results::certificate::{Check, Condition};
use crate::results::metric::Metric;
use crate::results::{ClientSide, Method, Note, Run, ServerSide, summary};
use crate::workloads::Workload;

/// Share of its CPU time from which on a side counts as busy, with no CPU time to spare.
const BUSY: f64 = 0.9;

/// Share of the planned rate that must be achieved.
const ENOUGH_OF_THE_RATE: f64 = 0.98;

/// Largest share of the CPU time that other programs may use. Interrupts and the kernel's own threads use a few percent.
const OTHERS: f64 = 0.05;

/// Largest share of the CPU time that the hypervisor may give to other virtual machines.
const STEAL: f64 = 0.01;

/// Largest distance of the interval over which CPU time was counted from the window, as a share of the window. The
/// harness reads the clock at the edges of the window. If it is late at the beginning, it counts only a part of the window; if it is late
/// at the end, it includes time in which the server had nothing to do, and the cost appears too low.
const INTERVAL: f64 = 0.02;

/// Computes the figures of a run and adds the problems and notes that it finds. Does nothing if the run has no
/// measurements of the client.
pub(crate) fn evaluate(run: &mut Run, case: &Case, settings: &Settings, placement: &Placement) {
    let Some(client) = run.client.take() else {
        return;
    };
    let server = run.server.take().unwrap_or_default();

    report_problems(run, &client);
    // A load that ends by itself is its own window, so its edges cannot be missed.
    let distance = share(server.interval_s, Some(client.window_s))
        .filter(|_| !run.workload.ends_by_itself())
        .map(|share| (share - 1.0).abs());
    let edges_met =
        run.workload.ends_by_itself() || distance.is_some_and(|distance| distance <= INTERVAL);
    let interval = if run.workload.is_transfer() {
        // The interval begins before the load, and outside the window the load used no CPU time.
        Some(client.window_s)
    } else {
        server.interval_s
    };
    let server_cpus = share(server.cpu_s, interval).filter(|_| edges_met);
    // A thread can use at most one CPU, so a server uses at most as many CPUs as it has threads.
    let threads = (server.threads).map_or(usize::MAX, |threads| threads as usize);
    let usable = placement.server_cpus().min(threads);
    let mut evaluation = Evaluation {
        server_cpus,
        server_busy: share(server_cpus, Some(usable as f64)),
        client_busy: share(
            Some(client.client_cpu_s),
            Some(client.window_s * placement.client_threads() as f64),
        ),
        case,
        settings,
        client: &client,
        server: &server,
        run,
    };
    evaluation.resources();
    evaluation.checks(distance, placement);
    if !edges_met && server.interval_s.is_some() {
        evaluation.note(Note::EdgesMissed);
    }
    if case.exceeds_max_concurrent() {
        evaluation.note(Note::FewerByDesign);
    }
    (case.workload.definition().evaluate)(&mut evaluation);
    remove_unknown(run, &server, placement);
    run.client = Some(client);
    run.server = Some(server);
}

/// Removes the figures that cannot be known, and notes why.
fn remove_unknown(run: &mut Run, server: &ServerSide, placement: &Placement) {
    if server.owns_listener == Some(false) {
        run.notes.push(Note::OtherListener);
        for (metric, value) in &mut run.figures {
            if metric.is_of_the_processes() {
                *value = None;
            }
        }
    }
    // On the client's CPU the server takes time from the client, and every figure is of both.
    if common_cpus(server, placement) > Some(0) {
        run.notes.push(Note::SharedCpus);
        for value in run.figures.values_mut() {
            *value = None;
        }
    }
}

/// Returns the number of CPUs of the client on which threads of the server may run; `None` if unknown, or if client and
/// server are not meant to have CPUs of their own.
fn common_cpus(server: &ServerSide, placement: &Placement) -> Option<usize> {
    let known = placement.apart && !server.cpus.is_empty();
    let common = server
        .cpus
        .iter()
        .filter(|cpu| placement.client.contains(cpu));
    known.then(|| common.count())
}

/// Adds a problem if a request failed or if the client received nothing. A run is valid only if every reply is correct
/// and there is at least one.
fn report_problems(run: &mut Run, client: &ClientSide) {
    let failed: Vec<_> = client
        .errors
        .kinds()
        .map(|(number, kind)| format!("{} {kind}", format::count(number)))
        .collect();
    // A transfer measures how many clients are served, so its failures count in the availability instead.
    if !failed.is_empty() && !run.workload.is_transfer() {
        let example = client
            .examples
            .first()
            .map(|example| format!(" ({example})"));
        run.problems.push(format!(
            "requests failed: {}{}",
            failed.join(", "),
            example.unwrap_or_default()
        ));
    } else if client.received_bytes == 0 {
        run.problems.push("no client received a reply".to_string());
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Divides `part` by `total`; `None` if one of them is unknown or the total is not positive.
fn share(part: Option<f64>, total: Option<f64>) -> Option<f64> {
    let (part, total) = part.zip(total)?;
    (total > 0.0).then(|| part / total)
}

pub(crate) struct Evaluation<'a> {
    run: &'a mut Run,
    case: &'a Case,
    settings: &'a Settings,
    client: &'a ClientSide,
    server: &'a ServerSide,
    /// Mean number of CPUs that the server used: its CPU time divided by the elapsed time.
    server_cpus: Option<f64>,
    server_busy: Option<f64>,
    client_busy: Option<f64>,
}

impl Evaluation<'_> {
    fn set(&mut self, metric: Metric, value: impl Into<Option<f64>>) {
        let value = value.into().filter(|value| value.is_finite());
        self.run.figures.insert(metric, value);
    }

    /// Sets a figure to the percentile in the histogram of this run.
    fn set_from_histogram(&mut self, metric: Metric) {
        let times = metric.distribution().and_then(|wanted| {
            let times = (wanted.times)(self.client);
            match wanted.quantile {
                0.5 => times.p50_ns,
                0.99 => times.p99_ns,
                0.999 => times.p99_9_ns,
                _ => times.max_ns,
            }
        });
        self.set(metric, times.map(|time| time as f64 / 1e6));
    }

    fn lower_bound(&mut self, metric: Metric) {
        if !self.run.lower_bounds.contains(&metric) {
            self.run.lower_bounds.push(metric);
        }
    }

    fn note(&mut self, note: Note) {
        self.run.notes.push(note);
    }

    fn resources(&mut self) {
        self.set(
            Metric::Threads,
            self.server.threads.map(|threads| threads as f64),
        );
        self.set(
            Metric::Processes,
            self.server.processes.map(|processes| processes as f64),
        );
        self.set(
            Metric::PeakMemoryMib,
            self.server.peak_rss_bytes.map(mebibytes),
        );
        self.set(Metric::ServerBusy, self.server_busy);
        self.set(Metric::ClientBusy, self.client_busy);
        self.set(Metric::OtherProgramsBusy, self.server.others_cpu);
        let disturbed =
            self.server.others_cpu > Some(OTHERS) || self.server.host.steal > Some(STEAL);
        if disturbed {
            self.note(Note::Disturbed);
        }
    }

    /// Checks the conditions under which the figures are those of the server.
    fn checks(&mut self, interval_distance: Option<f64>, placement: &Placement) {
        let (client, server) = (self.client, self.server);
        let timed = !self.run.workload.ends_by_itself();
        let mut checks = vec![
            Check::at_most(Condition::OtherPrograms, server.others_cpu, OTHERS),
            Check::at_most(Condition::Steal, server.host.steal, STEAL),
            Check::at_most(Condition::Throttled, server.host.throttled_s, 0.0),
            Check::at_most(
                Condition::ListenOverflows,
                server.host.listen_overflows.map(|count| count as f64),
                0.0,
            ),
            Check::at_most(
                Condition::Retransmits,
                server.host.retransmits.map(|count| count as f64),
                0.0,
            ),
        ];
        if placement.apart {
            let common = common_cpus(server, placement).map(|count| count as f64);
            checks.push(Check::at_most(Condition::OwnCpus, common, 0.0));
        }
        if timed && self.run.workload != Workload::Idle {
            // Requests that never left this machine have no response time.
            let unsent = client.errors.refused + client.errors.local;
            let ended = client.replies + client.unanswered + client.errors.total() - unsent;
            let missing = client.response_time.count.abs_diff(ended) as f64;
            checks.push(Check::at_most(Condition::Exact, Some(missing), 0.0));
            let closed = (self.case.connections as u64).saturating_sub(client.connected);
            checks.push(Check::at_most(Condition::Ready, Some(closed as f64), 0.0));
            checks.push(Check::at_most(
                Condition::CpuInterval,
                interval_distance,
                INTERVAL,
            ));
            checks.push(Check::at_most(
                Condition::ClientHeadroom,
                self.client_busy,
                BUSY,
            ));
        }
        self.run.checks.extend(checks);
    }

    /// Sets the time until all clients were served; the limit, as a lower bound, if not all were.
    fn all_served(&mut self) {
        let client = self.client;
        let all = client.finished_clients == self.case.connections as u64;
        self.set(
            Metric::AllServedS,
            if all {
                client.elapsed_s
            } else {
                let limit = self.settings.limit(self.case.workload);
                limit.as_secs_f64()
            },
        );
        if !all {
            self.lower_bound(Metric::AllServedS);
        }
        self.set(Metric::ClientsServed, client.finished_clients as f64);
    }

    pub(crate) fn crowd(&mut self) {
        self.all_served();
        // All models spend the same time in the pauses of the clients.
        let pauses = (CROWD_THINK * CROWD_MESSAGES).as_secs_f64();
        let excess = self.run.figures.get(&Metric::AllServedS).copied().flatten();
        self.set(
            Metric::AllServedExcessS,
            excess.map(|all| (all - pauses).max(0.0)),
        );
        if self.run.lower_bounds.contains(&Metric::AllServedS) {
            self.lower_bound(Metric::AllServedExcessS);
        }
        let client = self.client;
        self.set_from_histogram(Metric::FirstReplyP50Ms);
        self.set_from_histogram(Metric::FirstReplyMaxMs);
        if client.never_served > 0 {
            self.lower_bound(Metric::FirstReplyMaxMs);
        }
        if client.never_served * 2 >= self.case.connections as u64 {
            self.lower_bound(Metric::FirstReplyP50Ms);
        }
    }

    /// Sets the figures of loads with a throughput, and returns the replies per second. All are rates, so that the
    /// intervals of client and server need not be exactly the same.
    fn throughput(&mut self) -> Option<f64> {
        let client = self.client;
        let rate = share(Some(client.completed as f64), Some(client.window_s));
        self.set(Metric::RequestsPerS, rate);
        self.set(Metric::RequestsPerSBound, share(rate, self.server_busy));
        self.set(
            Metric::CpuUsPerRequest,
            share(self.server_cpus, rate).map(|seconds| seconds * 1e6),
        );
        let switches = self
            .server
            .voluntary_switches
            .zip(self.server.involuntary_switches);
        let switches = switches.map(|(voluntary, involuntary)| (voluntary + involuntary) as f64);
        let switches = match self.run.method {
            // The counters go on in the parts of a slice that are not counted, so they belong to all replies.
            Method::Slices => share(switches, self.client.replies_in_all.map(|all| all as f64)),
            Method::Whole => share(share(switches, self.server.counters_interval_s), rate),
        };
        self.set(Metric::SwitchesPerRequest, switches);
        let without_reply = client
            .per_connection
            .iter()
            .filter(|&&replies| replies == 0)
            .count();
        self.set(Metric::ConnectionsWithoutReply, without_reply as f64);
        self.content(rate);
        rate
    }

    /// Sets the figures of the content, if replies have content. Only content of complete and correct replies counts.
    fn content(&mut self, rate: Option<f64>) {
        let Some((each, rate)) = self.case.workload.reply_bytes().zip(rate) else {
            return;
        };
        let bytes_per_s = rate * each as f64;
        self.set(Metric::MbPerS, bytes_per_s / 1e6);
        let cost = share(self.server_cpus, Some(bytes_per_s));
        self.set(Metric::CpuMsPerGb, cost.map(|seconds| seconds * 1e12));
    }

    pub(crate) fn max(&mut self) {
        self.throughput();
        let client = self.client;
        self.set(Metric::Fairness, client.fairness);
        let replies = |count: Option<&u64>| count.map(|&count| count as f64);
        self.set(
            Metric::FewestRepliesPerConnection,
            replies(client.per_connection.iter().min()),
        );
        self.set(
            Metric::MostRepliesPerConnection,
            replies(client.per_connection.iter().max()),
        );
        self.set(Metric::MeanInFlight, client.mean_in_flight);
        self.client_at_its_limit();
    }

    /// Sets the figures of a closed loop whose response times are shown.
    pub(crate) fn closed_loop_with_times(&mut self) {
        self.max();
        self.responses();
        self.available();
    }

    fn client_at_its_limit(&mut self) {
        // If the use of the server is unknown, the server cannot be shown to have been the limit.
        if self.client_busy >= Some(BUSY) && self.server_busy < Some(BUSY) {
            self.run.client_limited = true;
            for metric in [Metric::RequestsPerS, Metric::MbPerS] {
                if self.run.figures.contains_key(&metric) {
                    self.lower_bound(metric);
                }
            }
            self.note(Note::ClientBusy);
        }
    }

    /// Sets the figures of loads in which each client receives a fixed amount of data and then disconnects.
    pub(crate) fn transfer(&mut self) {
        self.all_served();
        let client = self.client;
        let rate = share(Some(client.completed as f64), Some(client.window_s));
        self.content(rate);
        // The share of all planned requests: a client without its first reply could not send its second request.
        let requests = self.case.requests().map(|requests| requests as f64);
        self.set(
            Metric::Availability,
            share(Some(client.replies as f64), requests),
        );
        if requests.is_some_and(|requests| (client.replies as f64) < requests) {
            // Incomplete bodies took time and CPU time too, but their content is not counted.
            self.run.figures.remove(&Metric::CpuMsPerGb);
            if self.run.figures.contains_key(&Metric::MbPerS) {
                self.lower_bound(Metric::MbPerS);
            }
        }
        self.set_from_histogram(Metric::ResponseMaxMs);
        if client.unanswered > 0 {
            self.lower_bound(Metric::ResponseMaxMs);
        }
        let server = self.server;
        let peak = server.peak_rss_before_bytes.zip(server.peak_rss_bytes);
        let peak = peak.map(|(before, after)| {
            after.saturating_sub(before) as f64 / self.case.connections as f64 / 1024.0
        });
        self.set(Metric::PeakKibPerConnection, peak);
        self.client_at_its_limit();
    }

    /// Returns the number of requests that had to be answered in the window.
    fn planned(&self) -> u64 {
        self.client.replies + self.client.errors.total() + self.client.unanswered
    }

    fn available(&mut self) {
        let (client, planned) = (self.client, self.planned());
        self.set(
            Metric::Availability,
            share(Some(client.replies as f64), Some(planned as f64)),
        );
        self.set(Metric::UnansweredRequests, client.unanswered as f64);
    }

    /// Sets percentiles of a histogram with this number of requests. Unanswered requests are in the histogram with
    /// their age at the end, so a percentile that lies among them is a lower bound.
    fn percentiles(&mut self, metrics: &[Metric], requests: u64) {
        for &metric in metrics {
            self.set_from_histogram(metric);
            let beyond = metric
                .distribution()
                .map_or(0.0, |wanted| 1.0 - wanted.quantile);
            let unanswered = self.client.unanswered;
            if unanswered > 0 && unanswered as f64 >= beyond * requests as f64 {
                self.lower_bound(metric);
            }
        }
    }

    fn responses(&mut self) {
        let metrics = [
            Metric::ResponseP50Ms,
            Metric::ResponseP99Ms,
            Metric::ResponseP999Ms,
            Metric::ResponseMaxMs,
        ];
        self.percentiles(&metrics, self.planned());
    }

    pub(crate) fn bystanders(&mut self) {
        let metrics = [Metric::BystandersP50Ms, Metric::BystandersP99Ms];
        self.percentiles(&metrics, self.client.bystanders.count);
    }

    pub(crate) fn steady(&mut self) {
        let achieved = self.throughput();
        let client = self.client;
        self.available();
        self.responses();
        self.set_from_histogram(Metric::QuietP99Ms);
        self.set_from_histogram(Metric::ServiceP99Ms);
        self.set_from_histogram(Metric::LagP99Ms);
        let planned = self.settings.rate(self.case.workload);
        let short = achieved.is_some_and(|rate| rate < ENOUGH_OF_THE_RATE * planned);
        let late = client.lag.p99_ns.is_some_and(|lag| {
            let p99 = client.response_time.p99_ns.unwrap_or(0);
            lag as f64 > summary::lag_limit_ms(p99 as f64 / 1e6) * 1e6
        });
        if late || (short && self.client_busy >= Some(BUSY)) {
            self.run.client_limited = true;
            self.lower_bound(Metric::RequestsPerS);
            self.note(Note::ClientLate);
        }
    }

    pub(crate) fn idle(&mut self) {
        let client = self.client;
        let (before, after) = (
            self.server.memory_before_bytes,
            self.server.memory_after_bytes,
        );
        let slope = after.zip(before).map(|(after, before)| {
            (after as f64 - before as f64) / self.case.connections as f64 / 1024.0
        });
        let mut cpus = self.server_cpus;
        // If the protocol closes the connection after a reply, no connection stays open.
        let closes = self.settings.protocol.requests_per_connection.is_some();
        let not_held = client.never_served > 0 || closes;
        let open = self.server.open_connections;
        let closed = open.is_some_and(|open| open < client.connected) && !closes;
        if closed && !self.case.exceeds_max_concurrent() {
            self.note(Note::ClosedWhileIdle);
            cpus = None;
        }
        let not_held = not_held || closed;
        if not_held && !closed && !self.case.exceeds_max_concurrent() {
            self.note(Note::NotAllHeld);
        }
        if client.completed > 0 {
            self.note(Note::NotIdle);
            cpus = None;
        }
        self.set(Metric::KibPerConnection, slope.filter(|_| !not_held));
        self.set(Metric::MemoryMib, after.filter(|_| !closed).map(mebibytes));
        self.set(Metric::IdleCpuMsPerS, cpus.map(|cpus| cpus * 1e3));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::compare::tests::settings;
    use crate::registry;
    use crate::results::Role;
    use crate::results::tests::{client_side, run};
    use crate::target::Target;

    fn placement() -> Placement {
        Placement {
            client: vec![0],
            server: vec![1],
            apart: true,
            share_a_core: None,
            warning: None,
        }
    }

    /// A run of one second with 20,000 replies on 100 connections; the client was busy for half of the time and the
    /// server for a quarter.
    fn measured(workload: Workload) -> Run {
        let mut histogram = client::histogram();
        histogram.record_n(100_000, 20_000).unwrap();
        let mut run = run("m", workload);
        run.client = Some(ClientSide {
            per_connection: vec![200; 100],
            finished_clients: 100,
            mean_in_flight: 100.0,
            ..client_side(&histogram)
        });
        run.server = Some(ServerSide {
            interval_s: Some(1.0),
            cpu_s: Some(0.25),
            counters_interval_s: Some(2.0),
            voluntary_switches: Some(30_000),
            involuntary_switches: Some(10_000),
            memory_before_bytes: Some(1 << 20),
            memory_after_bytes: Some((1 << 20) + 1_000 * 2_048),
            ..ServerSide::default()
        });
        run
    }

    fn evaluated(workload: Workload, change: impl FnOnce(&mut ClientSide, &mut ServerSide)) -> Run {
        evaluated_with_limit(None, workload, change)
    }

    /// Evaluates a run of a model that serves at most `max_concurrent` connections at a time.
    fn evaluated_with_limit(
        max_concurrent: Option<usize>,
        workload: Workload,
        change: impl FnOnce(&mut ClientSide, &mut ServerSide),
    ) -> Run {
        let mut run = measured(workload);
        if let (Some(client), Some(server)) = (&mut run.client, &mut run.server) {
            change(client, server);
        }
        let settings = settings(&["--rate", "20000", "--patience", "6s"]);
        let case = Case {
            target: Target::Model(registry::find("mio").unwrap()),
            role: Role::Model,
            method: Method::Whole,
            workload,
            connections: settings.connections(workload)[0],
            seed: 1,
            max_concurrent,
            burn: None,
        };
        evaluate(&mut run, &case, &settings, &placement());
        run
    }

    fn get(run: &Run, metric: Metric) -> Option<f64> {
        run.figures[&metric]
    }

    #[test]
    fn cost_per_request_is_a_quotient_of_rates() {
        let run = evaluated(Workload::Max, |_, _| {});
        assert!(run.valid() && !run.client_limited && run.notes.is_empty());
        assert_eq!(get(&run, Metric::RequestsPerS), Some(20_000.0));
        assert_eq!(get(&run, Metric::CpuUsPerRequest), Some(12.5));
        assert_eq!(get(&run, Metric::SwitchesPerRequest), Some(1.0));
        assert_eq!(get(&run, Metric::ServerBusy), Some(0.25));
        assert_eq!(get(&run, Metric::ClientBusy), Some(0.5));
    }

    #[test]
    fn figure_whose_counter_was_not_read_is_unknown() {
        let run = evaluated(Workload::Max, |_, server| *server = ServerSide::default());
        for metric in [
            Metric::CpuUsPerRequest,
            Metric::SwitchesPerRequest,
            Metric::ServerBusy,
            Metric::Threads,
            Metric::PeakMemoryMib,
            Metric::OtherProgramsBusy,
        ] {
            assert_eq!(get(&run, metric), None, "{metric:?}");
        }
    }

    #[test]
    fn cost_is_unknown_if_the_cpu_clock_was_read_late() {
        let late = |interval| {
            evaluated(Workload::Max, |_, server| {
                server.interval_s = Some(interval);
            })
        };
        for missed in [1e-5, 0.4, 0.97, 1.03, 2.0] {
            let run = late(missed);
            assert!(run.valid());
            assert_eq!(run.notes, [Note::EdgesMissed]);
            assert_eq!(get(&run, Metric::CpuUsPerRequest), None);
            assert_eq!(get(&run, Metric::ServerBusy), None);
            assert_eq!(get(&run, Metric::RequestsPerS), Some(20_000.0));
        }
        let met = get(&late(0.99), Metric::CpuUsPerRequest).unwrap();
        assert!((met - 12.5 / 0.99).abs() < 1e-9, "{met}");
    }

    #[test]
    fn throughput_with_a_busy_client_is_a_lower_bound() {
        let busy = |server_cpu: Option<f64>| {
            evaluated(Workload::Max, |client, server| {
                client.client_cpu_s = 0.95;
                server.cpu_s = server_cpu;
            })
        };
        for idle_or_unknown in [Some(0.5), None] {
            let run = busy(idle_or_unknown);
            assert!(run.client_limited);
            assert_eq!(run.lower_bounds, [Metric::RequestsPerS]);
            assert_eq!(run.notes, [Note::ClientBusy]);
        }
        assert!(
            !busy(Some(0.95)).client_limited,
            "client and server were both at their limits"
        );
    }

    #[test]
    fn late_client_marks_the_run_as_client_limited() {
        let late = evaluated(Workload::Steady, |client, _| {
            let mut lag = client::histogram();
            lag.record_n(5_000_000, 2_000).unwrap();
            client.lag = crate::results::Times::of(&lag).unwrap();
        });
        assert!(late.client_limited);
        assert_eq!(late.notes, [Note::ClientLate]);
        assert!(!evaluated(Workload::Steady, |_, _| {}).client_limited);
        // The lag is well under a millisecond, but as long as the response time.
        let mostly_late = evaluated(Workload::Steady, |client, _| {
            client.lag = client.response_time.clone();
        });
        assert_eq!(mostly_late.notes, [Note::ClientLate]);
    }

    #[test]
    fn run_with_a_wrong_reply_or_without_replies_is_invalid() {
        let wrong = evaluated(Workload::Max, |client, _| {
            client.errors.wrong_reply = 1;
            client.examples = vec!["byte 3 is x".to_string()];
        });
        assert_eq!(
            wrong.problems,
            ["requests failed: 1 wrong reply (byte 3 is x)"]
        );
        let empty = evaluated(Workload::Max, |client, _| client.received_bytes = 0);
        assert_eq!(empty.problems, ["no client received a reply"]);
    }

    #[test]
    fn run_with_unanswered_clients_is_valid() {
        let serial = evaluated(Workload::Crowd, |client, _| {
            client.finished_clients = 6;
            client.never_served = 93;
            client.elapsed_s = 6.002;
        });
        assert!(serial.valid());
        // The time that was waited, and not an estimate of the time that was needed.
        assert_eq!(get(&serial, Metric::AllServedS), Some(6.0));
        assert_eq!(get(&serial, Metric::ClientsServed), Some(6.0));
        assert!(serial.lower_bounds.contains(&Metric::AllServedS));
        assert!(serial.lower_bounds.contains(&Metric::FirstReplyP50Ms));

        let steady = evaluated(Workload::Steady, |client, _| {
            client.replies = 200;
            client.unanswered = 19_800;
        });
        assert!(steady.valid());
        assert_eq!(get(&steady, Metric::Availability), Some(0.01));
        assert!(steady.lower_bounds.contains(&Metric::ResponseP50Ms));

        let alone = evaluated(Workload::Max, |client, _| {
            client.per_connection = vec![0; 100];
            client.per_connection[0] = 20_000;
            client.mean_in_flight = 1.0;
        });
        assert_eq!(get(&alone, Metric::ConnectionsWithoutReply), Some(99.0));
        assert!(alone.notes.is_empty());
    }

    #[test]
    fn connections_above_max_concurrent_are_noted_as_by_design() {
        let serve_half = |client: &mut ClientSide, _: &mut ServerSide| {
            client.mean_in_flight = 50.0;
            client.never_served = 900;
            client.unanswered = 50;
            client.completed = 0;
        };
        for workload in crate::workloads::defaults() {
            let fewer = evaluated_with_limit(Some(50), workload, serve_half);
            assert!(fewer.valid());
            assert_eq!(fewer.notes, [Note::FewerByDesign], "{workload}");
            // A server whose limit equals the number of connections can serve all of them, so the note does not apply.
            let enough = evaluated_with_limit(Some(1_000), workload, serve_half);
            assert!(!enough.notes.contains(&Note::FewerByDesign));
        }
    }

    #[test]
    fn few_unanswered_requests_bound_only_the_high_percentiles() {
        let run = evaluated(Workload::Steady, |client, _| client.unanswered = 30);
        assert_eq!(
            run.lower_bounds,
            [Metric::ResponseP999Ms, Metric::ResponseMaxMs]
        );
    }

    #[test]
    fn memory_per_connection_is_unknown_unless_all_connections_are_served() {
        let all = evaluated(Workload::Idle, |client, _| client.completed = 0);
        assert_eq!(get(&all, Metric::KibPerConnection), Some(2.0));
        assert_eq!(get(&all, Metric::IdleCpuMsPerS), Some(250.0));
        let one = evaluated(Workload::Idle, |client, _| {
            client.completed = 0;
            client.never_served = 999;
        });
        assert!(one.valid());
        assert_eq!(get(&one, Metric::KibPerConnection), None);
        assert_eq!(one.notes, [Note::NotAllHeld]);
        let noisy = evaluated(Workload::Idle, |_, _| {});
        assert_eq!(get(&noisy, Metric::IdleCpuMsPerS), None);
    }

    #[test]
    fn cost_of_files_counts_received_content() {
        let files =
            |change: fn(&mut ClientSide, &mut ServerSide)| evaluated(Workload::Http13k, change);
        let run = files(|_, _| {});
        assert!(run.valid() && run.lower_bounds.is_empty());
        let mb = get(&run, Metric::MbPerS).unwrap();
        assert!((mb - 20_000.0 * 13_312.0 / 1e6).abs() < 1e-6, "{mb}");
        // A quarter of a second of CPU time for this amount of content.
        let cost = get(&run, Metric::CpuMsPerGb).unwrap();
        assert!((cost - 250.0 / (mb / 1e3)).abs() < 1e-6, "{cost}");
        assert_eq!(get(&run, Metric::CpuUsPerRequest), Some(12.5));
        assert_eq!(get(&run, Metric::Availability), Some(1.0));
        assert!(get(&run, Metric::ResponseP99Ms).is_some());
        let limited = files(|client, _| client.client_cpu_s = 0.95);
        assert!(limited.client_limited);
        let bounds = [Metric::RequestsPerS, Metric::MbPerS];
        assert_eq!(limited.lower_bounds, bounds);
        // Replies of one line have no content figures.
        let lines = evaluated(Workload::Max, |_, _| {});
        assert!(!lines.figures.contains_key(&Metric::MbPerS));
    }

    #[test]
    fn transfer_measures_availability_and_time_until_all_are_served() {
        let all = |client: &mut ClientSide, server: &mut ServerSide| {
            client.replies = 100;
            client.completed = 100;
            client.window_s = 2.0;
            client.elapsed_s = 2.0;
            server.peak_rss_before_bytes = Some(5 << 20);
            server.peak_rss_bytes = Some((5 << 20) + 100 * 4_096);
        };
        let bulk = evaluated(Workload::Bulk, all);
        assert_eq!(get(&bulk, Metric::Availability), Some(1.0));
        assert_eq!(get(&bulk, Metric::AllServedS), Some(2.0));
        assert_eq!(get(&bulk, Metric::PeakKibPerConnection), Some(4.0));
        let mb = get(&bulk, Metric::MbPerS).unwrap();
        assert!((mb - 50.0 * 9.0 * 1.048_576).abs() < 1e-6, "{mb}");
        assert!(bulk.lower_bounds.is_empty() && bulk.notes.is_empty());

        // Two requests per client; a client without its first reply never sent the second request.
        let half = evaluated(Workload::Http13m, |client, server| {
            all(client, server);
            client.finished_clients = 50;
            client.unanswered = 50;
            client.client_cpu_s = 1.9;
        });
        assert!(half.valid() && half.client_limited);
        assert_eq!(get(&half, Metric::Availability), Some(0.5));
        assert_eq!(get(&half, Metric::AllServedS), Some(60.0));
        let bounds = [Metric::AllServedS, Metric::MbPerS, Metric::ResponseMaxMs];
        assert_eq!(half.lower_bounds, bounds);
        // The CPU time includes incomplete bodies, so it is not the cost of the complete ones.
        assert!(!half.figures.contains_key(&Metric::CpuMsPerGb));

        // A failed client does not make a transfer invalid: it lowers the availability.
        let failed = evaluated(Workload::Http13m, |client, server| {
            all(client, server);
            client.finished_clients = 99;
            (client.replies, client.completed) = (198, 198);
            client.errors.reset = 2;
        });
        assert!(failed.valid(), "{:?}", failed.problems);
        assert_eq!(get(&failed, Metric::Availability), Some(0.99));
    }

    #[test]
    fn bystander_percentile_with_too_few_samples_is_unknown() {
        let block = evaluated(Workload::Block, |client, _| {
            let mut bystanders = client::histogram();
            bystanders.record_n(50_000, 990).unwrap();
            bystanders.record_n(5_000_000, 10).unwrap();
            client.bystanders = crate::results::Times::of(&bystanders).unwrap();
        });
        assert_eq!(
            get(&block, Metric::BystandersP50Ms).map(|ms| ms < 0.1),
            Some(true)
        );
        assert!(get(&block, Metric::ResponseP99Ms).is_some());
        // This workload plans 600 requests per second, whatever --rate is, so 20,000 replies are enough.
        assert!(!block.client_limited, "{:?}", block.notes);
        let few = evaluated(Workload::Block, |client, _| {
            client.bystanders = crate::results::Times::of(&client::histogram()).unwrap();
        });
        assert_eq!(get(&few, Metric::BystandersP99Ms), None);
    }
}
