//! Conversations on non-blocking sockets, for every model in which one thread waits for many peers by readiness. The
//! models differ in *how they wait*; all of them [advance](Connections::advance) a ready connection in the same way.
//!
//! A thread that blocks keeps the state of its conversation on its stack; here the state must be data. A [`Session`] is
//! such data already. This module only adds what the socket can't do right now, and since when.

use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use protocol::{CloseReason, Session, Step, Work};
use rustix::net::{Shutdown, shutdown, sockopt};
use slab::Slab;

use crate::{Deadlines, Ending, LINGER, Limits, READ_BUFFER, Tally, files, work};

/// Event that a connection waits for after it was advanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Input is readable.
    Read,
    /// The socket has room for output.
    Write,
    /// No event: the connection has more to do, but other connections must have their turn first. Advance it again
    /// soon.
    Turn,
    /// No event of the socket: the connection waits for a time, which is among the
    /// [deadlines](Connections::next_deadline).
    Time,
}

/// Maximum number of steps that a connection takes before other connections have their turn. Without it, a peer that
/// sends as fast as the server reads would keep the loop to itself: draining a socket has no natural end.
pub const TURN: usize = 16;

/// The connections of one event loop, with their sessions, deadlines and tally. Each connection has a key, a small
/// number that serves as the loop's token.
#[derive(Debug)]
pub struct Connections<S> {
    slots: Slab<Slot<S>>,
    deadlines: Deadlines,
    limits: Limits,
    /// After the stop: the drain deadline, until which requests that have arrived may be answered.
    drained_by: Option<Instant>,
    tally: Tally,
    /// Read buffer for all connections. A readiness loop reads only bytes that have already arrived, so a peer that
    /// waits needs no buffer.
    buffer: Box<[u8]>,
}

/// The slot of a connection.
#[derive(Debug)]
enum Slot<S> {
    /// The connection is here, and the loop may advance it.
    Present(Connection<S>),
    /// The connection was taken out. Events that are reported meanwhile are recorded until it is put back.
    TakenOut {
        /// True if an event was reported: the connection must be advanced again.
        advance_again: bool,
        /// True if [`Connections::hung_up`] was called.
        hung_up: bool,
    },
}

/// A connection that was [taken out](Connections::take_out). Only the thread that owns this value can advance the
/// connection, because the value can't be copied.
#[derive(Debug)]
pub struct TakenOut<S> {
    key: usize,
    connection: Connection<S>,
    drained_by: Option<Instant>,
    progress: Progress,
}

struct Connection<S> {
    stream: S,
    session: Box<dyn Session>,
    /// Event that the connection waits for, as of its last turn.
    interest: Interest,
    /// Time at which the connection last received or sent a byte.
    last_progress: Instant,
    /// True if a short read does not mean that the socket is drained.
    hung_up: bool,
    /// For a refused connection: the time until which it is kept open so that the peer can read the error reply.
    linger_until: Option<Instant>,
    /// For a connection with [`Work::Wait`]: the time until which it waits before it replies.
    work_until: Option<Instant>,
}

impl<S> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("progress", &self.last_progress)
            .finish_non_exhaustive()
    }
}

impl<S: Read + Write + AsFd> Connections<S> {
    /// Creates an empty set of connections.
    pub fn new(limits: Limits) -> Self {
        Connections {
            slots: Slab::new(),
            deadlines: Deadlines::default(),
            limits,
            drained_by: None,
            tally: Tally::default(),
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
        }
    }

    /// Returns true if the connection limit is reached.
    pub fn is_full(&self) -> bool {
        self.slots.len() >= self.limits.max_connections
    }

    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns true if there are no connections.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns the tally so far, for the errors of accept(2).
    pub fn tally_mut(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Returns the key that [`insert`](Self::insert) will give to the next connection.
    pub fn next_key(&self) -> usize {
        self.slots.vacant_key()
    }

    /// Counts a connection that was accepted but could not be registered with the loop.
    pub fn refuse(&mut self) {
        self.tally.accepted += 1;
        self.tally.count(Ending::Refused);
    }

    /// Adds an accepted connection, and returns its key.
    pub fn insert(&mut self, stream: S, session: Box<dyn Session>, now: Instant) -> usize {
        self.tally.accepted += 1;
        let key = self.slots.insert(Slot::Present(Connection {
            stream,
            session,
            // The session may have bytes to send before it reads.
            interest: Interest::Turn,
            last_progress: now,
            hung_up: false,
            linger_until: None,
            work_until: None,
        }));
        self.deadlines.arm(key, now + self.limits.idle_timeout);
        key
    }

    /// Records that a short read no longer means that the socket is empty: the peer has closed its side (EPOLLRDHUP),
    /// or has sent urgent data (EPOLLPRI). A loop that receives such an event must call this before it advances the
    /// connection: under edge triggering there is no second report.
    pub fn hung_up(&mut self, key: usize) {
        match self.slots.get_mut(key) {
            Some(Slot::Present(connection)) => connection.hung_up = true,
            Some(Slot::TakenOut { hung_up, .. }) => *hung_up = true,
            None => {}
        }
    }

    /// Continues a conversation as far as the socket allows, and returns the event that it waits for. Returns `None` if
    /// the conversation has ended, and its stream is closed. The key of a connection that ended earlier is ignored,
    /// since events for it may still be on their way.
    pub fn advance(&mut self, key: usize, now: Instant) -> Option<Interest> {
        let Slot::Present(connection) = self.slots.get_mut(key)? else {
            return None;
        };
        let interest = match connection.advance(&mut self.buffer, self.drained_by, now) {
            Progress::Waits(interest) => interest,
            Progress::Lingers(until) => {
                self.deadlines.arm(key, until);
                // Input that has arrived is still unread, and an edge-triggered loop may get no second report of it.
                Interest::Turn
            }
            Progress::Ended(ending) => {
                self.end(key, ending);
                return None;
            }
        };
        connection.interest = interest;
        if interest == Interest::Time {
            let deadline = connection.deadline(self.limits.idle_timeout);
            self.deadlines.arm(key, deadline);
        }
        Some(interest)
    }

    /// Takes a connection out, for another thread to [advance](TakenOut::advance). Returns `None` if the connection has
    /// ended, or if it is out already. In the second case [`put_back`](Self::put_back) will ask for another turn,
    /// because the event that the caller has received may be newer than what the other thread has read.
    pub fn take_out(&mut self, key: usize) -> Option<TakenOut<S>> {
        let slot = self.slots.get_mut(key)?;
        let taken_out = Slot::TakenOut {
            advance_again: false,
            hung_up: false,
        };
        match mem::replace(slot, taken_out) {
            Slot::Present(connection) => Some(TakenOut {
                key,
                connection,
                drained_by: self.drained_by,
                progress: Progress::Waits(Interest::Turn),
            }),
            Slot::TakenOut { hung_up, .. } => {
                let advance_again = true;
                *slot = Slot::TakenOut {
                    advance_again,
                    hung_up,
                };
                None
            }
        }
    }

    /// Takes back a connection that was taken out, and returns the event that it waits for, as
    /// [`advance`](Self::advance) does.
    pub fn put_back(&mut self, taken: TakenOut<S>) -> Option<Interest> {
        let (key, mut connection) = (taken.key, taken.connection);
        let Slot::TakenOut {
            advance_again,
            hung_up,
        } = *self.slots.get(key)?
        else {
            return None;
        };
        connection.hung_up |= hung_up;
        let interest = match taken.progress {
            Progress::Ended(ending) => {
                self.end(key, ending);
                return None;
            }
            Progress::Waits(interest) if !advance_again => interest,
            Progress::Waits(_) | Progress::Lingers(_) => Interest::Turn,
        };
        connection.interest = interest;
        // Its deadline may have passed while the connection was out; `expire` has then dropped that deadline.
        let deadline = connection.deadline(self.limits.idle_timeout);
        self.deadlines.arm(key, deadline);
        self.slots[key] = Slot::Present(connection);
        Some(interest)
    }

    /// Returns the connections that are not taken out, with the event that each waits for. For loops that must pass the
    /// whole set to the kernel at every wait.
    pub fn waiting(&self) -> impl Iterator<Item = (usize, &S, Interest)> {
        self.slots.iter().filter_map(|(key, slot)| match slot {
            Slot::Present(connection) => Some((key, &connection.stream, connection.interest)),
            Slot::TakenOut { .. } => None,
        })
    }

    /// Begins the stop: returns the keys of all connections, each of which must be advanced once more, and sets their
    /// interest in [`waiting`](Self::waiting) to [`Interest::Turn`]. Connections with no reply under way end in that
    /// turn. From `drained_by` on no connection starts work that occupies the thread.
    pub fn stop(&mut self, drained_by: Instant) -> Vec<usize> {
        self.drained_by = Some(drained_by);
        for (_, slot) in &mut self.slots {
            if let Slot::Present(connection) = slot {
                connection.interest = Interest::Turn;
            }
        }
        self.slots.iter().map(|(key, _)| key).collect()
    }

    /// Returns the earliest time at which [`expire`](Self::expire) is due, or `None` if there is no deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Ends the connections whose deadline has passed. Returns the keys of the connections that need a turn: their wait
    /// is over, or they have sent bytes that are not read yet.
    pub fn expire(&mut self, now: Instant) -> Vec<usize> {
        let mut turns = Vec::new();
        while let Some(key) = self.deadlines.pop_due(now) {
            if let Some(Slot::Present(connection)) = self.slots.get_mut(key)
                && connection.work_until.is_some_and(|until| until <= now)
            {
                connection.interest = Interest::Turn;
                self.deadlines.arm(key, now + self.limits.idle_timeout);
                turns.push(key);
                continue;
            }
            // A loop that was itself delayed (stopped, interrupted, out of CPU time) may not have received the event of
            // bytes that arrived in time. So read first: a peer that has sent bytes since is not idle.
            self.advance(key, now);
            // A connection that is taken out is being served, and gets a deadline again when it is put back.
            let Some(Slot::Present(connection)) = self.slots.get(key) else {
                continue;
            };
            let deadline = connection.deadline(self.limits.idle_timeout);
            if deadline > now {
                if connection.interest == Interest::Turn {
                    turns.push(key);
                }
                self.deadlines.arm(key, deadline);
            } else if connection.linger_until.is_some() {
                self.end(key, Ending::Refused);
            } else {
                self.end(key, Ending::TimedOut);
            }
        }
        turns
    }

    /// Closes the remaining connections, counts them as cut, and returns the tally.
    pub fn finish(mut self) -> Tally {
        self.tally.cut_the_rest();
        self.tally
    }

    /// Closes a connection and counts its ending.
    fn end(&mut self, key: usize, ending: Ending) {
        self.slots.remove(key);
        self.tally.count(ending);
    }
}

impl<S: Read + Write + AsFd> TakenOut<S> {
    /// Returns the key of the connection.
    pub fn key(&self) -> usize {
        self.key
    }

    /// Continues the conversation as [`Connections::advance`] does, with the caller's own buffer.
    /// [`Connections::put_back`] returns the result.
    pub fn advance(&mut self, buffer: &mut [u8], now: Instant) {
        self.progress = self.connection.advance(buffer, self.drained_by, now);
    }
}

/// Result of advancing a connection.
#[derive(Debug)]
enum Progress {
    Waits(Interest),
    Lingers(Instant),
    Ended(Ending),
}

impl<S: Read + Write + AsFd> Connection<S> {
    /// Returns the time at which the connection expires if nothing happens until then.
    fn deadline(&self, idle_timeout: Duration) -> Instant {
        let own = self.linger_until.or(self.work_until);
        own.unwrap_or(self.last_progress + idle_timeout)
    }

    /// Continues the conversation, and turns an I/O error into an ending.
    fn advance(
        &mut self,
        buffer: &mut [u8],
        drained_by: Option<Instant>,
        now: Instant,
    ) -> Progress {
        let before = self.last_progress;
        let progress = match self.converse(buffer, drained_by, now) {
            Ok(progress) => progress,
            Err(_) if self.linger_until.is_some() => Progress::Ended(Ending::Refused),
            Err(error) => Progress::Ended(Ending::of(&error)),
        };
        // The time that sessions took to reply, this one and those before it in the loop's turn, must not count as idle
        // time of the peer. So the loop's own `now`, which is older, can't be used here.
        if self.last_progress != before {
            self.last_progress = Instant::now();
        }
        progress
    }

    /// Holds the conversation: takes the next step, carries it out, and reports the result to the session. Returns
    /// where a blocking conversation would wait.
    fn converse(
        &mut self,
        buffer: &mut [u8],
        drained_by: Option<Instant>,
        now: Instant,
    ) -> io::Result<Progress> {
        let stopping = drained_by.is_some();
        if let Some(until) = self.work_until {
            if until > now {
                // The socket has reported an event. If the peer has broken off, this reply is no longer needed.
                return match sockopt::socket_error(&self.stream)? {
                    Ok(()) => Ok(Progress::Waits(Interest::Time)),
                    Err(error) => Err(error.into()),
                };
            }
            self.work_until = None;
            self.last_progress = now;
            self.session.worked();
        }
        let mut drained = false;
        let mut worked = false;
        for _ in 0..TURN {
            if self.linger_until.is_some() {
                // Read and discard: closing with unread input would send RST.
                match self.stream.read(buffer) {
                    Ok(0) => return Ok(Progress::Ended(Ending::Refused)),
                    Ok(_) => continue,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Progress::Waits(Interest::Read));
                    }
                    Err(error) => return Err(error),
                }
            }
            match self.session.step() {
                Step::Read if drained => return Ok(Progress::Waits(Interest::Read)),
                Step::Read => match self.stream.read(buffer) {
                    Ok(0) => {
                        self.last_progress = now;
                        self.session.end_of_input();
                    }
                    Ok(count) => {
                        self.last_progress = now;
                        self.session.receive(&buffer[..count]);
                        // A short read has emptied the socket (epoll(7)), so the next read would only return EAGAIN.
                        // The exception is the end of input, which only another read can detect.
                        drained = count < buffer.len() && !self.hung_up && !stopping;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if stopping {
                            // All input that had arrived is answered.
                            let cut = self.session.mid_request();
                            return Ok(Progress::Ended(if cut {
                                Ending::Cut
                            } else {
                                Ending::Served
                            }));
                        }
                        return Ok(Progress::Waits(Interest::Read));
                    }
                    Err(error) => return Err(error),
                },
                Step::Write(bytes) => match self.stream.write(bytes) {
                    Ok(count) => {
                        self.last_progress = now;
                        self.session.sent(count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Progress::Waits(Interest::Write));
                    }
                    Err(error) => return Err(error),
                },
                Step::SendFile(slice) => match files::send_file(&self.stream, slice) {
                    Ok(count) => {
                        self.last_progress = now;
                        self.session.sent(count);
                        if count == files::FILE_TURN {
                            // Otherwise a peer that takes the file as fast as the server sends it would occupy the
                            // loop for the whole file.
                            return Ok(Progress::Waits(Interest::Turn));
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Progress::Waits(Interest::Write));
                    }
                    Err(error) => return Err(error),
                },
                Step::Work(Work::Wait(time)) => {
                    self.work_until = Some(Instant::now() + time);
                    return Ok(Progress::Waits(Interest::Time));
                }
                // One piece of work per turn: otherwise all other peers would wait for the work of one peer's whole
                // batch of requests.
                Step::Work(_) if worked => return Ok(Progress::Waits(Interest::Turn)),
                Step::Work(_) if drained_by.is_some_and(|end| end <= Instant::now()) => {
                    return Ok(Progress::Waits(Interest::Turn));
                }
                Step::Work(work) => {
                    // Done on this thread, and all other connections of this thread wait: there is no other thread for
                    // the work.
                    worked = true;
                    work::carry_out(work);
                    self.last_progress = now;
                    self.session.worked();
                }
                Step::Close(CloseReason::Refused) => {
                    // An error means that the peer has already left; the connection was refused all the same.
                    let _ = shutdown(&self.stream, Shutdown::Write);
                    let until = now + LINGER;
                    self.linger_until = Some(until);
                    return Ok(Progress::Lingers(until));
                }
                Step::Close(reason) => return Ok(Progress::Ended(reason.into())),
            }
        }
        Ok(Progress::Waits(Interest::Turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_taken_out_twice_is_refused_and_misses_no_event() {
        let mut connections = Connections::new(Limits::default());
        let now = Instant::now();
        let service = crate::Service::of(&protocol::PROTOCOLS[0], Default::default());
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let key = connections.insert(ours, service.open(), now);
        let mut buffer = [0; 64];

        let mut taken = connections.take_out(key).unwrap();
        taken.advance(&mut buffer, now);
        assert_eq!(connections.put_back(taken), Some(Interest::Read));

        let mut taken = connections.take_out(key).unwrap();
        assert!(connections.take_out(key).is_none());
        taken.advance(&mut buffer, now);
        assert_eq!(connections.put_back(taken), Some(Interest::Turn));

        // Its deadline passes while the connection is out, and exists again when the connection is back.
        let taken = connections.take_out(key).unwrap();
        let due = connections.next_deadline().unwrap();
        connections.expire(due);
        assert_eq!(connections.next_deadline(), None);
        connections.put_back(taken);
        assert_eq!(connections.next_deadline(), Some(due));
        connections.expire(due);
        assert!(connections.is_empty());
        assert_eq!(connections.finish().timed_out, 1);
    }

    #[test]
    fn ended_connections_leave_no_deadlines_behind() {
        let mut connections = Connections::new(Limits::default());
        let now = Instant::now();
        let service = crate::Service::of(&protocol::PROTOCOLS[0], Default::default());
        for _ in 0..1000 {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let key = connections.insert(ours, service.open(), now);
            assert_eq!(connections.advance(key, now), Some(Interest::Read));
            drop(theirs);
            assert_eq!(connections.advance(key, now), None);
        }
        assert_eq!(connections.deadlines.queue.len(), 1);
        assert_eq!(connections.finish().served, 1000);
    }

    /// Returns a service that waits for an hour before every reply.
    fn long_waits() -> crate::Service {
        let hour = Duration::from_secs(3600);
        let work = protocol::WorkPlan::new(protocol::WorkKind::Wait, hour..=hour, 100, 0);
        let options = protocol::SessionOptions {
            work: Some(work),
            ..protocol::SessionOptions::default()
        };
        crate::Service::of(&protocol::PROTOCOLS[0], options)
    }

    #[test]
    fn connection_reset_during_a_wait_ends_at_once() {
        use std::net::{TcpListener, TcpStream};

        use rustix::event::{PollFd, PollFlags};

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = ours.try_clone().unwrap();
        let wait_for = |flags| {
            let limit = Some(Duration::from_secs(20));
            crate::stop::poll(&mut [PollFd::new(&socket, flags)], limit).unwrap();
        };
        let mut connections = Connections::new(Limits::default());
        let now = Instant::now();
        let key = connections.insert(ours, long_waits().open(), now);
        peer.write_all(b"x\n").unwrap();
        wait_for(PollFlags::IN);
        assert_eq!(connections.advance(key, now), Some(Interest::Time));
        // More input has arrived, which does not end the wait.
        peer.write_all(b"y\n").unwrap();
        assert_eq!(connections.advance(key, now), Some(Interest::Time));
        let linger = Some(Duration::ZERO);
        socket2::SockRef::from(&peer).set_linger(linger).unwrap();
        drop(peer);
        wait_for(PollFlags::empty());
        assert_eq!(connections.advance(key, now), None);
        assert_eq!(connections.finish().reset, 1);
    }

    #[test]
    fn work_after_the_drain_deadline_is_not_started() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let day = Duration::from_secs(24 * 3600);
        let work = protocol::WorkPlan::new(protocol::WorkKind::Block, day..=day, 100, 0);
        let options = protocol::SessionOptions {
            work: Some(work),
            ..protocol::SessionOptions::default()
        };
        let service = crate::Service::of(&protocol::PROTOCOLS[0], options);
        let mut connections = Connections::new(Limits::default());
        let now = Instant::now();
        let key = connections.insert(ours, service.open(), now);
        theirs.write_all(b"x\n").unwrap();
        connections.stop(now);
        // If the work were started, this call would return after a day.
        assert_eq!(connections.advance(key, now), Some(Interest::Turn));
        assert_eq!(connections.finish().cut, 1);
    }

    #[test]
    fn connection_with_unread_input_is_not_timed_out() {
        use std::io::{Read, Write};

        let limits = Limits {
            idle_timeout: Duration::from_secs(1),
            ..Limits::default()
        };
        let now = Instant::now();
        // The peers connected at this time, and the loop has been stopped since.
        let began = now.checked_sub(2 * limits.idle_timeout).unwrap_or(now);
        let mut connections = Connections::new(limits);
        let service = crate::Service::of(&protocol::PROTOCOLS[0], Default::default());
        let mut peers = Vec::new();
        for _ in 0..2 {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            connections.insert(ours, service.open(), began);
            peers.push(theirs);
        }
        peers[0].write_all(b"in time\n").unwrap();
        connections.expire(now);
        assert_eq!(connections.len(), 1, "only the idle connection is closed");
        let mut reply = [0; 8];
        peers[0].read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"in time\n");
        assert_eq!(connections.finish().timed_out, 1);
    }

    #[test]
    fn connection_advanced_after_a_long_turn_is_not_timed_out_early() {
        use std::io::Write;

        let limits = Limits::default();
        let mut connections = Connections::new(limits.clone());
        let began = Instant::now();
        let service = crate::Service::of(&protocol::PROTOCOLS[0], Default::default());
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let key = connections.insert(ours, service.open(), began);
        theirs.write_all(b"x\n").unwrap();
        // The connection has its turn when the loop has not read its clock for longer than the time-out.
        let stale = began.checked_sub(2 * limits.idle_timeout).unwrap_or(began);
        assert_eq!(connections.advance(key, stale), Some(Interest::Read));
        connections.expire(began + limits.idle_timeout / 2);
        assert_eq!(connections.len(), 1);
    }
}
