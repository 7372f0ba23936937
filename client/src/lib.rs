//! Who asks: the load generator.
//!
//! One plain event loop per thread and no async runtime, so that it favours none of the servers. Every reply is
//! checked byte by byte, every latency is recorded, and what can go wrong is counted by kind.
//!
//! [`drive`] takes a [`Plan`] (what to ask, and when) and gives a [`Report`] (what came of it). Who reads on:
//! `engine` is the event loop and the story of a request, `connection` is one client and its socket, `timers` is
//! what is due when, `schedule` is the planned times of an open loop, `barrier` is what the threads share.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mio::{Poll, Waker};

mod actions;
mod barrier;
mod connection;
mod cpu;
mod engine;
pub mod misbehave;
mod peer;
mod peer_driver;
mod plan;
mod report;
mod schedule;
mod timers;

pub use actions::{Action, Cut, PeerScript, ScriptFactory};
pub use peer::{FaultKind, PeerFault, PeerOutcome, Transcript};
pub use peer_driver::{GroupProgress, PeerDriver, PeerDriverOptions, PeerGroup};

pub use plan::{Arrivals, Load, Plan};
pub use report::{Errors, Fairness, Report, histogram};

use barrier::Shared;
use engine::{EventLoop, Finished};
use timers::{Clock, nanos};

/// The highest rate that can be planned, in requests per second. Above it, planned times would be closer than a clock
/// can tell apart.
pub const MAX_RATE: f64 = 1e7;

/// Why a plan was not driven at all. What goes wrong with single requests is in [`Report::errors`] instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// [`Plan::connections`] is zero.
    #[error("nobody would ask: the number of connections must be at least 1")]
    NoConnections,
    /// [`Plan::threads`] is zero.
    #[error("nobody would ask: the number of client threads must be at least 1")]
    NoThreads,
    /// Messages or rounds are zero.
    #[error("nothing would be asked: messages and rounds must both be at least 1")]
    NothingToAsk,
    /// A rate that is not a positive number, or more than any server could answer ([`MAX_RATE`]).
    #[error(
        "the rate must be a number of requests per second above 0 and up to {MAX_RATE}, not {0}"
    )]
    Rate(f64),
    /// The measured time, or the limit, is zero.
    #[error("nothing would be measured: the duration must be longer than zero")]
    NoDuration,
    /// [`Plan::timeout`] is zero.
    #[error("every request would time out at once: the time-out must be longer than zero")]
    NoTimeout,
    /// The system gave no poll, waker or timer.
    #[error("cannot set up an event loop: {0}; check the limit on open files (ulimit -n)")]
    Setup(#[source] io::Error),
    /// The system gave no thread.
    #[error("cannot start a client thread: {0}; use fewer client threads")]
    Thread(#[source] io::Error),
    /// Waiting for events failed.
    #[error("waiting for events failed: {0}")]
    Poll(#[source] io::Error),
    /// Setting the timer failed.
    #[error("setting a timer failed: {0}")]
    Timer(#[source] io::Error),
    /// The threads could not be bound to [`Plan::cpus`].
    #[error(
        "cannot run the client on CPUs {cpus:?}: {why}; name CPUs that this process may use, or none"
    )]
    Affinity {
        /// What was asked for.
        cpus: Vec<usize>,
        /// What the system said.
        #[source]
        why: io::Error,
    },
}

/// Told what happens while it happens. All methods are called on the thread that called [`drive`], never on an event
/// loop: so a slow watcher delays itself and no request.
pub trait Watch: Sync {
    /// The measured window begins now (once; not at all if the drive ends before).
    fn measuring(&self) {}

    /// The measured window ends now (once, if it began).
    fn measured(&self) {}

    /// About ten times a second.
    fn progress(&self, snapshot: Snapshot) {
        let _ = snapshot;
    }
}

/// Nobody watches.
impl Watch for () {}

/// How far a drive has come, warm-up included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Since the drive began.
    pub elapsed: Duration,
    /// Right replies so far.
    pub replies: u64,
    /// Failed requests and connects so far.
    pub errors: u64,
    /// Connections that are open now.
    pub open: u64,
}

/// How often the calling thread looks at `stop`; half of the promised 100 ms.
const TICK: u64 = 50_000_000;

/// How often [`Watch::progress`] is told.
const PROGRESS: u64 = 100_000_000;

/// Drives `plan` to its end, and blocks until then. Once `stop` is true it ends within 100 ms, and reports what was
/// measured until then.
///
/// # Errors
///
/// A plan that makes no sense, or what the system refuses to the whole drive. A server that cannot be reached is not
/// an error of the drive: that is a result, and is in the report.
pub fn drive(plan: &Plan, watch: &dyn Watch, stop: &AtomicBool) -> Result<Report, DriveError> {
    plan.check()?;
    let threads = plan.threads.min(plan.connections);
    let polls: Vec<Poll> = (0..threads)
        .map(|_| Poll::new())
        .collect::<io::Result<_>>()
        .map_err(DriveError::Setup)?;
    let wakers = polls
        .iter()
        .map(|poll| Waker::new(poll.registry(), engine::WAKER))
        .collect::<io::Result<_>>()
        .map_err(DriveError::Setup)?;
    let shared = Shared::new(Clock::start(), wakers, plan.connections);
    thread::scope(|scope| {
        let shared = &shared;
        let mut handles = Vec::with_capacity(threads);
        for (number, poll) in polls.into_iter().enumerate() {
            let body = move || {
                // Given up in any case, also by a panic: the others wait for this one.
                let _member = shared.member();
                let finished = cpu::pin(&plan.cpus)
                    .and_then(|()| EventLoop::new(plan, shared, number, poll))
                    .and_then(EventLoop::run);
                if finished.is_err() {
                    shared.end();
                }
                finished
            };
            let thread = thread::Builder::new().name(format!("client-{number}"));
            let started = thread.spawn_scoped(scope, body);
            handles.push(started.map_err(|why| {
                // The scope waits for those that were started.
                shared.end();
                DriveError::Thread(why)
            })?);
        }
        attend(plan, watch, stop, shared);
        let mut whole = Report::new(plan.connections);
        // Closed together, after the last thread has measured; see `EventLoop::finish`.
        let mut still_open = Vec::with_capacity(threads);
        for handle in handles {
            match handle.join() {
                Ok(finished) => {
                    let Finished { report, clients } = finished?;
                    whole.merge(&report);
                    still_open.push(clients);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(whole)
    })
}

/// What the calling thread does meanwhile: it watches the clock and `stop`, and tells the watcher.
fn attend(plan: &Plan, watch: &dyn Watch, stop: &AtomicBool, shared: &Shared) {
    let length = match &plan.load {
        Load::Messages { .. } => None,
        Load::Closed { duration, .. } | Load::Open { duration, .. } => Some(nanos(*duration)),
    };
    let _end = shared.end_on_drop();
    let mut told_begin = false;
    let mut told_end = false;
    let mut next_progress = PROGRESS;
    loop {
        // Looked at first, so that a window that ends with the drive is still told below.
        let over = shared.all_left();
        let now = shared.clock.now();
        let mut next = next_progress.min(now + TICK);
        if let Some(begin) = shared.window_begin() {
            // A drive that was ended early has the end of its window then.
            let end = length.map_or(u64::MAX, |length| begin.saturating_add(length));
            if !told_begin && now >= begin {
                watch.measuring();
                told_begin = true;
            }
            if told_begin && !told_end && (now >= end || over) {
                watch.measured();
                told_end = true;
            }
            if !told_end {
                next = next.min(if told_begin { end } else { begin });
            }
        }
        if over {
            return;
        }
        if stop.load(Ordering::Relaxed) {
            shared.end();
        }
        if now >= next_progress {
            watch.progress(shared.snapshot());
            next_progress = now + PROGRESS;
        }
        let pause = next.saturating_sub(shared.clock.now()).min(TICK);
        if pause > 0 {
            thread::park_timeout(Duration::from_nanos(pause));
        }
    }
}
