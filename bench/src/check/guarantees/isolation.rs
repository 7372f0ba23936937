//! The check of `isolation`: peers that misbehave, in whatever way, do not keep other peers from being served.
//!
//! Twenty well-behaved clients send at a rate that is low for every server here: first undisturbed, then beside each
//! kind of misbehaving clients, which connect before them. Each load has a new server. The verdict depends on whether
//! every client gets a reply. The figure shows how late the replies are: the ratio of the 99th percentiles, from the
//! planned time to the reply.
//!
//! The server and the clients share this machine, and both kinds of clients share a CPU. So the misbehaving clients
//! have a thread that yields to the other one, and all of them together start again at most 2,000 times a second. If
//! the well-behaved clients themselves were late, the ratio is marked with a tilde.
//!
//! Another program on the machine makes a p99 ten times as long, but only now and then. Misbehaving clients make it so
//! every time. So outliers are measured again, and the lowest p99 counts. The same applies to the undisturbed load.

use std::sync::Arc;
use std::time::Duration;

use client::misbehave::{MISBEHAVIOURS, Misbehaviour, Obligation};
use client::{Arrivals, Load, PeerDriver, PeerDriverOptions, PeerGroup, PeerScript, Plan, Report};

use super::super::case::{self, CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken};
use crate::format;
use crate::misbehave::again_and_again;
use crate::target::{RunningTarget, TargetSettings};

/// Number of well-behaved clients.
const CLIENTS: usize = 20;

/// Duration of the load: for a thousand requests, and with `--quick` for half of that.
const FULL_LOAD: Duration = Duration::from_millis(200);
/// Duration of the load with `--quick`.
const QUICK_LOAD: Duration = Duration::from_millis(100);

/// A client without a reply after this time counts as unanswered.
const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// A kind beside which the p99 is more than this multiple of the undisturbed p99 is measured again.
const OUTLIER: f64 = 2.0;
/// Number of further measurements, of all kinds together.
const MAX_REPEATS: usize = 4;
/// Number of measurements of each kind at most, and of the undisturbed load.
const MAX_PER_KIND: usize = 3;

/// Kinds that are tried with `--quick`.
const QUICK: [&str; 2] = ["slowloris", "storm"];

/// Response times of the well-behaved clients under one load, in nanoseconds.
#[derive(Debug, Default)]
struct Latencies {
    p50: u64,
    p99: u64,
    samples: u64,
    /// Whether the clients themselves were late.
    late: bool,
    /// Number of clients without a reply, and after how long, in words; `None` if all had a reply.
    unanswered: Option<String>,
    /// Number of measurements.
    measurements: usize,
}

impl Latencies {
    /// Combines two measurements of the same load: the one with the lower p99 counts.
    fn or_lower(self, other: Latencies) -> Latencies {
        let measurements = self.measurements + other.measurements;
        let less = if self.p99 <= other.p99 { self } else { other };
        Latencies {
            measurements,
            ..less
        }
    }
}

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    let settings = TargetSettings::default();
    // A server that serves one peer at a time can't serve twenty clients at once.
    let slots = case.slots(&settings);
    let one_slot = slots == 1;
    let clients = if one_slot { 1 } else { CLIENTS };
    let declared = case.deviation().is_some();
    let mut seen = Vec::new();
    let mut details = Vec::new();

    if one_slot {
        let running = case.start(&settings)?;
        let latencies = well_behaved(case, &running, CLIENTS, usual_rate(case), true)?;
        if let Some(unanswered) = latencies.unanswered {
            seen.push(format!("without misbehaving clients, {unanswered}"));
        }
        case.kill(running);
    }
    let running = case.start(&settings)?;
    let (rate, mut undisturbed) = undisturbed(case, &running, clients)?;
    for _ in 1..if case.quick { 1 } else { MAX_PER_KIND } {
        let again = well_behaved(case, &running, clients, rate, false)?;
        undisturbed = undisturbed.or_lower(again);
    }
    case.kill(running);
    details.push(format!(
        "{:<15} p50 {}, p99 {} of {} requests of {clients} clients, {rate} a second{}",
        "undisturbed",
        format::time(undisturbed.p50),
        format::time(undisturbed.p99),
        undisturbed.samples,
        late(&undisturbed),
    ));

    let mut kinds_unanswered = Vec::new();
    let mut latencies: Vec<(&Misbehaviour, Latencies)> = Vec::new();
    for kind in MISBEHAVIOURS {
        if case.quick && !QUICK.contains(&kind.name) {
            continue;
        }
        // Clients that stay connected hold their slots for good, and the model declares this. But if they leave slots
        // free, the well-behaved clients must be served. Clients that come and go must not keep them from it, except
        // with a single slot: then other peers are always first.
        let all_places = kind.obligation == Obligation::Nothing && kind.clients + clients > slots;
        let holds_slots = declared && (one_slot || all_places);
        let Some(beside) = beside(case, &settings, kind, clients, rate, holds_slots)? else {
            continue;
        };
        match &beside.unanswered {
            None => latencies.push((kind, beside)),
            Some(unanswered) if holds_slots => {
                details.push(format!("{:<15} {unanswered}", kind.name));
                kinds_unanswered.push(kind.name);
            }
            Some(unanswered) => {
                return broken(
                    format!(
                        "{clients} well-behaved clients are served beside {}",
                        kind.name
                    ),
                    unanswered,
                );
            }
        }
    }
    let ratio = |latencies: &Latencies| latencies.p99 as f64 / undisturbed.p99.max(1) as f64;
    for _ in 0..if case.quick { 1 } else { MAX_REPEATS } {
        let worst = latencies
            .iter_mut()
            .filter(|(_, latencies)| {
                latencies.measurements < MAX_PER_KIND && ratio(latencies) > OUTLIER
            })
            .max_by_key(|(_, latencies)| latencies.p99);
        let Some((kind, worst)) = worst else { break };
        let again = beside(case, &settings, kind, clients, rate, false)?;
        if let Some(again) = again.filter(|again| again.unanswered.is_none()) {
            *worst = std::mem::take(worst).or_lower(again);
        }
    }
    for (kind, latencies) in &latencies {
        details.push(format!(
            "{:<15} p50 {}, p99 {}: {}{}",
            kind.name,
            format::time(latencies.p50),
            format::time(latencies.p99),
            multiple(ratio(latencies)),
            late(latencies),
        ));
    }
    let worst = latencies.iter().max_by_key(|(_, latencies)| latencies.p99);
    if !kinds_unanswered.is_empty() {
        seen.push(format!(
            "some clients get no reply beside {}",
            kinds_unanswered.join(", ")
        ));
    }
    details.push(
        "the misbehaving clients share the CPU of the well-behaved clients and yield to them; they start again at most 2,000 times a second"
            .to_string(),
    );
    Ok(Passed {
        figure: worst.map(|(_, worst)| {
            let late = worst.late || undisturbed.late;
            format!("{}{}", if late { "~" } else { "" }, multiple(ratio(worst)))
        }),
        details,
        by_design: (!seen.is_empty()).then(|| seen.join("; ")),
    })
}

/// Formats a multiple with two significant digits below 10, and as a whole number from there on.
fn multiple(ratio: f64) -> String {
    match ratio {
        r if r < 9.95 => format!("{r:.1}×"),
        r => format!("{}×", format::count(r.round() as u64)),
    }
}

/// Returns a remark if the clients themselves were late.
fn late(latencies: &Latencies) -> &'static str {
    if latencies.late {
        " (~ in the figure: the clients themselves were late)"
    } else {
        ""
    }
}

/// Returns the rate of requests per second of all clients together; it is far below what any of our servers can answer.
fn usual_rate(case: &CheckCase<'_>) -> u32 {
    match case.spec.protocol.name {
        // A connection for each request.
        "hello" => 1000,
        // 192 KiB for each request.
        "bulk" => 500,
        _ => 5000,
    }
}

/// Measures the undisturbed load, and returns the rate. A server for which the rate is too high gets half of it, for
/// longer.
fn undisturbed(
    case: &CheckCase<'_>,
    running: &RunningTarget,
    clients: usize,
) -> Result<(u32, Latencies), CheckFailure> {
    let (usual, least) = (usual_rate(case), usual_rate(case) / 2);
    let mut rate = usual;
    loop {
        let latencies = well_behaved(case, running, clients, rate, false)?;
        match &latencies.unanswered {
            Some(unanswered) => {
                return broken(
                    format!("{clients} clients are served without other clients"),
                    unanswered,
                );
            }
            // If even the median is this late on an idle server, the rate is beyond what it can serve, or the machine
            // is busy.
            None if latencies.p50 > 20_000_000 && rate > least => rate /= 2,
            None => return Ok((rate, latencies)),
        }
    }
}

/// Returns scripts of clients of a kind, which start again and again; `None` if the kind is not possible over this
/// protocol.
fn peer_scripts(case: &CheckCase<'_>, kind: &Misbehaviour) -> Option<Vec<PeerScript>> {
    let peer_scripts = case.misbehave(kind, kind.clients);
    let mut peer_scripts = match peer_scripts {
        Some(peer_scripts) => peer_scripts,
        // These clients hold their slots with half a request. If half a request is not possible, they hold them by
        // being idle.
        None if kind.name == "slowloris" => {
            let idle = case::kind("silent");
            case.misbehave(idle, kind.clients)?
        }
        None => return None,
    };
    again_and_again(&mut peer_scripts);
    Some(peer_scripts)
}

/// Measures the load beside a kind, with a server of its own; `None` if the kind is not possible over this protocol.
fn beside(
    case: &CheckCase<'_>,
    settings: &TargetSettings,
    kind: &Misbehaviour,
    clients: usize,
    rate: u32,
    holds_slots: bool,
) -> Result<Option<Latencies>, CheckFailure> {
    let Some(peer_scripts) = peer_scripts(case, kind) else {
        return Ok(None);
    };
    let running = case.start(settings)?;
    let options = PeerDriverOptions {
        patience: PATIENCE,
        low_priority: true,
        interrupted: Some(Arc::clone(case.interrupted)),
    };
    let driver = PeerDriver::open(running.address, options)?;
    let peers = peer_scripts.len() as u64;
    let group = driver.enter(peer_scripts);
    wait_for_connects(case, &group, peers)?;
    let latencies = well_behaved(case, &running, clients, rate, holds_slots)?;
    let outcomes = group.leave();
    drop(driver);
    case.kill(running);
    if kind.obligation == Obligation::Replies {
        let failed: Vec<_> = outcomes
            .into_iter()
            .filter(|outcome| outcome.fault.is_some())
            .collect();
        case.all_done(&failed, kind.name)?;
    }
    Ok(Some(latencies))
}

/// Waits until all peers are connected, for at most two seconds: a server may let some of them wait. Then gives them
/// time to send.
fn wait_for_connects(
    case: &CheckCase<'_>,
    group: &PeerGroup,
    peers: u64,
) -> Result<(), CheckFailure> {
    group.wait(Duration::from_secs(2), |seen| {
        seen.connects >= peers || seen.failed > 0
    });
    case.pause(Duration::from_millis(20))
}

/// Measures the load of the well-behaved clients.
fn well_behaved(
    case: &CheckCase<'_>,
    running: &RunningTarget,
    clients: usize,
    rate: u32,
    holds_slots: bool,
) -> Result<Latencies, CheckFailure> {
    let load = Load::Open {
        rate: f64::from(rate),
        arrivals: Arrivals::Constant,
        warmup: Duration::from_millis(20),
        // The same number of requests at any rate.
        duration: if case.quick { QUICK_LOAD } else { FULL_LOAD } * (usual_rate(case) / rate),
    };
    let report = drive(case, running, clients, load)?;
    let unanswered = unanswered(case, running, clients, &report, holds_slots)?;
    let quantile = |quantile| report.response_time.value_at_quantile(quantile);
    let p99 = quantile(0.99);
    Ok(Latencies {
        p50: quantile(0.5),
        p99,
        samples: report.response_time.len(),
        late: report.lag.value_at_quantile(0.99) > p99 / 2,
        unanswered,
        measurements: 1,
    })
}

/// Returns how many clients were not served at all. Clients that only had to wait for longer than the load lasted get
/// some seconds more, unless the model declares that they wait for good.
fn unanswered(
    case: &CheckCase<'_>,
    running: &RunningTarget,
    clients: usize,
    report: &Report,
    holds_slots: bool,
) -> Result<Option<String>, CheckFailure> {
    let wrong = report.errors.wrong_reply + report.errors.reset + report.errors.closed_early;
    if wrong > 0 {
        return broken(
            format!("right replies for {clients} well-behaved clients"),
            report.examples.join("; "),
        );
    }
    if report.errors.refused > 0 {
        return broken("the server accepts connections", report.examples.join("; "));
    }
    let words = |report: &Report| match report.never_served {
        0 => None,
        unserved => Some(format!(
            "{unserved} of {clients} clients get no correct reply in {}",
            format::time(u64::try_from(report.elapsed.as_nanos()).unwrap_or(u64::MAX))
        )),
    };
    if holds_slots {
        return Ok(words(report));
    }
    if report.never_served == 0 && report.errors.total() == 0 {
        return Ok(None);
    }
    let one = Load::Messages {
        messages: 1,
        think: Duration::ZERO,
        rounds: 1,
        limit: Some(REPLY_LIMIT),
    };
    let report = drive(case, running, clients, one)?;
    Ok(words(&report))
}

/// Runs a load of the well-behaved clients.
fn drive(
    case: &CheckCase<'_>,
    running: &RunningTarget,
    clients: usize,
    load: Load,
) -> Result<Report, CheckFailure> {
    let plan = Plan {
        address: running.address,
        protocol: case.spec.protocol,
        connections: clients,
        size: None,
        bulk: case.spec.bulk,
        page: case.spec.page.clone(),
        work: None,
        load,
        connect_first: true,
        ramp: Duration::ZERO,
        timeout: REPLY_LIMIT,
        seed: case.spec.seed,
        threads: 1,
        cpus: case.placement.client.clone(),
    };
    let report = client::drive(&plan, &(), case.interrupted).map_err(anyhow::Error::from)?;
    case.check_interrupted()?;
    Ok(report)
}
