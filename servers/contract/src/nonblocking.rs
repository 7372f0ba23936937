//! Conversations on non-blocking sockets, for every model in which one thread waits for many peers by readiness.
//! The models differ in *how they wait*; a connection that is ready is [advanced](Connections::advance) alike.
//!
//! A thread that blocks keeps its place in the code; here the place must be data. A [`Session`] already is, so all
//! that is added is what the socket can't do right now, and since when.

use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use protocol::{CloseReason, Session, Step, Work};
use rustix::net::{Shutdown, shutdown, sockopt};
use slab::Slab;

use crate::{Deadlines, Ending, LINGER, Limits, READ_BUFFER, Tally, files, work};

/// What a connection that was advanced waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Input.
    Read,
    /// Room for output.
    Write,
    /// Nothing: it has more to do, but others must have their turn first. Advance it again, soon.
    Turn,
    /// Nothing that a socket could tell: it waits for a time, which is among the [deadlines](Connections::next_deadline).
    Time,
}

/// How often a connection may read or write before others have their turn. A peer that sends as fast as we read
/// would otherwise keep the loop to itself: draining a socket has no natural end.
pub const TURN: usize = 16;

/// The connections of one event loop: their sessions, deadlines and account, under small numbers that serve as the
/// loop's tokens.
#[derive(Debug)]
pub struct Connections<S> {
    slots: Slab<Slot<S>>,
    deadlines: Deadlines,
    limits: Limits,
    /// After the stop: until when what was asked may still be answered.
    drained_by: Option<Instant>,
    tally: Tally,
    /// One for all: a readiness loop reads only what is already there, so no peer needs a buffer while it waits.
    buffer: Box<[u8]>,
}

#[derive(Debug)]
enum Slot<S> {
    Here(Connection<S>),
    /// Taken out. What came for it meanwhile is noted, for when it is put back.
    Away {
        again: bool,
        hung_up: bool,
    },
}

/// A connection that was [taken out](Connections::take_out): whoever has it is the only one who can advance it, because
/// it can't be copied.
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
    /// What it waits for, as it said last.
    waits: Interest,
    /// When it last took or gave a byte.
    progress: Instant,
    /// A short read does not mean that the socket is drained.
    hung_up: bool,
    /// It was refused, and is kept until then for the peer to read why.
    lingering: Option<Instant>,
    /// It waits until then before it replies.
    working: Option<Instant>,
}

impl<S> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl<S: Read + Write + AsFd> Connections<S> {
    /// No connections yet.
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

    /// Whether the limit is reached.
    pub fn is_full(&self) -> bool {
        self.slots.len() >= self.limits.max_connections
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nobody is left.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The account so far, for the errors of accept(2).
    pub fn tally_mut(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// The number that [`insert`](Self::insert) will give next.
    pub fn next_key(&self) -> usize {
        self.slots.vacant_key()
    }

    /// Counts a peer that was accepted but could not be registered with the loop.
    pub fn refuse(&mut self) {
        self.tally.accepted += 1;
        self.tally.count(Ending::Refused);
    }

    /// Takes a peer that was accepted, and gives its number.
    pub fn insert(&mut self, stream: S, session: Box<dyn Session>, now: Instant) -> usize {
        self.tally.accepted += 1;
        let key = self.slots.insert(Slot::Here(Connection {
            stream,
            session,
            // The session may have something to say first.
            waits: Interest::Turn,
            progress: now,
            hung_up: false,
            lingering: None,
            working: None,
        }));
        self.deadlines.arm(key, now + self.limits.idle_timeout);
        key
    }

    /// Notes that a short read no longer means that the socket is empty: the peer's side is closed (EPOLLRDHUP), or it
    /// sent urgent data (EPOLLPRI). Loops that are told so must pass it on before they advance: under edge triggering
    /// there is no second report.
    pub fn hung_up(&mut self, key: usize) {
        match self.slots.get_mut(key) {
            Some(Slot::Here(connection)) => connection.hung_up = true,
            Some(Slot::Away { hung_up, .. }) => *hung_up = true,
            None => {}
        }
    }

    /// Goes on with a conversation as far as the socket allows. `None`: it has ended, and its stream is closed.
    /// Numbers of connections that ended earlier are passed over, since events may still be on their way.
    pub fn advance(&mut self, key: usize, now: Instant) -> Option<Interest> {
        let Slot::Here(connection) = self.slots.get_mut(key)? else {
            return None;
        };
        let waits = match connection.advance(&mut self.buffer, self.drained_by, now) {
            Progress::Waits(interest) => interest,
            Progress::Lingers(until) => {
                self.deadlines.arm(key, until);
                // What has arrived is still to be read, and an edge-triggered loop may not hear of it again.
                Interest::Turn
            }
            Progress::Ended(ending) => {
                self.end(key, ending);
                return None;
            }
        };
        connection.waits = waits;
        if waits == Interest::Time {
            let deadline = connection.deadline(self.limits.idle_timeout);
            self.deadlines.arm(key, deadline);
        }
        Some(waits)
    }

    /// Takes a connection out, for another thread to [advance](TakenOut::advance). `None`: it has ended, or it is out
    /// already; then it will want another turn when it is put back, because what the caller has heard of may have come
    /// behind what the other has read.
    pub fn take_out(&mut self, key: usize) -> Option<TakenOut<S>> {
        let slot = self.slots.get_mut(key)?;
        let away = Slot::Away {
            again: false,
            hung_up: false,
        };
        match mem::replace(slot, away) {
            Slot::Here(connection) => Some(TakenOut {
                key,
                connection,
                drained_by: self.drained_by,
                progress: Progress::Waits(Interest::Turn),
            }),
            Slot::Away { hung_up, .. } => {
                let again = true;
                *slot = Slot::Away { again, hung_up };
                None
            }
        }
    }

    /// Takes a connection back that was taken out, and gives what it waits for, as [`advance`](Self::advance).
    pub fn put_back(&mut self, taken: TakenOut<S>) -> Option<Interest> {
        let (key, mut connection) = (taken.key, taken.connection);
        let Slot::Away { again, hung_up } = *self.slots.get(key)? else {
            return None;
        };
        connection.hung_up |= hung_up;
        let waits = match taken.progress {
            Progress::Ended(ending) => {
                self.end(key, ending);
                return None;
            }
            Progress::Waits(interest) if !again => interest,
            Progress::Waits(_) | Progress::Lingers(_) => Interest::Turn,
        };
        connection.waits = waits;
        // It may have come due while it was away, and was passed over.
        let deadline = connection.deadline(self.limits.idle_timeout);
        self.deadlines.arm(key, deadline);
        self.slots[key] = Slot::Here(connection);
        Some(waits)
    }

    /// Everybody, with what they wait for. For loops that must tell the kernel anew at every wait.
    pub fn waiting(&self) -> impl Iterator<Item = (usize, &S, Interest)> {
        self.slots.iter().filter_map(|(key, slot)| match slot {
            Slot::Here(connection) => Some((key, &connection.stream, connection.waits)),
            Slot::Away { .. } => None,
        })
    }

    /// Begins the stop: gives everybody's number, to be advanced once more, and says the same in
    /// [`waiting`](Self::waiting). Who has nothing under way ends then. From `drained_by` on nobody begins any more with
    /// work that keeps the thread.
    pub fn stop(&mut self, drained_by: Instant) -> Vec<usize> {
        self.drained_by = Some(drained_by);
        for (_, slot) in &mut self.slots {
            if let Slot::Here(connection) = slot {
                connection.waits = Interest::Turn;
            }
        }
        self.slots.iter().map(|(key, _)| key).collect()
    }

    /// When [`expire`](Self::expire) is due, at the earliest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Ends the connections whose time is over. Gives the numbers of those that want a turn: what they had to wait for
    /// is done, or they have spoken and not been heard yet.
    pub fn expire(&mut self, now: Instant) -> Vec<usize> {
        let mut turns = Vec::new();
        while let Some(key) = self.deadlines.pop_due(now) {
            if let Some(Slot::Here(connection)) = self.slots.get_mut(key)
                && connection.working.is_some_and(|until| until <= now)
            {
                connection.waits = Interest::Turn;
                self.deadlines.arm(key, now + self.limits.idle_timeout);
                turns.push(key);
                continue;
            }
            // A loop that was itself kept waiting (stopped, interrupted, out of CPU time) may not have heard yet of what has
            // come in time. Whoever has said something since is not idle.
            self.advance(key, now);
            // (Who is away is being served, and has a deadline again when it is back.)
            let Some(Slot::Here(connection)) = self.slots.get(key) else {
                continue;
            };
            let deadline = connection.deadline(self.limits.idle_timeout);
            if deadline > now {
                if connection.waits == Interest::Turn {
                    turns.push(key);
                }
                self.deadlines.arm(key, deadline);
            } else if connection.lingering.is_some() {
                self.end(key, Ending::Refused);
            } else {
                self.end(key, Ending::TimedOut);
            }
        }
        turns
    }

    /// Closes whoever is left, as cut, and gives the account.
    pub fn finish(mut self) -> Tally {
        self.tally.cut_the_rest();
        self.tally
    }

    fn end(&mut self, key: usize, ending: Ending) {
        self.slots.remove(key);
        self.tally.count(ending);
    }
}

impl<S: Read + Write + AsFd> TakenOut<S> {
    /// Its number.
    pub fn key(&self) -> usize {
        self.key
    }

    /// As [`Connections::advance`], with a buffer of the caller's own; what came of it is heard when it is
    /// [put back](Connections::put_back).
    pub fn advance(&mut self, buffer: &mut [u8], now: Instant) {
        self.progress = self.connection.advance(buffer, self.drained_by, now);
    }
}

#[derive(Debug)]
enum Progress {
    Waits(Interest),
    Lingers(Instant),
    Ended(Ending),
}

impl<S: Read + Write + AsFd> Connection<S> {
    /// When its time is over, if nothing happens until then.
    fn deadline(&self, idle_timeout: Duration) -> Instant {
        let own = self.lingering.or(self.working);
        own.unwrap_or(self.progress + idle_timeout)
    }

    fn advance(
        &mut self,
        buffer: &mut [u8],
        drained_by: Option<Instant>,
        now: Instant,
    ) -> Progress {
        let before = self.progress;
        let progress = match self.converse(buffer, drained_by, now) {
            Ok(progress) => progress,
            Err(_) if self.lingering.is_some() => Progress::Ended(Ending::Refused),
            Err(error) => Progress::Ended(Ending::of(&error)),
        };
        // What sessions took to answer, this one and those before it in the loop's turn, is no time in which the peer
        // was idle: so the loop's clock will not do.
        if self.progress != before {
            self.progress = Instant::now();
        }
        progress
    }

    /// The conversation: take the next step, carry it out, report what came of it; return where a blocking one would
    /// wait.
    fn converse(
        &mut self,
        buffer: &mut [u8],
        drained_by: Option<Instant>,
        now: Instant,
    ) -> io::Result<Progress> {
        let stopping = drained_by.is_some();
        if let Some(until) = self.working {
            if until > now {
                // Something has happened at the socket. If the peer has broken off, nobody waits for this.
                return match sockopt::socket_error(&self.stream)? {
                    Ok(()) => Ok(Progress::Waits(Interest::Time)),
                    Err(error) => Err(error.into()),
                };
            }
            self.working = None;
            self.progress = now;
            self.session.worked();
        }
        let mut drained = false;
        let mut worked = false;
        for _ in 0..TURN {
            if self.lingering.is_some() {
                // Read and thrown away: closing on unread input would send RST.
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
                        self.progress = now;
                        self.session.end_of_input();
                    }
                    Ok(count) => {
                        self.progress = now;
                        self.session.receive(&buffer[..count]);
                        // A short read has emptied the socket (epoll(7)), so the next would only say EAGAIN; unless
                        // the end of input is behind it, which takes a read to see.
                        drained = count < buffer.len() && !self.hung_up && !stopping;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if stopping {
                            // All that had arrived is answered.
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
                        self.progress = now;
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
                        self.progress = now;
                        self.session.sent(count);
                        if count == files::FILE_TURN {
                            // A peer that takes it as fast as we send it would have all of the loop for a whole file.
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
                    self.working = Some(Instant::now() + time);
                    return Ok(Progress::Waits(Interest::Time));
                }
                // Once in a turn: a peer that asks for much at once would have the others wait for all of it.
                Step::Work(_) if worked => return Ok(Progress::Waits(Interest::Turn)),
                Step::Work(_) if drained_by.is_some_and(|end| end <= Instant::now()) => {
                    return Ok(Progress::Waits(Interest::Turn));
                }
                Step::Work(work) => {
                    // Here and now, and everybody else whom this thread serves waits: there is nobody else to do it.
                    worked = true;
                    work::carry_out(work);
                    self.progress = now;
                    self.session.worked();
                }
                Step::Close(CloseReason::Refused) => {
                    // Who is gone already was refused all the same.
                    let _ = shutdown(&self.stream, Shutdown::Write);
                    let until = now + LINGER;
                    self.lingering = Some(until);
                    return Ok(Progress::Lingers(until));
                }
                Step::Close(farewell) => return Ok(Progress::Ended(farewell.into())),
            }
        }
        Ok(Progress::Waits(Interest::Turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_out_is_out_once_and_misses_nothing() {
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

        // Its deadline passes while it is out, and is there again when it is back.
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
    fn connections_that_come_and_go_leave_no_entries_behind() {
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

    /// What is to be done before every reply: a wait for an hour.
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
    fn who_breaks_off_while_it_waits_is_gone_at_once() {
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
        // More has come: that is no reason to stop waiting.
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
    fn nobody_begins_to_work_after_the_drain() {
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
        // (Or it would be a day before this returns.)
        assert_eq!(connections.advance(key, now), Some(Interest::Turn));
        assert_eq!(connections.finish().cut, 1);
    }

    #[test]
    fn who_has_spoken_in_time_is_not_idle_though_nobody_has_looked() {
        use std::io::{Read, Write};

        let limits = Limits {
            idle_timeout: Duration::from_secs(1),
            ..Limits::default()
        };
        let now = Instant::now();
        // They came then, and the loop has been stopped since.
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
        assert_eq!(connections.len(), 1, "the silent one is gone, and only he");
        let mut reply = [0; 8];
        peers[0].read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"in time\n");
        assert_eq!(connections.finish().timed_out, 1);
    }

    #[test]
    fn who_comes_after_a_long_turn_is_not_timed_out_too_early() {
        use std::io::Write;

        let limits = Limits::default();
        let mut connections = Connections::new(limits.clone());
        let began = Instant::now();
        let service = crate::Service::of(&protocol::PROTOCOLS[0], Default::default());
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let key = connections.insert(ours, service.open(), began);
        theirs.write_all(b"x\n").unwrap();
        // Its turn comes when the loop's clock has not been read for longer than the time-out.
        let stale = began.checked_sub(2 * limits.idle_timeout).unwrap_or(began);
        assert_eq!(connections.advance(key, stale), Some(Interest::Read));
        connections.expire(began + limits.idle_timeout / 2);
        assert_eq!(connections.len(), 1);
    }
}
