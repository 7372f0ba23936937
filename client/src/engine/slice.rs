//! Slices of an event loop: it asks its server for a while, drains, and rests until the next slice.
//!
//! Between two slices no request and no connect is under way, so that nothing of a slice is counted in another one: what
//! has no reply at the end of the drain is unanswered, and its connection is closed.

use std::time::Duration;

use mio::Events;

use super::{BATCH, EventLoop, Finished, Phase};
use crate::DriveError;
use crate::connection::{Fault, State};
use crate::cpu::cpu_time;
use crate::plan::Load;
use crate::report::{ErrorKind, Errors};
use crate::schedule::Schedule;
use crate::slices::{DRAIN_LIMIT, Slice};
use crate::timeline::TimelineStep;
use crate::timers::{Due, nanos};

/// Length from which on a step of the time line takes in no more slices, in nanoseconds.
const STEP: u64 = 50_000_000;

/// Length of a window whose end is not known yet, in nanoseconds.
const ENDLESS: u64 = u64::MAX / 4;

/// Measurements of a slice. The times are in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Index of the step of the time line to which the slice belongs.
    pub(crate) step: usize,
    /// Beginning of the counted part since the beginning of the drive.
    pub(crate) begin: u64,
    pub(crate) window: u64,
    pub(crate) cpu: Duration,
    pub(crate) drained: bool,
    pub(crate) counts: Counts,
}

/// Counts of an event loop so far, or of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) completed: u64,
    pub(crate) replies_in_all: u64,
    pub(crate) replies: u64,
    pub(crate) unanswered: u64,
    pub(crate) errors: Errors,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Counts {
    fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            completed: self.completed - earlier.completed,
            replies_in_all: self.replies_in_all - earlier.replies_in_all,
            replies: self.replies - earlier.replies,
            unanswered: self.unanswered - earlier.unanswered,
            errors: self.errors.since(&earlier.errors),
            sent: self.sent - earlier.sent,
            received: self.received - earlier.received,
        }
    }
}

/// State of an event loop that runs in slices.
#[derive(Debug, Default)]
pub(crate) struct SliceState {
    /// Time at which the beginning of the counted part was met.
    begin_met: Option<u64>,
    /// Whether the end of the counted part was met.
    end_met: bool,
    /// CPU time of the client in the counted part.
    cpu: Duration,
    /// Time of all windows so far.
    all_windows: u64,
    all_cpu: Duration,
    /// Length of the last step of the time line; 0 if the next slice begins a step.
    step: u64,
}

impl EventLoop<'_> {
    /// Opens all connections, and waits until each has had one reply. A connection that has none when the drain limit is
    /// over has failed.
    pub(crate) fn open_for_slices(&mut self) -> Result<(), DriveError> {
        self.slices = Some(SliceState::default());
        self.phase = Phase::RoundBarrier(self.shared.arrive());
        self.run_phases(&mut |_| {})?;
        if self.shared.ended() {
            return Ok(());
        }
        // Connections that a server has not accepted yet look open: a reply shows that they are served.
        self.forget_timers();
        let start = self.shared.clock.now();
        self.until = start + 1;
        self.asking = true;
        for index in 0..self.clients.len() {
            if self.clients[index].state != State::Finished {
                self.clients[index].planned = start;
                self.wake(index, self.shared.clock.now());
            }
        }
        self.phase = Phase::Grace;
        self.timers.push(start + nanos(DRAIN_LIMIT), Due::End);
        self.run_phases(&mut |_| {})?;
        if self.shared.ended() {
            return Ok(());
        }
        for index in 0..self.clients.len() {
            if self.is_under_way(index) {
                let text = format!("no reply to the first request within {DRAIN_LIMIT:?}");
                let now = self.shared.clock.now();
                self.fail(index, now, Fault::new(ErrorKind::TimedOut, text));
            }
        }
        Ok(())
    }

    /// Runs one slice, and calls `edge` with true at the beginning of its counted part and with false at its end. Both
    /// are called or none. If the drive ends within the counted part, or all clients give up, it ends there. Returns
    /// `None` if the counted part did not begin.
    pub(crate) fn run_slice(
        &mut self,
        slice: &Slice,
        edge: &mut dyn FnMut(bool),
    ) -> Result<Option<Measured>, DriveError> {
        if self.shared.ended() {
            return Ok(None);
        }
        let before = self.counts();
        let start = self.shared.clock.now();
        let begin = start + nanos(slice.lead);
        let end = begin + nanos(slice.length);
        let Some(slices) = &mut self.slices else {
            return Ok(None);
        };
        slices.begin_met = None;
        slices.end_met = false;
        // Pushed before the counted part: its first replies may be handled before the edge.
        let new_step = slices.step == 0;
        if new_step {
            let step = TimelineStep::new(Duration::from_nanos(start));
            self.report.timeline.push(step);
        }
        if matches!(self.plan.load, Load::Open { .. }) {
            self.window_begin = begin;
            self.window_length = end - begin;
            self.until = end;
        } else {
            // The window begins and ends when the edges are met.
            self.window_length = 0;
            self.until = u64::MAX;
        }
        self.forget_timers();
        self.timers.push(begin, Due::WindowBegins);
        self.timers.push(end, Due::WindowEnds);
        self.phase = Phase::Asking;
        self.plan_all(start, Some(slice.seed));
        self.run_phases(edge)?;
        let begin_met = self.slices.as_ref().and_then(|slices| slices.begin_met);
        let Some(begin_met) = begin_met else {
            if new_step {
                self.report.timeline.pop();
            }
            return Ok(None);
        };
        if self.slices.as_ref().is_some_and(|slices| !slices.end_met) {
            self.slice_ends(edge);
        }
        let drained = self.abandon();
        let window = self.window_length;
        // Failures between the slices belong to no window.
        self.window_length = 0;
        let counts = self.counts().since(&before);
        let cpu = self.count_window(window);
        Ok(Some(Measured {
            step: self.report.timeline.len() - 1,
            begin: begin_met,
            window,
            cpu,
            drained,
            counts,
        }))
    }

    /// Adds the counted part of a slice to the report and to the last step of the time line. Returns its CPU time.
    fn count_window(&mut self, window: u64) -> Duration {
        let Some(slices) = &mut self.slices else {
            return Duration::ZERO;
        };
        slices.all_windows += window;
        slices.all_cpu += slices.cpu;
        slices.step += window;
        if slices.step >= STEP {
            slices.step = 0;
        }
        if let Some(step) = self.report.timeline.last_mut() {
            step.length += Duration::from_nanos(window);
            step.client_cpu += slices.cpu;
        }
        slices.cpu
    }

    /// Ends the measurement. The connections stay open until the result is dropped.
    pub(crate) fn finish_slices(mut self) -> Finished {
        let now = self.shared.clock.now();
        self.finalize_served(now);
        for client in &self.clients {
            self.report.per_connection[client.number] = client.completed;
        }
        self.report.completed = self.completed;
        if let Some(slices) = &self.slices {
            self.report.window = Duration::from_nanos(slices.all_windows);
            self.report.cpu = slices.all_cpu;
        }
        self.report.elapsed = Duration::from_nanos(now - self.begin);
        Finished {
            report: self.report,
            clients: self.clients,
        }
    }

    /// Meets the beginning of the counted part.
    pub(super) fn slice_begins(&mut self, edge: &mut dyn FnMut(bool)) {
        edge(true);
        let now = self.shared.clock.now();
        let Some(slices) = &mut self.slices else {
            return;
        };
        slices.begin_met = Some(now);
        if self.window_length == 0 {
            self.window_begin = now;
            self.window_length = ENDLESS;
        }
        self.cpu_at_begin = Some(cpu_time());
    }

    /// Meets the end of the counted part.
    pub(super) fn slice_ends(&mut self, edge: &mut dyn FnMut(bool)) {
        let cpu = cpu_time();
        let now = self.shared.clock.now();
        edge(false);
        let Some(slices) = &mut self.slices else {
            return;
        };
        slices.end_met = true;
        let began = self.cpu_at_begin.take().unwrap_or(cpu);
        slices.cpu = cpu.saturating_sub(began);
        // The window of an open loop is the planned one, unless the drive ended before.
        let length = now.saturating_sub(self.window_begin);
        self.window_length = self.window_length.min(length);
        self.until = self.until.min(now);
        self.phase = Phase::Grace;
        self.timers.push(now + nanos(DRAIN_LIMIT), Due::End);
    }

    /// Returns whether a connect or a request of this client is under way.
    fn is_under_way(&self, index: usize) -> bool {
        matches!(
            self.clients[index].state,
            State::Connecting | State::Waiting
        )
    }

    /// Returns whether the drain has to wait for a connect: the request that it is for was planned in the slice.
    pub(super) fn connects_for_slice(&self) -> bool {
        self.slices.is_some()
            && self
                .clients
                .iter()
                .any(|client| client.state == State::Connecting && client.planned < self.until)
    }

    /// Counts the requests that have no reply, and closes their connections: a late reply would disturb the slice of
    /// another server. Returns whether nothing was under way.
    fn abandon(&mut self) -> bool {
        let now = self.shared.clock.now();
        let mut drained = true;
        for index in 0..self.clients.len() {
            let client = &self.clients[index];
            let (planned, scheduled) = (client.planned, client.schedule.is_some());
            let under_way = self.is_under_way(index);
            // A request that was under way from before the window until after it belongs to it too: otherwise a server
            // that stopped replying in the lead would look flawless.
            if under_way && (!scheduled || planned < self.window_begin) {
                self.count_unanswered(index, planned, now - planned);
            }
            if scheduled {
                self.finalize_schedule(index, now);
            }
            if under_way {
                drained = false;
                self.abandon_request(index);
            }
        }
        drained
    }

    fn counts(&self) -> Counts {
        Counts {
            completed: self.completed,
            replies_in_all: self.replies,
            replies: self.report.replies,
            unanswered: self.report.unanswered,
            errors: self.report.errors,
            sent: self.report.sent,
            received: self.report.received,
        }
    }

    /// Runs the loop until its phase is over.
    fn run_phases(&mut self, edge: &mut dyn FnMut(bool)) -> Result<(), DriveError> {
        let mut events = Events::with_capacity(BATCH);
        while self.advance() {
            self.turn(&mut events, edge)?;
        }
        Ok(())
    }

    /// Removes all due events of the last slice.
    fn forget_timers(&mut self) {
        self.timers.clear();
        for client in &mut self.clients {
            client.timeout_check_set = false;
        }
    }

    /// Plans the next request of every client: with a seed and in an open loop by a schedule that begins at `start`,
    /// otherwise at `start`.
    fn plan_all(&mut self, start: u64, seed: Option<u64>) {
        for (index, client) in self.clients.iter_mut().enumerate() {
            client.schedule = match (&self.plan.load, seed) {
                (Load::Open { rate, arrivals, .. }, Some(seed)) => Some(Schedule::new(
                    *arrivals,
                    *rate,
                    client.number,
                    self.plan.connections,
                    seed,
                    start,
                )),
                _ => None,
            };
            client.planned = match &mut client.schedule {
                Some(schedule) => schedule.next(),
                None => start,
            };
            if client.state != State::Finished && client.planned < self.until {
                self.timers.push(client.planned, Due::Wake(index));
            }
        }
    }
}
