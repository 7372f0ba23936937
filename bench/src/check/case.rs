//! The check of one guarantee of one target.

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

/// Time for which a check waits at most for an event that must come. It is never a measure of anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// One guarantee of one target, and the conditions of its check.
pub(super) struct CheckCase<'a> {
    pub(super) target: &'a Target,
    pub(super) guarantee: Guarantee,
    /// Protocol and contents of the requests.
    pub(super) spec: &'a RequestSpec,
    pub(super) placement: &'a Placement,
    /// Whether to check only what can be seen in little time.
    pub(super) quick: bool,
    pub(super) interrupted: &'a Arc<AtomicBool>,
}

/// Result of a check whose guarantee is kept, or is broken by design and exactly as declared.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Measured value for a cell of the matrix, as short as `+4 ms`.
    pub(super) figure: Option<String>,
    /// Measured values that do not fit into the matrix, one line each.
    pub(super) details: Vec<String>,
    /// Observed behaviour if the guarantee is broken by design; the model declares this behaviour.
    pub(super) by_design: Option<String>,
}

/// Reason why a check did not pass.
#[derive(Debug)]
pub(super) enum CheckFailure {
    /// The guarantee can't be checked for this target or over this protocol; the text is the reason.
    NotApplicable(String),
    /// The guarantee is broken.
    Broken(Box<Broken>),
    /// The check itself could not be done.
    CheckError(anyhow::Error),
    /// Ctrl-C was pressed.
    Interrupted,
}

/// Evidence that a guarantee is broken.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) expected: String,
    pub(super) seen: String,
    /// Conversation of the peer that saw it, byte by byte.
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

/// Result of a check.
pub(super) type Verdict = Result<Passed, CheckFailure>;

impl Passed {
    /// Returns a result that passed and has nothing measured.
    pub(super) fn plain() -> Verdict {
        Ok(Passed::default())
    }
}

/// Returns the failure of a check whose guarantee is broken.
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

/// Returns the failure of a check whose guarantee is broken, with the transcript of a peer.
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

/// Returns the failure of a check that can't be done for this target or over this protocol; `why` is the reason.
pub(super) fn not_applicable<T>(why: impl Into<String>) -> Result<T, CheckFailure> {
    Err(CheckFailure::NotApplicable(why.into()))
}

impl CheckCase<'_> {
    /// Fails as not applicable if the target does not meet this need.
    pub(super) fn needs(&self, need: Need) -> Result<(), CheckFailure> {
        match self.target.lacks(need) {
            Some(why) => not_applicable(why),
            None => Ok(()),
        }
    }

    /// Returns whether the target meets this need.
    pub(super) fn supports(&self, need: Need) -> bool {
        self.target.lacks(need).is_none()
    }

    /// Returns the deviation that the target declares from this guarantee.
    pub(super) fn deviation(&self) -> Option<&'static Deviation> {
        self.target.deviation(self.guarantee)
    }

    /// Returns the number of peers that the target serves at a time under these settings, by design.
    pub(super) fn slots(&self, settings: &TargetSettings) -> usize {
        self.target.slots(settings, self.placement)
    }

    /// Starts the server, and waits until it listens.
    pub(super) fn start(&self, settings: &TargetSettings) -> Result<RunningTarget, CheckFailure> {
        self.check_interrupted()?;
        let running = self
            .target
            .start(self.spec.protocol, settings, self.placement)?;
        Ok(running)
    }

    /// Opens a driver whose peers connect to this server.
    pub(super) fn driver(&self, running: &RunningTarget) -> Result<PeerDriver, CheckFailure> {
        let options = PeerDriverOptions {
            patience: PATIENCE,
            interrupted: Some(Arc::clone(self.interrupted)),
            ..PeerDriverOptions::default()
        };
        Ok(PeerDriver::open(running.address, options)?)
    }

    /// Fails if Ctrl-C was pressed. To be called in every loop and wait that takes time.
    pub(super) fn check_interrupted(&self) -> Result<(), CheckFailure> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(CheckFailure::Interrupted);
        }
        Ok(())
    }

    /// Sleeps for this time, or until Ctrl-C is pressed.
    pub(super) fn pause(&self, time: Duration) -> Result<(), CheckFailure> {
        let end = std::time::Instant::now() + time;
        loop {
            self.check_interrupted()?;
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Waits until a condition is true, for at most [`PATIENCE`]. Returns whether it became true.
    pub(super) fn eventually(
        &self,
        mut condition: impl FnMut() -> bool,
    ) -> Result<bool, CheckFailure> {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            self.check_interrupted()?;
            if condition() {
                return Ok(true);
            }
            if std::time::Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns the script of a well-behaved client: it has this number of requests answered (fewer, if the protocol
    /// allows fewer in a conversation), ends its side, and expects the server's FIN.
    pub(super) fn well_behaved(&self, client: usize, requests: u64) -> PeerScript {
        // If the protocol limits the requests of a conversation, the server ends it.
        let mut actions = vec![Action::Converse {
            script: self.spec.scripts(client),
            requests: self.spec.requests(requests),
            cut: Cut::Whole,
        }];
        if self.spec.protocol.requests_per_connection.is_none() {
            actions.push(Action::HalfClose);
        }
        actions.push(Action::ExpectFin);
        PeerScript::new(actions)
    }

    /// Checks that the server serves this number of well-behaved clients. `when` describes the situation, for the
    /// report of a failure.
    pub(super) fn serves(
        &self,
        driver: &PeerDriver,
        clients: usize,
        when: &str,
    ) -> Result<(), CheckFailure> {
        let peer_scripts = (0..clients).map(|client| self.well_behaved(1000 + client, 3));
        let outcomes = driver.enter(peer_scripts.collect()).finish(2 * PATIENCE);
        self.check_interrupted()?;
        self.all_done(&outcomes, when)
    }

    /// Checks that all peers came to the end of their actions without a fault. `label` describes the peers.
    pub(super) fn all_done(
        &self,
        outcomes: &[PeerOutcome],
        label: &str,
    ) -> Result<(), CheckFailure> {
        self.check_interrupted()?;
        // A fault of one peer explains why the others did not come to the end. So it is reported first.
        let faulty = outcomes.iter().find(|outcome| outcome.fault.is_some());
        let undone = || outcomes.iter().find(|outcome| !outcome.done);
        let Some(outcome) = faulty.or_else(undone) else {
            return Ok(());
        };
        match &outcome.fault {
            Some(fault) if fault.kind == FaultKind::Local => {
                return Err(anyhow!("{label}: the client failed: {fault}").into());
            }
            _ => {}
        }
        match &outcome.fault {
            Some(fault) => broken_by(
                format!("{label}: {}", fault.expected),
                fault.seen.clone(),
                outcome,
            ),
            None => broken_by(
                format!(
                    "{label}: client {} comes to the end of its actions",
                    outcome.number
                ),
                "the client did not finish in time",
                outcome,
            ),
        }
    }

    /// Returns the scripts of this number of clients of a kind; `None` if the kind is not possible over this protocol.
    pub(super) fn misbehave(&self, kind: &Misbehaviour, clients: usize) -> Option<Vec<PeerScript>> {
        kind.peer_scripts(self.spec, clients)
    }

    /// Stops the server, and returns its tally if it prints one. A model must end by itself and without an error. For
    /// an external server that is the guarantee `stop` alone: a server that breaks it does not break all other
    /// guarantees too.
    pub(super) fn stop(&self, running: RunningTarget) -> Result<Option<Tally>, CheckFailure> {
        let panics = running.panics;
        let Some(end) = running.stop() else {
            return Ok(None);
        };
        // The end of an external server is checked once, by `stop`, and not in every column.
        if self.target.model().is_some() {
            self.ended_well(&end)?;
            match &end.tally {
                Some(tally) if tally.failed > 0 && !panics => {
                    return broken("no session panics", format!("{tally}"));
                }
                _ => {}
            }
        }
        Ok(end.tally)
    }

    /// Checks that the server ended by itself with status 0, that all its processes have ended, and that its tally adds
    /// up.
    pub(super) fn ended_well(&self, end: &ServerExit) -> Result<(), CheckFailure> {
        if !end.status.is_some_and(|status| status.success()) {
            return broken(
                "the server ends by itself after SIGTERM, with status 0",
                end.problems.join("; "),
            );
        }
        if end.left_behind > 0 {
            return broken(
                "all processes of the server have ended when its first process has",
                format!("{} of its processes were still there", end.left_behind),
            );
        }
        match &end.tally {
            Some(tally) if !tally.adds_up() => broken(
                "a tally that accounts for every accepted connection",
                format!("{tally}"),
            ),
            _ => Ok(()),
        }
    }

    /// Kills the server, if its end does not matter to the check.
    pub(super) fn kill(&self, running: RunningTarget) {
        if let Some(server) = running.into_server() {
            let _ = server.signal(Signal::SIGKILL);
            drop(server);
        }
    }
}

/// Waits until a group of peers has made this progress, for at most [`PATIENCE`]. Returns whether it has.
pub(super) fn reaches(
    case: &CheckCase<'_>,
    group: &client::PeerGroup,
    until: impl Fn(&GroupProgress) -> bool,
) -> Result<bool, CheckFailure> {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        case.check_interrupted()?;
        if group.wait(Duration::from_millis(50), &until) {
            return Ok(true);
        }
        if std::time::Instant::now() >= end {
            return Ok(false);
        }
    }
}

/// Returns the kind of misbehaving clients with this name, which must exist.
pub(super) fn kind(name: &str) -> &'static Misbehaviour {
    Misbehaviour::find(name).unwrap_or_else(|why| unreachable!("{why}"))
}
