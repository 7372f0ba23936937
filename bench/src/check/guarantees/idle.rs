//! The check of `idle`: a peer that is idle for too long is closed and counted, and no other peer is affected.
//!
//! A close is too early by any time before the time-out. That is measured so that a slow client cannot be the cause:
//! from before the peer's last action to after the close was seen. A close is too late only from seconds on.

use std::time::{Duration, Instant};

use client::{Action, Cut, PeerDriver, PeerGroup, PeerOutcome, PeerScript};
use contract::Capacity;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, broken_by, kind, reaches,
};
use super::parked_clients::{requests, two_requests};
use crate::target::{Need, TargetSettings};

/// Idle time-out of the server.
const TIMEOUT: Duration = Duration::from_millis(300);

/// Pause between two actions of a peer that is not idle. The rest of the time-out allows for a slow machine.
const PACE: Duration = Duration::from_millis(75);

/// A close that is later than this is wrong, however busy the machine is. With a smaller limit, the machine would be
/// the cause as often as the server. Delays of tenths of a second are visible in the figure.
const LATEST: Duration = Duration::from_secs(3);

/// Number of attempts: if this machine can't keep the pace, the server is right to close the peers, and nothing is
/// proved.
const ATTEMPTS: usize = 8;

/// A peer that pauses for longer may have been closed for a good reason.
const TOO_SLOW: Duration = Duration::from_millis(270);

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::IdleTimeout)?;
    for _ in 0..ATTEMPTS {
        if let Some(passed) = attempt(case)? {
            return Ok(passed);
        }
    }
    Err(anyhow::anyhow!("this machine is too busy to send something every {PACE:?}").into())
}

/// Peers that are never idle for too long, as far as the client controls it.
#[derive(Default)]
struct Active {
    /// Whether such a peer was idle for too long because this machine was slow.
    too_slow: bool,
}

impl Active {
    /// Checks that all peers came to the end of their scripts. `false`: a peer did not, and this machine was too slow.
    /// Only a slow machine is an excuse: a server that closes active peers does so now and then, and the next attempt
    /// may look good.
    fn done(
        &mut self,
        case: &CheckCase<'_>,
        outcomes: &[PeerOutcome],
        entered: Duration,
        label: &str,
    ) -> Result<bool, CheckFailure> {
        let slow = |outcome: &PeerOutcome| {
            // The peer may have been connected, and accepted, before the client saw it.
            let connected = outcome.done_at.first().copied().flatten();
            connected.is_some_and(|at| at.saturating_sub(entered) > TOO_SLOW)
                || outcome.transcript.longest_pause() > TOO_SLOW
        };
        self.too_slow |= outcomes.iter().any(slow);
        match case.all_done(outcomes, label) {
            Err(CheckFailure::Broken(_)) if outcomes.iter().any(|o| !o.done && slow(o)) => {
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// Checks that the server serves well-behaved clients.
    fn serves(
        &mut self,
        case: &CheckCase<'_>,
        driver: &PeerDriver,
        when: &str,
    ) -> Result<bool, CheckFailure> {
        let peer_scripts = (0..3).map(|client| case.well_behaved(1000 + client, 3));
        let entered = driver.opened().elapsed();
        let outcomes = driver.enter(peer_scripts.collect()).finish(2 * PATIENCE);
        self.done(case, &outcomes, entered, when)
    }
}

/// Behaviour of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    /// Sends nothing.
    Idle,
    /// Begins a request after a while, and never goes on.
    StopsMidRequest,
    /// Sends a few bytes at a time, for much longer than the time-out.
    SendsSlowly,
    /// Sends a request now and then, for as long.
    Requests,
}

/// Checks all behaviours once. `None`: this machine was too slow, and nothing is proved.
fn attempt(case: &CheckCase<'_>) -> Result<Option<Passed>, CheckFailure> {
    let settings = TargetSettings {
        idle_timeout: Some(TIMEOUT),
        ..TargetSettings::default()
    };
    let capacity = case.target.model().map(|model| model.capacity);
    let one_by_one = capacity == Some(Capacity::One);
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let mut active = Active::default();
    if !active.serves(case, &driver, "before any peer is idle")? {
        return Ok(None);
    }

    let mut behaviours = vec![Behaviour::Idle; if one_by_one { 1 } else { 5 }];
    let further = [
        Behaviour::StopsMidRequest,
        Behaviour::SendsSlowly,
        Behaviour::Requests,
    ];
    behaviours.extend(
        further
            .into_iter()
            .filter(|behaviour| peer_script(case, *behaviour, 0).is_some()),
    );
    // If the server serves one peer at a time, the peers connect one after the other.
    let turns: Vec<&[Behaviour]> = match one_by_one {
        true => behaviours.chunks(1).collect(),
        false => vec![&behaviours],
    };
    let (mut late, mut stuck, mut timed_out) = (Vec::new(), None, 0);
    for behaviours in turns {
        let peer_scripts = behaviours.iter().enumerate();
        let peer_scripts =
            peer_scripts.filter_map(|(client, behaviour)| peer_script(case, *behaviour, client));
        let entered = driver.opened().elapsed();
        let group = driver.enter(peer_scripts.collect());
        if !one_by_one {
            stuck = stops_reading(case, &driver)?;
        }
        let outcomes = group.finish(2 * PATIENCE);
        for (behaviour, outcome) in behaviours.iter().zip(&outcomes) {
            let own = std::slice::from_ref(outcome);
            let label = match behaviour {
                Behaviour::Idle | Behaviour::StopsMidRequest => {
                    "a peer that is idle for too long is closed"
                }
                Behaviour::SendsSlowly => "a peer that sends some bytes now and then is not closed",
                Behaviour::Requests => "a peer that sends a request now and then is not closed",
            };
            if !active.done(case, own, entered, label)? {
                return Ok(None);
            }
            if matches!(behaviour, Behaviour::Idle | Behaviour::StopsMidRequest) {
                timed_out += 1;
                let Some(lateness) = lateness(*behaviour, outcome, entered)? else {
                    return Ok(None);
                };
                late.push((*behaviour, lateness));
            }
        }
    }
    if one_by_one {
        stuck = stops_reading(case, &driver)?;
    }
    if let Some(stuck) = stuck {
        timed_out += 1;
        if !reaches(case, &stuck, |seen| seen.failed > 0)? {
            let outcomes = stuck.leave();
            return match outcomes.first() {
                Some(outcome) => broken_by(
                    format!("a peer that stops reading is closed after {TIMEOUT:?}"),
                    format!("the connection is still open after {PATIENCE:?}"),
                    outcome,
                ),
                None => Err(anyhow::anyhow!("no peer was connected").into()),
            };
        }
        drop(stuck);
    }
    if !active.serves(case, &driver, "after idle peers were closed")? {
        return Ok(None);
    }
    if let Some(tally) = case.stop(running)?
        && tally.timed_out != timed_out
    {
        if active.too_slow {
            return Ok(None);
        }
        return broken(
            format!("a tally with {timed_out} peers that timed out"),
            format!("{tally}"),
        );
    }
    Ok(Some(report(late)))
}

/// Reports how late the idle peers were closed.
fn report(late: Vec<(Behaviour, Duration)>) -> Passed {
    let of = |behaviour| {
        let mut late: Vec<_> = late
            .iter()
            .filter(|(other, _)| *other == behaviour)
            .map(|(_, late)| *late)
            .collect();
        late.sort_unstable();
        late
    };
    let (idle, stopped_mid_request) = (of(Behaviour::Idle), of(Behaviour::StopsMidRequest));
    let text = |late: Duration| {
        let milliseconds = late.as_secs_f64() * 1e3;
        if milliseconds < 9.95 {
            format!("+{milliseconds:.1} ms")
        } else {
            format!("+{milliseconds:.0} ms")
        }
    };
    let median = idle.get(idle.len() / 2).copied().map(text);
    let mut details = Vec::new();
    if let (Some(median), Some(worst)) = (&median, idle.last()) {
        details.push(format!(
            "idle peers are closed after {TIMEOUT:?} {median} (median of {}; the latest {})",
            idle.len(),
            text(*worst)
        ));
    }
    if let Some(worst) = stopped_mid_request.last() {
        details.push(format!("idle in the middle of a request: {}", text(*worst)));
    }
    Passed {
        figure: median,
        details,
        ..Passed::default()
    }
}

/// Returns how late a peer was closed. `None`: the peer could not keep its pace.
fn lateness(
    behaviour: Behaviour,
    outcome: &PeerOutcome,
    entered: Duration,
) -> Result<Option<Duration>, CheckFailure> {
    // The time of an action is taken before the next action begins.
    let at = |act: usize| outcome.done_at.get(act).copied().flatten();
    let (Some(connected), Some(closed)) = (at(0), at(outcome.done_at.len() - 1)) else {
        return Err(anyhow::anyhow!("a peer that is done has no time of its end").into());
    };
    let (earliest, last) = match behaviour {
        Behaviour::StopsMidRequest => {
            // The time after the pause.
            let Some(resumed) = at(outcome.done_at.len() - 3) else {
                return Err(
                    anyhow::anyhow!("a peer that is done has no time of its request").into(),
                );
            };
            let requested = at(outcome.done_at.len() - 4).unwrap_or(connected);
            if resumed - requested > TIMEOUT * 9 / 10 {
                return Ok(None);
            }
            (resumed, resumed)
        }
        // The peer may have been connected, and accepted, before the client saw it.
        _ => (entered, connected),
    };
    if closed < earliest + TIMEOUT {
        return broken_by(
            format!("an idle peer is closed after {TIMEOUT:?}, and not before"),
            format!("it was closed after {:?}", closed - earliest),
            outcome,
        );
    }
    let late = (closed - last).saturating_sub(TIMEOUT);
    if late > LATEST {
        return broken_by(
            format!("an idle peer is closed after {TIMEOUT:?}"),
            format!("it was closed after {:?}", closed - last),
            outcome,
        );
    }
    Ok(Some(late))
}

/// Returns the script of a peer with this behaviour; `None` if it is not possible over this protocol.
fn peer_script(case: &CheckCase<'_>, behaviour: Behaviour, client: usize) -> Option<PeerScript> {
    let spec = case.spec;
    let ends_itself = spec.protocol.requests_per_connection.is_some();
    let times = if case.quick { 5 } else { 8 };
    let actions = match behaviour {
        Behaviour::Idle => vec![Action::ReadToEnd],
        Behaviour::StopsMidRequest => {
            let half = (kind("slowloris").peer_script)(spec, client)?
                .actions
                .into_iter()
                .next()?;
            let [first, _] = two_requests(case, client);
            vec![first, Action::Pause(TIMEOUT / 2), half, Action::ReadToEnd]
        }
        _ if ends_itself => return None,
        Behaviour::SendsSlowly => {
            // Over bulk a client sends four messages in a conversation; over the other protocols it sends one.
            let pieces = if spec.protocol.name == "bulk" {
                2
            } else {
                times
            };
            let size = (spec.request(client).len() / pieces).max(1);
            let slowly = Action::Converse {
                script: spec.scripts(client),
                requests: 1,
                cut: Cut::Every(size, PACE),
            };
            vec![slowly, Action::HalfClose, Action::ExpectFin]
        }
        Behaviour::Requests => {
            let mut next_request = requests(case, client);
            let mut actions = Vec::new();
            for _ in 0..times {
                actions.extend([next_request(), Action::Pause(PACE)]);
            }
            actions.extend([Action::HalfClose, Action::ExpectFin]);
            actions
        }
    };
    Some(PeerScript::new(actions))
}

/// Connects a peer that requests much and reads nothing; it must not be closed too early. When it is closed, it fails,
/// because it can send nothing more. `None` if it is not possible over this protocol.
fn stops_reading(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
) -> Result<Option<PeerGroup>, CheckFailure> {
    let spec = case.spec;
    if spec.protocol.requests_per_connection.is_some() || spec.protocol.name == "bulk" {
        return Ok(None);
    }
    let (requests, _) = spec.all_at_once(100, Some(1000), 100);
    let flood = Action::Flood {
        bytes: requests.into(),
        most: u64::MAX,
        stuck: 2 * PATIENCE,
    };
    let peer_script = PeerScript {
        small_buffers: true,
        ..PeerScript::new(vec![flood])
    };
    let entered = Instant::now();
    let group = driver.enter(vec![peer_script]);
    let closed = group.wait(TIMEOUT, |seen| seen.failed > 0);
    if closed && entered.elapsed() < TIMEOUT {
        let outcomes = group.leave();
        if let Some(outcome) = outcomes.first() {
            return broken_by(
                format!("a peer that stops reading is closed after {TIMEOUT:?}"),
                format!("it was closed after {:?}", entered.elapsed()),
                outcome,
            );
        }
        return Ok(None);
    }
    Ok(Some(group))
}
