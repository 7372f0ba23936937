//! Counts at the end of a drive.

use std::time::Duration;

use super::{EventLoop, Finished};
use crate::connection::State;
use crate::cpu::cpu_time;

impl EventLoop<'_> {
    /// Ends the measurement, with all requests that are still unanswered. No connection is closed yet: a serial server
    /// would serve the next connection then, while another thread is still measuring how long that one waits.
    pub(super) fn finish(mut self) -> Finished {
        let now = self.shared.clock.now();
        if self.messages.is_none() {
            // If the drive ended early, the window is shorter, and requests planned for later do not belong to it.
            let length = now.saturating_sub(self.window_begin);
            if length < self.window_length {
                self.window_length = length;
                self.shorten_timeline();
            }
        }
        self.finalize_unanswered(now);
        // A load of messages that came to its end has counted its clients after its last round.
        if self.rounds_left > 0 {
            self.finalize_served(now);
        }
        if let Some(begin) = self.cpu_at_begin {
            let end = self.cpu_at_end.unwrap_or_else(cpu_time);
            self.report.cpu = end.saturating_sub(begin);
        }
        for client in &self.clients {
            self.report.per_connection[client.number] = client.completed;
            self.report.completed += client.completed;
        }
        let elapsed = self.shared.clock.now() - self.begin;
        let window = match self.messages {
            Some(_) => elapsed,
            None => self.window_length,
        };
        self.report.elapsed = Duration::from_nanos(elapsed);
        self.report.window = Duration::from_nanos(window);
        Finished {
            report: self.report,
            clients: self.clients,
        }
    }

    fn shorten_timeline(&mut self) {
        let Some(steps) = &self.steps else {
            return;
        };
        steps.shorten(&mut self.report.timeline, self.window_length);
        if let Some(last) = self.report.timeline.last_mut() {
            last.client_cpu = cpu_time().saturating_sub(self.cpu_at_step);
        }
    }

    /// Counts the requests that were planned or sent and have no reply, with their age: if they were left out, a server
    /// that never replies to a connection would look better than one that serves it late.
    fn finalize_unanswered(&mut self, now: u64) {
        if !self.asking {
            return;
        }
        for index in 0..self.clients.len() {
            if self.clients[index].schedule.is_some() {
                self.finalize_schedule(index, now);
                continue;
            }
            let client = &self.clients[index];
            let planned = client.planned;
            let has_requests_left =
                client.state != State::Finished && !self.all_requests_done(client);
            if has_requests_left && planned <= now && self.in_window(planned) {
                self.count_unanswered(index, planned, now - planned);
            }
        }
    }

    /// Counts the unanswered requests of an open loop: all planned requests, also those that were never sent because
    /// their connection was waiting.
    pub(super) fn finalize_schedule(&mut self, index: usize, now: u64) {
        let end = self.window_begin.saturating_add(self.window_length);
        while self.window_length > 0 && self.clients[index].planned < end {
            let planned = self.clients[index].planned;
            if self.in_window(planned) {
                self.count_unanswered(index, planned, now - planned);
            }
            match &mut self.clients[index].schedule {
                Some(schedule) => self.clients[index].planned = schedule.next(),
                None => return,
            }
        }
    }

    pub(super) fn count_unanswered(&mut self, index: usize, planned: u64, age: u64) {
        self.report.unanswered += 1;
        self.report.response_time.saturating_record(age);
        if let Some(step) = self.step(planned) {
            step.ended(Some(age), false);
        }
        let client = &mut self.clients[index];
        client.flawless = false;
        // The flag is cleared: of all unanswered requests of a client only one was sent, the first.
        if client.state == State::Waiting && std::mem::take(&mut client.bystander) {
            self.report.bystanders.saturating_record(age);
        }
    }

    /// Counts which clients of this round were served and which were not.
    pub(super) fn finalize_served(&mut self, now: u64) {
        let timed = self.messages.is_none();
        for client in &mut self.clients {
            // A client that gave up in an earlier round, or has not begun yet, is not part of this round.
            let in_round = std::mem::take(&mut client.in_round) && client.connect_planned <= now;
            if in_round && !client.served {
                self.report.never_served += 1;
                self.report
                    .first_reply
                    .saturating_record(now - client.connect_planned);
            }
            if in_round && timed && client.served && client.flawless {
                self.report.finished_clients += 1;
            }
        }
    }
}
