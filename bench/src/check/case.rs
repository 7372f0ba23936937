//! One check: a guarantee, and who is to keep it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use client::misbehave::{Misbehaviour, RequestSpec};
use client::{
    Action, Cut, FaultKind, GroupProgress, PeerDriver, PeerDriverOptions, PeerOutcome, PeerScript,
};
use contract::{Deviation, Guarantee, Tally};
use nix::sys::signal::Signal;

use crate::child::ServerExit;
use crate::placement::Placement;
use crate::target::{Need, RunningTarget, Target, TargetSettings};

/// How long is waited for what must come. Never a measure of anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A guarantee that is checked, of somebody.
pub(super) struct CheckCase<'a> {
    pub(super) target: &'a Target,
    pub(super) guarantee: Guarantee,
    /// What is said.
    pub(super) asked: &'a RequestSpec,
    pub(super) placement: &'a Placement,
    /// As much as can be seen in little time.
    pub(super) quick: bool,
    pub(super) interrupted: &'a Arc<AtomicBool>,
}

/// A guarantee that was seen to be kept, or to be broken by design and exactly as declared.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// What was measured, as short as a cell of the matrix, such as `+4 ms`.
    pub(super) figure: Option<String>,
    /// What was measured, for whoever reads more than the matrix: a line each.
    pub(super) details: Vec<String>,
    /// What was seen instead of the guarantee; it is what the model declares.
    pub(super) by_design: Option<String>,
}

/// A guarantee that was not seen to be kept.
#[derive(Debug)]
pub(super) enum CheckFailure {
    /// It can't be checked here, of this target or over this protocol; why.
    NotApplicable(String),
    /// It is broken.
    Broken(Box<Broken>),
    /// The check itself could not be done.
    CheckError(anyhow::Error),
    /// Ctrl-C.
    Interrupted,
}

/// How a guarantee was broken.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) expected: String,
    pub(super) seen: String,
    /// What was said, byte by byte.
    pub(super) transcript: Option<String>,
}

impl From<anyhow::Error> for CheckFailure {
    fn from(error: anyhow::Error) -> CheckFailure {
        CheckFailure::CheckError(error)
    }
}

impl From<std::io::Error> for CheckFailure {
    fn from(error: std::io::Error) -> CheckFailure {
        CheckFailure::CheckError(error.into())
    }
}

/// What every check gives.
pub(super) type Verdict = Result<Passed, CheckFailure>;

impl Passed {
    /// Passed, and nothing was measured.
    pub(super) fn simply() -> Verdict {
        Ok(Passed::default())
    }
}

/// A guarantee is broken.
pub(super) fn broken<T>(
    expected: impl Into<String>,
    seen: impl Into<String>,
) -> Result<T, CheckFailure> {
    Err(CheckFailure::Broken(Box::new(Broken {
        expected: expected.into(),
        seen: seen.into(),
        transcript: None,
    })))
}

/// The same, and that is what was said.
pub(super) fn broken_by<T>(
    expected: impl Into<String>,
    seen: impl Into<String>,
    outcome: &PeerOutcome,
) -> Result<T, CheckFailure> {
    Err(CheckFailure::Broken(Box::new(Broken {
        expected: expected.into(),
        seen: seen.into(),
        transcript: Some(outcome.transcript.to_string()),
    })))
}

/// That can't be checked; why.
pub(super) fn not_applicable<T>(why: impl Into<String>) -> Result<T, CheckFailure> {
    Err(CheckFailure::NotApplicable(why.into()))
}

impl CheckCase<'_> {
    /// Goes on only if the target can do that.
    pub(super) fn needs(&self, need: Need) -> Result<(), CheckFailure> {
        match self.target.lacks(need) {
            Some(why) => not_applicable(why),
            None => Ok(()),
        }
    }

    pub(super) fn can(&self, need: Need) -> bool {
        self.target.lacks(need).is_none()
    }

    /// What the target says it does instead of keeping this guarantee.
    pub(super) fn deviation(&self) -> Option<&'static Deviation> {
        self.target.deviation(self.guarantee)
    }

    /// How many peers it serves at a time under these settings, by design.
    pub(super) fn places(&self, settings: &TargetSettings) -> usize {
        self.target.places(settings, self.placement)
    }

    /// Starts the server, and waits until it listens.
    pub(super) fn start(&self, settings: &TargetSettings) -> Result<RunningTarget, CheckFailure> {
        self.go_on()?;
        let running = self
            .target
            .start(self.asked.protocol, settings, self.placement)?;
        Ok(running)
    }

    /// Where peers act, in front of it.
    pub(super) fn driver(&self, running: &RunningTarget) -> Result<PeerDriver, CheckFailure> {
        let options = PeerDriverOptions {
            patience: PATIENCE,
            interrupted: Some(Arc::clone(self.interrupted)),
            ..PeerDriverOptions::default()
        };
        Ok(PeerDriver::open(running.address, options)?)
    }

    /// Whether nobody has pressed Ctrl-C. To be asked wherever time goes by.
    pub(super) fn go_on(&self) -> Result<(), CheckFailure> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(CheckFailure::Interrupted);
        }
        Ok(())
    }

    /// Lets time go by.
    pub(super) fn pause(&self, time: Duration) -> Result<(), CheckFailure> {
        let end = std::time::Instant::now() + time;
        loop {
            self.go_on()?;
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Waits until something is so, for [`PATIENCE`] at most; says whether it came to be so.
    pub(super) fn eventually(&self, mut so: impl FnMut() -> bool) -> Result<bool, CheckFailure> {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            self.go_on()?;
            if so() {
                return Ok(true);
            }
            if std::time::Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What a well-behaved client does: so many requests (fewer, if a conversation has fewer), and then it ends its side
    /// and hears the server's end.
    pub(super) fn well_behaved(&self, client: usize, requests: u64) -> PeerScript {
        // Of these the server ends the conversation.
        let mut actions = vec![Action::Converse {
            script: self.asked.scripts(client),
            requests: self.asked.requests(requests),
            cut: Cut::Whole,
        }];
        if self.asked.protocol.requests_per_connection.is_none() {
            actions.push(Action::HalfClose);
        }
        actions.push(Action::ExpectFin);
        PeerScript::new(actions)
    }

    /// Lets so many well-behaved clients come, and have their answers: the server is alive and well. `when` says after
    /// what, for whoever reads that it is not.
    pub(super) fn serves(
        &self,
        driver: &PeerDriver,
        clients: usize,
        when: &str,
    ) -> Result<(), CheckFailure> {
        let peer_scripts = (0..clients).map(|client| self.well_behaved(1000 + client, 3));
        let outcomes = driver.enter(peer_scripts.collect()).finish(2 * PATIENCE);
        self.go_on()?;
        self.all_done(&outcomes, when)
    }

    /// All of them came to the end of their actions, and nothing went wrong. `who` says who they are.
    pub(super) fn all_done(&self, outcomes: &[PeerOutcome], who: &str) -> Result<(), CheckFailure> {
        self.go_on()?;
        // Who had a fault explains those who only came to no end.
        let faulty = outcomes.iter().find(|outcome| outcome.fault.is_some());
        let undone = || outcomes.iter().find(|outcome| !outcome.done);
        let Some(outcome) = faulty.or_else(undone) else {
            return Ok(());
        };
        match &outcome.fault {
            Some(fault) if fault.kind == FaultKind::Local => {
                return Err(anyhow!("{who}: this side could not do its part: {fault}").into());
            }
            _ => {}
        }
        match &outcome.fault {
            Some(fault) => broken_by(
                format!("{who}: {}", fault.expected),
                fault.seen.clone(),
                outcome,
            ),
            None => broken_by(
                format!("{who}: an end of what client {} does", outcome.number),
                "none in the time that there was",
                outcome,
            ),
        }
    }

    /// Lets a kind of misbehaving clients in; `None`: that can't be done over this protocol.
    pub(super) fn misbehave(&self, kind: &Misbehaviour, clients: usize) -> Option<Vec<PeerScript>> {
        kind.peer_scripts(self.asked, clients)
    }

    /// Stops the server. Ours must end by itself, in order; with others that is a guarantee of its own, and who breaks it
    /// does not break all the others. Gives its tally, where it gives one.
    pub(super) fn stop(&self, running: RunningTarget) -> Result<Option<Tally>, CheckFailure> {
        let panics = running.panics;
        let Some(end) = running.stop() else {
            return Ok(None);
        };
        // Of others too, this concerns how they end, which is judged once (`stop`): not in every column.
        if self.target.model().is_some() {
            self.ended_well(&end)?;
            match &end.tally {
                Some(tally) if tally.failed > 0 && !panics => {
                    return broken("that no session panics", format!("{tally}"));
                }
                _ => {}
            }
        }
        Ok(end.tally)
    }

    /// It ended by itself, with status 0, and its tally adds up.
    pub(super) fn ended_well(&self, end: &ServerExit) -> Result<(), CheckFailure> {
        if !end.status.is_some_and(|status| status.success()) {
            return broken(
                "that it ends by itself after SIGTERM, with status 0",
                end.problems.join("; "),
            );
        }
        if end.left_behind > 0 {
            return broken(
                "that all its processes have ended when the first has",
                format!("{} that were still there", end.left_behind),
            );
        }
        match &end.tally {
            Some(tally) if !tally.adds_up() => broken(
                "a tally in which all who were accepted are accounted for",
                format!("{tally}"),
            ),
            _ => Ok(()),
        }
    }

    /// Kills it, where only what came before matters.
    pub(super) fn kill(&self, running: RunningTarget) {
        if let Some(server) = running.into_server() {
            let _ = server.signal(Signal::SIGKILL);
            drop(server);
        }
    }
}

/// Waits until the peers of a group have come so far, or it is clear that they never will.
pub(super) fn reaches(
    case: &CheckCase<'_>,
    group: &client::PeerGroup,
    until: impl Fn(&GroupProgress) -> bool,
) -> Result<bool, CheckFailure> {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        case.go_on()?;
        if group.wait(Duration::from_millis(50), &until) {
            return Ok(true);
        }
        if std::time::Instant::now() >= end {
            return Ok(false);
        }
    }
}

/// For messages.
pub(super) fn kind(name: &str) -> &'static Misbehaviour {
    Misbehaviour::find(name).unwrap_or_else(|why| unreachable!("{why}"))
}
