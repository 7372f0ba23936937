//! The load generator, and the scripted peers that misbehave.
//!
//! The load generator runs one plain event loop per thread and no async runtime, so that it favours none of the
//! servers. It checks every reply byte by byte, records every latency, and counts every failure by kind.
//!
//! [`drive`] takes a [`Plan`] (which requests to send, and when) and returns a [`Report`] (what was measured).
//! [`drive_slices`] loads several servers in turn, for some milliseconds each. Their modules: `engine` is the event loop
//! and the path of a request through it, `slices` runs the event loops of several servers in turn, `connection` is one
//! client and its socket, `timers` holds the times at which something is due, `schedule` computes the planned send times
//! of an open loop, `timeline` divides a window into steps, `barrier` holds the state that the threads share.
//!
//! [`PeerDriver`] runs the scripted peers; [`misbehave`] lists the kinds of misbehaving clients.

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
mod slices;
mod timeline;
mod timers;

pub use actions::{Action, Cut, PeerScript, ScriptFactory};
pub use peer::{FaultKind, PeerFault, PeerOutcome, Transcript};
pub use peer_driver::{GroupProgress, PeerDriver, PeerDriverOptions, PeerGroup};

pub use plan::{Arrivals, Load, Plan};
pub use report::{Errors, Fairness, Report, histogram};
pub use slices::{
    DRAIN_LIMIT, Edge, EdgeKind, Slice, SliceReport, SlicedLoad, SlicedReport, drive_slices,
};
pub use timeline::{TIMELINE_STEP, TimelineStep};

use barrier::Shared;
use engine::{EventLoop, Finished};
use timers::{Clock, nanos};

/// Highest rate that can be planned, in requests per second. Above it, planned times would be closer together than a
/// clock can tell apart.
pub const MAX_RATE: f64 = 1e7;

/// Reason why a plan was not driven at all. Failures of single requests are counted in [`Report::errors`] instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// [`Plan::connections`] is zero.
    #[error("no request would be sent: the number of connections must be at least 1")]
    NoConnections,
    /// [`Plan::threads`] is zero.
    #[error("no request would be sent: the number of client threads must be at least 1")]
    NoThreads,
    /// The number of messages or of rounds in [`Load::Messages`] is zero.
    #[error("no request would be sent: messages and rounds must both be at least 1")]
    NothingToAsk,
    /// The rate is not a positive number, or is higher than any server could answer ([`MAX_RATE`]).
    #[error("the rate must be greater than 0 and at most {MAX_RATE} requests per second, not {0}")]
    Rate(f64),
    /// The measured duration, or the limit of [`Load::Messages`], is zero.
    #[error("nothing would be measured: the duration must be greater than zero")]
    NoDuration,
    /// [`Plan::timeout`] is zero.
    #[error("every request would time out at once: the time-out must be greater than zero")]
    NoTimeout,
    /// The system refused a poll, a waker or a timer.
    #[error("cannot set up an event loop: {0}; check the limit on open files (ulimit -n)")]
    Setup(#[source] io::Error),
    /// The system refused to start a thread.
    #[error("cannot start a client thread: {0}; use fewer client threads")]
    Thread(#[source] io::Error),
    /// Waiting for events failed.
    #[error("waiting for events failed: {0}")]
    Poll(#[source] io::Error),
    /// Setting the timer failed.
    #[error("setting a timer failed: {0}")]
    Timer(#[source] io::Error),
    /// A [`SlicedLoad`] has no plans or no slices.
    #[error("nothing would be measured: a sliced load needs a server and a slice")]
    NoSlices,
    /// A [`Slice`] names a server that has no plan.
    #[error("a slice is for server {0}, but there are only {1} servers, counted from 0")]
    NoSuchServer(usize, usize),
    /// A plan of a [`SlicedLoad`] has several threads.
    #[error("a sliced load runs on one thread, not {0}")]
    OneThread(usize),
    /// A plan of a [`SlicedLoad`] ends by itself.
    #[error(
        "a load with a number of messages cannot be driven in slices; use a closed or an open loop"
    )]
    NotSliceable,
    /// The threads could not be bound to [`Plan::cpus`].
    #[error(
        "cannot bind the client to CPUs {cpus:?}: {why}; give CPUs that this process may use, or none"
    )]
    Affinity {
        /// The CPUs of the plan.
        cpus: Vec<usize>,
        /// The system's error.
        #[source]
        why: io::Error,
    },
}

/// Receiver of notifications while a load is driven. All methods are called on the thread that called [`drive`], never
/// on an event loop, so a slow watcher delays itself and no request.
pub trait Watch: Sync {
    /// Notifies that the measured window begins now. Called once; not called if the drive ends before that.
    fn measuring(&self) {}

    /// Notifies that the measured window ends now. Called once, if the window began.
    fn measured(&self) {}

    /// Notifies of the progress, about ten times a second.
    fn progress(&self, snapshot: Snapshot) {
        let _ = snapshot;
    }
}

/// Watcher that ignores all notifications.
impl Watch for () {}

/// Progress of a drive, warm-up included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Time since the drive began.
    pub elapsed: Duration,
    /// Number of correct replies so far.
    pub replies: u64,
    /// Number of failed requests and failed connects so far.
    pub errors: u64,
    /// Number of connections that are open now.
    pub open: u64,
}

/// Interval at which the calling thread checks `stop`, in nanoseconds: half of the guaranteed 100 ms.
const STOP_CHECK_INTERVAL: u64 = 50_000_000;

/// Interval at which [`Watch::progress`] is called, in nanoseconds.
const PROGRESS_INTERVAL: u64 = 100_000_000;

/// Drives `plan` to its end, and blocks until then. Once `stop` is true, the drive ends within 100 ms, and the report
/// holds what was measured until then.
///
/// # Errors
///
/// Returns an error if the plan makes no sense, or if the system refuses something that the whole drive needs. A server
/// that cannot be reached is not an error of the drive: that is a result, and is in the report.
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
                // The membership ends with the thread, also by a panic: the other threads wait for this one.
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
                // The scope waits for the threads that were started.
                shared.end();
                DriveError::Thread(why)
            })?);
        }
        monitor(plan, watch, stop, shared);
        let mut total = Report::new(plan.connections);
        // All connections are closed together, after the last thread has measured; see `EventLoop::finish`.
        let mut still_open = Vec::with_capacity(threads);
        for handle in handles {
            match handle.join() {
                Ok(finished) => {
                    let Finished { report, clients } = finished?;
                    total.merge(&report);
                    still_open.push(clients);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(total)
    })
}

/// Checks the clock and `stop` on the calling thread while the event loops run, and notifies the watcher.
fn monitor(plan: &Plan, watch: &dyn Watch, stop: &AtomicBool, shared: &Shared) {
    let length = match &plan.load {
        Load::Messages { .. } => None,
        Load::Closed { duration, .. } | Load::Open { duration, .. } => Some(nanos(*duration)),
    };
    let _end = shared.end_on_drop();
    let mut begin_reported = false;
    let mut end_reported = false;
    let mut next_progress = PROGRESS_INTERVAL;
    loop {
        // Read first, so that a window that ends with the drive is still reported below.
        let over = shared.all_loops_ended();
        let now = shared.clock.now();
        let mut next = next_progress.min(now + STOP_CHECK_INTERVAL);
        if let Some(begin) = shared.window_begin() {
            // If the drive ends early, its window ends with it.
            let end = length.map_or(u64::MAX, |length| begin.saturating_add(length));
            if !begin_reported && now >= begin {
                watch.measuring();
                begin_reported = true;
            }
            if begin_reported && !end_reported && (now >= end || over) {
                watch.measured();
                end_reported = true;
            }
            if !end_reported {
                next = next.min(if begin_reported { end } else { begin });
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
            next_progress = now + PROGRESS_INTERVAL;
        }
        let pause = next
            .saturating_sub(shared.clock.now())
            .min(STOP_CHECK_INTERVAL);
        if pause > 0 {
            thread::park_timeout(Duration::from_nanos(pause));
        }
    }
}
