//! `uring`: one thread that submits operations to the kernel and receives their completions (io_uring).
//!
//! ```text
//!   ┌─► submit, and wait ──► pass each completion to its connection ──┐
//!   └── next operation: accept, receive, send, read a file, wait ◄────┘
//! ```
//!
//! A readiness loop is notified that it *could* read now; here the kernel has done the read, and the completion carries
//! its result. So everything that an operation uses belongs to the operation until its completion: a connection moves
//! into it, and comes back with the completion. To close a connection that is away, the server must first cancel its
//! operation and wait for the completion.
//!
//! A file, for which there is no readiness, is read like everything else. Only work that occupies the thread itself, by
//! a blocking call or by computing, delays all peers.

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

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "uring",
    summary: "one thread that submits operations to the kernel and receives completions (io_uring)",
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
    // The kernel waits for the server; but older kernels do not wait on a descriptor that is non-blocking.
    listener.set_nonblocking(false)?;
    ring.watch(stop.stream()?);

    let drain = limits.drain;
    // Reason for the end: a stop, or a broken listener. In both cases the connections are drained.
    let mut ended: Option<io::Result<()>> = None;
    // `None` while the listener is away with an accept.
    let mut listener = Some(listener);
    let mut accepting: Option<Ticket> = None;
    // The same ticket, while that accept is a multishot one that may continue.
    let mut multishot: Option<Ticket> = None;
    let burst = ring.burst();
    // Set while descriptors or memory are lacking: no accept is submitted before this time.
    let mut paused_until: Option<Instant> = None;
    let mut connections = Connections::new(ring, limits);

    loop {
        // One multishot accept takes all peers, as long as there are free slots for all the peers that it can take
        // before the server sees them. With fewer free slots each accept takes one peer, and with none no accept is
        // submitted: all other peers stay in the backlog.
        let free = connections.free();
        if paused_until.is_none()
            && free > 0
            && let Some(listener) = listener.take()
        {
            // It starts at twice that number, so that it is not started and cancelled with each peer.
            let ample = free / 2 >= burst;
            let accept = connections.ring.accept(listener, ample);
            accepting = Some(accept);
            multishot = ample.then_some(accept);
        }
        if free < burst
            && let Some(accept) = multishot.take()
        {
            connections.ring.cancel(accept);
        }
        let due = [
            connections.deadlines.next(),
            connections.drained_by,
            paused_until,
        ];
        let due = due.into_iter().flatten().min();
        // `now` is too old for this: the work that was done since may have taken a while.
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
                        // After the stop too: the kernel has accepted this peer, and it must be counted.
                        Ok(stream) => connections.insert(stream, service.open()),
                        Err(Errno::CANCELED) => {}
                        Err(error) => {
                            match accept::on_error(error.into(), &mut connections.tally) {
                                Ok(None) => {}
                                Ok(Some(pause)) => paused_until = Some(now + pause),
                                Err(broken) => ended = Some(Err(broken)),
                            }
                        }
                    }
                }
            }
        }
        connections.expire(now);

        if paused_until.is_some_and(|until| until <= now) {
            paused_until = None;
        }
        if ended.is_some() {
            // If the listener is away, it is dropped in the round in which it comes back.
            listener = None;
        }
        if ended.is_some() && connections.drained_by.is_none() {
            if let Some(accept) = accepting {
                connections.ring.cancel(accept);
            }
            connections.stop(now + drain);
        }
        let empty = connections.slots.is_empty() && accepting.is_none();
        if connections
            .drained_by
            .is_some_and(|end| end <= now || empty)
        {
            return ended.unwrap_or(Ok(())).map(|()| connections.finish());
        }
    }
}

/// The part of a connection that stays with the loop while an operation has the rest of it.
struct Slot {
    /// Ticket of the connection's operation. There is always one, and never two: nothing is read while a reply is owed.
    ticket: Ticket,
    /// Time of the last progress: a byte received or sent, or work done.
    progress: Instant,
    /// True while the connection waits for a file or for a time to pass, and not for its peer. That is not idleness,
    /// and is not cancelled.
    working: bool,
    /// Time until which a refused connection is kept open, for the peer to read the error reply.
    linger_until: Option<Instant>,
}

impl Slot {
    /// Returns the time at which the connection is overdue, if there is no progress until then.
    fn deadline(&self, idle_timeout: Duration) -> Instant {
        self.linger_until.unwrap_or(self.progress + idle_timeout)
    }
}

/// The connections, each of which is away with an operation, by the small numbers that the completions return.
struct Connections {
    ring: Ring,
    slots: Slab<Slot>,
    deadlines: Deadlines,
    limits: Limits,
    /// Time until which requests may still be answered; `None` before the stop.
    drained_by: Option<Instant>,
    tally: Tally,
    /// Time at the end of the last wait, or of the last work that occupied the loop.
    now: Instant,
}

impl Connections {
    fn new(ring: Ring, limits: Limits) -> Self {
        Connections {
            ring,
            slots: Slab::new(),
            deadlines: Deadlines::default(),
            limits,
            drained_by: None,
            tally: Tally::default(),
            now: Instant::now(),
        }
    }

    /// Returns the number of free slots.
    fn free(&self) -> usize {
        self.limits.max_connections.saturating_sub(self.slots.len())
    }

    /// Adds the connection of a peer that was accepted.
    fn insert(&mut self, stream: TcpStream, session: Box<dyn Session>) {
        self.tally.accepted += 1;
        let key = self.slots.insert(Slot {
            ticket: Ticket::NONE,
            progress: self.now,
            working: false,
            linger_until: None,
        });
        self.deadlines.arm(key, self.now + self.limits.idle_timeout);
        self.submit(key, RingConnection::new(stream, session));
    }

    /// Holds the conversation: takes the session's next step, and submits the operation that carries it out.
    fn submit(&mut self, key: usize, mut connection: RingConnection) {
        loop {
            let slot = &mut self.slots[key];
            let overdue = slot.deadline(self.limits.idle_timeout) <= self.now;
            slot.ticket = match connection.step() {
                Next::Read(connection) => {
                    // An overdue connection does not wait for input, and none waits after the stop: input that came in
                    // time is there already.
                    let may_wait = !overdue && self.drained_by.is_none();
                    self.ring.receive(key, connection, may_wait)
                }
                Next::Write(lent) => self.ring.send(key, lent),
                Next::ReadFile(reading) => {
                    slot.working = true;
                    self.ring.read_file(key, reading)
                }
                Next::Work(connection, Work::Wait(time)) => {
                    slot.working = true;
                    self.ring.sleep(key, connection, time)
                }
                Next::Work(..) if self.drained_by.is_some_and(|end| end <= Instant::now()) => {
                    return self.end(key, Ending::Cut);
                }
                Next::Work(worker, work) => {
                    // The work runs on this thread, and all other connections wait: there is no other thread.
                    work::carry_out(work);
                    self.now = Instant::now();
                    slot.progress = self.now;
                    connection = worker;
                    connection.session().worked();
                    continue;
                }
                Next::Close(connection, CloseReason::Refused) => {
                    if slot.linger_until.is_none() {
                        // An error is ignored: a peer that has already left was refused all the same.
                        let _ = connection.stream().shutdown(Shutdown::Write);
                        let until = self.now + LINGER;
                        slot.linger_until = Some(until);
                        self.deadlines.arm(key, until);
                    }
                    // Input is read and thrown away: closing a socket with unread input would send RST.
                    self.ring.receive(key, connection, true)
                }
                Next::Close(_, reason) => return self.end(key, reason.into()),
            };
            return;
        }
    }

    /// Continues the conversation after a receive: reports the input to the session, and submits the next step.
    fn received(
        &mut self,
        key: usize,
        mut connection: RingConnection,
        input: Result<Input, Errno>,
    ) {
        let slot = &mut self.slots[key];
        let overdue = slot.deadline(self.limits.idle_timeout) <= self.now;
        match input {
            Ok(input) if slot.linger_until.is_some() => {
                // A peer that sends without pause may always be faster than the cancellation, so the time is checked
                // here.
                if input.is_empty() || overdue {
                    return self.end(key, Ending::Refused);
                }
            }
            Ok(input) => {
                slot.progress = self.now;
                match input.len() {
                    0 => connection.session().end_of_input(),
                    _ => connection.session().receive(&input),
                }
            }
            Err(Errno::AGAIN) if self.drained_by.is_some() => {
                // All input that had arrived is answered.
                let cut = connection.session().mid_request();
                return self.end(key, if cut { Ending::Cut } else { Ending::Served });
            }
            Err(Errno::AGAIN) if overdue => return self.end(key, Ending::TimedOut),
            // Input may have come before the cancellation, without a report from the kernel yet: receive again.
            Err(Errno::CANCELED) if slot.linger_until.is_none() => {}
            Err(error) => {
                if let Some(ending) = self.ending(key, error) {
                    return self.end(key, ending);
                }
            }
        }
        self.submit(key, connection);
    }

    /// Continues the conversation after a send: reports the sent bytes to the session, and submits the next step.
    fn sent(&mut self, key: usize, mut connection: RingConnection, count: Result<usize, Errno>) {
        match count {
            Ok(count) => {
                self.slots[key].progress = self.now;
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

    /// Continues the conversation after the read of a file: submits the send. The session gets its report when the
    /// bytes are sent.
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

    /// Continues the conversation after a sleep: reports the end of the work to the session, and submits the next step.
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

    /// Records that the connection waits for its peer again.
    fn has_worked(&mut self, key: usize) {
        let slot = &mut self.slots[key];
        slot.working = false;
        slot.progress = self.now;
    }

    /// Returns the ending that an error means for a connection; `None`: the operation may be tried again.
    fn ending(&self, key: usize, error: Errno) -> Option<Ending> {
        let slot = &self.slots[key];
        let overdue = slot.deadline(self.limits.idle_timeout) <= self.now;
        match error {
            Errno::INTR | Errno::AGAIN => None,
            // Cancelled by the stop: the operation is submitted again.
            Errno::CANCELED if !overdue => None,
            _ if slot.linger_until.is_some() => Some(Ending::Refused),
            Errno::CANCELED => Some(Ending::TimedOut),
            _ => Some(Ending::of(&error.into())),
        }
    }

    /// Cancels the operations of the connections that are overdue.
    fn expire(&mut self, now: Instant) {
        while let Some(key) = self.deadlines.pop_due(now) {
            let Some(slot) = self.slots.get(key) else {
                continue;
            };
            let deadline = slot.deadline(self.limits.idle_timeout);
            if deadline > now {
                self.deadlines.arm(key, deadline);
                continue;
            }
            if !slot.working {
                self.ring.cancel(slot.ticket);
            }
            // The operation may succeed before it is cancelled. Then the time begins anew.
            let anew = self.limits.idle_timeout.max(Duration::from_millis(1));
            self.deadlines.arm(key, now + anew);
        }
    }

    /// Begins the stop: cancels every operation that waits for a peer. A connection with no request under way then
    /// ends.
    fn stop(&mut self, drained_by: Instant) {
        self.drained_by = Some(drained_by);
        for (_, slot) in &self.slots {
            if !slot.working {
                self.ring.cancel(slot.ticket);
            }
        }
    }

    fn end(&mut self, key: usize, ending: Ending) {
        self.slots.remove(key);
        self.tally.count(ending);
    }

    /// Closes the connections that are left, counts them as cut, and returns the tally.
    fn finish(mut self) -> Tally {
        self.tally.cut_the_rest();
        self.tally
    }
}
