//! The story of a request.
//!
//! A client's way, always in this order: its wake time comes (`wake`), it connects if it has no connection
//! (`connect`, `opened`), asks (`ask`), its reply comes (`read`, `replied`) or does not (`fail`), and what is next is
//! planned (`go_on`). Every planned request ends in exactly one place, `replied`, `fail` or `finalize_unanswered`, so that
//! replies, errors and unanswered together are what was planned.
//!
//! At most one [`Due::Wake`] is set per client, and only while nothing is under way.

use mio::Token;
use mio::event::Event;
use protocol::ReplyStatus;

use super::{EventLoop, Phase};
use crate::connection::{Fault, State};
use crate::report::{ErrorKind as Kind, Report};
use crate::timers::Due;

/// The pause after a failure, doubled each time.
const FIRST_PAUSE: u64 = 10_000_000;
const LONGEST_PAUSE: u64 = 1_000_000_000;

/// A client gives up after so many failures without a right reply between them.
const PATIENCE: u32 = 5;

/// How many full buffers are read from one socket before the others have their turn.
const READS: usize = 16;

impl EventLoop<'_> {
    /// This client's time has come.
    pub(super) fn wake(&mut self, index: usize, now: u64) {
        let client = &self.clients[index];
        match client.state {
            _ if self.asked_all(client) => self.leave(index),
            State::Away => self.connect(index, now),
            State::Ready => {
                // Its connection was free, so what it is late is the client's own doing.
                let late = now - client.planned;
                if self.in_window(client.planned) {
                    self.report.lag.saturating_record(late);
                }
                self.ask(index, now);
            }
            State::Broken => {
                if let Some(fault) = self.clients[index].fault.take() {
                    self.fail(index, now, fault);
                }
            }
            State::Connecting | State::Waiting | State::Leaving | State::Gone => {
                debug_assert!(false, "woken with something under way");
            }
        }
    }

    /// Looks whether what is under way has timed out. One entry per client is enough, however many requests it sends
    /// meanwhile: it is set again for the request that is under way when it comes.
    pub(super) fn guard(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        client.guarded = false;
        if client.since + self.timeout > now
            && matches!(
                client.state,
                State::Connecting | State::Waiting | State::Leaving
            )
        {
            return self.set_guard(index);
        }
        let what = match client.state {
            State::Connecting => "no connection",
            State::Waiting => "no complete reply",
            // All was answered: that the server takes no receipt is no failure of a request.
            State::Leaving => return self.depart(index),
            _ => return,
        };
        let text = format!("{what} within {:?}", self.plan.timeout);
        self.fail(index, now, Fault::new(Kind::TimedOut, text));
    }

    fn set_guard(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if !client.guarded {
            client.guarded = true;
            self.timers
                .push(client.since + self.timeout, Due::Guard(index));
        }
    }

    fn connect(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        client.since = now;
        match client.connect(self.plan, self.poll.registry(), Token(index)) {
            Ok(()) => {
                client.state = State::Connecting;
                self.set_guard(index);
            }
            Err(fault) => self.fail(index, now, fault),
        }
    }

    /// The poll says that something happened on this socket; what, the calls on it will say.
    pub(super) fn ready(&mut self, index: usize, event: &Event) {
        if self.clients[index].state == State::Connecting && !self.opened(index) {
            return;
        }
        if self.clients[index].owes_output() {
            match self.clients[index].flush() {
                Ok(count) => self.report.sent += count as u64,
                Err(_) if self.clients[index].state == State::Leaving => {
                    return self.depart(index);
                }
                Err(why) => {
                    return self.lose(index, Fault::io("sending a request", &why));
                }
            }
        }
        if self.clients[index].state == State::Leaving {
            return self.leave(index);
        }
        let gone = event.is_read_closed() || event.is_error();
        if gone || event.is_readable() {
            self.read(index, gone);
        }
    }

    /// A connect may be complete; whether it is.
    fn opened(&mut self, index: usize) -> bool {
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
        if self.stage == Phase::Opening {
            self.opening -= 1;
        } else if now < self.until {
            self.ask(index, now);
        }
        true
    }

    /// Sends the next request on a connection that is free.
    fn ask(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        client.state = State::Waiting;
        client.since = now;
        self.in_flight += 1;
        match client.ask(self.plan, &mut self.request) {
            Ok(count) => {
                self.report.sent += count as u64;
                self.set_guard(index);
            }
            Err(why) => self.fail(index, now, Fault::io("sending a request", &why)),
        }
    }

    /// Reads what is there. A short read has emptied the socket (epoll(7)), so the next bytes are a new edge and the
    /// read that would only say so is saved; unless the server is `gone`, for then there is the end to be found.
    pub(super) fn read(&mut self, index: usize, gone: bool) {
        for _ in 0..READS {
            let client = &mut self.clients[index];
            if client.state == State::Leaving {
                return;
            }
            let count = match client.read(&mut self.input) {
                Ok(None) => return,
                Ok(Some(0)) => {
                    let text = "the server closed before the reply was complete";
                    return self.lose(index, Fault::new(Kind::ClosedEarly, text));
                }
                Ok(Some(count)) => count,
                Err(why) => {
                    return self.lose(index, Fault::io("waiting for a reply", &why));
                }
            };
            let now = self.shared.clock.now();
            self.report.received += count as u64;
            if client.state != State::Waiting {
                let came = self.input[..count.min(48)].escape_ascii();
                let text = format!("wrong reply: \"{came}\" came before anything was asked");
                return self.lose(index, Fault::new(Kind::WrongReply, text));
            }
            let heard = client.receive(&self.input[..count]);
            if heard.is_ok() {
                // Receipts go out before the next request, and before the connection is closed.
                match client.interject(&mut self.request) {
                    Ok(count) => self.report.sent += count as u64,
                    // What the server has said before it went is still to be read, and then the end is found.
                    Err(_) => client.forget_output(),
                }
            }
            match heard {
                Ok(ReplyStatus::Partial) => {}
                Ok(heard) => {
                    if !self.replied(index, now, heard == ReplyStatus::Last) {
                        return;
                    }
                }
                Err(wrong) => {
                    let fault = Fault::new(Kind::WrongReply, wrong.to_string());
                    return self.fail(index, now, fault);
                }
            }
            if count < self.input.len() && !gone {
                return;
            }
        }
        // There may be more, and there will be no new edge for it.
        self.unread.push((index, gone));
    }

    /// The reply is complete and right. Whether the connection is still this one.
    fn replied(&mut self, index: usize, now: u64, over: bool) -> bool {
        let planned = self.clients[index].planned;
        let completed = self.in_window(now);
        let planned_in_window = self.in_window(planned);
        let client = &mut self.clients[index];
        if planned_in_window {
            self.report.replies += 1;
            self.report.response_time.saturating_record(now - planned);
            if client.spared {
                self.report.bystanders.saturating_record(now - planned);
            }
            self.report
                .service_time
                .saturating_record(now - client.since);
        }
        if completed {
            client.completed += 1;
        }
        if !client.served {
            client.served = true;
            client.ever_served = true;
            self.report
                .first_reply
                .saturating_record(now - client.meant);
        }
        client.failures = 0;
        client.settled += 1;
        client.answered_here += 1;
        client.state = State::Ready;
        self.in_flight -= 1;
        self.replies += 1;
        let over = over || self.plan.protocol.requests_per_connection == Some(client.answered_here);
        if over {
            client.state = State::Away;
            self.open -= u64::from(client.close());
        }
        client.planned = match &mut client.schedule {
            Some(schedule) => schedule.next(),
            None => now + self.think,
        };
        self.go_on(index, now);
        !over
    }

    /// Asks at once if the planned time has come, or sets the wake time.
    fn go_on(&mut self, index: usize, now: u64) {
        let client = &self.clients[index];
        if client.planned > now {
            if client.planned < self.until {
                self.timers.push(client.planned, Due::Wake(index));
            }
        } else if self.asked_all(client) {
            self.leave(index);
        } else if now < self.until {
            match client.state {
                State::Ready => self.ask(index, now),
                _ => self.connect(index, now),
            }
        }
    }

    /// The connection is lost. Whoever waits for a reply has failed; whoever does not will fail when it asks.
    fn lose(&mut self, index: usize, fault: Fault) {
        let client = &mut self.clients[index];
        if client.state == State::Waiting {
            return self.fail(index, self.shared.clock.now(), fault);
        }
        client.state = State::Broken;
        client.fault = Some(fault);
        self.open -= u64::from(client.close());
    }

    /// The request that is under way failed, or the connect that it needs.
    fn fail(&mut self, index: usize, now: u64, fault: Fault) {
        let planned = self.clients[index].planned;
        let counted = self.in_window(planned);
        let opening = self.stage == Phase::Opening;
        let messages = self.messages;
        let client = &mut self.clients[index];
        self.open -= u64::from(client.close());
        let asked = client.state == State::Waiting;
        if asked {
            self.in_flight -= 1;
        }
        self.failures += 1;
        if self.report.examples.len() < Report::EXAMPLES {
            self.report
                .examples
                .push(format!("connection {}: {}", client.number, fault.text));
        }
        // Who cannot even connect before the clock starts is counted too, though the window has not begun.
        if counted || opening {
            self.report.errors.count(fault.kind);
        }
        // A request that never left this machine took no time of the server's: it would only make the tail look short.
        if counted && !opening && !matches!(fault.kind, Kind::Refused | Kind::Local) {
            self.report.response_time.saturating_record(now - planned);
            if asked && client.spared {
                self.report.bystanders.saturating_record(now - planned);
            }
        }
        client.flawless = false;
        client.failures += 1;
        client.settled += 1;
        client.state = State::Away;
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
        if refused || client.failures >= PATIENCE {
            client.gave_up = true;
            self.report.gave_up += 1;
            self.retire(index);
            self.shared.gave_up();
        } else if messages.is_some_and(|messages| client.settled >= messages) {
            self.leave(index);
        } else if wake < self.until {
            self.timers.push(wake, Due::Wake(index));
        }
    }

    /// All is asked: says goodbye, once all is said.
    fn leave(&mut self, index: usize) {
        let now = self.shared.clock.now();
        let client = &mut self.clients[index];
        if !client.owes_output() {
            return self.depart(index);
        }
        if client.state != State::Leaving {
            client.state = State::Leaving;
            client.since = now;
            self.set_guard(index);
        }
    }

    fn depart(&mut self, index: usize) {
        let client = &mut self.clients[index];
        self.open -= u64::from(client.close());
        if client.flawless {
            self.report.finished_clients += 1;
        }
        self.retire(index);
    }

    fn retire(&mut self, index: usize) {
        self.clients[index].state = State::Gone;
        self.active -= 1;
        if self.stage == Phase::Opening {
            self.opening -= 1;
        }
    }
}
