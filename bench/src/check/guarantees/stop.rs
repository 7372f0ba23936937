//! The check of `stop`: requests that have arrived are answered, idle peers are closed, and the rest is cut at the
//! drain deadline.
//!
//! Each part of the check has a server of its own.

use std::time::{Duration, Instant};

use client::{Action, Cut, FaultKind, GroupProgress, PeerDriver, PeerGroup, PeerScript};
use nix::sys::signal::Signal;

use super::super::case::{
    CheckCase, CheckFailure, PATIENCE, Passed, Verdict, broken, broken_by, kind, not_applicable,
    reaches,
};
use crate::child::{ChildServer, ServerExit};
use crate::target::{Need, RunningTarget, TargetSettings};

/// An end that is later than this after the drain is wrong, however busy the machine is.
const LATEST: Duration = Duration::from_secs(3);

/// A drain so long that no part of the check waits for its end.
const LONG_DRAIN: Duration = Duration::from_secs(30);

pub(super) fn check(case: &CheckCase<'_>) -> Verdict {
    case.needs(Need::Process)?;
    idle_peers(case)?;
    if case.supports(Need::Wait) {
        work_under_way(case)?;
    }
    reply_under_way(case)?;
    let cut = drain_deadline(case)?;
    connect_storm(case)?;
    let second = two_signals(case)?;
    Ok(Passed {
        details: [cut, second].into_iter().flatten().collect(),
        ..Passed::default()
    })
}

/// Sends SIGTERM to a server. Returns its process, and the time of the signal.
fn send_sigterm(running: RunningTarget) -> Result<(ChildServer, Instant), CheckFailure> {
    let Some(server) = running.into_server() else {
        return not_applicable("samewire did not start its process");
    };
    let signalled_at = Instant::now();
    if let Err(error) = server.signal(Signal::SIGTERM) {
        return broken(
            "the server runs until it is told to stop",
            error.to_string(),
        );
    }
    Ok((server, signalled_at))
}

/// Waits for the end of the server, which must end by itself and in order. Another part checks that a drain ends in
/// time.
fn ends_well(
    case: &CheckCase<'_>,
    server: ChildServer,
    limit: Duration,
) -> Result<ServerExit, CheckFailure> {
    let end = server.end(limit);
    case.ended_well(&end)?;
    Ok(end)
}

/// Retries a part of the check that depends on a moment of which the client can't be certain, such as the moment at
/// which a peer is accepted. If such a moment was the cause, another try passes; a defect fails every time.
fn retry_timing<T>(
    case: &CheckCase<'_>,
    mut attempt: impl FnMut(u32) -> Result<T, CheckFailure>,
) -> Result<T, CheckFailure> {
    const TRIES: u32 = 3;
    for number in 1..TRIES {
        let began = Instant::now();
        match attempt(number) {
            // A failure after seconds does not depend on moments.
            Err(CheckFailure::Broken(_)) if began.elapsed() < PATIENCE / 2 => {
                case.check_interrupted()?;
            }
            other => return other,
        }
    }
    attempt(TRIES)
}

/// Returns one request and its reply, after which the server has certainly accepted the peer. `None` over `hello`: it
/// has only one request, which ends the conversation.
fn first_exchange(case: &CheckCase<'_>, client: usize) -> Option<Action> {
    let spec = case.spec;
    (spec.protocol.requests_per_connection != Some(1)).then(|| Action::Converse {
        script: spec.scripts(client),
        requests: 1,
        cut: Cut::Whole,
    })
}

/// Returns a second request with its reply, for after the first exchange: the reply may depend on the requests before
/// it.
fn second_exchange(case: &CheckCase<'_>, client: usize) -> Action {
    let spec = case.spec;
    if matches!(spec.protocol.name, "http" | "bulk" | "hello") {
        return Action::Converse {
            script: spec.scripts(client),
            requests: 1,
            cut: Cut::Whole,
        };
    }
    let one = spec.request(client);
    let (both, _) = spec.all_at_once(client, None, 2);
    let replied = spec.replies(&one, false).bytes.len();
    let reply = spec.replies(&both, false).bytes.split_off(replied);
    Action::ask(&both[one.len()..], reply)
}

/// Checks that idle peers are closed at a stop, and that none of them is counted as cut.
fn idle_peers(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    let settings = TargetSettings {
        drain: Some(LONG_DRAIN),
        ..TargetSettings::default()
    };
    let peers = case.slots(&settings).min(10);
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let peer_scripts = (0..peers).map(|client| {
        PeerScript::new(match first_exchange(case, client) {
            Some(exchange) => vec![exchange, Action::WaitForSignal, Action::ExpectFin],
            // It is unknown whether this peer was accepted.
            None => vec![Action::WaitForSignal, Action::ReadToEnd],
        })
    });
    let idle = driver.enter(peer_scripts.collect());
    if !reaches(case, &idle, |seen| seen.waiting + seen.ended == seen.peers)? {
        return broken("peers are served before they are idle", "no reply");
    }
    let (server, _) = send_sigterm(running)?;
    idle.signal_all();
    let outcomes = idle.finish(2 * PATIENCE);
    case.all_done(&outcomes, "an idle peer, after SIGTERM")?;
    let end = ends_well(case, server, PATIENCE)?;
    match end.tally {
        Some(tally) if tally.cut > 0 => broken(
            "idle peers are owed no reply, and none is counted as cut",
            tally.to_string(),
        ),
        _ => Ok(()),
    }
}

/// Checks that a request is answered if the server works on it when it is told to stop.
fn work_under_way(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    let wait = match (case.spec.protocol.name, case.quick) {
        // The wait comes once for each message.
        ("bulk", _) => 60,
        (_, true) => 100,
        (_, false) => 250,
    };
    let settings = TargetSettings {
        drain: Some(LONG_DRAIN),
        wait: Some(Duration::from_millis(wait)),
        ..TargetSettings::default()
    };
    let peers = case.slots(&settings).min(5);
    retry_timing(case, |number| {
        let running = case.start(&settings)?;
        let driver = case.driver(&running)?;
        let groups: Vec<PeerGroup> = (0..peers)
            .map(|client| {
                let mut actions = Vec::from_iter(first_exchange(case, client));
                // A receipt that arrives after the server's end is answered by a reset; by then the client has received
                // everything.
                let end = match case.spec.protocol.name {
                    "bulk" => Action::ReadToEnd,
                    _ => Action::ExpectFin,
                };
                actions.extend([Action::WaitForSignal, second_exchange(case, client), end]);
                driver.enter(vec![PeerScript::new(actions)])
            })
            .collect();
        for group in &groups {
            if !reaches(case, group, |seen| seen.waiting + seen.ended == 1)? {
                return broken("the peers are served before the stop", "no reply for 10 s");
            }
        }
        for group in &groups {
            let before = group.progress().sent;
            group.signal_all();
            reaches(case, group, |seen| seen.sent > before || seen.ended == 1)?;
        }
        if case.spec.protocol.requests_per_connection == Some(1) {
            // No reply shows yet that these peers were accepted.
            case.pause(Duration::from_millis(20) * number)?;
        }
        let (server, _) = send_sigterm(running)?;
        let outcomes: Vec<_> = groups
            .into_iter()
            .flat_map(|group| group.finish(2 * PATIENCE))
            .collect();
        case.all_done(&outcomes, "a request that was under way when SIGTERM came")?;
        let end = ends_well(case, server, PATIENCE)?;
        match end.tally {
            Some(tally) if tally.cut > 0 || tally.served != peers as u64 => broken(
                format!("a tally with {peers} peers served in full after SIGTERM, and none cut"),
                tally.to_string(),
            ),
            _ => Ok(()),
        }
    })
}

/// Checks that a long reply arrives complete if its peer reads the most of it only after the stop.
fn reply_under_way(case: &CheckCase<'_>) -> Result<(), CheckFailure> {
    // The longest line of the protocols is 64 KiB.
    const LINE: usize = 60_000;
    let spec = case.spec;
    let Some(begin) = first_exchange(case, 0) else {
        return Ok(());
    };
    let actions = match spec.protocol.name {
        // These requests are answered as they arrive: how much of a long one has arrived can't be known.
        "upper" | "http" => vec![
            begin,
            Action::WaitForSignal,
            second_exchange(case, 0),
            Action::ExpectFin,
        ],
        _ => {
            let mut bytes = spec.request(0);
            let replied = spec.replies(&bytes, false).bytes.len();
            let one = bytes.len();
            let mut script = spec.script(0, 1, Some(LINE));
            script.ask(&mut bytes);
            let reply = spec.replies(&bytes, false).bytes.split_off(replied);
            vec![
                begin,
                Action::send(&bytes[one..]),
                // A server that replies has received the whole request.
                Action::ReadBytes(1),
                Action::WaitForSignal,
                Action::expect(&reply[1..]),
                Action::ExpectFin,
            ]
        }
    };
    let settings = TargetSettings {
        drain: Some(LONG_DRAIN),
        ..TargetSettings::default()
    };
    let running = case.start(&settings)?;
    let driver = case.driver(&running)?;
    let group = driver.enter(vec![PeerScript {
        small_buffers: true,
        ..PeerScript::new(actions)
    }]);
    reaches(case, &group, |seen| seen.waiting + seen.ended == 1)?;
    let server = if matches!(spec.protocol.name, "upper" | "http") {
        let before = group.progress().sent;
        group.signal_all();
        reaches(case, &group, |seen| seen.sent > before || seen.ended == 1)?;
        send_sigterm(running)?.0
    } else {
        let (server, _) = send_sigterm(running)?;
        group.signal_all();
        server
    };
    let outcomes = group.finish(2 * PATIENCE);
    case.all_done(&outcomes, "a reply that was under way when SIGTERM came")?;
    ends_well(case, server, PATIENCE)?;
    Ok(())
}

/// Peers that delay the end of a server, and idle peers beside them.
struct SlowPeers {
    /// Driver of the peers.
    _driver: PeerDriver,
    /// Peers that do nothing more.
    _held: PeerGroup,
    /// Number of these peers that are owed replies.
    owed: usize,
    /// Number of these peers that have sent half a request.
    halves: usize,
    /// Idle peers, which expect the server's FIN after their signal.
    idle: PeerGroup,
}

/// Connects at most `most` slow peers: first peers that never read, then some that have sent half a request and some
/// that are idle. If the server itself works slowly on a request, there are only peers that are owed a reply.
fn slow_peers(
    case: &CheckCase<'_>,
    settings: &TargetSettings,
    running: &RunningTarget,
    most: usize,
) -> Result<SlowPeers, CheckFailure> {
    // Long lines, which soon fill the kernel's buffers.
    const LINE: usize = 20_000;
    let driver = case.driver(running)?;
    let spec = case.spec;
    let slots = case.slots(settings).min(most);
    let owed = slots.min(if most > 1 { 4 } else { 1 });
    let (mut held, mut idle) = (Vec::new(), Vec::new());
    for client in 0..owed {
        held.push(PeerScript::new(
            match first_exchange(case, client).filter(|_| settings.wait.is_none()) {
                Some(exchange) => {
                    let (requests, _) = spec.all_at_once(client, Some(LINE), 20);
                    let flood = Action::Flood {
                        bytes: requests.into(),
                        most: 64 << 20,
                        stuck: Duration::from_millis(300),
                    };
                    vec![exchange, flood, Action::WaitForSignal]
                }
                None => vec![Action::send(spec.request(client)), Action::WaitForSignal],
            },
        ));
    }
    for client in owed..slots {
        let Some(exchange) = first_exchange(case, client).filter(|_| settings.wait.is_none())
        else {
            break;
        };
        let loris = (kind("slowloris").peer_script)(spec, client).filter(|_| client % 2 == 0);
        match loris {
            Some(mut peer_script) => {
                // The signal replaces the last action. So the test knows when the peers have come this far.
                peer_script.actions.pop();
                peer_script.actions.insert(0, exchange);
                peer_script.actions.push(Action::WaitForSignal);
                held.push(peer_script);
            }
            None => idle.push(PeerScript::new(vec![
                exchange,
                Action::WaitForSignal,
                Action::ExpectFin,
            ])),
        }
    }
    let halves = held.len() - owed;
    let (idle, held) = (driver.enter(idle), driver.enter(held));
    let all_in_position = |seen: &GroupProgress| seen.waiting == seen.peers || seen.failed > 0;
    for group in [&idle, &held] {
        // Some servers take a while until they have nothing more to do.
        let _ = reaches(case, group, all_in_position)? || reaches(case, group, all_in_position)?;
    }
    if [&idle, &held]
        .iter()
        .any(|group| group.progress().waiting < group.progress().peers)
    {
        let mut outcomes = held.leave();
        outcomes.extend(idle.leave());
        outcomes.retain(|outcome| outcome.fault.is_some());
        case.all_done(&outcomes, "a slow peer, before the stop")?;
        return broken(
            "slow peers are served at first",
            "some of them got no reply",
        );
    }
    Ok(SlowPeers {
        _driver: driver,
        _held: held,
        owed,
        halves,
        idle,
    })
}

/// Checks that unfinished connections are cut when the drain is over: not before, and not seconds after.
fn drain_deadline(case: &CheckCase<'_>) -> Result<Option<String>, CheckFailure> {
    let mut settings = TargetSettings {
        wait: is_slow_by_work(case).then_some(LONG_DRAIN),
        ..TargetSettings::default()
    };
    if case.spec.protocol.requests_per_connection == Some(1) && settings.wait.is_none() {
        return Ok(None);
    }
    retry_timing(case, |number| {
        // During a short drain, a server on a busy machine may not even close its idle connections.
        let drain = Duration::from_millis(if case.quick { 200 } else { 400 }) * (number * number);
        settings.drain = Some(drain);
        let running = case.start(&settings)?;
        let slow = slow_peers(case, &settings, &running, 100)?;
        if settings.wait.is_some() {
            case.pause(Duration::from_millis(30) * number)?;
        }
        let (server, signalled_at) = send_sigterm(running)?;
        slow.idle.signal_all();
        let end = server.end(drain + PATIENCE);
        let took = signalled_at.elapsed();
        let idle = slow.idle.finish(PATIENCE);
        let peers_text = format!(
            "{} peers never read, {} had sent half a request, {} were idle",
            slow.owed,
            slow.halves,
            idle.len()
        );
        case.ended_well(&end)?;
        if case.supports(Need::Drain) && took < drain {
            return broken(
                format!("the peers have {drain:?} (--drain) to read their replies; {peers_text}"),
                format!("the server ended {took:.1?} after SIGTERM"),
            );
        }
        if case.supports(Need::Drain) && took > drain + LATEST {
            return broken(
                format!(
                    "replies that are not read are cut after {drain:?} (--drain); {peers_text}"
                ),
                format!("the server ended {took:.1?} after SIGTERM"),
            );
        }
        case.all_done(&idle, "an idle peer beside slow peers, after SIGTERM")?;
        if let Some(tally) = end.tally {
            let cut = match settings.wait {
                None => (slow.owed + slow.halves) as u64,
                // No reply shows how many of these peers were accepted.
                Some(_) => tally.accepted.max(1),
            };
            if tally.cut != cut {
                return broken(
                    format!("a tally with {cut} peers cut; {peers_text}"),
                    tally.to_string(),
                );
            }
        }
        Ok(Some(format!(
            "{peers_text}: the server ended {} ms after SIGTERM, with a drain of {} ms",
            took.as_millis(),
            drain.as_millis(),
        )))
    })
}

/// Returns whether the server must be slow at work to be stopped under way: the protocol's reply is too short to stay
/// unread.
fn is_slow_by_work(case: &CheckCase<'_>) -> bool {
    case.spec.protocol.requests_per_connection == Some(1) && case.supports(Need::Wait)
}

/// Checks a stop while many peers connect, send a request and leave.
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
    let (server, _) = send_sigterm(running)?;
    let end = server.end(2 * PATIENCE);
    let outcomes = group.finish(2 * PATIENCE);
    case.check_interrupted()?;
    let bad = outcomes.iter().find(|outcome| match &outcome.fault {
        Some(fault) => matches!(fault.kind, FaultKind::WrongBytes | FaultKind::NoReply),
        None => !outcome.done,
    });
    if let Some(outcome) = bad {
        let seen = outcome.fault.as_ref();
        return broken_by(
            "a peer that connects during a connect storm and a stop gets a reply, or the end of the connection",
            seen.map_or("the client received neither".to_string(), |fault| {
                fault.seen.clone()
            }),
            outcome,
        );
    }
    case.ended_well(&end)?;
    let answered = outcomes.iter().filter(|outcome| outcome.done).count() as u64;
    match end.tally {
        Some(tally) if tally.accepted < answered => broken(
            format!(
                "a tally with at least {answered} peers accepted, since {answered} peers had a reply"
            ),
            tally.to_string(),
        ),
        _ => Ok(()),
    }
}

/// Checks two signals. After the first, the server waits for a peer that is owed a reply and reads nothing. A server
/// that has ended has not waited, even if the kernel's buffers hold the short replies completely. The second signal
/// ends the drain at once.
fn two_signals(case: &CheckCase<'_>) -> Result<Option<String>, CheckFailure> {
    let settings = TargetSettings {
        drain: Some(LONG_DRAIN),
        // If the server can be told to work slowly, that is the quickest way to have a request under way.
        wait: case.supports(Need::Wait).then_some(2 * LONG_DRAIN),
        ..TargetSettings::default()
    };
    if case.spec.protocol.requests_per_connection == Some(1) && settings.wait.is_none() {
        return Ok(None);
    }
    retry_timing(case, |number| {
        let running = case.start(&settings)?;
        let _slow = slow_peers(case, &settings, &running, 1)?;
        if settings.wait.is_some() {
            case.pause(Duration::from_millis(30) * number)?;
        }
        let (server, signalled_at) = send_sigterm(running)?;
        // Two pending signals of the same kind become one in the kernel.
        if !case.eventually(|| server.has_ended() || !signal_is_pending(&server))? {
            return broken("the server handles SIGTERM", "it does not, for 10 s");
        }
        // The length of an external server's own drain is unknown. But a server that does not wait at all has ended by
        // then.
        let drain_is_set = case.supports(Need::Drain);
        case.pause(Duration::from_millis(if drain_is_set { 20 } else { 100 }) * number)?;
        if server.has_ended() {
            let took = signalled_at.elapsed();
            return broken(
                match drain_is_set {
                    true => {
                        format!(
                            "the server waits for the reply that is under way, for {LONG_DRAIN:?}"
                        )
                    }
                    false => {
                        "the server waits for the reply that is under way, at least for a while"
                            .to_string()
                    }
                },
                format!("the server ended after {took:.1?}"),
            );
        }
        let _ = server.signal(Signal::SIGTERM);
        let signalled_at = Instant::now();
        let limit = PATIENCE * 2 / 5;
        let end = server.end(limit);
        if end.status.is_none() {
            return broken(
                "the second SIGTERM ends the server at once",
                format!("the server still runs after {limit:?}; the drain is {LONG_DRAIN:?}"),
            );
        }
        Ok(Some(format!(
            "the second signal ended it in {} ms ({}){}",
            signalled_at.elapsed().as_millis(),
            end.exit,
            match drain_is_set {
                true => "",
                false => "; or its own drain was over, whose length is unknown",
            }
        )))
    })
}

/// Returns whether a signal that was sent to the whole process has not been taken by one of its threads yet.
#[cfg(target_os = "linux")]
fn signal_is_pending(server: &ChildServer) -> bool {
    let status = procfs::process::Process::new(server.pid()).and_then(|process| process.status());
    status.is_ok_and(|status| status.shdpnd & (1 << (Signal::SIGTERM as u64 - 1)) != 0)
}

/// Returns `false`: this system does not report pending signals.
#[cfg(not(target_os = "linux"))]
fn signal_is_pending(_: &ChildServer) -> bool {
    false
}
