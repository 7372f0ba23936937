//! 3. Idle too long: closed and counted, and nobody else notices.
//!
//! Too early is wrong by any time, and is measured so that it cannot be this side's doing: from before the peer did its
//! last to after its end came. Too late is wrong by seconds only.

use std::time::{Duration, Instant};

use client::{Action, Cut, PeerDriver, PeerGroup, PeerOutcome, PeerScript};
use contract::Capacity;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, broken_by, kind, reaches,
};
use super::parked_clients::{requests, two_requests};
use crate::target::{Need, TargetSettings};

const TIMEOUT: Duration = Duration::from_millis(300);

/// Between two things that somebody does who is not idle. The rest of the time-out is for this machine to be slow in.
const PACE: Duration = Duration::from_millis(75);

/// Later than this is wrong, however busy the machine. Less would be a flaw of this machine's as often as of a server's;
/// whether somebody is late by tenths of a second, the figure tells.
const LATEST: Duration = Duration::from_secs(3);

/// If this machine can't keep the pace, the server is right to close; that proves nothing.
const ATTEMPTS: usize = 8;

/// Who does nothing for longer may have been closed for good reason.
const TOO_SLOW: Duration = Duration::from_millis(270);

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::IdleTimeout)?;
    for _ in 0..ATTEMPTS {
        if let Some(kept) = attempt(case)? {
            return Ok(kept);
        }
    }
    Err(anyhow::anyhow!("this machine is too busy to do anything every {PACE:?}").into())
}

/// Those who are never idle for too long, as far as it is up to this side.
#[derive(Default)]
struct Active {
    /// Somebody was, because this machine was too slow.
    too_slow: bool,
}

impl Active {
    /// All of them came to their end; `false`: somebody did not, and this side was too slow. Only that is an excuse:
    /// a server that closes who is not idle does so now and then, and the next time may look good.
    fn done(
        &mut self,
        case: &CheckCase<'_>,
        outcomes: &[PeerOutcome],
        entered: Duration,
        who: &str,
    ) -> Result<bool, CheckFailure> {
        let slow = |outcome: &PeerOutcome| {
            // It may have been connected, and accepted, before this side saw it.
            let connected = outcome.done_at.first().copied().flatten();
            connected.is_some_and(|at| at.saturating_sub(entered) > TOO_SLOW)
                || outcome.transcript.longest_pause() > TOO_SLOW
        };
        self.too_slow |= outcomes.iter().any(slow);
        match case.all_done(outcomes, who) {
            Err(CheckFailure::Broken(_)) if outcomes.iter().any(|o| !o.done && slow(o)) => {
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// The server is alive and well.
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

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Says nothing.
    Silent,
    /// Begins a request after a while, and never goes on.
    MidLine,
    /// Sends a few bytes at a time, for much longer than the time-out.
    Slow,
    /// Asks now and then, for as long.
    Asks,
}

/// `None`: this machine was too slow, and nothing is proved.
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
    if !active.serves(case, &driver, "before anybody is idle")? {
        return Ok(None);
    }

    let mut parts = vec![Part::Silent; if one_by_one { 1 } else { 5 }];
    let others = [Part::MidLine, Part::Slow, Part::Asks];
    parts.extend(
        others
            .into_iter()
            .filter(|part| peer_script(case, *part, 0).is_some()),
    );
    // Where one is served at a time they come one after the other.
    let turns: Vec<&[Part]> = match one_by_one {
        true => parts.chunks(1).collect(),
        false => vec![&parts],
    };
    let (mut late, mut stuck, mut timed_out) = (Vec::new(), None, 0);
    for parts in turns {
        let peer_scripts = parts.iter().enumerate();
        let peer_scripts =
            peer_scripts.filter_map(|(client, part)| peer_script(case, *part, client));
        let entered = driver.opened().elapsed();
        let group = driver.enter(peer_scripts.collect());
        if !one_by_one {
            stuck = never_reads(case, &driver)?;
        }
        let outcomes = group.finish(2 * PATIENCE);
        for (part, outcome) in parts.iter().zip(&outcomes) {
            let own = std::slice::from_ref(outcome);
            let who = match part {
                Part::Silent | Part::MidLine => "a peer that is idle for too long is closed",
                Part::Slow => "who sends some bytes now and then is not closed",
                Part::Asks => "who asks now and then is not closed",
            };
            if !active.done(case, own, entered, who)? {
                return Ok(None);
            }
            if matches!(part, Part::Silent | Part::MidLine) {
                timed_out += 1;
                let Some(lateness) = judge(*part, outcome, entered)? else {
                    return Ok(None);
                };
                late.push((*part, lateness));
            }
        }
    }
    if one_by_one {
        stuck = never_reads(case, &driver)?;
    }
    if let Some(stuck) = stuck {
        timed_out += 1;
        if !reaches(case, &stuck, |seen| seen.failed > 0)? {
            let outcomes = stuck.leave();
            return match outcomes.first() {
                Some(outcome) => broken_by(
                    format!("that a peer that stops reading is closed after {TIMEOUT:?}"),
                    format!("that it is not, after {PATIENCE:?}"),
                    outcome,
                ),
                None => Err(anyhow::anyhow!("nobody was there").into()),
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
            format!("{timed_out} peers that were idle for too long in the tally"),
            format!("{tally}"),
        );
    }
    Ok(Some(report(late)))
}

/// How late those were closed.
fn report(late: Vec<(Part, Duration)>) -> Passed {
    let of = |part| {
        let mut late: Vec<_> = late
            .iter()
            .filter(|(other, _)| *other == part)
            .map(|(_, late)| *late)
            .collect();
        late.sort_unstable();
        late
    };
    let (silent, mid_line) = (of(Part::Silent), of(Part::MidLine));
    let text = |late: Duration| {
        let milliseconds = late.as_secs_f64() * 1e3;
        if milliseconds < 9.95 {
            format!("+{milliseconds:.1} ms")
        } else {
            format!("+{milliseconds:.0} ms")
        }
    };
    let median = silent.get(silent.len() / 2).copied().map(text);
    let mut details = Vec::new();
    if let (Some(median), Some(worst)) = (&median, silent.last()) {
        details.push(format!(
            "silent peers are closed after {TIMEOUT:?} {median} (median of {}; the last {})",
            silent.len(),
            text(*worst)
        ));
    }
    if let Some(worst) = mid_line.last() {
        details.push(format!(
            "silent in the middle of a request: {}",
            text(*worst)
        ));
    }
    Passed {
        figure: median,
        details,
        ..Passed::default()
    }
}

/// How late it was closed; `None`: it could not keep its own pace.
fn judge(
    part: Part,
    outcome: &PeerOutcome,
    entered: Duration,
) -> Result<Option<Duration>, CheckFailure> {
    // (A time is taken before what follows is done.)
    let at = |act: usize| outcome.done_at.get(act).copied().flatten();
    let (Some(connected), Some(closed)) = (at(0), at(outcome.done_at.len() - 1)) else {
        return Err(anyhow::anyhow!("who is done has not done it").into());
    };
    let (earliest, last) = match part {
        Part::MidLine => {
            // After the pause.
            let Some(resumed) = at(outcome.done_at.len() - 3) else {
                return Err(anyhow::anyhow!("who is done has not begun").into());
            };
            let asked = at(outcome.done_at.len() - 4).unwrap_or(connected);
            if resumed - asked > TIMEOUT * 9 / 10 {
                return Ok(None);
            }
            (resumed, resumed)
        }
        // It may have been connected, and accepted, before this side saw it.
        _ => (entered, connected),
    };
    if closed < earliest + TIMEOUT {
        return broken_by(
            format!("that an idle peer is closed after {TIMEOUT:?}, and not before"),
            format!("that it was closed after {:?}", closed - earliest),
            outcome,
        );
    }
    let late = (closed - last).saturating_sub(TIMEOUT);
    if late > LATEST {
        return broken_by(
            format!("that an idle peer is closed after {TIMEOUT:?}"),
            format!("that it was closed after {:?}", closed - last),
            outcome,
        );
    }
    Ok(Some(late))
}

/// `None`: that can't be done over this protocol.
fn peer_script(case: &CheckCase<'_>, part: Part, client: usize) -> Option<PeerScript> {
    let asked = case.asked;
    let ends_itself = asked.protocol.requests_per_connection.is_some();
    let times = if case.quick { 5 } else { 8 };
    let actions = match part {
        Part::Silent => vec![Action::ReadToEnd],
        Part::MidLine => {
            let half = (kind("slowloris").peer_script)(asked, client)?
                .actions
                .into_iter()
                .next()?;
            let [first, _] = two_requests(case, client);
            vec![first, Action::Pause(TIMEOUT / 2), half, Action::ReadToEnd]
        }
        _ if ends_itself => return None,
        Part::Slow => {
            // (Over bulk it has four things to say, the others have one.)
            let pieces = if asked.protocol.name == "bulk" {
                2
            } else {
                times
            };
            let size = (asked.request(client).len() / pieces).max(1);
            let slowly = Action::Converse {
                script: asked.scripts(client),
                requests: 1,
                cut: Cut::Every(size, PACE),
            };
            vec![slowly, Action::HalfClose, Action::ExpectFin]
        }
        Part::Asks => {
            let mut asks = requests(case, client);
            let mut actions = Vec::new();
            for _ in 0..times {
                actions.extend([asks(), Action::Pause(PACE)]);
            }
            actions.extend([Action::HalfClose, Action::ExpectFin]);
            actions
        }
    };
    Some(PeerScript::new(actions))
}

/// Lets somebody in who asks for much and reads nothing; it must not be closed too early. It has failed when it is
/// closed: then nothing more can be sent. `None`: that can't be done over this protocol.
fn never_reads(
    case: &CheckCase<'_>,
    driver: &PeerDriver,
) -> Result<Option<PeerGroup>, CheckFailure> {
    let asked = case.asked;
    if asked.protocol.requests_per_connection.is_some() || asked.protocol.name == "bulk" {
        return Ok(None);
    }
    let (requests, _) = asked.all_at_once(100, Some(1000), 100);
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
                format!("that a peer that stops reading is closed after {TIMEOUT:?}"),
                format!("that it was closed after {:?}", entered.elapsed()),
                outcome,
            );
        }
        return Ok(None);
    }
    Ok(Some(group))
}
