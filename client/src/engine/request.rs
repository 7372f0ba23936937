//! The path of a request.
//!
//! A client always takes these steps in this order: its wake time comes (`wake`), it connects if it has no connection
//! (`connect`, `finish_connect`), it sends a request (`ask`), its reply arrives (`read`, `complete_reply`) or does not
//! (`fail`), and its next step is planned (`plan_next`). Every planned request ends in exactly one of `complete_reply`,
//! `fail` and `finalize_unanswered`, so that replies, errors and unanswered requests together are the planned ones.
//!
//! At most one [`Due::Wake`] is set per client, and only while nothing is under way.

use mio::Token;
use mio::event::Event;
use protocol::ReplyStatus;

use super::{EventLoop, Phase};
use crate::connection::{Fault, State};
use crate::report::{ErrorKind as Kind, Report};
use crate::timeline::LATE;
use crate::timers::Due;

/// Pause after a failure, in nanoseconds, doubled with each failure in a row.
const FIRST_PAUSE: u64 = 10_000_000;

/// Longest pause after a failure, in nanoseconds.
const LONGEST_PAUSE: u64 = 1_000_000_000;

/// Number of failures without a correct reply between them after which a client gives up.
const MAX_FAILURES: u32 = 5;

/// Number of full buffers that are read from one socket before the other sockets have their turn.
const READS_PER_TURN: usize = 16;

impl EventLoop<'_> {
    /// Handles the wake time of this client.
    pub(super) fn wake(&mut self, index: usize, now: u64) {
        let client = &self.clients[index];
        if client.planned >= self.until {
            // The slice ended meanwhile.
            return;
        }
        match client.state {
            _ if self.all_requests_done(client) => self.close_when_sent(index),
            State::Disconnected => self.connect(index, now),
            State::Ready => {
                // The connection was free, so the delay is caused by the client itself.
                let lag = now - client.planned;
                let planned = client.planned;
                if self.in_window(planned) {
                    self.report.lag.saturating_record(lag);
                    if lag > LATE
                        && let Some(step) = self.step(planned)
                    {
                        step.late_sends += 1;
                    }
                }
                self.ask(index, now);
            }
            State::Broken => {
                if let Some(fault) = self.clients[index].fault.take() {
                    self.fail(index, now, fault);
                }
            }
            State::Connecting | State::Waiting | State::Closing | State::Finished => {
                debug_assert!(false, "woken with a connect or request under way");
            }
        }
    }

    /// Checks whether the connect or request that is under way has timed out. One entry per client is enough, however
    /// many requests it sends meanwhile: when the entry comes, it is set again for the request that is under way.
    pub(super) fn check_timeout(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        client.timeout_check_set = false;
        if client.since + self.timeout > now
            && matches!(
                client.state,
                State::Connecting | State::Waiting | State::Closing
            )
        {
            return self.set_timeout_check(index);
        }
        let what = match client.state {
            State::Connecting => "no connection",
            State::Waiting => "no complete reply",
            // All requests were answered: a server that does not read the receipts makes no request fail.
            State::Closing => return self.close_and_retire(index),
            _ => return,
        };
        let text = format!("{what} within {:?}", self.plan.timeout);
        self.fail(index, now, Fault::new(Kind::TimedOut, text));
    }

    fn set_timeout_check(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if !client.timeout_check_set {
            client.timeout_check_set = true;
            self.timers
                .push(client.since + self.timeout, Due::TimeoutCheck(index));
        }
    }

    fn connect(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        client.since = now;
        match client.connect(self.plan, self.poll.registry(), Token(index)) {
            Ok(()) => {
                client.state = State::Connecting;
                self.set_timeout_check(index);
            }
            Err(fault) => self.fail(index, now, fault),
        }
    }

    /// Handles an event on this client's socket. The calls on the socket show which event it was.
    pub(super) fn ready(&mut self, index: usize, event: &Event) {
        if self.clients[index].state == State::Connecting && !self.finish_connect(index) {
            return;
        }
        if self.clients[index].has_output() {
            match self.clients[index].flush() {
                Ok(count) => self.report.sent += count as u64,
                Err(_) if self.clients[index].state == State::Closing => {
                    return self.close_and_retire(index);
                }
                Err(why) => {
                    return self.lose_connection(index, Fault::io("sending a request", &why));
                }
            }
        }
        if self.clients[index].state == State::Closing {
            return self.close_when_sent(index);
        }
        let closed = event.is_read_closed() || event.is_error();
        if closed || event.is_readable() {
            self.read(index, closed);
        }
    }

    /// Checks whether a connect is complete. Returns true if it is.
    fn finish_connect(&mut self, index: usize) -> bool {
        let outcome = self.clients[index].connected(self.plan.address);
        let now = self.shared.clock.now();
        match outcome {
            Ok(false) => return false,
            Err(fault) => {
                self.fail(index, now, fault);
                return false;
            }
            Ok(true) => {}
        }
        let client = &mut self.clients[index];
        client.state = State::Ready;
        self.report
            .connect_time
            .saturating_record(now - client.since);
        self.report.connected += 1;
        self.open += 1;
        if self.phase == Phase::Opening {
            self.opening -= 1;
        } else if self.may_ask(index) {
            self.ask(index, now);
        }
        true
    }

    /// Sends the next request on a free connection.
    fn ask(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        client.state = State::Waiting;
        client.since = now;
        self.in_flight += 1;
        match client.ask(self.plan, &mut self.request) {
            Ok(count) => {
                self.report.sent += count as u64;
                self.set_timeout_check(index);
            }
            Err(why) => self.fail(index, now, Fault::io("sending a request", &why)),
        }
    }

    /// Reads the bytes that are there. A short read has emptied the socket (epoll(7)), so the next bytes are a new
    /// edge, and the read that would only return "would block" is saved; unless the connection is `closed`, because
    /// then the end has to be read.
    pub(super) fn read(&mut self, index: usize, closed: bool) {
        for _ in 0..READS_PER_TURN {
            let client = &mut self.clients[index];
            if client.state == State::Closing {
                return;
            }
            let count = match client.read(&mut self.input) {
                Ok(None) => return,
                Ok(Some(0)) => {
                    let text = "the server closed before the reply was complete";
                    return self.lose_connection(index, Fault::new(Kind::ClosedEarly, text));
                }
                Ok(Some(count)) => count,
                Err(why) => {
                    return self.lose_connection(index, Fault::io("waiting for a reply", &why));
                }
            };
            let now = self.shared.clock.now();
            self.report.received += count as u64;
            if client.state != State::Waiting {
                let bytes = self.input[..count.min(48)].escape_ascii();
                let text = format!("wrong reply: \"{bytes}\" arrived before a request was sent");
                return self.lose_connection(index, Fault::new(Kind::WrongReply, text));
            }
            let status = client.receive(&self.input[..count]);
            if status.is_ok() {
                // Receipts are sent before the next request, and before the connection is closed.
                match client.interject(&mut self.request) {
                    Ok(count) => self.report.sent += count as u64,
                    // Bytes that the server sent before it closed are still to be read; after them the end is found.
                    Err(_) => client.forget_output(),
                }
            }
            match status {
                Ok(ReplyStatus::Partial) => {}
                Ok(status) => {
                    if !self.complete_reply(index, now, status == ReplyStatus::Last) {
                        return;
                    }
                }
                Err(wrong) => {
                    let fault = Fault::new(Kind::WrongReply, wrong.to_string());
                    return self.fail(index, now, fault);
                }
            }
            if count < self.input.len() && !closed {
                return;
            }
        }
        // There may be more bytes, and there will be no new edge for them.
        self.unread.push((index, closed));
    }

    /// Counts a complete and correct reply, and plans the next step. Returns whether the client still has the same
    /// connection.
    fn complete_reply(&mut self, index: usize, now: u64, over: bool) -> bool {
        let planned = self.clients[index].planned;
        let completed = self.in_window(now);
        let planned_in_window = self.in_window(planned);
        let client = &mut self.clients[index];
        if planned_in_window {
            self.report.replies += 1;
            self.report.response_time.saturating_record(now - planned);
            if client.bystander {
                self.report.bystanders.saturating_record(now - planned);
            }
            self.report
                .service_time
                .saturating_record(now - client.since);
            if let Some(step) = self.step(planned) {
                step.ended(Some(now - planned), true);
            }
        }
        if completed {
            self.completed += 1;
            if let Some(step) = self.step(now) {
                step.completed += 1;
            }
        }
        let client = &mut self.clients[index];
        if completed {
            client.completed += 1;
        }
        if !client.served {
            client.served = true;
            client.ever_served = true;
            self.report
                .first_reply
                .saturating_record(now - client.connect_planned);
        }
        client.failures = 0;
        client.requests_done += 1;
        client.answered_on_connection += 1;
        client.state = State::Ready;
        self.in_flight -= 1;
        self.replies += 1;
        let over = over
            || self.plan.protocol.requests_per_connection == Some(client.answered_on_connection);
        if over {
            client.state = State::Disconnected;
            self.open -= u64::from(client.close());
        }
        client.planned = match &mut client.schedule {
            Some(schedule) => schedule.next(),
            None => now + self.think,
        };
        self.plan_next(index, now);
        !over
    }

    /// Sends the next request at once if its planned time has come, or sets the wake time.
    fn plan_next(&mut self, index: usize, now: u64) {
        let client = &self.clients[index];
        if client.planned > now {
            if client.planned < self.until {
                self.timers.push(client.planned, Due::Wake(index));
            }
        } else if self.all_requests_done(client) {
            self.close_when_sent(index);
        } else if self.may_ask(index) {
            match client.state {
                State::Ready => self.ask(index, now),
                _ => self.connect(index, now),
            }
        }
    }

    /// Returns whether a client may send its next request. That includes the requests that were planned before the end and
    /// waited for their connection: a server that answers them late is not one that never answers.
    fn may_ask(&self, index: usize) -> bool {
        self.clients[index].planned < self.until
    }

    /// Handles the loss of the connection. A request that is under way has failed; otherwise the next request will
    /// fail.
    fn lose_connection(&mut self, index: usize, fault: Fault) {
        let client = &mut self.clients[index];
        if client.state == State::Waiting {
            return self.fail(index, self.shared.clock.now(), fault);
        }
        client.state = State::Broken;
        client.fault = Some(fault);
        self.open -= u64::from(client.close());
    }

    /// Handles the failure of the request that is under way, or of the connect that it needs.
    pub(super) fn fail(&mut self, index: usize, now: u64, fault: Fault) {
        let planned = self.clients[index].planned;
        let counted = self.in_window(planned);
        let opening = self.phase == Phase::Opening;
        let messages = self.messages;
        let client = &mut self.clients[index];
        self.open -= u64::from(client.close());
        let was_waiting = client.state == State::Waiting;
        if was_waiting {
            self.in_flight -= 1;
        }
        self.failures += 1;
        if self.report.examples.len() < Report::EXAMPLES {
            self.report
                .examples
                .push(format!("connection {}: {}", client.number, fault.text));
        }
        // Failed connects before the clock starts are counted too, though the window has not begun; and in slices also
        // the failures outside of the windows, as a connection that the server closed while it rested fails in a lead.
        if counted || opening || self.slices.is_some() {
            self.report.errors.count(fault.kind);
        }
        // A request that never left this machine took none of the server's time: it would only make the tail look
        // short.
        if counted && !opening && !matches!(fault.kind, Kind::Refused | Kind::Local) {
            self.report.response_time.saturating_record(now - planned);
            if was_waiting && client.bystander {
                self.report.bystanders.saturating_record(now - planned);
            }
        }
        if counted && !opening {
            let sent = !matches!(fault.kind, Kind::Refused | Kind::Local);
            if let Some(step) = self.step(planned) {
                step.ended(sent.then(|| now - planned), false);
            }
        }
        let client = &mut self.clients[index];
        client.flawless = false;
        client.failures += 1;
        client.requests_done += 1;
        client.state = State::Disconnected;
        let pause = (FIRST_PAUSE << (client.failures - 1).min(10)).min(LONGEST_PAUSE);
        let mut wake = now + pause;
        match &mut client.schedule {
            Some(schedule) => {
                client.planned = schedule.next();
                wake = wake.max(client.planned);
            }
            None => client.planned = wake,
        }
        let refused = fault.kind == Kind::Refused && !client.ever_served;
        if refused || client.failures >= MAX_FAILURES {
            self.give_up(index);
        } else if messages.is_some_and(|messages| client.requests_done >= messages) {
            self.close_when_sent(index);
        } else if wake < self.until {
            self.timers.push(wake, Due::Wake(index));
        }
    }

    /// Closes the connection of a client whose request has no reply at the end of a slice. That is a failure in a row.
    pub(super) fn abandon_request(&mut self, index: usize) {
        let client = &mut self.clients[index];
        self.open -= u64::from(client.close());
        if client.state == State::Waiting {
            self.in_flight -= 1;
        }
        client.state = State::Disconnected;
        client.failures += 1;
        if client.failures >= MAX_FAILURES {
            self.give_up(index);
        }
    }

    fn give_up(&mut self, index: usize) {
        self.clients[index].gave_up = true;
        self.report.gave_up += 1;
        self.retire(index);
        self.shared.client_gave_up();
    }

    /// Closes the connection of a client whose requests are all done, once all its output is sent.
    fn close_when_sent(&mut self, index: usize) {
        let now = self.shared.clock.now();
        let client = &mut self.clients[index];
        if !client.has_output() {
            return self.close_and_retire(index);
        }
        if client.state != State::Closing {
            client.state = State::Closing;
            client.since = now;
            self.set_timeout_check(index);
        }
    }

    fn close_and_retire(&mut self, index: usize) {
        let client = &mut self.clients[index];
        self.open -= u64::from(client.close());
        if client.flawless {
            self.report.finished_clients += 1;
        }
        self.retire(index);
    }

    fn retire(&mut self, index: usize) {
        self.clients[index].state = State::Finished;
        self.active -= 1;
        if self.phase == Phase::Opening {
            self.opening -= 1;
        }
    }
}
