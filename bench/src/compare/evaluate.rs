//! What a run's raw figures mean, and whether to believe them.

use super::metric::Metric;
use super::plan::{Case, Settings};
use super::results::{ClientSide, Note, Run, ServerSide};
use super::workload::Workload;
use crate::format;
use crate::placement::Placement;

/// A side that uses so much of its CPUs has nothing to spare.
const BUSY: f64 = 0.9;

/// A client this late (99th percentile) measures itself,
const MOST_LAG_NS: u64 = 1_000_000;

/// and so does one whose lateness is this much of the response times (99th percentile of both).
const MOST_LAG: f64 = 0.5;

/// Of the planned rate, this much must be achieved.
const ENOUGH_OF_THE_RATE: f64 = 0.98;

/// Others that had so much of the CPUs changed the figures. Interrupts and the kernel's own threads have a few percent.
const DISTURBED: f64 = 0.1;

/// The time over which CPU was counted is the window, as the harness met its edges. Late at the beginning, it saw less
/// of it; late at the end, it saw a server that had nothing to do any more, and took that for cheapness.
const INTERVAL: std::ops::RangeInclusive<f64> = 0.5..=1.05;

/// How far Little's law may be off: windows have edges.
const LITTLE: f64 = 0.1;

/// Computes the figures of a run, and says what is wrong with it.
pub(super) fn evaluate(run: &mut Run, case: &Case, settings: &Settings, placement: &Placement) {
    let Some(client) = run.client.take() else {
        return;
    };
    let server = run.server.take().unwrap_or_default();

    report_problems(run, &client);
    // A load that has an end has no edges but its own.
    let met = run.workload.has_an_end()
        || share(server.interval_s, Some(client.window_s))
            .is_some_and(|share| INTERVAL.contains(&share));
    let interval = if run.workload.is_transfer() {
        // Counted from before the load: in what is more than its window, nothing was used for it.
        Some(client.window_s)
    } else {
        server.interval_s
    };
    let server_cpus = share(server.cpu_s, interval).filter(|_| met);
    // One thread can't be busier than one CPU, however many there are.
    let threads = (server.threads).map_or(usize::MAX, |threads| threads as usize);
    let usable = placement.server_cpus().min(threads);
    let mut evaluate = Evaluation {
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
    evaluate.resources();
    if !met && server.interval_s.is_some() {
        evaluate.note(Note::EdgesMissed);
    }
    if case.is_short() {
        evaluate.note(Note::FewerByDesign);
    }
    match evaluate.run.workload {
        Workload::Crowd => evaluate.crowd(),
        Workload::Max => evaluate.max(),
        Workload::Steady => evaluate.steady(),
        Workload::Idle => evaluate.idle(),
        Workload::Http13b | Workload::Http13k | Workload::Wait | Workload::Compute => {
            evaluate.max();
            evaluate.responses();
            evaluate.available();
        }
        Workload::Http13m | Workload::Bulk => evaluate.transfer(),
        Workload::Block | Workload::BlockOffload => {
            evaluate.steady();
            evaluate.others();
        }
    }
    run.client = Some(client);
    run.server = Some(server);
}

/// Every reply must be right, and there must be one.
fn report_problems(run: &mut Run, client: &ClientSide) {
    let failed: Vec<_> = client
        .errors
        .kinds()
        .map(|(number, kind)| format!("{} {kind}", format::count(number)))
        .collect();
    // Of a transfer, how many had what they wanted is what is asked: who failed is in the availability.
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
        run.problems.push("nobody got a reply".to_string());
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn share(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    let (part, whole) = part.zip(whole)?;
    (whole > 0.0).then(|| part / whole)
}

struct Evaluation<'a> {
    run: &'a mut Run,
    case: &'a Case,
    settings: &'a Settings,
    client: &'a ClientSide,
    server: &'a ServerSide,
    /// CPU time over time.
    server_cpus: Option<f64>,
    server_busy: Option<f64>,
    client_busy: Option<f64>,
}

impl Evaluation<'_> {
    fn set(&mut self, metric: Metric, value: impl Into<Option<f64>>) {
        let value = value.into().filter(|value| value.is_finite());
        self.run.figures.insert(metric, value);
    }

    /// A percentile of this run alone.
    fn read(&mut self, metric: Metric) {
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
        if self.server.others_cpu >= Some(DISTURBED) {
            self.note(Note::Disturbed);
        }
    }

    /// How long until all clients had what they wanted.
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

    fn crowd(&mut self) {
        self.all_served();
        let client = self.client;
        self.read(Metric::FirstReplyP50Ms);
        self.read(Metric::FirstReplyMaxMs);
        if client.never_served > 0 {
            self.lower_bound(Metric::FirstReplyMaxMs);
        }
        if client.never_served * 2 >= self.case.connections as u64 {
            self.lower_bound(Metric::FirstReplyP50Ms);
        }
    }

    /// What both loads with a throughput have: rates of the window, so that the edges need not be the very same.
    fn throughput(&mut self) -> Option<f64> {
        let client = self.client;
        let rate = share(Some(client.completed as f64), Some(client.window_s));
        self.set(Metric::RequestsPerS, rate);
        self.set(
            Metric::CpuUsPerRequest,
            share(self.server_cpus, rate).map(|seconds| seconds * 1e6),
        );
        let switches = self
            .server
            .voluntary_switches
            .zip(self.server.involuntary_switches);
        let switches = share(
            switches.map(|(voluntary, involuntary)| (voluntary + involuntary) as f64),
            self.server.counters_interval_s,
        );
        self.set(Metric::SwitchesPerRequest, share(switches, rate));
        let starved = client
            .per_connection
            .iter()
            .filter(|&&replies| replies == 0)
            .count();
        self.set(Metric::ConnectionsWithoutReply, starved as f64);
        self.content(rate);
        rate
    }

    /// Where replies have content, as much of it as came in whole and right replies.
    fn content(&mut self, rate: Option<f64>) {
        let Some((each, rate)) = self.case.workload.reply_bytes().zip(rate) else {
            return;
        };
        let bytes_per_s = rate * each as f64;
        self.set(Metric::MbPerS, bytes_per_s / 1e6);
        let cost = share(self.server_cpus, Some(bytes_per_s));
        self.set(Metric::CpuMsPerGb, cost.map(|seconds| seconds * 1e12));
    }

    fn max(&mut self) {
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
        let off = client.mean_in_flight / self.case.connections as f64 - 1.0;
        // Of who max_concurrent fewer this is known, and said.
        if off.abs() > LITTLE && !self.case.is_short() {
            self.note(Note::OtherInFlight);
        }
        self.client_at_its_limit();
    }

    fn client_at_its_limit(&mut self) {
        // A server whose use is unknown cannot be shown to have been the limit.
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

    /// Each client wants so much, and then leaves.
    fn transfer(&mut self) {
        self.all_served();
        let client = self.client;
        let rate = share(Some(client.completed as f64), Some(client.window_s));
        self.content(rate);
        // Of what was to be asked: who waits for the first reply could not ask for the second.
        let requests = self.case.requests().map(|requests| requests as f64);
        self.set(
            Metric::Availability,
            share(Some(client.replies as f64), requests),
        );
        if requests.is_some_and(|requests| (client.replies as f64) < requests) {
            // Parts of bodies took time and CPU time too, and are nowhere counted.
            self.run.figures.remove(&Metric::CpuMsPerGb);
            if self.run.figures.contains_key(&Metric::MbPerS) {
                self.lower_bound(Metric::MbPerS);
            }
        }
        self.read(Metric::ResponseMaxMs);
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

    /// Requests that were to be answered in the window.
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

    /// Percentiles of a histogram with so many requests in it, the unanswered with their age at the end. Where these
    /// reach down to a percentile, it would have been larger still.
    fn percentiles(&mut self, metrics: &[Metric], requests: u64) {
        for &metric in metrics {
            self.read(metric);
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

    fn others(&mut self) {
        let metrics = [Metric::BystandersP50Ms, Metric::BystandersP99Ms];
        self.percentiles(&metrics, self.client.bystanders.count);
    }

    fn steady(&mut self) {
        let achieved = self.throughput();
        let client = self.client;
        self.available();
        self.responses();
        self.read(Metric::ServiceP99Ms);
        self.read(Metric::LagP99Ms);
        let planned = self.settings.rate(self.case.workload);
        let short = achieved.is_some_and(|rate| rate < ENOUGH_OF_THE_RATE * planned);
        let late = client.lag.p99_ns.is_some_and(|lag| {
            let response = client.response_time.p99_ns;
            lag > MOST_LAG_NS
                || response.is_some_and(|response| lag as f64 > MOST_LAG * response as f64)
        });
        if late || (short && self.client_busy >= Some(BUSY)) {
            self.run.client_limited = true;
            self.lower_bound(Metric::RequestsPerS);
            self.note(Note::ClientLate);
        }
    }

    fn idle(&mut self) {
        let client = self.client;
        let (before, after) = (
            self.server.memory_before_bytes,
            self.server.memory_after_bytes,
        );
        let slope = after.zip(before).map(|(after, before)| {
            (after as f64 - before as f64) / self.case.connections as f64 / 1024.0
        });
        let mut cpus = self.server_cpus;
        // A protocol that closes after its reply leaves nobody to hold.
        let closes = self.settings.protocol.requests_per_connection.is_some();
        let not_held = client.never_served > 0 || closes;
        if not_held && !self.case.is_short() {
            self.note(Note::NotAllHeld);
        }
        if client.completed > 0 {
            self.note(Note::NotIdle);
            cpus = None;
        }
        self.set(Metric::KibPerConnection, slope.filter(|_| !not_held));
        self.set(Metric::MemoryMib, after.map(mebibytes));
        self.set(Metric::IdleCpuMsPerS, cpus.map(|cpus| cpus * 1e3));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::{client_side, run};
    use crate::compare::tests::settings;
    use crate::registry;
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

    /// A second with 20,000 replies from 100 connections, in which the client was half busy and the server a quarter.
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
        evaluated_as(None, workload, change)
    }

    /// A model that max_concurrent so many at a time.
    fn evaluated_as(
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
            workload,
            connections: settings.connections(workload)[0],
            seed: 1,
            max_concurrent,
        };
        evaluate(&mut run, &case, &settings, &placement());
        run
    }

    fn get(run: &Run, metric: Metric) -> Option<f64> {
        run.figures[&metric]
    }

    #[test]
    fn costs_are_rates_over_rates() {
        let run = evaluated(Workload::Max, |_, _| {});
        assert!(run.valid() && !run.client_limited && run.notes.is_empty());
        assert_eq!(get(&run, Metric::RequestsPerS), Some(20_000.0));
        assert_eq!(get(&run, Metric::CpuUsPerRequest), Some(12.5));
        assert_eq!(get(&run, Metric::SwitchesPerRequest), Some(1.0));
        assert_eq!(get(&run, Metric::ServerBusy), Some(0.25));
        assert_eq!(get(&run, Metric::ClientBusy), Some(0.5));
    }

    #[test]
    fn what_was_not_read_stays_unknown() {
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
    fn cost_is_not_told_by_a_clock_that_was_read_late() {
        let late = |interval| {
            evaluated(Workload::Max, |_, server| {
                server.interval_s = Some(interval);
            })
        };
        for missed in [1e-5, 0.4, 1.1, 2.0] {
            let run = late(missed);
            assert!(run.valid());
            assert_eq!(run.notes, [Note::EdgesMissed]);
            assert_eq!(get(&run, Metric::CpuUsPerRequest), None);
            assert_eq!(get(&run, Metric::ServerBusy), None);
            assert_eq!(get(&run, Metric::RequestsPerS), Some(20_000.0));
        }
        assert_eq!(get(&late(0.8), Metric::CpuUsPerRequest), Some(15.625));
    }

    #[test]
    fn a_busy_client_makes_the_throughput_a_lower_bound() {
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
            "both were at their limits"
        );
    }

    #[test]
    fn a_late_client_is_told() {
        let late = evaluated(Workload::Steady, |client, _| {
            let mut lag = client::histogram();
            lag.record_n(5_000_000, 2_000).unwrap();
            client.lag = super::super::results::Times::of(&lag).unwrap();
        });
        assert!(late.client_limited);
        assert_eq!(late.notes, [Note::ClientLate]);
        assert!(!evaluated(Workload::Steady, |_, _| {}).client_limited);
        // Well under a millisecond, but as much as the replies took.
        let mostly_late = evaluated(Workload::Steady, |client, _| {
            client.lag = client.response_time.clone();
        });
        assert_eq!(mostly_late.notes, [Note::ClientLate]);
    }

    #[test]
    fn errors_and_silence_make_it_invalid() {
        let wrong = evaluated(Workload::Max, |client, _| {
            client.errors.wrong_reply = 1;
            client.examples = vec!["byte 3 is x".to_string()];
        });
        assert_eq!(
            wrong.problems,
            ["requests failed: 1 wrong reply (byte 3 is x)"]
        );
        let silent = evaluated(Workload::Max, |client, _| client.received_bytes = 0);
        assert_eq!(silent.problems, ["nobody got a reply"]);
    }

    #[test]
    fn starving_is_a_result_and_no_failure() {
        let serial = evaluated(Workload::Crowd, |client, _| {
            client.finished_clients = 6;
            client.never_served = 93;
            client.elapsed_s = 6.002;
        });
        assert!(serial.valid());
        // What was waited for, and not a guess at what it would have been.
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
        assert_eq!(alone.notes, [Note::OtherInFlight]);
    }

    #[test]
    fn what_a_model_cannot_by_design_is_said_as_that() {
        let starve = |client: &mut ClientSide, _: &mut ServerSide| {
            client.mean_in_flight = 50.0;
            client.never_served = 900;
            client.unanswered = 50;
            client.completed = 0;
        };
        for &workload in Workload::DEFAULT {
            let short = evaluated_as(Some(50), workload, starve);
            assert!(short.valid());
            assert_eq!(short.notes, [Note::FewerByDesign], "{workload}");
            // At its limit it max_concurrent them all, and nothing is to be excused.
            let enough = evaluated_as(Some(1_000), workload, starve);
            assert!(!enough.notes.contains(&Note::FewerByDesign));
        }
    }

    #[test]
    fn few_unanswered_only_touch_the_tail() {
        let run = evaluated(Workload::Steady, |client, _| client.unanswered = 30);
        assert_eq!(
            run.lower_bounds,
            [Metric::ResponseP999Ms, Metric::ResponseMaxMs]
        );
    }

    #[test]
    fn memory_per_connection_needs_all_of_them() {
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
    fn what_files_cost_is_told_by_what_came_of_them() {
        let files =
            |change: fn(&mut ClientSide, &mut ServerSide)| evaluated(Workload::Http13k, change);
        let run = files(|_, _| {});
        assert!(run.valid() && run.lower_bounds.is_empty());
        let mb = get(&run, Metric::MbPerS).unwrap();
        assert!((mb - 20_000.0 * 13_312.0 / 1e6).abs() < 1e-6, "{mb}");
        // A quarter of a CPU's second for so much.
        let cost = get(&run, Metric::CpuMsPerGb).unwrap();
        assert!((cost - 250.0 / (mb / 1e3)).abs() < 1e-6, "{cost}");
        assert_eq!(get(&run, Metric::CpuUsPerRequest), Some(12.5));
        assert_eq!(get(&run, Metric::Availability), Some(1.0));
        assert!(get(&run, Metric::ResponseP99Ms).is_some());
        let limited = files(|client, _| client.client_cpu_s = 0.95);
        assert!(limited.client_limited);
        let bounds = [Metric::RequestsPerS, Metric::MbPerS];
        assert_eq!(limited.lower_bounds, bounds);
        // Lines have no content to speak of.
        let lines = evaluated(Workload::Max, |_, _| {});
        assert!(!lines.figures.contains_key(&Metric::MbPerS));
    }

    #[test]
    fn transfers_end_when_all_have_theirs() {
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

        // Two requests each; those who got nothing never asked for the second.
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
        // What was used for halves of bodies too is no cost of the whole ones.
        assert!(!half.figures.contains_key(&Metric::CpuMsPerGb));

        // Who failed is no reason to leave the others out: how many they are is the question.
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
    fn the_others_are_told_apart_if_there_are_enough() {
        let block = evaluated(Workload::Block, |client, _| {
            let mut others = client::histogram();
            others.record_n(50_000, 990).unwrap();
            others.record_n(5_000_000, 10).unwrap();
            client.bystanders = super::super::results::Times::of(&others).unwrap();
        });
        assert_eq!(
            get(&block, Metric::BystandersP50Ms).map(|ms| ms < 0.1),
            Some(true)
        );
        assert!(get(&block, Metric::ResponseP99Ms).is_some());
        // 600 per second are planned here, whatever --rate says; 20,000 are not too few.
        assert!(!block.client_limited, "{:?}", block.notes);
        let few = evaluated(Workload::Block, |client, _| {
            client.bystanders = super::super::results::Times::of(&client::histogram()).unwrap();
        });
        assert_eq!(get(&few, Metric::BystandersP99Ms), None);
    }
}
