//! Measures the machine itself: how late it wakes a thread, what a system call costs, and how fast and how slow the
//! client is with a server that does nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use client::{Arrivals, Load, Plan};
use protocol::Protocol;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::placement::Placement;
use crate::statistics::interval::t_quantile;
use crate::{format, interrupt, null_server, output};

/// Options of `probe`.
#[derive(Debug, Args)]
#[command(
    after_help = "The probe shows what a comparison on this machine can tell, before it runs. It takes about 12 seconds.

Examples:
  samewire probe
  samewire probe --json"
)]
pub struct ProbeArgs {
    /// Print JSON instead of sentences
    #[arg(long)]
    json: bool,
}

/// Amount of measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeLength {
    /// About 12 s, for `samewire probe`.
    Full,
    /// About 6 s, before a comparison.
    Short,
}

/// Measurements of the machine. `null`: unknown here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// Share of the wake-ups of a timer that came over 50 µs late, on a CPU of the client, 0 to 1.
    pub late_share: f64,
    /// Median lateness of the wake-ups, in microseconds.
    pub late_p50_us: f64,
    /// 99th percentile of the lateness, in microseconds.
    pub late_p99_us: f64,
    /// Largest lateness, in microseconds.
    pub late_max_us: f64,
    /// Number of bursts of late wake-ups: late ones that are less than 300 ms apart.
    pub bursts: u64,
    /// Time of one write(2) and one read(2) of 64 bytes in the same thread, in nanoseconds.
    pub system_call_pair_ns: f64,
    /// Standard deviation of the logarithm of that time between windows that follow each other.
    pub window_spread: f64,
    /// Standard deviation of the logarithm of the ratio of two equal loads that alternate every 20 ms.
    pub slice_spread: f64,
    /// Requests per second that the client reaches with the null server.
    pub null_requests_per_s: Option<f64>,
    /// CPU time of the client per request with the null server, in microseconds.
    pub client_cpu_us_per_request: Option<f64>,
    /// Median response time of the null server at 5,000 requests/s, in milliseconds.
    pub floor_p50_ms: Option<f64>,
    /// 99th percentile of the response time of the null server at 5,000 requests/s, in milliseconds.
    pub floor_p99_ms: Option<f64>,
    /// 99th percentile of the lateness of the client at 5,000 requests/s, in milliseconds.
    pub floor_lag_p99_ms: Option<f64>,
}

/// Time from which on a wake-up is late, in microseconds.
const LATE_US: f64 = 50.0;

/// Interval of the timer.
const TIMER: Duration = Duration::from_micros(200);

/// Largest gap within a burst.
const BURST_GAP: Duration = Duration::from_millis(300);

/// Standard deviation of the logarithm of the ratio of two fresh processes of the same server, from round to round, as
/// `samewire calibrate` found it on a virtual machine with two CPUs. Processes differ by their addresses in memory, for
/// example, which no probe can show.
const FRESH_PROCESSES: f64 = 0.03;

/// Number of slices per model and round of `max`, by default.
const PASSES: u32 = 30;

/// Rate of the open loop, as that of `steady`.
const RATE: f64 = 5_000.0;

const CONNECTIONS: usize = 100;

/// Runs `samewire probe`.
///
/// # Errors
///
/// Returns an error if the null server does not start, or if the output can't be written.
pub fn run(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;
    let placement = Placement::take();
    crate::child::adopt_orphans();
    output::print_error("measuring the machine for about 12 s");
    let Some(probe) = measure(&placement, ProbeLength::Full, &interrupted)? else {
        output::print_error("interrupted");
        return Ok(ExitCode::from(interrupt::STATUS));
    };
    if args.json {
        let json = serde_json::to_string(&probe).context("cannot write the probe as JSON")?;
        output::print(&format!("{json}\n"))?;
    } else {
        output::print(&to_text(&probe))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures the machine. Returns `None` if it was interrupted.
///
/// # Errors
///
/// Returns an error if the null server does not start.
pub(crate) fn measure(
    placement: &Placement,
    length: ProbeLength,
    interrupted: &AtomicBool,
) -> anyhow::Result<Option<Probe>> {
    let times = |full: u64, short: u64| match length {
        ProbeLength::Full => Duration::from_millis(full),
        ProbeLength::Short => Duration::from_millis(short),
    };
    let mut probe = Probe::default();
    lateness(times(4_000, 2_000), interrupted).write_to(&mut probe);
    if interrupted.load(Ordering::Relaxed) {
        return Ok(None);
    }
    system_calls(times(4_000, 1_600), &mut probe)?;
    let Some(protocol) = Protocol::find("echo").filter(|protocol| null_server::speaks(protocol))
    else {
        return Ok(Some(probe));
    };
    let server = null_server::start(protocol, &placement.server)?;
    let plan = |load| Plan {
        address: server.address,
        protocol,
        connections: CONNECTIONS,
        size: Some(64),
        bulk: Default::default(),
        page: Default::default(),
        work: None,
        load,
        connect_first: true,
        ramp: Duration::ZERO,
        timeout: Duration::from_secs(15),
        seed: 1,
        threads: placement.client_threads(),
        cpus: placement.client.clone(),
    };
    let warmup = Duration::from_millis(100);
    let closed = client::drive(
        &plan(Load::Closed {
            think: Duration::ZERO,
            warmup,
            duration: times(1_500, 800),
        }),
        &(),
        interrupted,
    )?;
    let open = client::drive(
        &plan(Load::Open {
            rate: RATE,
            arrivals: Arrivals::Poisson,
            warmup,
            duration: times(2_000, 1_500),
        }),
        &(),
        interrupted,
    )?;
    drop(server.stop());
    if interrupted.load(Ordering::Relaxed) {
        return Ok(None);
    }
    if closed.completed > 0 {
        probe.null_requests_per_s = Some(closed.throughput());
        let cpu = closed.cpu.as_secs_f64() / closed.completed as f64;
        probe.client_cpu_us_per_request = Some(cpu * 1e6);
    }
    let quantile =
        |histogram, quantile| format::quantile(histogram, quantile).map(|time| time as f64 / 1e6);
    probe.floor_p50_ms = quantile(&open.response_time, 0.5);
    probe.floor_p99_ms = quantile(&open.response_time, 0.99);
    probe.floor_lag_p99_ms = quantile(&open.lag, 0.99);
    Ok(Some(probe))
}

/// Wake-ups of a timer: the time at which each was due, and how late it came, in microseconds.
struct Lateness(Vec<(Duration, f64)>);

/// Lets the timers of this thread expire when they are due. By default the kernel may delay them by 50 µs, to expire
/// several at once (PR_SET_TIMERSLACK, prctl(2)).
#[cfg(target_os = "linux")]
fn precise_timers() {
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZero::new(1));
}

#[cfg(not(target_os = "linux"))]
fn precise_timers() {}

/// Waits for a timer again and again.
fn lateness(length: Duration, interrupted: &AtomicBool) -> Lateness {
    precise_timers();
    let start = Instant::now();
    let mut wakes = Vec::new();
    let mut due = TIMER;
    while due < length && !interrupted.load(Ordering::Relaxed) {
        let now = start.elapsed();
        if let Some(pause) = due.checked_sub(now) {
            thread::sleep(pause);
        }
        let late = start.elapsed().saturating_sub(due);
        wakes.push((due, late.as_secs_f64() * 1e6));
        // After a long delay the times that have passed are left out: they are one late wake-up, not many.
        while due <= start.elapsed() {
            due += TIMER;
        }
    }
    Lateness(wakes)
}

impl Lateness {
    fn write_to(&self, probe: &mut Probe) {
        let mut late: Vec<f64> = self.0.iter().map(|wake| wake.1).collect();
        late.sort_by(f64::total_cmp);
        let at = |quantile: f64| {
            let place = (late.len() as f64 * quantile) as usize;
            late.get(place.min(late.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0.0)
        };
        probe.late_p50_us = at(0.5);
        probe.late_p99_us = at(0.99);
        probe.late_max_us = at(1.0);
        let count = late.iter().filter(|late| **late > LATE_US).count();
        probe.late_share = count as f64 / late.len().max(1) as f64;
        probe.bursts = self.bursts();
    }

    /// Returns the number of bursts of late wake-ups.
    fn bursts(&self) -> u64 {
        let mut bursts = 0;
        let mut last: Option<Duration> = None;
        for (due, _) in self.0.iter().filter(|wake| wake.1 > LATE_US) {
            if last.is_none_or(|last| *due - last > BURST_GAP) {
                bursts += 1;
            }
            last = Some(*due);
        }
        bursts
    }
}

/// Measures the price of a pair of system calls, and how much it varies: between windows that follow each other, and
/// between two equal loads that alternate.
fn system_calls(length: Duration, probe: &mut Probe) -> anyhow::Result<()> {
    const SLICE: Duration = Duration::from_millis(20);
    let cannot = "cannot measure the price of a system call";
    let (mut writer, mut reader) = UnixStream::pair().context(cannot)?;
    let mut pair = |time: Duration| -> anyhow::Result<f64> {
        const BATCH: u32 = 64;
        let (begin, mut count) = (Instant::now(), 0);
        let mut bytes = [0; 64];
        while begin.elapsed() < time {
            for _ in 0..BATCH {
                writer.write_all(&bytes).context(cannot)?;
                reader.read_exact(&mut bytes).context(cannot)?;
            }
            count += BATCH;
        }
        Ok(begin.elapsed().as_secs_f64() * 1e9 / f64::from(count))
    };
    let slices = (length.as_secs_f64() / SLICE.as_secs_f64()) as usize;
    let costs: Vec<f64> = (0..slices).map(|_| pair(SLICE)).collect::<Result<_, _>>()?;
    probe.system_call_pair_ns = costs.iter().sum::<f64>() / costs.len().max(1) as f64;
    let ratios: Vec<f64> = costs
        .chunks_exact(2)
        .map(|two| (two[0] / two[1]).ln())
        .collect();
    probe.slice_spread = deviation(&ratios);
    let windows: Vec<f64> = costs
        .chunks_exact(10)
        .map(|window| (window.iter().sum::<f64>() / 10.0).ln())
        .collect();
    probe.window_spread = deviation(&windows);
    Ok(())
}

/// Returns the standard deviation of the values; 0 for fewer than two.
fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

impl Probe {
    /// Returns the smallest difference in CPU time per request that a comparison of this many rounds can tell, as a
    /// share: half of the width of the interval of a ratio. `passes` is the number of slices per model and round.
    pub(crate) fn tellable(&self, rounds: u32, passes: u32) -> f64 {
        let spread =
            (self.slice_spread.powi(2) / f64::from(passes) + FRESH_PROCESSES.powi(2)).sqrt();
        let rounds = f64::from(rounds);
        (t_quantile(0.975, rounds - 1.0) * spread / rounds.sqrt()).exp_m1()
    }

    /// Returns what a comparison on this machine can tell, in one sentence.
    pub(crate) fn sentence(&self) -> String {
        let tellable = |rounds| format!("{:.1} %", self.tellable(rounds, PASSES) * 100.0);
        let floor = match self.floor_p99_ms {
            Some(floor) => format!(
                "; no p99 below {:.2} ms is the server's",
                floor * crate::results::summary::ABOVE_FLOOR
            ),
            None => String::new(),
        };
        format!(
            "this machine can tell differences of about {} in CPU time per request with 8 rounds, and of {} with 30{floor}",
            tellable(8),
            tellable(30)
        )
    }
}

/// Returns the probe as sentences, one per line.
pub(crate) fn to_text(probe: &Probe) -> String {
    let known = |value: Option<f64>, digits: usize| {
        value.map_or("n/a".to_string(), |value| format!("{value:.digits$}"))
    };
    format!(
        "wake-ups of a timer: {:.1} % came over {LATE_US:.0} µs late, in {} bursts; lateness p50 {:.0} µs, p99 {:.0} µs, max \
         {:.0} µs\n\
         one write(2) and one read(2): {:.0} ns; this varies by {:.1} % between windows of 200 ms, and by {:.1} % between \
         two equal loads that alternate every 20 ms\n\
         null server, closed loop of {CONNECTIONS} connections: {} requests/s; the client takes {} µs of CPU time per request\n\
         null server, {RATE} requests/s: response time p50 {} ms, p99 {} ms; the client sends late by {} ms (p99)\n\
         {}\n",
        probe.late_share * 100.0,
        probe.bursts,
        probe.late_p50_us,
        probe.late_p99_us,
        probe.late_max_us,
        probe.system_call_pair_ns,
        probe.window_spread * 100.0,
        probe.slice_spread * 100.0,
        probe
            .null_requests_per_s
            .map_or("n/a".to_string(), |rate| format::count(rate as u64)),
        known(probe.client_cpu_us_per_request, 2),
        known(probe.floor_p50_ms, 3),
        known(probe.floor_p99_ms, 3),
        known(probe.floor_lag_p99_ms, 3),
        probe.sentence(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_wake_ups_that_are_close_together_are_one_burst() {
        let ms = Duration::from_millis;
        let wakes = [
            (ms(0), 10.0),
            (ms(100), 80.0),
            (ms(300), 90.0),
            (ms(500), 20.0),
            (ms(700), 60.0),
            (ms(900), 49.0),
        ];
        let late = Lateness(wakes.to_vec());
        let mut probe = Probe::default();
        late.write_to(&mut probe);
        assert_eq!(probe.bursts, 2);
        assert!((probe.late_share - 0.5).abs() < 1e-9);
        assert_eq!((probe.late_p50_us, probe.late_max_us), (60.0, 90.0));
    }

    #[test]
    fn more_rounds_tell_smaller_differences() {
        let probe = Probe {
            slice_spread: 0.03,
            ..Probe::default()
        };
        let [eight, thirty] = [8, 30].map(|rounds| probe.tellable(rounds, PASSES));
        assert!(thirty < eight / 2.0, "{eight} {thirty}");
        // t(0.975, 7) = 2.365, and 2.365 × 0.0302 / √8 = 0.0252.
        assert!((eight - 0.0255).abs() < 1e-3, "{eight}");
        let noisy = Probe {
            slice_spread: 3.0,
            ..Probe::default()
        };
        assert!(noisy.tellable(8, PASSES) > eight);
    }

    #[test]
    fn deviation_is_that_of_a_sample() {
        assert_eq!(deviation(&[1.0]), 0.0);
        assert!((deviation(&[1.0, 2.0, 3.0, 4.0]) - 1.290_994).abs() < 1e-5);
    }
}
