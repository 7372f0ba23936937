//! The event loop: its phases, and the events that wake it.
//!
//! The path of a client through it is in `request`, the counting at the end in `finalize`.

mod finalize;
mod request;
mod slice;

pub(crate) use slice::Measured;
use slice::SliceState;

use std::io::ErrorKind;
use std::time::Duration;

use mio::{Events, Poll, Token};

use crate::DriveError;
use crate::barrier::Shared;
use crate::connection::{Client, State};
use crate::cpu::cpu_time;
use crate::plan::{Load, Plan};
use crate::report::Report;
use crate::schedule::Schedule;
use crate::timeline::{Steps, TimelineStep};
use crate::timers::{Due, Timers, nanos};

/// Token of the waker, which wakes the loop from other threads.
pub(crate) const WAKER: Token = Token(usize::MAX - 1);
const TIMER: Token = Token(usize::MAX - 2);

/// Number of sockets per poll, and of due events per iteration, before the loop turns to the others. Large enough that
/// a poll is shared by many sockets, small enough that no client waits long behind the others.
const BATCH: usize = 256;

/// Size of the input buffer, in bytes, and so the most that one read returns. One buffer serves all connections of a
/// thread.
const BUFFER: usize = 64 * 1024;

/// Time from the last thread's arrival at the barrier to the beginning of the load, in nanoseconds: time for all
/// threads to wake.
const START_DELAY: u64 = 5_000_000;

/// Time for which outstanding replies may still arrive after the window, in nanoseconds.
const GRACE: u64 = 250_000_000;

/// Phase of the event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for the other threads before the next round begins.
    RoundBarrier(u64),
    /// Connects all its clients before the first sends a request.
    Opening,
    /// Waits for the other threads before the requests begin.
    AskBarrier(u64),
    /// Sends requests.
    Asking,
    /// The window is over; outstanding replies may still arrive.
    Grace,
    Over,
}

/// Clients of one thread, and the state that is needed to drive them.
pub(crate) struct EventLoop<'d> {
    plan: &'d Plan,
    shared: &'d Shared,
    thread: usize,
    poll: Poll,
    timers: Timers,
    clients: Vec<Client>,
    phase: Phase,
    think: u64,
    timeout: u64,
    /// Number of requests per client and round of [`Load::Messages`]; `None` for the other loads.
    messages: Option<u64>,
    rounds_left: u64,
    /// Number of clients of this round that have not been connected yet (in [`Phase::Opening`]).
    opening: usize,
    /// Number of clients of this round that have not finished.
    active: usize,
    /// Whether the clients of this round may send requests: not while they are held until all are connected.
    asking: bool,
    /// Number of requests that were sent and have no reply yet.
    in_flight: usize,
    /// Beginning of the measured window.
    window_begin: u64,
    /// Length of the measured window. No time is in a window of length 0.
    window_length: u64,
    /// Time from which on no request is sent.
    until: u64,
    /// Time at which the first connects were due; 0 before that.
    begin: u64,
    cpu_at_begin: Option<Duration>,
    cpu_at_end: Option<Duration>,
    report: Report,
    // Figures for `Watch::progress`: they count everything, and not only the window.
    replies: u64,
    failures: u64,
    open: u64,
    /// Number of correct replies that arrived within the window.
    completed: u64,
    /// Steps of the time line; `None` for loads that end by themselves, and in slices.
    steps: Option<Steps>,
    /// CPU time at the end of the last step.
    cpu_at_step: Duration,
    /// State of the slices; `None` if the load is measured as a whole.
    slices: Option<SliceState>,
    /// Clients whose sockets had more bytes than were read in one turn, and whether their connections are closed or
    /// failed.
    unread: Vec<(usize, bool)>,
    /// Buffers for received and sent bytes, used by all clients in turn.
    input: Box<[u8]>,
    request: Vec<u8>,
}

/// Result of a loop that has ended: its measurements, and its clients with the connections that are still open.
pub(crate) struct Finished {
    pub(crate) report: Report,
    pub(crate) clients: Vec<Client>,
}

impl<'d> EventLoop<'d> {
    /// Creates the loop for every client that belongs to `thread`.
    pub(crate) fn new(
        plan: &'d Plan,
        shared: &'d Shared,
        thread: usize,
        poll: Poll,
    ) -> Result<Self, DriveError> {
        let timers = Timers::new(poll.registry(), TIMER).map_err(DriveError::Setup)?;
        let clients = (thread..plan.connections)
            .step_by(shared.threads())
            .map(|number| Client::new(plan, number))
            .collect();
        let (messages, rounds, think) = match plan.load {
            Load::Messages {
                messages,
                rounds,
                think,
                ..
            } => (Some(messages), rounds, think),
            Load::Closed { think, .. } => (None, 1, think),
            Load::Open { .. } => (None, 1, Duration::ZERO),
        };
        Ok(EventLoop {
            plan,
            shared,
            thread,
            poll,
            timers,
            clients,
            phase: Phase::Over,
            think: nanos(think),
            timeout: nanos(plan.timeout),
            messages,
            rounds_left: rounds,
            opening: 0,
            active: 0,
            asking: false,
            in_flight: 0,
            window_begin: 0,
            // With a number of messages, every time is in the window; with a duration, the window has yet to begin.
            window_length: if messages.is_some() { u64::MAX } else { 0 },
            until: u64::MAX,
            begin: 0,
            cpu_at_begin: messages.map(|_| cpu_time()),
            cpu_at_end: None,
            report: Report::new(plan.connections),
            replies: 0,
            failures: 0,
            open: 0,
            completed: 0,
            steps: None,
            cpu_at_step: Duration::ZERO,
            slices: None,
            unread: Vec::new(),
            input: vec![0; BUFFER].into_boxed_slice(),
            request: Vec::new(),
        })
    }

    /// Drives the clients to their end.
    pub(crate) fn run(mut self) -> Result<Finished, DriveError> {
        let mut events = Events::with_capacity(BATCH);
        self.phase = Phase::RoundBarrier(self.shared.arrive());
        while self.advance() {
            self.turn(&mut events, &mut |_| {})?;
        }
        Ok(self.finish())
    }

    /// Waits for events, and handles those that have come. `edge` is called at the edges of a slice.
    fn turn(&mut self, events: &mut Events, edge: &mut dyn FnMut(bool)) -> Result<(), DriveError> {
        let timeout = if self.unread.is_empty() {
            let armed = self.timers.arm(self.shared.clock);
            armed.map_err(DriveError::Timer)?
        } else {
            Some(Duration::ZERO)
        };
        match self.poll.poll(events, timeout) {
            Ok(()) => {}
            Err(why) if why.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(why) => return Err(DriveError::Poll(why)),
        }
        for event in &*events {
            match event.token() {
                // A loop that is woken reads the clock and the shared state in any case.
                WAKER | TIMER => {}
                Token(index) => self.ready(index, event),
            }
        }
        for (index, closed) in std::mem::take(&mut self.unread) {
            self.read(index, closed);
        }
        self.run_due(edge);
        let (replies, failures, open) = (self.replies, self.failures, self.open);
        self.shared.publish(self.thread, replies, failures, open);
        Ok(())
    }

    /// Goes from phase to phase. Returns false at the end.
    fn advance(&mut self) -> bool {
        if self.shared.ended() {
            self.phase = Phase::Over;
        }
        loop {
            match self.phase {
                Phase::RoundBarrier(number) => match self.shared.release_time(number) {
                    Some(now) => self.begin_round(now),
                    None => return true,
                },
                Phase::Opening if self.opening == 0 => {
                    self.phase = Phase::AskBarrier(self.shared.arrive());
                }
                Phase::AskBarrier(number) => match self.shared.release_time(number) {
                    // The connections are open, and the first slice has yet to begin.
                    Some(_) if self.slices.is_some() => self.phase = Phase::Over,
                    Some(now) => self.begin_asking(now),
                    None => return true,
                },
                Phase::Asking if self.messages.is_some() && self.active == 0 => {
                    self.finalize_served(self.shared.clock.now());
                    self.rounds_left -= 1;
                    if self.rounds_left == 0 {
                        self.phase = Phase::Over;
                    } else {
                        self.phase = Phase::RoundBarrier(self.shared.arrive());
                    }
                }
                Phase::Grace if self.in_flight == 0 && !self.connects_for_slice() => {
                    self.phase = Phase::Over;
                }
                Phase::Over => return false,
                Phase::Opening | Phase::Asking | Phase::Grace => return true,
            }
        }
    }

    /// Begins a round: plans the connects of all clients, spread over the ramp.
    fn begin_round(&mut self, now: u64) {
        if self.begin == 0 {
            self.begin = now;
            if let Load::Messages { limit, .. } = self.plan.load {
                self.shared.set_window_begin(now);
                if let Some(limit) = limit {
                    self.timers.push(now + nanos(limit), Due::End);
                }
            }
        }
        self.active = 0;
        let ramp = u128::from(nanos(self.plan.ramp));
        for (index, client) in self.clients.iter_mut().enumerate() {
            if client.gave_up {
                continue;
            }
            let later = ramp * client.number as u128 / self.plan.connections as u128;
            client.begin_round(now + later as u64);
            self.timers.push(client.connect_planned, Due::Wake(index));
            self.active += 1;
        }
        if self.messages.is_none() || self.plan.connect_first {
            self.opening = self.active;
            self.asking = false;
            self.phase = Phase::Opening;
        } else {
            self.asking = true;
            self.phase = Phase::Asking;
        }
    }

    /// Begins the load: all clients of all threads are connected.
    fn begin_asking(&mut self, now: u64) {
        self.asking = true;
        self.phase = Phase::Asking;
        let start = match &self.plan.load {
            Load::Messages { .. } => now,
            Load::Closed {
                warmup, duration, ..
            }
            | Load::Open {
                warmup, duration, ..
            } => {
                let start = now + START_DELAY;
                self.window_begin = start + nanos(*warmup);
                self.window_length = nanos(*duration);
                self.until = self.window_begin + self.window_length;
                let steps = Steps::of_window(self.window_begin, self.window_length);
                self.report.timeline = steps.timeline(self.window_length);
                self.steps = Some(steps);
                for step in 0..self.report.timeline.len() {
                    let end = steps.end(step).min(self.until);
                    self.timers.push(end, Due::StepEnds(step));
                }
                self.timers.push(self.window_begin, Due::WindowBegins);
                self.timers.push(self.until, Due::WindowEnds);
                self.shared.set_window_begin(self.window_begin);
                start
            }
        };
        for (index, client) in self.clients.iter_mut().enumerate() {
            client.planned = start;
            if let Load::Open { rate, arrivals, .. } = self.plan.load {
                let mut schedule = Schedule::new(
                    arrivals,
                    rate,
                    client.number,
                    self.plan.connections,
                    self.plan.seed,
                    start,
                );
                client.planned = schedule.next();
                client.schedule = Some(schedule);
            }
            if client.state != State::Finished && client.planned < self.until {
                self.timers.push(client.planned, Due::Wake(index));
            }
        }
    }

    /// Handles the events that are due, but not more than a batch: sockets must not wait behind ten thousand connects.
    fn run_due(&mut self, edge: &mut dyn FnMut(bool)) {
        for _ in 0..BATCH {
            // The clock is read for each event: this is the time at which a request is sent.
            let now = self.shared.clock.now();
            match self.timers.pop(now) {
                None => return,
                Some(Due::Wake(index)) => self.wake(index, now),
                Some(Due::TimeoutCheck(index)) => self.check_timeout(index, now),
                Some(Due::WindowBegins) if self.slices.is_some() => self.slice_begins(edge),
                Some(Due::WindowEnds) if self.slices.is_some() => self.slice_ends(edge),
                Some(Due::WindowBegins) => {
                    self.cpu_at_step = cpu_time();
                    self.cpu_at_begin = Some(self.cpu_at_step);
                }
                Some(Due::StepEnds(step)) => {
                    let now = cpu_time();
                    if let Some(step) = self.report.timeline.get_mut(step) {
                        step.client_cpu = now.saturating_sub(self.cpu_at_step);
                    }
                    self.cpu_at_step = now;
                }
                Some(Due::WindowEnds) => {
                    self.cpu_at_end = Some(cpu_time());
                    self.phase = Phase::Grace;
                    self.timers.push(now + GRACE.min(self.timeout), Due::End);
                }
                Some(Due::End) => {
                    self.phase = Phase::Over;
                    return;
                }
            }
        }
    }

    fn all_requests_done(&self, client: &Client) -> bool {
        self.messages
            .is_some_and(|messages| client.requests_done >= messages)
    }

    /// Returns the step of the time line in which a time of the window lies; `None` without a time line.
    fn step(&mut self, time: u64) -> Option<&mut TimelineStep> {
        match &self.steps {
            Some(steps) => self.report.timeline.get_mut(steps.of(time)),
            None => self.report.timeline.last_mut(),
        }
    }

    fn in_window(&self, time: u64) -> bool {
        time.wrapping_sub(self.window_begin) < self.window_length
    }
}
