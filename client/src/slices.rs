//! Loads on several servers in turn: the client asks one server for some milliseconds (a slice), waits until the
//! replies under way have come, and goes on to the next. While the client asks another server, a server gets nothing
//! and can rest.
//!
//! Each server has an event loop with its connections; one thread runs them one after the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mio::{Poll, Waker};

use crate::barrier::Shared;
use crate::cpu;
use crate::engine::{EventLoop, Finished, Measured, WAKER};
use crate::plan::{Load, Plan};
use crate::report::{Errors, Report};
use crate::timers::Clock;
use crate::{DriveError, STOP_CHECK_INTERVAL};

/// Longest time that the client waits for the replies under way at the end of a slice, and for the first replies before
/// the slices.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Load on several servers in turn.
#[derive(Debug, Clone)]
pub struct SlicedLoad {
    /// Load of each server: [`Load::Closed`] or [`Load::Open`], of which the warm-up and the duration are not used, and
    /// one thread. The CPUs of the first plan are those of the client.
    pub plans: Vec<Plan>,
    /// The slices, in order.
    pub slices: Vec<Slice>,
}

/// Slice of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Index of the server's plan.
    pub server: usize,
    /// Time at the beginning in which requests are sent but not counted.
    pub lead: Duration,
    /// Time that is counted.
    pub length: Duration,
    /// Seed of the planned send times of an open loop. Two servers with the same seed get the same plan.
    pub seed: u64,
}

/// Edge of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Index of the slice.
    pub slice: usize,
    /// Index of the server's plan.
    pub server: usize,
    /// Kind of the edge.
    pub kind: EdgeKind,
}

/// Kind of an edge, in the order in which they come. A slice whose counted part does not begin has the first and the last
/// only: the drive was stopped before, or all clients of the server have given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EdgeKind {
    /// The server is asked from now on.
    Wake,
    /// The counted part begins.
    Begin,
    /// The counted part ends.
    End,
    /// The replies under way have come, or the client waits for them no longer. The server gets nothing from now on.
    Rest,
}

/// Measurements of one slice. Its times of requests are in the [`Report`] of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceReport {
    /// Index of the slice.
    pub slice: usize,
    /// Index of the server's plan.
    pub server: usize,
    /// Index of the step in the [time line](Report::timeline) of the server.
    pub step: usize,
    /// Beginning of the counted part, since the beginning of the drive.
    pub begin: Duration,
    /// Length of the counted part: in a closed loop from edge to edge as they were met, in an open loop as planned.
    /// Shorter if the drive was stopped in it, or all clients gave up.
    pub window: Duration,
    /// Number of correct replies whose last byte came in the counted part.
    pub completed: u64,
    /// Number of correct replies in the whole slice.
    pub replies_in_all: u64,
    /// Number of requests planned in the counted part that got a correct reply, in the drain at the latest.
    pub replies: u64,
    /// Number of requests planned in the counted part, or under way from before it until after it, that had no reply at
    /// the end of the drain.
    pub unanswered: u64,
    /// Failed requests of the whole slice, by kind.
    pub errors: Errors,
    /// CPU time that the client used in the counted part, without the time in `at_edge`.
    pub client_cpu: Duration,
    /// Number of bytes sent in the whole slice.
    pub sent: u64,
    /// Number of bytes received in the whole slice.
    pub received: u64,
    /// Whether all replies came before the client waited no longer.
    pub drained: bool,
}

impl SliceReport {
    fn new(slice: usize, server: usize, measured: &Measured) -> SliceReport {
        let counts = measured.counts;
        SliceReport {
            slice,
            server,
            step: measured.step,
            begin: Duration::from_nanos(measured.begin),
            window: Duration::from_nanos(measured.window),
            completed: counts.completed,
            replies_in_all: counts.replies_in_all,
            replies: counts.replies,
            unanswered: counts.unanswered,
            errors: counts.errors,
            client_cpu: measured.cpu,
            sent: counts.sent,
            received: counts.received,
            drained: measured.drained,
        }
    }
}

/// Measurements of a sliced load.
#[derive(Debug, Clone)]
pub struct SlicedReport {
    /// Measurements of each server over all its slices, in the order of the plans. The window is the sum of the counted
    /// parts.
    pub servers: Vec<Report>,
    /// The slices whose counted part began, in order. Failures in the lead of another slice are in `servers` only.
    pub slices: Vec<SliceReport>,
}

impl SlicedLoad {
    fn check(&self) -> Result<(), DriveError> {
        if self.plans.is_empty() || self.slices.is_empty() {
            return Err(DriveError::NoSlices);
        }
        for slice in &self.slices {
            if slice.server >= self.plans.len() {
                return Err(DriveError::NoSuchServer(slice.server, self.plans.len()));
            }
            if slice.length.is_zero() {
                return Err(DriveError::NoDuration);
            }
        }
        for plan in &self.plans {
            plan.check_load()?;
            if plan.threads != 1 {
                return Err(DriveError::OneThread(plan.threads));
            }
            if matches!(plan.load, Load::Messages { .. }) {
                return Err(DriveError::NotSliceable);
            }
        }
        Ok(())
    }
}

/// Drives a load in slices, and blocks until its end. All connections are opened first, and each has one correct reply
/// before the first slice begins, or has failed ([`DRAIN_LIMIT`]).
///
/// At the beginning of a slice each client of the server sends a request at once (closed loop), or a new plan of send
/// times begins (open loop). At the end of the counted part, no more requests are planned; those planned before are
/// still sent and their replies awaited. A request without a reply after [`DRAIN_LIMIT`] is unanswered, and its
/// connection is closed. Failed requests fail as in [`drive`](crate::drive); those in the lead and in the drain are
/// counted too.
///
/// Once `stop` is true, the drive ends within 100 ms, and the report holds what was measured until then.
///
/// `at_edge` is called on the thread of the event loops, which does nothing else meanwhile: it can read the CPU clock of
/// a server exactly at the edges of its slice, and must be quick.
///
/// # Errors
///
/// Returns an error if the load makes no sense, or if the system refuses something that the drive needs. A server that
/// cannot be reached is not an error of the drive: that is in its report.
pub fn drive_slices(
    load: &SlicedLoad,
    at_edge: &mut (dyn FnMut(Edge) + Send),
    stop: &AtomicBool,
) -> Result<SlicedReport, DriveError> {
    load.check()?;
    let clock = Clock::start();
    let mut polls = Vec::with_capacity(load.plans.len());
    let mut states = Vec::with_capacity(load.plans.len());
    for plan in &load.plans {
        let poll = Poll::new().map_err(DriveError::Setup)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(DriveError::Setup)?;
        states.push(Shared::new(clock, vec![waker], plan.connections));
        polls.push(poll);
    }
    let states = &states;
    thread::scope(|scope| {
        let body = move || -> Result<SlicedReport, DriveError> {
            cpu::pin(&load.plans[0].cpus)?;
            let loops: Vec<EventLoop<'_>> = load
                .plans
                .iter()
                .zip(states)
                .zip(polls)
                .map(|((plan, shared), poll)| EventLoop::new(plan, shared, 0, poll))
                .collect::<Result<_, _>>()?;
            run(load, loops, at_edge, stop)
        };
        let thread = thread::Builder::new()
            .name("client".to_string())
            .spawn_scoped(scope, body)
            .map_err(DriveError::Thread)?;
        while !thread.is_finished() {
            if stop.load(Ordering::Relaxed) {
                states.iter().for_each(Shared::end);
            }
            thread::park_timeout(Duration::from_nanos(STOP_CHECK_INTERVAL));
        }
        match thread.join() {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn run(
    load: &SlicedLoad,
    mut loops: Vec<EventLoop<'_>>,
    at_edge: &mut dyn FnMut(Edge),
    stop: &AtomicBool,
) -> Result<SlicedReport, DriveError> {
    for one in &mut loops {
        one.open_for_slices()?;
    }
    let mut slices = Vec::with_capacity(load.slices.len());
    for (number, slice) in load.slices.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut edge = |kind| {
            at_edge(Edge {
                slice: number,
                server: slice.server,
                kind,
            });
        };
        edge(EdgeKind::Wake);
        let measured = loops[slice.server].run_slice(slice, &mut |begins| {
            edge(if begins {
                EdgeKind::Begin
            } else {
                EdgeKind::End
            });
        })?;
        edge(EdgeKind::Rest);
        slices.extend(measured.map(|measured| SliceReport::new(number, slice.server, &measured)));
    }
    let finished: Vec<Finished> = loops.into_iter().map(EventLoop::finish_slices).collect();
    Ok(SlicedReport {
        // All connections are closed together, after the last slice.
        servers: finished.into_iter().map(|one| one.report).collect(),
        slices,
    })
}
