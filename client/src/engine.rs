//! The event loop: its stages, and what wakes it.
//!
//! A client's way through it is in `request`, what is counted at the end in `finalize`.

mod finalize;
mod request;

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
use crate::timers::{Due, Timers, nanos};

/// Wakes the loop from other threads.
pub(crate) const WAKER: Token = Token(usize::MAX - 1);
const TIMER: Token = Token(usize::MAX - 2);

/// How much is done between two looks at the rest: sockets per poll, and due times per turn. Large enough that a
/// poll is shared by many, small enough that nobody waits long behind the others.
const BATCH: usize = 256;

/// One read may give as much; one buffer serves all connections of a thread.
const BUFFER: usize = 64 * 1024;

/// From the last thread's "ready" to the load's beginning: time for all threads to wake.
const HEAD_START: u64 = 5_000_000;

/// How long outstanding replies may still come after the window.
const GRACE: u64 = 250_000_000;

/// What the loop is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for the other threads, to begin the next round.
    RoundMeeting(u64),
    /// Connects all its clients before the first asks.
    Opening,
    /// Waits for the other threads, to begin to ask.
    OpenMeeting(u64),
    /// Asks.
    Asking,
    /// The window is over; replies that are still owed may come.
    Grace,
    Over,
}

/// One thread's clients and all it needs to drive them.
pub(crate) struct EventLoop<'d> {
    plan: &'d Plan,
    shared: &'d Shared,
    thread: usize,
    poll: Poll,
    timers: Timers,
    clients: Vec<Client>,
    stage: Phase,
    think: u64,
    timeout: u64,
    /// Of [`Load::Messages`]: per client and round.
    messages: Option<u64>,
    rounds_left: u64,
    /// Clients of this round that have not been connected yet (in [`Phase::Opening`]).
    opening: usize,
    /// Clients of this round that are not yet gone.
    active: usize,
    /// The clients of this round may ask: they are not, or no longer, held until all are connected.
    asking: bool,
    /// Requests sent whose replies are owed.
    in_flight: usize,
    /// The measured window: its beginning and length. Nothing is in a window of length 0.
    window_begin: u64,
    window_length: u64,
    /// Nothing is sent from then on.
    until: u64,
    /// When the first connects were due; 0 before that.
    begin: u64,
    cpu_at_begin: Option<Duration>,
    cpu_at_end: Option<Duration>,
    report: Report,
    // What `Watch::progress` is told: all, and not only what is in the window.
    replies: u64,
    failures: u64,
    open: u64,
    /// Clients whose sockets had more than was read in one go, and whether their servers are gone.
    unread: Vec<(usize, bool)>,
    /// What is read and what is sent, by all clients in turn.
    input: Box<[u8]>,
    request: Vec<u8>,
}

/// A loop that has ended: what it measured, and its clients with the connections that are still open.
pub(crate) struct Finished {
    pub(crate) report: Report,
    pub(crate) clients: Vec<Client>,
}

impl<'d> EventLoop<'d> {
    /// For every client that falls to `thread`.
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
            stage: Phase::Over,
            think: nanos(think),
            timeout: nanos(plan.timeout),
            messages,
            rounds_left: rounds,
            opening: 0,
            active: 0,
            asking: false,
            in_flight: 0,
            window_begin: 0,
            // With a number of messages, all is in the window; with a time, it has yet to begin.
            window_length: if messages.is_some() { u64::MAX } else { 0 },
            until: u64::MAX,
            begin: 0,
            cpu_at_begin: messages.map(|_| cpu_time()),
            cpu_at_end: None,
            report: Report::new(plan.connections),
            replies: 0,
            failures: 0,
            open: 0,
            unread: Vec::new(),
            input: vec![0; BUFFER].into_boxed_slice(),
            request: Vec::new(),
        })
    }

    /// Drives the clients to their end.
    pub(crate) fn run(mut self) -> Result<Finished, DriveError> {
        let mut events = Events::with_capacity(BATCH);
        self.stage = Phase::RoundMeeting(self.shared.arrive());
        while self.advance() {
            let timeout = if self.unread.is_empty() {
                let armed = self.timers.arm(self.shared.clock);
                armed.map_err(DriveError::Timer)?
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(why) if why.kind() == ErrorKind::Interrupted => continue,
                Err(why) => return Err(DriveError::Poll(why)),
            }
            for event in &events {
                match event.token() {
                    // Whoever is woken looks at the clock and at what is shared anyway.
                    WAKER | TIMER => {}
                    Token(index) => self.ready(index, event),
                }
            }
            for (index, gone) in std::mem::take(&mut self.unread) {
                self.read(index, gone);
            }
            self.run_due();
            let (replies, failures, open) = (self.replies, self.failures, self.open);
            self.shared.publish(self.thread, replies, failures, open);
        }
        Ok(self.finish())
    }

    /// Goes from stage to stage; false at the end.
    fn advance(&mut self) -> bool {
        if self.shared.ended() {
            self.stage = Phase::Over;
        }
        loop {
            match self.stage {
                Phase::RoundMeeting(number) => match self.shared.passed(number) {
                    Some(now) => self.begin_round(now),
                    None => return true,
                },
                Phase::Opening if self.opening == 0 => {
                    self.stage = Phase::OpenMeeting(self.shared.arrive());
                }
                Phase::OpenMeeting(number) => match self.shared.passed(number) {
                    Some(now) => self.begin_asking(now),
                    None => return true,
                },
                Phase::Asking if self.messages.is_some() && self.active == 0 => {
                    self.finalize_served(self.shared.clock.now());
                    self.rounds_left -= 1;
                    if self.rounds_left == 0 {
                        self.stage = Phase::Over;
                    } else {
                        self.stage = Phase::RoundMeeting(self.shared.arrive());
                    }
                }
                Phase::Grace if self.in_flight == 0 => self.stage = Phase::Over,
                Phase::Over => return false,
                Phase::Opening | Phase::Asking | Phase::Grace => return true,
            }
        }
    }

    /// All clients mean to connect from now on, spread over the ramp.
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
            self.timers.push(client.meant, Due::Wake(index));
            self.active += 1;
        }
        if self.messages.is_none() || self.plan.connect_first {
            self.opening = self.active;
            self.asking = false;
            self.stage = Phase::Opening;
        } else {
            self.asking = true;
            self.stage = Phase::Asking;
        }
    }

    /// All clients of all threads are connected: the load begins.
    fn begin_asking(&mut self, now: u64) {
        self.asking = true;
        self.stage = Phase::Asking;
        let start = match &self.plan.load {
            Load::Messages { .. } => now,
            Load::Closed {
                warmup, duration, ..
            }
            | Load::Open {
                warmup, duration, ..
            } => {
                let start = now + HEAD_START;
                self.window_begin = start + nanos(*warmup);
                self.window_length = nanos(*duration);
                self.until = self.window_begin + self.window_length;
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
            if client.state != State::Gone && client.planned < self.until {
                self.timers.push(client.planned, Due::Wake(index));
            }
        }
    }

    /// Does what is due, but not more than a batch: sockets must not wait behind ten thousand connects.
    fn run_due(&mut self) {
        for _ in 0..BATCH {
            // A fresh look for each: this is the time at which a request is sent.
            let now = self.shared.clock.now();
            match self.timers.pop(now) {
                None => return,
                Some(Due::Wake(index)) => self.wake(index, now),
                Some(Due::Guard(index)) => self.guard(index, now),
                Some(Due::WindowBegins) => self.cpu_at_begin = Some(cpu_time()),
                Some(Due::WindowEnds) => {
                    self.cpu_at_end = Some(cpu_time());
                    self.stage = Phase::Grace;
                    self.timers.push(now + GRACE.min(self.timeout), Due::End);
                }
                Some(Due::End) => {
                    self.stage = Phase::Over;
                    return;
                }
            }
        }
    }

    fn asked_all(&self, client: &Client) -> bool {
        self.messages
            .is_some_and(|messages| client.settled >= messages)
    }

    fn in_window(&self, time: u64) -> bool {
        time.wrapping_sub(self.window_begin) < self.window_length
    }
}
