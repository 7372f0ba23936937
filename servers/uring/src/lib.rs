//! `uring`: one thread that hands its operations to the kernel and is told when they are done (io_uring).
//!
//! ```text
//!   ┌─► submit, and wait ──► take each completion to its connection ──┐
//!   └── next operation: accept, receive, send ◄── next step ◄─────────┘
//! ```
//!
//! A readiness loop is told that it *could* read now; here the reading has been done, and what is told is what came of
//! it. So whatever an operation uses is the operation's until then: a connection moves into it, and comes back with the
//! completion. To close one that is away, its operation must be cancelled first, and the completion awaited.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use contract::{
    Capacity, Deadlines, Ending, LINGER, Limits, Model, Needs, Service, Stop, Tally, accept,
};
use protocol::{Farewell, Session};
use rustix::io::Errno;
use slab::Slab;

use ring::{Completion, Connection, Input, Next, Ring, Ticket};

mod available;
#[cfg_attr(not(target_os = "linux"), path = "no_ring.rs")]
mod ring;
#[cfg(all(test, target_os = "linux"))]
mod short_queues;

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "uring",
    summary: "one thread submits operations to the kernel, and is told when they are done",
    lineage: "VMS, Windows NT (IOCP), POSIX aio; io_uring since Linux 5.1",
    source: "servers/uring/src/lib.rs",
    serve,
    available: available::available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    deviations: &[],
}];

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    serve_on(Ring::new()?, listener, service, limits, stop)
}

fn serve_on(
    mut ring: Ring,
    listener: TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
) -> io::Result<Tally> {
    // The kernel waits in our place; but older ones do not where a descriptor says that nobody shall.
    listener.set_nonblocking(false)?;
    ring.watch(stop.stream()?);

    let drain = limits.drain;
    // How it ended: by a stop, or because the listener is broken. Either way those who are here are served to the end.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    // The listener is here or away with an accept.
    let mut listener = Some(listener);
    let mut accepting: Option<Ticket> = None;
    // The same, as long as it may take many peers.
    let mut many: Option<Ticket> = None;
    let burst = ring.burst();
    // Descriptors or memory are lacking: no accept before then.
    let mut paused: Option<Instant> = None;
    let mut connections = Connections::new(ring, limits);
    let mut now = Instant::now();

    loop {
        // One accept takes all peers, as long as there is a place for as many as it can take before we know. When there
        // is not, one accept takes one peer, and none if there is no place: all others stay in the backlog.
        let free = connections.free();
        if paused.is_none()
            && free > 0
            && let Some(listener) = listener.take()
        {
            // Twice as many, so that it does not come and go with each peer.
            let ample = free / 2 >= burst;
            let accept = connections.ring.accept(listener, ample);
            accepting = Some(accept);
            many = ample.then_some(accept);
        }
        if free < burst
            && let Some(accept) = many.take()
        {
            connections.ring.cancel(accept);
        }
        let due = [connections.deadlines.next(), drained_by, paused];
        let due = due.into_iter().flatten().min();
        let limit = due.map(|at| at.saturating_duration_since(now));
        connections.ring.wait(limit)?;
        now = Instant::now();

        while let Some(completion) = connections.ring.next() {
            match completion {
                Completion::Readable => _ = ended.get_or_insert(Ok(())),
                Completion::Received(key, connection, input) => {
                    connections.received(key, connection, input, now);
                }
                Completion::Sent(key, connection, count) => {
                    connections.sent(key, connection, count, now);
                }
                Completion::Accepted(back, accepted) => {
                    if back.is_some() {
                        listener = back;
                        accepting = None;
                    }
                    match accepted {
                        // After the stop too: the kernel has accepted it, and we can't say that it has not.
                        Ok(stream) => connections.insert(stream, service.open(), now),
                        Err(Errno::CANCELED) => {}
                        Err(error) => {
                            match accept::on_error(error.into(), &mut connections.tally) {
                                Ok(None) => {}
                                Ok(Some(pause)) => paused = Some(now + pause),
                                Err(broken) => ended = Some(Err(broken)),
                            }
                        }
                    }
                }
            }
        }
        connections.expire(now);

        if paused.is_some_and(|until| until <= now) {
            paused = None;
        }
        if ended.is_some() {
            // If it is away, then as soon as it is back.
            listener = None;
        }
        if ended.is_some() && drained_by.is_none() {
            if let Some(accept) = accepting {
                connections.ring.cancel(accept);
            }
            drained_by = Some(now + drain);
            connections.stop();
        }
        let empty = connections.places.is_empty() && accepting.is_none();
        if drained_by.is_some_and(|end| end <= now || empty) {
            return ended.unwrap_or(Ok(())).map(|()| connections.finish());
        }
    }
}

/// What stays here of a connection while an operation has the rest of it.
struct Place {
    /// The operation. There is always one, and never two: nothing is read while an answer is owed.
    ticket: Ticket,
    /// When it last took or gave a byte.
    progress: Instant,
    /// It was refused, and is kept until then for the peer to read why.
    lingering: Option<Instant>,
}

impl Place {
    /// When its time is over, if nothing happens until then.
    fn deadline(&self, idle_timeout: Duration) -> Instant {
        self.lingering.unwrap_or(self.progress + idle_timeout)
    }
}

/// The connections, all of them away with an operation, under small numbers that their completions bring back.
struct Connections {
    ring: Ring,
    places: Slab<Place>,
    deadlines: Deadlines,
    limits: Limits,
    stopping: bool,
    tally: Tally,
}

impl Connections {
    fn new(ring: Ring, limits: Limits) -> Self {
        Connections {
            ring,
            places: Slab::new(),
            deadlines: Deadlines::default(),
            limits,
            stopping: false,
            tally: Tally::default(),
        }
    }

    /// How many more there may be.
    fn free(&self) -> usize {
        self.limits
            .max_connections
            .saturating_sub(self.places.len())
    }

    /// Takes a peer that was accepted.
    fn insert(&mut self, stream: TcpStream, session: Box<dyn Session>, now: Instant) {
        self.tally.accepted += 1;
        let key = self.places.insert(Place {
            ticket: Ticket::NONE,
            progress: now,
            lingering: None,
        });
        self.deadlines.arm(key, now + self.limits.idle_timeout);
        self.submit(key, Connection::new(stream, session), now);
    }

    /// The conversation: take the next step, have it carried out ...
    fn submit(&mut self, key: usize, connection: Connection, now: Instant) {
        let place = &mut self.places[key];
        let overdue = place.deadline(self.limits.idle_timeout) <= now;
        place.ticket = match connection.step() {
            Next::Read(connection) => {
                // What came in time is there already: nobody waits whose time is over, and nobody after the stop.
                let patient = !overdue && !self.stopping;
                self.ring.receive(key, connection, patient)
            }
            Next::Write(lent) => self.ring.send(key, lent),
            Next::Close(connection, Farewell::Refused) => {
                if place.lingering.is_none() {
                    // Who is gone already was refused all the same.
                    let _ = connection.stream().shutdown(Shutdown::Write);
                    let until = now + LINGER;
                    place.lingering = Some(until);
                    self.deadlines.arm(key, until);
                }
                // Read and thrown away: closing on unread input would send RST.
                self.ring.receive(key, connection, true)
            }
            Next::Close(_, farewell) => return self.end(key, farewell.into()),
        };
    }

    /// ... and report what came of it.
    fn received(
        &mut self,
        key: usize,
        mut connection: Connection,
        input: Result<Input, Errno>,
        now: Instant,
    ) {
        let place = &mut self.places[key];
        let overdue = place.deadline(self.limits.idle_timeout) <= now;
        match input {
            Ok(input) if place.lingering.is_some() => {
                // Who sends without a pause has always been faster than the cancellation.
                if input.is_empty() || overdue {
                    return self.end(key, Ending::Refused);
                }
            }
            Ok(input) => {
                place.progress = now;
                match input.len() {
                    0 => connection.session().end_of_input(),
                    _ => connection.session().receive(&input),
                }
            }
            Err(Errno::AGAIN) if self.stopping => {
                // All that had arrived is answered.
                let cut = connection.session().mid_request();
                return self.end(key, if cut { Ending::Cut } else { Ending::Served });
            }
            Err(Errno::AGAIN) if overdue => return self.end(key, Ending::TimedOut),
            // Something may have come before the cancellation, and the kernel not have told yet.
            Err(Errno::CANCELED) if place.lingering.is_none() => {}
            Err(error) => {
                if let Some(ending) = self.ending(key, error, now) {
                    return self.end(key, ending);
                }
            }
        }
        self.submit(key, connection, now);
    }

    /// Likewise.
    fn sent(
        &mut self,
        key: usize,
        mut connection: Connection,
        count: Result<usize, Errno>,
        now: Instant,
    ) {
        match count {
            Ok(count) => {
                self.places[key].progress = now;
                connection.session().sent(count);
            }
            Err(error) => {
                if let Some(ending) = self.ending(key, error, now) {
                    return self.end(key, ending);
                }
            }
        }
        self.submit(key, connection, now);
    }

    /// What an error means for a connection; `None`: that it may try again.
    fn ending(&self, key: usize, error: Errno, now: Instant) -> Option<Ending> {
        let place = &self.places[key];
        let overdue = place.deadline(self.limits.idle_timeout) <= now;
        match error {
            Errno::INTR | Errno::AGAIN => None,
            // By the stop: what was under way is taken up again.
            Errno::CANCELED if !overdue => None,
            _ if place.lingering.is_some() => Some(Ending::Refused),
            Errno::CANCELED => Some(Ending::TimedOut),
            _ => Some(Ending::of(&error.into())),
        }
    }

    /// Ends the operations of the connections whose time is over.
    fn expire(&mut self, now: Instant) {
        while let Some(key) = self.deadlines.pop_due(now) {
            let Some(place) = self.places.get(key) else {
                continue;
            };
            let deadline = place.deadline(self.limits.idle_timeout);
            if deadline > now {
                self.deadlines.arm(key, deadline);
            } else {
                self.ring.cancel(place.ticket);
                // The operation may come to a good end before it is cancelled. Then the time begins anew.
                let anew = self.limits.idle_timeout.max(Duration::from_millis(1));
                self.deadlines.arm(key, now + anew);
            }
        }
    }

    /// Begins the stop: everybody's operation is ended, and who has nothing under way ends then.
    fn stop(&mut self) {
        self.stopping = true;
        for (_, place) in &self.places {
            self.ring.cancel(place.ticket);
        }
    }

    fn end(&mut self, key: usize, ending: Ending) {
        self.places.remove(key);
        self.tally.count(ending);
    }

    /// Closes whoever is left, as cut, and gives the account.
    fn finish(mut self) -> Tally {
        self.tally.cut_the_rest();
        self.tally
    }
}
