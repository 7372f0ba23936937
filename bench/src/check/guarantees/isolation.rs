//! 11. Peers that misbehave, in whatever way, do not keep the others from being served.
//!
//! Twenty well-behaved clients ask at a rate that no server here finds high: first undisturbed, then beside each kind of
//! misbehaving clients, who come before them. Each time the server is a new one. Who is answered decides; how late is
//! shown: the ratio of the 99th percentiles, from the planned time to the reply.
//!
//! Both sides of the wire share this machine, and both kinds of clients a CPU. So those that misbehave have a thread that
//! gives way to the other one, and all together begin again 2,000 times a second at most; and where the well-behaved
//! were late by themselves, the ratio is marked with a question mark.
//!
//! A neighbour on the machine makes a p99 ten times as long, now and then and once; misbehaving clients do so every time.
//! So whatever stands out is measured again, and the least of its p99s counts; of the undisturbed too.

use std::sync::Arc;
use std::time::Duration;

use client::misbehave::{MISBEHAVIOURS, Misbehaviour, Obligation};
use client::{Arrivals, Load, PeerDriver, PeerDriverOptions, PeerGroup, PeerScript, Plan, Report};

use super::super::case::{self, CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken};
use crate::format;
use crate::misbehave::again_and_again;
use crate::target::{RunningTarget, TargetSettings};

const CLIENTS: usize = 20;

/// A thousand requests, and half of that.
const LONG: Duration = Duration::from_millis(200);
const SHORT: Duration = Duration::from_millis(100);

/// Whoever is not answered by then is starved.
const STARVED: Duration = Duration::from_secs(10);

/// A kind beside which the p99 is longer than so many times the undisturbed one is measured again: so often in all, and
/// each so often at most.
const STANDS_OUT: f64 = 2.0;
const AGAIN: usize = 4;
const EACH: usize = 3;

/// What is seen of each model in little time.
const QUICK: [&str; 2] = ["slowloris", "storm"];

/// How the well-behaved fared.
#[derive(Debug, Default)]
struct Fared {
    p50: u64,
    p99: u64,
    samples: u64,
    /// Whether the client itself was late.
    late: bool,
    /// How many got no answer; why, in words.
    starved: Option<String>,
    /// How often this was measured.
    times: usize,
}

impl Fared {
    /// The same, measured again: what is less counts.
    fn or(self, other: Fared) -> Fared {
        let times = self.times + other.times;
        let less = if self.p99 <= other.p99 { self } else { other };
        Fared { times, ..less }
    }
}

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    let settings = TargetSettings::default();
    // Where one is served at a time, there can't be twenty.
    let places = case.places(&settings);
    let alone = places == 1;
    let clients = if alone { 1 } else { CLIENTS };
    let declared = case.deviation().is_some();
    let mut seen = Vec::new();
    let mut details = Vec::new();

    if alone {
        let running = case.start(&settings)?;
        let fared = well_behaved(case, &running, CLIENTS, usual_rate(case), true)?;
        if let Some(starved) = fared.starved {
            seen.push(format!("with nobody else there, {starved}"));
        }
        case.kill(running);
    }
    let running = case.start(&settings)?;
    let (rate, mut undisturbed) = undisturbed(case, &running, clients)?;
    for _ in 1..if case.quick { 1 } else { EACH } {
        let again = well_behaved(case, &running, clients, rate, false)?;
        undisturbed = undisturbed.or(again);
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

    let mut starving = Vec::new();
    let mut fared: Vec<(&Misbehaviour, Fared)> = Vec::new();
    for kind in MISBEHAVIOURS {
        if case.quick && !QUICK.contains(&kind.name) {
            continue;
        }
        // Who holds a place holds it for good, and the model says so; but where they leave places for the others, these
        // are to be served. Who comes and goes must not; but where there is only one place, others are always before one.
        let all_places = kind.obligation == Obligation::Nothing && kind.clients + clients > places;
        let for_good = declared && (alone || all_places);
        let Some(beside) = beside(case, &settings, kind, clients, rate, for_good)? else {
            continue;
        };
        match &beside.starved {
            None => fared.push((kind, beside)),
            Some(starved) if for_good => {
                details.push(format!("{:<15} {starved}", kind.name));
                starving.push(kind.name);
            }
            Some(starved) => {
                return broken(
                    format!(
                        "that {clients} clients that behave well are served beside {}",
                        kind.name
                    ),
                    starved,
                );
            }
        }
    }
    let ratio = |fared: &Fared| fared.p99 as f64 / undisturbed.p99.max(1) as f64;
    for _ in 0..if case.quick { 1 } else { AGAIN } {
        let worst = fared
            .iter_mut()
            .filter(|(_, fared)| fared.times < EACH && ratio(fared) > STANDS_OUT)
            .max_by_key(|(_, fared)| fared.p99);
        let Some((kind, worst)) = worst else { break };
        let again = beside(case, &settings, kind, clients, rate, false)?;
        if let Some(again) = again.filter(|again| again.starved.is_none()) {
            *worst = std::mem::take(worst).or(again);
        }
    }
    for (kind, fared) in &fared {
        details.push(format!(
            "{:<15} p50 {}, p99 {}: {}{}",
            kind.name,
            format::time(fared.p50),
            format::time(fared.p99),
            times(ratio(fared)),
            late(fared),
        ));
    }
    let worst = fared.iter().max_by_key(|(_, fared)| fared.p99);
    if !starving.is_empty() {
        seen.push(format!("some get no answer beside {}", starving.join(", ")));
    }
    details.push(
        "those that misbehave share the clients' CPU and give way; they begin again 2,000 times a second at most"
            .to_string(),
    );
    Ok(Passed {
        figure: worst.map(|(_, worst)| {
            let late = worst.late || undisturbed.late;
            format!("{}{}", times(ratio(worst)), if late { "?" } else { "" })
        }),
        details,
        by_design: (!seen.is_empty()).then(|| seen.join("; ")),
    })
}

/// Two digits that mean something.
fn times(ratio: f64) -> String {
    match ratio {
        r if r < 9.95 => format!("{r:.1}×"),
        r => format!("{}×", format::count(r.round() as u64)),
    }
}

fn late(fared: &Fared) -> &'static str {
    if fared.late {
        " (? the clients themselves were late)"
    } else {
        ""
    }
}

/// Requests a second, far below what any of our servers answers.
fn usual_rate(case: &CheckCase<'_>) -> u32 {
    match case.asked.protocol.name {
        // A connection for each.
        "hello" => 1000,
        // 192 KiB for each.
        "bulk" => 500,
        _ => 5000,
    }
}

/// Undisturbed. A server for which the rate is too high is asked less, for longer.
fn undisturbed(
    case: &CheckCase<'_>,
    running: &RunningTarget,
    clients: usize,
) -> Result<(u32, Fared), CheckFailure> {
    let (usual, least) = (usual_rate(case), usual_rate(case) / 2);
    let mut rate = usual;
    loop {
        let fared = well_behaved(case, running, clients, rate, false)?;
        match &fared.starved {
            Some(starved) => {
                return broken(
                    format!("that {clients} clients are served with nobody beside them"),
                    starved,
                );
            }
            // So late on an empty server: that is above the knee, or the machine has other things to do.
            None if fared.p50 > 20_000_000 && rate > least => rate /= 2,
            None => return Ok((rate, fared)),
        }
    }
}

/// Those of a kind, such that they never end for good; `None`: that can't be done over this protocol.
fn peer_scripts(case: &CheckCase<'_>, kind: &Misbehaviour) -> Option<Vec<PeerScript>> {
    let peer_scripts = case.misbehave(kind, kind.clients);
    let mut peer_scripts = match peer_scripts {
        Some(peer_scripts) => peer_scripts,
        // Half a request is what they hold their places with. Where there is none, silence does it.
        None if kind.name == "slowloris" => {
            let silent = case::kind("silent");
            case.misbehave(silent, kind.clients)?
        }
        None => return None,
    };
    again_and_again(&mut peer_scripts);
    Some(peer_scripts)
}

/// Beside a kind, in front of a server of their own; `None`: that kind can't do that over this protocol.
fn beside(
    case: &CheckCase<'_>,
    settings: &TargetSettings,
    kind: &Misbehaviour,
    clients: usize,
    rate: u32,
    for_good: bool,
) -> Result<Option<Fared>, CheckFailure> {
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
    settle(case, &group, peers)?;
    let fared = well_behaved(case, &running, clients, rate, for_good)?;
    let outcomes = group.leave();
    drop(driver);
    case.kill(running);
    if kind.obligation == Obligation::Replies {
        let wronged: Vec<_> = outcomes
            .into_iter()
            .filter(|outcome| outcome.fault.is_some())
            .collect();
        case.all_done(&wronged, kind.name)?;
    }
    Ok(Some(fared))
}

/// Waits until they are all connected, or it takes long: a server may let some wait, and they may have their time too.
fn settle(case: &CheckCase<'_>, group: &PeerGroup, peers: u64) -> Result<(), CheckFailure> {
    group.wait(Duration::from_secs(2), |seen| {
        seen.connects >= peers || seen.failed > 0
    });
    case.pause(Duration::from_millis(20))
}

/// Lets the well-behaved ask.
fn well_behaved(
    case: &CheckCase<'_>,
    running: &RunningTarget,
    clients: usize,
    rate: u32,
    for_good: bool,
) -> Result<Fared, CheckFailure> {
    let load = Load::Open {
        rate: f64::from(rate),
        arrivals: Arrivals::Constant,
        warmup: Duration::from_millis(20),
        // As many requests at any rate.
        duration: if case.quick { SHORT } else { LONG } * (usual_rate(case) / rate),
    };
    let report = drive(case, running, clients, load)?;
    let starved = starved(case, running, clients, &report, for_good)?;
    let quantile = |quantile| report.response_time.value_at_quantile(quantile);
    let p99 = quantile(0.99);
    Ok(Fared {
        p50: quantile(0.5),
        p99,
        samples: report.response_time.len(),
        late: report.lag.value_at_quantile(0.99) > p99 / 2,
        starved,
        times: 1,
    })
}

/// Whether somebody is not served at all. Who only had to wait longer than this load took has seconds more, unless they
/// are to wait for good, as the model says.
fn starved(
    case: &CheckCase<'_>,
    running: &RunningTarget,
    clients: usize,
    report: &Report,
    for_good: bool,
) -> Result<Option<String>, CheckFailure> {
    let wrong = report.errors.wrong_reply + report.errors.reset + report.errors.closed_early;
    if wrong > 0 {
        return broken(
            format!("right answers for {clients} clients that behave well"),
            report.examples.join("; "),
        );
    }
    if report.errors.refused > 0 {
        return broken("a server that listens", report.examples.join("; "));
    }
    let words = |report: &Report| match report.never_served {
        0 => None,
        unserved => Some(format!(
            "{unserved} of {clients} clients get no answer in {:.1?}",
            report.elapsed
        )),
    };
    if for_good {
        return Ok(words(report));
    }
    if report.never_served == 0 && report.errors.total() == 0 {
        return Ok(None);
    }
    let one = Load::Messages {
        messages: 1,
        think: Duration::ZERO,
        rounds: 1,
        limit: Some(STARVED),
    };
    let report = drive(case, running, clients, one)?;
    Ok(words(&report))
}

fn drive(
    case: &CheckCase<'_>,
    running: &RunningTarget,
    clients: usize,
    load: Load,
) -> Result<Report, CheckFailure> {
    let plan = Plan {
        address: running.address,
        protocol: case.asked.protocol,
        connections: clients,
        size: None,
        bulk: case.asked.bulk,
        page: case.asked.page.clone(),
        work: None,
        load,
        connect_first: true,
        ramp: Duration::ZERO,
        timeout: STARVED,
        seed: case.asked.seed,
        threads: 1,
        cpus: case.placement.client.clone(),
    };
    let report = client::drive(&plan, &(), case.interrupted).map_err(anyhow::Error::from)?;
    case.go_on()?;
    Ok(report)
}
