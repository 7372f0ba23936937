//! `uring`: one thread that hands its operations to the kernel and is told when they are done (io_uring).
//!
//! ```text
//!   ┌─► submit, and wait ──► take each completion to its connection ──┐
//!   └── next operation: accept, receive, send, read a file, wait ◄────┘
//! ```
//!
//! A readiness loop is told that it *could* read now; here the reading has been done, and what is told is what came of
//! it. So whatever an operation uses is the operation's until then: a connection moves into it, and comes back with the
//! completion. To close one that is away, its operation must be cancelled first, and the completion awaited.
//!
//! And a file, which readiness can't tell of, is read like all else. Only what keeps the thread itself, by a call or by
//! computing, keeps everybody.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use contract::{
    Capacity, Deadlines, Ending, LINGER, Limits, Model, Needs, Offload, Service, Stop, Tally,
    accept, files, work,
};
use protocol::{CloseReason, Session, Work};
use rustix::io::Errno;
use slab::Slab;

use ring::{Completion, Input, Next, Ring, RingConnection, Ticket};

mod available;
#[cfg_attr(not(target_os = "linux"), path = "no_ring.rs")]
mod ring;
#[cfg(all(test, target_os = "linux"))]
mod short_queues;
#[cfg(all(test, target_os = "linux"))]
mod tests;

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
    offload: Offload::Nowhere("one thread does everything"),
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
    // The listener is here or away with an accept.
    let mut listener = Some(listener);
    let mut accepting: Option<Ticket> = None;
    // The same, as long as it may take many peers.
    let mut many: Option<Ticket> = None;
    let burst = ring.burst();
    // Descriptors or memory are lacking: no accept before then.
    let mut paused: Option<Instant> = None;
    let mut connections = Connections::new(ring, limits);

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
        let due = [connections.deadlines.next(), connections.drained_by, paused];
        let due = due.into_iter().flatten().min();
        // (Not by `now`: what was done since may have taken a while.)
        let limit = due.map(|at| at.saturating_duration_since(Instant::now()));
        connections.ring.wait(limit)?;
        let now = Instant::now();
        connections.now = now;

        while let Some(completion) = connections.ring.next() {
            match completion {
                Completion::Readable => _ = ended.get_or_insert(Ok(())),
                Completion::Received(key, connection, input) => {
                    connections.received(key, connection, input);
                }
                Completion::Sent(key, connection, count) => {
                    connections.sent(key, connection, count);
                }
                Completion::FileRead(key, connection, count) => {
                    connections.file_read(key, connection, count);
                }
                Completion::Slept(key, connection, over) => {
                    connections.slept(key, connection, over);
                }
                Completion::Accepted(back, accepted) => {
                    if back.is_some() {
                        listener = back;
                        accepting = None;
                    }
                    match accepted {
                        // After the stop too: the kernel has accepted it, and we can't say that it has not.
                        Ok(stream) => connections.insert(stream, service.open()),
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
        if ended.is_some() && connections.drained_by.is_none() {
            if let Some(accept) = accepting {
                connections.ring.cancel(accept);
            }
            connections.stop(now + drain);
        }
        let empty = connections.places.is_empty() && accepting.is_none();
        if connections
            .drained_by
            .is_some_and(|end| end <= now || empty)
        {
            return ended.unwrap_or(Ok(())).map(|()| connections.finish());
        }
    }
}

/// What stays here of a connection while an operation has the rest of it.
struct Slot {
    /// The operation. There is always one, and never two: nothing is read while an answer is owed.
    ticket: Ticket,
    /// When it last took or gave a byte, or had its work done.
    progress: Instant,
    /// It does not wait for its peer, but for a file or for a time to pass. That is not idleness, and nobody ends it.
    working: bool,
    /// It was refused, and is kept until then for the peer to read why.
    lingering: Option<Instant>,
}

impl Slot {
    /// When its time is over, if nothing happens until then.
    fn deadline(&self, idle_timeout: Duration) -> Instant {
        self.lingering.unwrap_or(self.progress + idle_timeout)
    }
}

/// The connections, all of them away with an operation, under small numbers that their completions bring back.
struct Connections {
    ring: Ring,
    places: Slab<Slot>,
    deadlines: Deadlines,
    limits: Limits,
    /// After the stop: until when what was asked may still be answered.
    drained_by: Option<Instant>,
    tally: Tally,
    /// The time, as of the last wait or the last work that kept the loop.
    now: Instant,
}

impl Connections {
    fn new(ring: Ring, limits: Limits) -> Self {
        Connections {
            ring,
            places: Slab::new(),
            deadlines: Deadlines::default(),
            limits,
            drained_by: None,
            tally: Tally::default(),
            now: Instant::now(),
        }
    }

    /// How many more there may be.
    fn free(&self) -> usize {
        self.limits
            .max_connections
            .saturating_sub(self.places.len())
    }

    /// Takes a peer that was accepted.
    fn insert(&mut self, stream: TcpStream, session: Box<dyn Session>) {
        self.tally.accepted += 1;
        let key = self.places.insert(Slot {
            ticket: Ticket::NONE,
            progress: self.now,
            working: false,
            lingering: None,
        });
        self.deadlines.arm(key, self.now + self.limits.idle_timeout);
        self.submit(key, RingConnection::new(stream, session));
    }

    /// The conversation: take the next step, have it carried out ...
    fn submit(&mut self, key: usize, mut connection: RingConnection) {
        loop {
            let place = &mut self.places[key];
            let overdue = place.deadline(self.limits.idle_timeout) <= self.now;
            place.ticket = match connection.step() {
                Next::Read(connection) => {
                    // What came in time is there already: nobody waits whose time is over, and nobody after the stop.
                    let patient = !overdue && self.drained_by.is_none();
                    self.ring.receive(key, connection, patient)
                }
                Next::Write(lent) => self.ring.send(key, lent),
                Next::ReadFile(reading) => {
                    place.working = true;
                    self.ring.read_file(key, reading)
                }
                Next::Work(connection, Work::Wait(time)) => {
                    place.working = true;
                    self.ring.sleep(key, connection, time)
                }
                Next::Work(..) if self.drained_by.is_some_and(|end| end <= Instant::now()) => {
                    return self.end(key, Ending::Cut);
                }
                Next::Work(worker, work) => {
                    // Here and now, and everybody waits: there is nobody else to do it.
                    work::carry_out(work);
                    self.now = Instant::now();
                    place.progress = self.now;
                    connection = worker;
                    connection.session().worked();
                    continue;
                }
                Next::Close(connection, CloseReason::Refused) => {
                    if place.lingering.is_none() {
                        // Who is gone already was refused all the same.
                        let _ = connection.stream().shutdown(Shutdown::Write);
                        let until = self.now + LINGER;
                        place.lingering = Some(until);
                        self.deadlines.arm(key, until);
                    }
                    // Read and thrown away: closing on unread input would send RST.
                    self.ring.receive(key, connection, true)
                }
                Next::Close(_, farewell) => return self.end(key, farewell.into()),
            };
            return;
        }
    }

    /// ... and report what came of it.
    fn received(
        &mut self,
        key: usize,
        mut connection: RingConnection,
        input: Result<Input, Errno>,
    ) {
        let place = &mut self.places[key];
        let overdue = place.deadline(self.limits.idle_timeout) <= self.now;
        match input {
            Ok(input) if place.lingering.is_some() => {
                // Who sends without a pause has always been faster than the cancellation.
                if input.is_empty() || overdue {
                    return self.end(key, Ending::Refused);
                }
            }
            Ok(input) => {
                place.progress = self.now;
                match input.len() {
                    0 => connection.session().end_of_input(),
                    _ => connection.session().receive(&input),
                }
            }
            Err(Errno::AGAIN) if self.drained_by.is_some() => {
                // All that had arrived is answered.
                let cut = connection.session().mid_request();
                return self.end(key, if cut { Ending::Cut } else { Ending::Served });
            }
            Err(Errno::AGAIN) if overdue => return self.end(key, Ending::TimedOut),
            // Something may have come before the cancellation, and the kernel not have told yet.
            Err(Errno::CANCELED) if place.lingering.is_none() => {}
            Err(error) => {
                if let Some(ending) = self.ending(key, error) {
                    return self.end(key, ending);
                }
            }
        }
        self.submit(key, connection);
    }

    /// Likewise.
    fn sent(&mut self, key: usize, mut connection: RingConnection, count: Result<usize, Errno>) {
        match count {
            Ok(count) => {
                self.places[key].progress = self.now;
                connection.sent(count);
            }
            Err(error) => {
                if let Some(ending) = self.ending(key, error) {
                    return self.end(key, ending);
                }
            }
        }
        self.submit(key, connection);
    }

    /// Likewise. The session hears of it when it is sent.
    fn file_read(&mut self, key: usize, connection: RingConnection, count: Result<usize, Errno>) {
        self.has_worked(key);
        match count {
            Ok(0) => return self.end(key, Ending::of(&files::shorter())),
            Ok(_) => {}
            Err(error) => {
                if let Some(ending) = self.ending(key, error) {
                    return self.end(key, ending);
                }
            }
        }
        self.submit(key, connection);
    }

    /// Likewise.
    fn slept(&mut self, key: usize, mut connection: RingConnection, over: Result<(), Errno>) {
        self.has_worked(key);
        match over {
            Ok(()) => connection.session().worked(),
            Err(error) => {
                if let Some(ending) = self.ending(key, error) {
                    return self.end(key, ending);
                }
            }
        }
        self.submit(key, connection);
    }

    /// From now on it waits for its peer again.
    fn has_worked(&mut self, key: usize) {
        let place = &mut self.places[key];
        place.working = false;
        place.progress = self.now;
    }

    /// What an error means for a connection; `None`: that it may try again.
    fn ending(&self, key: usize, error: Errno) -> Option<Ending> {
        let place = &self.places[key];
        let overdue = place.deadline(self.limits.idle_timeout) <= self.now;
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
                continue;
            }
            if !place.working {
                self.ring.cancel(place.ticket);
            }
            // The operation may come to a good end before it is cancelled. Then the time begins anew.
            let anew = self.limits.idle_timeout.max(Duration::from_millis(1));
            self.deadlines.arm(key, now + anew);
        }
    }

    /// Begins the stop: every operation that waits for a peer is ended, and who has nothing under way ends then.
    fn stop(&mut self, drained_by: Instant) {
        self.drained_by = Some(drained_by);
        for (_, place) in &self.places {
            if !place.working {
                self.ring.cancel(place.ticket);
            }
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
