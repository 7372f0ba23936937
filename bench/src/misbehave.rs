//! `samewire drive --misbehave`: connects misbehaving clients to a server, and reports the outcome.

use std::fmt::Write;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use client::misbehave::{Misbehaviour, Obligation, RequestSpec};
use client::{
    Action, FaultKind, GroupProgress, PeerDriver, PeerDriverOptions, PeerGroup, PeerOutcome,
    PeerScript,
};
use contract::pin;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::drive::{DriveArgs, raise_open_file_limit};
use crate::{format, interrupt, output};

/// Time for which clients of the kinds that stay hold their connections, unless `--duration` sets another.
const HOLD: Duration = Duration::from_secs(10);

/// Time for which clients that never read do read before the end, to find out whether the server has closed.
const LAST_READING: Duration = Duration::from_millis(300);

/// Outcomes of all clients, added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    /// Number of clients.
    clients: usize,
    /// Number of connects that succeeded.
    connected: u64,
    /// Number of times that a client of the kinds that do not stay completed all of its actions.
    done: u64,
    /// Number of times that the server closed or reset the connection of a client that stays.
    closed: u64,
    /// Number of clients that had not ended at the end, and were disconnected.
    stayed: u64,
    /// Number of clients that could not connect.
    unconnected: u64,
    /// Number of clients that received a wrong reply.
    wrong: u64,
    /// Number of clients whose connection the server closed too early.
    closed_early: u64,
    /// Number of clients whose connection was reset (RST).
    reset: u64,
    /// Number of clients that waited for a reply in vain.
    unanswered: u64,
    /// Number of clients that failed on this machine, for a reason that is not the server's.
    local: u64,
}

impl Totals {
    /// Adds the outcomes of a group: of the clients that stay, or of those that do not (`stay`). `again` is true if the
    /// clients repeat their actions.
    fn add(
        &mut self,
        obligation: Obligation,
        stay: bool,
        again: bool,
        progress: GroupProgress,
        outcomes: &[PeerOutcome],
    ) {
        self.clients += outcomes.len();
        self.connected += progress.connects;
        self.stayed += (progress.peers - progress.ended) as u64;
        // A client in the pause before its next repetition has completed this one, too.
        let pauses = |outcome: &&PeerOutcome| {
            again && matches!(outcome.done_at[..], [.., Some(_), None]) && outcome.fault.is_none()
        };
        let pausing = outcomes.iter().filter(pauses).count() as u64;
        *if stay {
            &mut self.closed
        } else {
            &mut self.done
        } += progress.completed_runs + pausing;
        for fault in outcomes.iter().filter_map(|outcome| outcome.fault.as_ref()) {
            *match fault.kind {
                FaultKind::Connect => {
                    // The driver counts the connect, because it has ended, but there is no connection.
                    self.connected = self.connected.saturating_sub(1);
                    &mut self.unconnected
                }
                FaultKind::Local => &mut self.local,
                FaultKind::WrongBytes => &mut self.wrong,
                FaultKind::NoReply => &mut self.unanswered,
                FaultKind::End | FaultKind::Reset if stay && obligation == Obligation::Nothing => {
                    &mut self.closed
                }
                FaultKind::End => &mut self.closed_early,
                FaultKind::Reset => &mut self.reset,
            } += 1;
        }
    }

    /// Returns true if the server did for all clients what it has to do for clients of this kind.
    fn met(&self, obligation: Obligation) -> bool {
        let faults = self.wrong + self.local;
        let missing = self.unconnected + self.closed_early + self.reset + self.unanswered;
        // A client that still waits at the end is no fault: its reply may have been on its way. That can't be true of all
        // clients, so at least one must have completed its actions.
        faults == 0 && (obligation == Obligation::Nothing || (missing == 0 && self.done > 0))
    }
}

/// Makes scripts begin again when they have ended. All clients together begin at most 2,000 times a second, so that
/// neither this side nor its ports become the limit. They do not begin at the same time, except for the first time.
pub(crate) fn again_and_again(peer_scripts: &mut [PeerScript]) {
    const EACH: Duration = Duration::from_micros(500);
    const LEAST: Duration = Duration::from_millis(20);
    let count = peer_scripts.len();
    let pause = EACH.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
    for (number, peer_script) in peer_scripts.iter_mut().enumerate() {
        peer_script.again = true;
        let share = 0.5 + number as f64 / count as f64;
        peer_script
            .actions
            .push(Action::Pause(pause.max(LEAST).mul_f64(share)));
    }
}

/// Returns true if a client with this script stays connected until it is disconnected.
fn stays(peer_script: &PeerScript) -> bool {
    matches!(
        peer_script.actions.last(),
        Some(Action::StayIdle | Action::ReadSlowly(_))
    )
}

/// Lets a client that stays read until the server closes, instead of staying idle, so that the close is noticed. A client
/// that never reads does so only when it is signalled.
fn observe_close(peer_script: &mut PeerScript) {
    if let Some(Action::StayIdle) = peer_script.actions.last() {
        peer_script.actions.pop();
        if peer_script
            .actions
            .iter()
            .any(|action| matches!(action, Action::Flood { .. }))
        {
            peer_script.actions.push(Action::WaitForSignal);
        }
        peer_script.actions.push(Action::ReadToEnd);
    }
}

/// Returns the progress line: on a terminal visible, otherwise hidden.
fn live() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{msg}").unwrap_or(ProgressStyle::default_spinner()),
    )
}

/// Updates the progress line with the sums over both groups.
fn show(bar: &ProgressBar, kind: &Misbehaviour, elapsed: Duration, groups: [GroupProgress; 2]) {
    let sum = |of: fn(&GroupProgress) -> u64| format::count(groups.iter().map(of).sum());
    bar.set_message(format!(
        "{:>6.1} s   {} {}   {} connects   {} completed   {} failed",
        elapsed.as_secs_f64(),
        sum(|group| (group.peers - group.ended) as u64),
        kind.name,
        sum(|group| group.connects),
        sum(|group| group.completed_runs),
        sum(|group| group.failed as u64),
    ));
    bar.tick();
}

/// Connects the clients, waits until they have ended or the time is over, and prints the outcome.
///
/// Wrong usage is reported here, with exit status 2; so is a kind that is not possible over the protocol.
///
/// # Errors
///
/// No server answers at the address, or the clients can't be started.
pub(crate) fn run(
    args: &DriveArgs,
    address: SocketAddr,
    kind: &'static Misbehaviour,
) -> anyhow::Result<ExitCode> {
    if !address.ip().is_loopback() && !args.not_only_loopback {
        output::print_error(&format!(
            "error: {} is not on this machine, and {} clients are an attack on a server that is not yours; if it is \
             yours, add --not-only-loopback",
            address, kind.name
        ));
        return Ok(ExitCode::from(2));
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let spec = RequestSpec {
        protocol: args.protocol,
        seed,
        bulk: args.bulk.bulk(),
        page: Arc::new(args.page(address)),
    };
    let clients = args.connections.map_or(kind.clients, NonZero::get);
    let Some(peer_scripts) = kind.peer_scripts(&spec, clients) else {
        output::print_error(&format!(
            "error: {} is not possible over the protocol {}; see samewire list for other kinds",
            kind.name, args.protocol.name
        ));
        return Ok(ExitCode::from(2));
    };
    let (mut stayers, mut others): (Vec<PeerScript>, Vec<PeerScript>) =
        peer_scripts.into_iter().partition(stays);
    stayers.iter_mut().for_each(observe_close);
    for peer_scripts in [&mut stayers, &mut others] {
        match args.duration {
            Some(_) => again_and_again(peer_scripts),
            None => peer_scripts
                .iter_mut()
                .for_each(|peer_script| peer_script.again = false),
        }
    }
    let some_stay = !stayers.is_empty();
    if let Some(cpus) = &args.cpus {
        pin(cpus)?;
    }
    raise_open_file_limit(clients);
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;

    let time = args.duration.unwrap_or(HOLD);
    let options = PeerDriverOptions {
        // Clients that stay receive nothing for the whole time, and that is no fault.
        patience: if some_stay {
            args.timeout.max(time + LAST_READING + HOLD)
        } else {
            args.timeout
        },
        low_priority: false,
        interrupted: None,
    };
    let began = Instant::now();
    let driver = PeerDriver::open(address, options)?;
    let groups = [(true, driver.enter(stayers)), (false, driver.enter(others))];
    let bar = live();
    // Without --duration each client runs once: clients that stay do so for a fixed time, and others end by themselves, at
    // the latest when their patience is over.
    let limited = args.duration.is_some() || some_stay;
    while !interrupted.load(Ordering::Relaxed) {
        let left = if limited {
            time.saturating_sub(began.elapsed())
        } else {
            HOLD
        };
        let tick = left.min(Duration::from_millis(100));
        let ended = |(_, group): &(bool, PeerGroup)| {
            group.wait(tick, |progress| progress.ended == progress.peers)
        };
        if left.is_zero() || groups.iter().all(ended) {
            break;
        }
        show(
            &bar,
            kind,
            began.elapsed(),
            groups.each_ref().map(|(_, group)| group.progress()),
        );
    }
    for (_, group) in &groups {
        if group.progress().waiting > 0 {
            group.signal_all();
            group.wait(LAST_READING, |progress| progress.ended == progress.peers);
        }
    }
    bar.finish_and_clear();
    let (mut totals, mut outcomes) = (Totals::default(), Vec::new());
    for (stay, group) in groups {
        let progress = group.progress();
        let of_group = group.leave();
        totals.add(
            kind.obligation,
            stay,
            args.duration.is_some(),
            progress,
            &of_group,
        );
        outcomes.extend(of_group);
    }
    let took = began.elapsed();
    let cut_short = interrupted.load(Ordering::Relaxed);

    if totals.connected == 0 && totals.unconnected > 0 {
        bail!(
            "no server answers on {}: {}; start one, for example: samewire serve mio --listen {}",
            address,
            outcomes
                .iter()
                .find_map(|outcome| outcome.fault.as_ref())
                .map_or("no reason given", |fault| fault.seen.as_str()),
            address
        );
    }
    let met = totals.met(kind.obligation);
    // If the server owes these clients nothing, only wrong bytes and failures on this machine are faults to show.
    let fault = outcomes.iter().find(|outcome| {
        outcome.fault.as_ref().is_some_and(|fault| {
            kind.obligation != Obligation::Nothing
                || matches!(fault.kind, FaultKind::WrongBytes | FaultKind::Local)
        })
    });
    let shown = fault.or_else(|| outcomes.first().filter(|_| args.transcript));
    output::print(&if args.json {
        let fault = fault.and_then(|outcome| Some((outcome, outcome.fault.as_ref()?)));
        let fault = fault.map(|(outcome, fault)| {
            json!({
                "client": outcome.number,
                "expected": fault.expected,
                "seen": fault.seen,
                "transcript": outcome.transcript.to_string(),
            })
        });
        let json = json!({
            "address": address.to_string(),
            "protocol": args.protocol.name,
            "misbehave": kind.name,
            "owed": match kind.obligation {
                Obligation::Replies => "replies",
                Obligation::End => "an end",
                Obligation::Nothing => "nothing",
            },
            "owed_came": met,
            "seed": seed.to_string(),
            "interrupted": cut_short,
            "seconds": took.as_secs_f64(),
            "clients": totals.clients,
            "connected": totals.connected,
            "done": totals.done,
            "closed_by_server": totals.closed,
            "stayed": totals.stayed,
            "not_connected": totals.unconnected,
            "wrong_reply": totals.wrong,
            "closed_early": totals.closed_early,
            "reset": totals.reset,
            "timed_out": totals.unanswered,
            "local": totals.local,
            "fault": fault,
        });
        format!("{json:#}\n")
    } else {
        to_text(address, kind, &totals, took, seed, cut_short, shown)
    })?;
    Ok(if cut_short {
        ExitCode::from(interrupt::STATUS)
    } else if met {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Returns the outcome as text, with the transcript of the client `shown`.
fn to_text(
    address: SocketAddr,
    kind: &Misbehaviour,
    totals: &Totals,
    took: Duration,
    seed: u64,
    interrupted: bool,
    shown: Option<&PeerOutcome>,
) -> String {
    let mut text = String::new();
    let owed = match kind.obligation {
        Obligation::Replies => "the server owes them all replies",
        Obligation::End => {
            "the server must close these connections, with or without an error reply"
        }
        Obligation::Nothing => "the server owes them nothing",
    };
    let _ = writeln!(
        text,
        "{}: {} × {}: {}; {owed}",
        address,
        format::count(totals.clients as u64),
        kind.name,
        kind.summary,
    );
    if interrupted {
        text.push_str("  interrupted: the remaining clients were disconnected\n");
    }
    for (count, outcome, always) in [
        (totals.connected, "connected", true),
        (totals.done, "completed", true),
        (totals.closed, "closed by the server", true),
        (totals.stayed, "still connected at the end", true),
        (totals.unconnected, "could not connect", false),
        (totals.wrong, "received a wrong reply", false),
        (totals.closed_early, "closed too early", false),
        (totals.reset, "reset (RST)", false),
        (totals.unanswered, "no reply in time", false),
        (totals.local, "failed on this machine", false),
    ] {
        if always || count > 0 {
            let _ = writeln!(text, "  {outcome:<23} {:>8}", format::count(count));
        }
    }
    let _ = writeln!(
        text,
        "  in {}; seed {seed}",
        format::time(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)),
    );
    if let Some(outcome) = shown {
        match &outcome.fault {
            Some(fault) => {
                let _ = writeln!(text, "\nClient {}: {fault}", outcome.number);
            }
            None => {
                let _ = writeln!(text, "\nClient {}:", outcome.number);
            }
        }
        let _ = write!(text, "{}", outcome.transcript);
    }
    text
}
