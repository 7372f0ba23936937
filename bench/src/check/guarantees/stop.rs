//! 8. Stop: what was asked is finished, idle peers are closed, the rest is cut at the drain deadline.
//!
//! Every part has a server of its own, which ends with it.

use std::time::{Duration, Instant};

use client::{Action, Cut, FaultKind, GroupProgress, PeerDriver, PeerGroup, PeerScript};
use nix::sys::signal::Signal;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, broken_by, kind, not_applicable,
    reaches,
};
use crate::child::{ChildServer, ServerExit};
use crate::target::{Need, RunningTarget, TargetSettings};

/// Later than this after the drain is wrong, however busy the machine.
const LATEST: Duration = Duration::from_secs(3);

/// A drain that nobody sees the end of.
const LONG: Duration = Duration::from_secs(30);

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    idle_peers(case)?;
    if case.can(Need::Wait) {
        work_under_way(case)?;
    }
    reply_under_way(case)?;
    let cut = the_deadline(case)?;
    connect_storm(case)?;
    let second = two_signals(case)?;
    Ok(Passed {
        details: [cut, second].into_iter().flatten().collect(),
        ..Passed::default()
    })
}

/// Tells a server to stop, and gives what is left of it, and when it was told.
fn tell(running: RunningTarget) -> Result<(ChildServer, Instant), CheckFailure> {
    let Some(server) = running.into_server() else {
        return not_applicable("it is not a process of ours");
    };
    let told = Instant::now();
    if let Err(error) = server.signal(Signal::SIGTERM) {
        return broken(
            "a server that runs until it is told to stop",
            error.to_string(),
        );
    }
    Ok((server, told))
}

/// It ends by itself, in order. (That a drain is over in time is another part's question.)
fn ends_well(
    case: &CheckCase<'_>,
    server: ChildServer,
    limit: Duration,
) -> Result<ServerExit, CheckFailure> {
    let end = server.end(limit);
    case.ended_well(&end)?;
    Ok(end)
}

/// Where something must be so that this side can't be certain of, such as that a peer was accepted, another try tells
/// whether it was that. What is broken is broken every time.
fn in_some_try<T>(
    case: &CheckCase<'_>,
    mut part: impl FnMut(u32) -> Result<T, CheckFailure>,
) -> Result<T, CheckFailure> {
    const TRIES: u32 = 3;
    for number in 1..TRIES {
        let began = Instant::now();
        match part(number) {
            // What took seconds is no question of moments.
            Err(CheckFailure::Broken(_)) if began.elapsed() < PATIENCE / 2 => case.go_on()?,
            other => return other,
        }
    }
    part(TRIES)
}

/// One request and its reply, before which the server has accepted the peer for certain. `hello` has only one, and the
/// conversation is over with it.
fn first(case: &CheckCase<'_>, client: usize) -> Option<Action> {
    let asked = case.asked;
    (asked.protocol.requests_per_connection != Some(1)).then(|| Action::Converse {
        script: asked.scripts(client),
        requests: 1,
        cut: Cut::Whole,
    })
}

/// A second request, for after the first, by itself: of what a conversation remembers, the reply is deterministic.
fn second(case: &CheckCase<'_>, client: usize) -> Action {
    let asked = case.asked;
    if matches!(asked.protocol.name, "http" | "bulk" | "hello") {
        return Action::Converse {
            script: asked.scripts(client),
            requests: 1,
            cut: Cut::Whole,
        };
    }
    let one = asked.request(client);
    let (both, _) = asked.all_at_once(client, None, 2);
    let known = asked.replies(&one, false).bytes.len();
    let reply = asked.replies(&both, false).bytes.split_off(known);
    Action::ask(&both[one.len()..], reply)
}

fn idle_peers(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    let settings = TargetSettings {
        drain: Some(LONG),
        ..TargetSettings::default()
    };
    let peers = case.places(&settings).min(10);
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let peer_scripts = (0..peers).map(|client| {
        PeerScript::new(match first(case, client) {
            Some(first) => vec![first, Action::WaitForSignal, Action::ExpectFin],
            // Whether it was accepted, nobody knows.
            None => vec![Action::WaitForSignal, Action::ReadToEnd],
        })
    });
    let idle = driver.enter(peer_scripts.collect());
    if !reaches(case, &idle, |seen| seen.waiting + seen.ended == seen.peers)? {
        return broken("that idle peers are served first", "no reply");
    }
    let (server, _) = tell(running)?;
    idle.signal_all();
    let outcomes = idle.finish(2 * PATIENCE);
    case.all_done(&outcomes, "idle peers, after SIGTERM")?;
    let end = ends_well(case, server, PATIENCE)?;
    match end.tally {
        Some(tally) if tally.cut > 0 => broken(
            "that idle peers are owed nothing, and none is counted as cut",
            tally.to_string(),
        ),
        _ => Ok(()),
    }
}

/// The server is at work for a request when it is told to stop.
fn work_under_way(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    let wait = match (case.asked.protocol.name, case.quick) {
        // Once for each message.
        ("bulk", _) => 60,
        (_, true) => 100,
        (_, false) => 250,
    };
    let settings = TargetSettings {
        drain: Some(LONG),
        wait: Some(Duration::from_millis(wait)),
        ..TargetSettings::default()
    };
    let peers = case.places(&settings).min(5);
    in_some_try(case, |number| {
        let running = case.start(&settings)?;
        let driver = case.driver(&running)?;
        let groups: Vec<PeerGroup> = (0..peers)
            .map(|client| {
                let mut actions = Vec::from_iter(first(case, client));
                // A receipt that comes after the server's end is answered by a reset, and all is heard by then.
                let end = match case.asked.protocol.name {
                    "bulk" => Action::ReadToEnd,
                    _ => Action::ExpectFin,
                };
                actions.extend([Action::WaitForSignal, second(case, client), end]);
                driver.enter(vec![PeerScript::new(actions)])
            })
            .collect();
        for group in &groups {
            if !reaches(case, group, |seen| seen.waiting + seen.ended == 1)? {
                return broken(
                    "that the peers are served before the stop",
                    "no reply for 10 s",
                );
            }
        }
        for group in &groups {
            let before = group.seen().sent;
            group.signal_all();
            reaches(case, group, |seen| seen.sent > before || seen.ended == 1)?;
        }
        if case.asked.protocol.requests_per_connection == Some(1) {
            // That these were accepted, nobody has heard.
            case.pause(Duration::from_millis(20) * number)?;
        }
        let (server, _) = tell(running)?;
        let outcomes: Vec<_> = groups
            .into_iter()
            .flat_map(|group| group.finish(2 * PATIENCE))
            .collect();
        case.all_done(&outcomes, "a request that was under way when SIGTERM came")?;
        let end = ends_well(case, server, PATIENCE)?;
        match end.tally {
            Some(tally) if tally.cut > 0 || tally.served != peers as u64 => broken(
                format!("{peers} peers that are served in full after SIGTERM, and none cut"),
                tally.to_string(),
            ),
            _ => Ok(()),
        }
    })
}

/// A long reply is on its way to a peer that reads on only after the stop.
fn reply_under_way(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    // The longest line is 64 KiB.
    const LINE: usize = 60_000;
    let asked = case.asked;
    let Some(begin) = first(case, 0) else {
        return Ok(());
    };
    let actions = match asked.protocol.name {
        // As it comes it is answered: how much of a long one has arrived can't be told.
        "upper" | "http" => vec![
            begin,
            Action::WaitForSignal,
            second(case, 0),
            Action::ExpectFin,
        ],
        _ => {
            let mut bytes = asked.request(0);
            let known = asked.replies(&bytes, false).bytes.len();
            let one = bytes.len();
            let mut script = asked.script(0, 1, Some(LINE));
            script.ask(&mut bytes);
            let reply = asked.replies(&bytes, false).bytes.split_off(known);
            vec![
                begin,
                Action::send(&bytes[one..]),
                // Somebody who answers has all of the question.
                Action::ReadBytes(1),
                Action::WaitForSignal,
                Action::expect(&reply[1..]),
                Action::ExpectFin,
            ]
        }
    };
    let settings = TargetSettings {
        drain: Some(LONG),
        ..TargetSettings::default()
    };
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let group = driver.enter(vec![PeerScript {
        small_buffers: true,
        ..PeerScript::new(actions)
    }]);
    reaches(case, &group, |seen| seen.waiting + seen.ended == 1)?;
    let server = if matches!(asked.protocol.name, "upper" | "http") {
        let before = group.seen().sent;
        group.signal_all();
        reaches(case, &group, |seen| seen.sent > before || seen.ended == 1)?;
        tell(running)?.0
    } else {
        let (server, _) = tell(running)?;
        group.signal_all();
        server
    };
    let outcomes = group.finish(2 * PATIENCE);
    case.all_done(&outcomes, "a reply that was under way when SIGTERM came")?;
    ends_well(case, server, PATIENCE)?;
    Ok(())
}

/// Peers that keep a server from its end, and some that do not.
struct Slow {
    /// Where they are.
    _stage: PeerDriver,
    /// Those that do nothing for good: so many of them are owed replies,
    _held: PeerGroup,
    owed: usize,
    /// and so many have sent half a request.
    halves: usize,
    /// Those that are idle, and hear the end on their signal.
    idle: PeerGroup,
}

/// Lets slow peers come, so many at most: those that never read first, and with them some that have sent half a request
/// and some that are idle. If the server is told to be slow itself, there are only those that it owes a reply.
fn slow_peers(
    case: &CheckCase<'_>,
    settings: &TargetSettings,
    running: &RunningTarget,
    most: usize,
) -> Result<Slow, CheckFailure> {
    // Long ones: what the kernel keeps is soon full of them.
    const LINE: usize = 20_000;
    let driver = case.driver(running)?;
    let asked = case.asked;
    let places = case.places(settings).min(most);
    let owed = places.min(if most > 1 { 4 } else { 1 });
    let (mut held, mut idle) = (Vec::new(), Vec::new());
    for client in 0..owed {
        held.push(PeerScript::new(
            match first(case, client).filter(|_| settings.wait.is_none()) {
                Some(first) => {
                    let (requests, _) = asked.all_at_once(client, Some(LINE), 20);
                    let flood = Action::Flood {
                        bytes: requests.into(),
                        most: 64 << 20,
                        stuck: Duration::from_millis(300),
                    };
                    vec![first, flood, Action::WaitForSignal]
                }
                None => vec![Action::send(asked.request(client)), Action::WaitForSignal],
            },
        ));
    }
    for client in owed..places {
        let Some(first) = first(case, client).filter(|_| settings.wait.is_none()) else {
            break;
        };
        let loris = (kind("slowloris").peer_script)(asked, client).filter(|_| client % 2 == 0);
        match loris {
            Some(mut peer_script) => {
                // Instead of the last: so it is known when they have come so far.
                peer_script.actions.pop();
                peer_script.actions.insert(0, first);
                peer_script.actions.push(Action::WaitForSignal);
                held.push(peer_script);
            }
            None => idle.push(PeerScript::new(vec![
                first,
                Action::WaitForSignal,
                Action::ExpectFin,
            ])),
        }
    }
    let halves = held.len() - owed;
    let (idle, held) = (driver.enter(idle), driver.enter(held));
    let settled = |seen: &GroupProgress| seen.waiting == seen.peers || seen.failed > 0;
    for group in [&idle, &held] {
        // Some servers take their time until they have nothing more to do.
        let _ = reaches(case, group, settled)? || reaches(case, group, settled)?;
    }
    if [&idle, &held]
        .iter()
        .any(|group| group.seen().waiting < group.seen().peers)
    {
        let mut outcomes = held.leave();
        outcomes.extend(idle.leave());
        outcomes.retain(|outcome| outcome.fault.is_some());
        case.all_done(&outcomes, "slow peers, before the stop")?;
        return broken(
            "that slow peers are served at first",
            "nothing for some of them",
        );
    }
    Ok(Slow {
        _stage: driver,
        _held: held,
        owed,
        halves,
        idle,
    })
}

/// What is not finished is cut when the drain is over; not before, and not seconds after.
fn the_deadline(case: &CheckCase<'_>) -> Result<Option<String>, CheckFailure> {
    let mut settings = TargetSettings {
        wait: holds_by_work(case).then_some(LONG),
        ..TargetSettings::default()
    };
    if case.asked.protocol.requests_per_connection == Some(1) && settings.wait.is_none() {
        return Ok(None);
    }
    in_some_try(case, |number| {
        // On a machine that is busy a server may not even get to those that are idle in a short one.
        let drain = Duration::from_millis(if case.quick { 200 } else { 400 }) * (number * number);
        settings.drain = Some(drain);
        let running = case.start(&settings)?;
        let slow = slow_peers(case, &settings, &running, 100)?;
        if settings.wait.is_some() {
            case.pause(Duration::from_millis(30) * number)?;
        }
        let (server, told) = tell(running)?;
        slow.idle.signal_all();
        let end = server.end(drain + PATIENCE);
        let took = told.elapsed();
        let idle = slow.idle.finish(PATIENCE);
        let who = format!(
            "{} peers never read, {} had sent half a request, {} were idle",
            slow.owed,
            slow.halves,
            idle.len()
        );
        case.ended_well(&end)?;
        if case.can(Need::Drain) && took < drain {
            return broken(
                format!("that replies have {drain:?} (--drain) to be taken; {who}"),
                format!("the end {took:.1?} after SIGTERM"),
            );
        }
        if case.can(Need::Drain) && took > drain + LATEST {
            return broken(
                format!("that what is not taken is cut after {drain:?} (--drain); {who}"),
                format!("the end {took:.1?} after SIGTERM"),
            );
        }
        case.all_done(&idle, "idle peers beside slow ones, after SIGTERM")?;
        if let Some(tally) = end.tally {
            let cut = match settings.wait {
                None => (slow.owed + slow.halves) as u64,
                // How many were accepted, nobody has heard.
                Some(_) => tally.accepted.max(1),
            };
            if tally.cut != cut {
                return broken(
                    format!("{cut} peers counted as cut; {who}"),
                    tally.to_string(),
                );
            }
        }
        Ok(Some(format!(
            "{who}: the end {} ms after SIGTERM, with a drain of {} ms",
            took.as_millis(),
            drain.as_millis(),
        )))
    })
}

/// Where no reply is long enough not to be taken, it has to take long enough.
fn holds_by_work(case: &CheckCase<'_>) -> bool {
    case.asked.protocol.requests_per_connection == Some(1) && case.can(Need::Wait)
}

/// Many are about to connect, to ask and to leave when the stop comes.
fn connect_storm(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    let settings = TargetSettings {
        drain: Some(Duration::from_secs(5)),
        ..TargetSettings::default()
    };
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let storm = kind("storm");
    let clients = if case.quick { 500 } else { storm.clients };
    let Some(peer_scripts) = case.misbehave(storm, clients) else {
        return Ok(());
    };
    let group = driver.enter(peer_scripts);
    reaches(case, &group, |seen| {
        seen.completed_runs >= 20 || seen.ended == seen.peers
    })?;
    let (server, _) = tell(running)?;
    let end = server.end(2 * PATIENCE);
    let outcomes = group.finish(2 * PATIENCE);
    case.go_on()?;
    let bad = outcomes.iter().find(|outcome| match &outcome.fault {
        Some(fault) => matches!(fault.kind, FaultKind::WrongBytes | FaultKind::Silence),
        None => !outcome.done,
    });
    if let Some(outcome) = bad {
        let seen = outcome.fault.as_ref();
        return broken_by(
            "that who comes in a connect storm and a stop is answered, or hears an end",
            seen.map_or("neither".to_string(), |fault| fault.seen.clone()),
            outcome,
        );
    }
    case.ended_well(&end)?;
    let answered = outcomes.iter().filter(|outcome| outcome.done).count() as u64;
    match end.tally {
        Some(tally) if tally.accepted < answered => broken(
            format!("{answered} peers counted as accepted at least: so many were answered"),
            tally.to_string(),
        ),
        _ => Ok(()),
    }
}

/// The first signal lets it wait for a peer that is owed a reply and takes nothing: who has ended has not waited, though
/// the kernel may hold enough for short replies to look whole. The second signal ends at once what waits for the drain.
fn two_signals(case: &CheckCase<'_>) -> Result<Option<String>, CheckFailure> {
    let settings = TargetSettings {
        drain: Some(LONG),
        // Where it can be told to be slow, that is the quickest way to have something under way.
        wait: case.can(Need::Wait).then_some(2 * LONG),
        ..TargetSettings::default()
    };
    if case.asked.protocol.requests_per_connection == Some(1) && settings.wait.is_none() {
        return Ok(None);
    }
    in_some_try(case, |number| {
        let running = case.start(&settings)?;
        let _slow = slow_peers(case, &settings, &running, 1)?;
        if settings.wait.is_some() {
            case.pause(Duration::from_millis(30) * number)?;
        }
        let (server, told) = tell(running)?;
        // Of two that are pending the kernel makes one.
        if !case.eventually(|| server.has_ended() || !signal_is_pending(&server))? {
            return broken("a server that hears SIGTERM", "that it does not, for 10 s");
        }
        // How long it waits by itself nobody knows; but who does not wait at all is gone by then.
        let known = case.can(Need::Drain);
        case.pause(Duration::from_millis(if known { 20 } else { 100 }) * number)?;
        if server.has_ended() {
            let took = told.elapsed();
            return broken(
                match known {
                    true => {
                        format!("a server that waits for the reply that is under way, for {LONG:?}")
                    }
                    false => {
                        "a server that waits for the reply that is under way, for a while at least"
                            .to_string()
                    }
                },
                format!("the end after {took:.1?}"),
            );
        }
        let _ = server.signal(Signal::SIGTERM);
        let told = Instant::now();
        let limit = PATIENCE * 2 / 5;
        let end = server.end(limit);
        if end.status.is_none() {
            return broken(
                "that the second SIGTERM ends it at once",
                format!("that it goes on for {limit:?}; the drain is {LONG:?}"),
            );
        }
        Ok(Some(format!(
            "the second signal ended it in {} ms ({}){}",
            told.elapsed().as_millis(),
            end.exit,
            match known {
                true => "",
                false => "; or its own drain did, which nobody was told",
            }
        )))
    })
}

/// Whether a signal that was sent to the whole process is still to be taken by one of its threads.
#[cfg(target_os = "linux")]
fn signal_is_pending(server: &ChildServer) -> bool {
    let status = procfs::process::Process::new(server.pid()).and_then(|process| process.status());
    status.is_ok_and(|status| status.shdpnd & (1 << (Signal::SIGTERM as u64 - 1)) != 0)
}

/// Nobody can tell.
#[cfg(not(target_os = "linux"))]
fn signal_is_pending(_: &ChildServer) -> bool {
    false
}
