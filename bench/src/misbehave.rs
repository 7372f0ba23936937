//! `samewire drive --misbehave`: lets clients misbehave in front of a server, and says what came of it.

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

use crate::drive::{DriveArgs, make_room};
use crate::{format, interrupt, output};

/// Whoever holds a connection holds it for so long, unless the command line says otherwise.
const HOLD: Duration = Duration::from_secs(10);

/// Before the end, those that never read do read, to find out whether the server has closed; for so long.
const LAST_READING: Duration = Duration::from_millis(300);

/// What came of all of them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    clients: usize,
    connected: u64,
    /// Times that what they do was done to its end,
    done: u64,
    /// or, of those that stay, that the server closed or broke off.
    closed: u64,
    /// Who was there still, and left.
    stayed: u64,
    unconnected: u64,
    wrong: u64,
    closed_early: u64,
    broken_off: u64,
    unanswered: u64,
    local: u64,
}

impl Sum {
    /// Adds what came of a group, of those that stay or of those that do not.
    fn add(
        &mut self,
        obligation: Obligation,
        stay: bool,
        again: bool,
        seen: GroupProgress,
        outcomes: &[PeerOutcome],
    ) {
        self.clients += outcomes.len();
        self.connected += seen.connects;
        self.stayed += (seen.peers - seen.ended) as u64;
        // Who only pauses before the next time has done it this time, too.
        let pauses = |outcome: &&PeerOutcome| {
            again && matches!(outcome.done_at[..], [.., Some(_), None]) && outcome.fault.is_none()
        };
        let pausing = outcomes.iter().filter(pauses).count() as u64;
        *if stay {
            &mut self.closed
        } else {
            &mut self.done
        } += seen.completed_runs + pausing;
        for fault in outcomes.iter().filter_map(|outcome| outcome.fault.as_ref()) {
            *match fault.kind {
                FaultKind::Connect => {
                    // It did come to its end, but to no connection.
                    self.connected = self.connected.saturating_sub(1);
                    &mut self.unconnected
                }
                FaultKind::Local => &mut self.local,
                FaultKind::WrongBytes => &mut self.wrong,
                FaultKind::Silence => &mut self.unanswered,
                FaultKind::End | FaultKind::Reset if stay && obligation == Obligation::Nothing => {
                    &mut self.closed
                }
                FaultKind::End => &mut self.closed_early,
                FaultKind::Reset => &mut self.broken_off,
            } += 1;
        }
    }

    /// Whether all came that the server owed them.
    fn had_their_due(&self, obligation: Obligation) -> bool {
        let faults = self.wrong + self.local;
        let missing = self.unconnected + self.closed_early + self.broken_off + self.unanswered;
        // (Whoever is still waiting at the end may have been about to have it; all of them were not.)
        faults == 0 && (obligation == Obligation::Nothing || (missing == 0 && self.done > 0))
    }
}

/// Lets peer_scripts begin again when they have ended: all together 2,000 times a second at most, so that it is not this side
/// that is tried, nor its ports; and not all at the same time, but for the first.
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

/// Whether somebody with this peer_script stays, for as long as it may.
fn stays(peer_script: &PeerScript) -> bool {
    matches!(
        peer_script.actions.last(),
        Some(Action::StayIdle | Action::ReadSlowly(_))
    )
}

/// Those that stay hear the server's close, instead of nothing for good. Those that never read read on their signal only.
fn listen(peer_script: &mut PeerScript) {
    if let Some(Action::StayIdle) = peer_script.actions.last() {
        peer_script.actions.pop();
        if peer_script
            .actions
            .iter()
            .any(|act| matches!(act, Action::Flood { .. }))
        {
            peer_script.actions.push(Action::WaitForSignal);
        }
        peer_script.actions.push(Action::ReadToEnd);
    }
}

/// Shows how far they have come, on a terminal.
fn live() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{msg}").unwrap_or(ProgressStyle::default_spinner()),
    )
}

fn show(bar: &ProgressBar, kind: &Misbehaviour, elapsed: Duration, seen: [GroupProgress; 2]) {
    let sum = |of: fn(&GroupProgress) -> u64| format::count(seen.iter().map(of).sum());
    bar.set_message(format!(
        "{:>6.1} s   {} {}   {} connects   {} times done   {} failed",
        elapsed.as_secs_f64(),
        sum(|seen| (seen.peers - seen.ended) as u64),
        kind.name,
        sum(|seen| seen.connects),
        sum(|seen| seen.completed_runs),
        sum(|seen| seen.failed as u64),
    ));
    bar.tick();
}

/// Lets them in, waits for their end, and prints what came of it.
///
/// # Errors
///
/// A server that is not there, or a kind that this protocol has nothing for. (Wrong usage is complained about here, with
/// its own status.)
pub(crate) fn run(
    args: &DriveArgs,
    address: SocketAddr,
    kind: &'static Misbehaviour,
) -> anyhow::Result<ExitCode> {
    if !address.ip().is_loopback() && !args.not_only_loopback {
        output::print_error(&format!(
            "error: {} is not on this machine, and {} clients that misbehave are an attack on a server that is not \
             yours; if it is, add --not-only-loopback",
            address, kind.name
        ));
        return Ok(ExitCode::from(2));
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let asked = RequestSpec {
        protocol: args.protocol,
        seed,
        bulk: args.bulk.bulk(),
        page: Arc::new(args.page(address)),
    };
    let clients = args.connections.map_or(kind.clients, NonZero::get);
    let Some(peer_scripts) = kind.peer_scripts(&asked, clients) else {
        output::print_error(&format!(
            "error: over {} nobody can do what {} does; see samewire list for others",
            args.protocol.name, kind.name
        ));
        return Ok(ExitCode::from(2));
    };
    let (mut stayers, mut others): (Vec<PeerScript>, Vec<PeerScript>) =
        peer_scripts.into_iter().partition(stays);
    stayers.iter_mut().for_each(listen);
    for peer_scripts in [&mut stayers, &mut others] {
        match args.duration {
            Some(_) => again_and_again(peer_scripts),
            None => peer_scripts
                .iter_mut()
                .for_each(|peer_script| peer_script.again = false),
        }
    }
    let somebody_stays = !stayers.is_empty();
    if let Some(cpus) = &args.cpus {
        pin(cpus)?;
    }
    make_room(clients);
    let interrupted = Arc::new(AtomicBool::new(false));
    interrupt::catch(&interrupted)?;

    let time = args.duration.unwrap_or(HOLD);
    let options = PeerDriverOptions {
        // Who stays hears nothing for as long as all this takes, and that is no fault.
        patience: if somebody_stays {
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
    // Once, and who stays stays for a time; others have what their own patience gives them.
    let limited = args.duration.is_some() || somebody_stays;
    while !interrupted.load(Ordering::Relaxed) {
        let left = if limited {
            time.saturating_sub(began.elapsed())
        } else {
            HOLD
        };
        let tick = left.min(Duration::from_millis(100));
        let ended =
            |(_, group): &(bool, PeerGroup)| group.wait(tick, |seen| seen.ended == seen.peers);
        if left.is_zero() || groups.iter().all(ended) {
            break;
        }
        show(
            &bar,
            kind,
            began.elapsed(),
            groups.each_ref().map(|(_, group)| group.seen()),
        );
    }
    for (_, group) in &groups {
        if group.seen().waiting > 0 {
            group.signal_all();
            group.wait(LAST_READING, |seen| seen.ended == seen.peers);
        }
    }
    bar.finish_and_clear();
    let (mut sum, mut outcomes) = (Sum::default(), Vec::new());
    for (stay, group) in groups {
        let seen = group.seen();
        let theirs = group.leave();
        sum.add(
            kind.obligation,
            stay,
            args.duration.is_some(),
            seen,
            &theirs,
        );
        outcomes.extend(theirs);
    }
    let took = began.elapsed();
    let cut_short = interrupted.load(Ordering::Relaxed);

    if sum.connected == 0 && sum.unconnected > 0 {
        bail!(
            "nobody listens on {}, or nobody answers there ({}); start a server there, such as: samewire serve mio --listen {}",
            address,
            outcomes
                .iter()
                .find_map(|outcome| outcome.fault.as_ref())
                .map_or("no reason given", |fault| fault.seen.as_str()),
            address
        );
    }
    let good = sum.had_their_due(kind.obligation);
    // Where nothing is owed, only what is wrong in any case is a fault to show.
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
                Obligation::AnEnd => "an end",
                Obligation::Nothing => "nothing",
            },
            "owed_came": good,
            "seed": seed.to_string(),
            "interrupted": cut_short,
            "seconds": took.as_secs_f64(),
            "clients": sum.clients,
            "connected": sum.connected,
            "done": sum.done,
            "closed_by_server": sum.closed,
            "stayed": sum.stayed,
            "not_connected": sum.unconnected,
            "wrong_reply": sum.wrong,
            "closed_early": sum.closed_early,
            "reset": sum.broken_off,
            "timed_out": sum.unanswered,
            "local": sum.local,
            "fault": fault,
        });
        format!("{json:#}\n")
    } else {
        to_text(address, kind, &sum, took, seed, cut_short, shown)
    })?;
    Ok(if cut_short {
        ExitCode::from(interrupt::STATUS)
    } else if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn to_text(
    address: SocketAddr,
    kind: &Misbehaviour,
    sum: &Sum,
    took: Duration,
    seed: u64,
    interrupted: bool,
    shown: Option<&PeerOutcome>,
) -> String {
    let mut text = String::new();
    let owed = match kind.obligation {
        Obligation::Replies => "they are owed all replies",
        Obligation::AnEnd => "they are owed an end",
        Obligation::Nothing => "they are owed nothing",
    };
    let _ = writeln!(
        text,
        "{}: {} × {}: {}; {owed}",
        address,
        format::count(sum.clients as u64),
        kind.name,
        kind.summary,
    );
    if interrupted {
        text.push_str("  interrupted: whoever was there still has left\n");
    }
    for (count, what, always) in [
        (sum.connected, "connected", true),
        (sum.done, "did all they do", true),
        (sum.closed, "closed by the server", true),
        (sum.stayed, "still there at the end", true),
        (sum.unconnected, "could not connect", false),
        (sum.wrong, "heard a wrong reply", false),
        (sum.closed_early, "closed on too early", false),
        (sum.broken_off, "broken off (RST)", false),
        (sum.unanswered, "heard nothing in time", false),
        (sum.local, "failed by themselves", false),
    ] {
        if always || count > 0 {
            let _ = writeln!(text, "  {what:<23} {:>8}", format::count(count));
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
