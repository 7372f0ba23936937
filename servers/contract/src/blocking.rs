//! Conversations on blocking sockets, for every model that gives a peer something that can wait: a thread, a process,
//! or (in `serial`) the whole server. The models differ in *who* calls [`Visitor::converse`].
//!
//! Waiting inside read(2) costs nothing, and is also the difficulty: who waits there sees no stop and no deadline.
//! Both come from outside. The kernel ends waits that are too long (SO_RCVTIMEO, SO_SNDTIMEO), and one thread that
//! does nothing else, the *watcher*, waits for the stop and then ends everybody's wait by shutdown(2): first the
//! reading side, which a blocked read sees as the end of input after all that has already arrived; after the drain
//! deadline the writing side too.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use protocol::{CloseReason, FileSlice, Session, Step, Work};
use rustix::event::{PollFd, PollFlags};
use rustix::net::shutdown;
use slab::Slab;

use crate::stop::poll;
use crate::{Ending, LINGER, Limits, READ_BUFFER, Service, Stop, Tally, accept, files, work};

/// Accepts peers until the stop.
#[derive(Debug)]
pub struct Acceptor {
    listener: Arc<TcpListener>,
    service: Service,
    limits: Limits,
    stop: Stop,
    house: Arc<House>,
    watcher: Option<JoinHandle<()>>,
    /// Closed when the acceptor ends for another reason than the stop, so that the watcher ends too.
    closing: Option<UnixStream>,
}

/// Everything that the acceptor, the watcher and the visitors share. Locked a few times per connection, never per request.
#[derive(Debug, Default)]
struct House {
    register: Mutex<Register>,
    /// Somebody left, or the phase changed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Register {
    present: Slab<Guest>,
    tally: Tally,
    phase: Phase,
}

#[derive(Debug)]
struct Guest {
    stream: Arc<TcpStream>,
    /// The end of its input is our doing, not the peer's.
    told_to_end: bool,
}

impl Guest {
    /// Ends its wait for more input. What has arrived is still read; and if the peer's own end has, then that is what
    /// will be read after it.
    fn end_input(&mut self) {
        self.told_to_end |= shut_input(&*self.stream);
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Stopped: what was asked is being finished.
    Draining,
    /// The drain deadline is over: what goes wrong now was cut by us.
    Cutting,
}

impl House {
    fn register(&self) -> MutexGuard<'_, Register> {
        // Poisoned or not: nothing that can panic runs under this lock, and a tally is worth giving in any case.
        self.register
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Acceptor {
    /// Begins: from now on the stop is watched for.
    ///
    /// # Errors
    ///
    /// No thread or no descriptor was to be had.
    pub fn new(
        listener: TcpListener,
        service: Service,
        limits: Limits,
        stop: Stop,
    ) -> io::Result<Acceptor> {
        // On Linux the watcher can end a wait in accept(2), which is therefore all that is needed; and of many processes
        // that wait there for one listener, the kernel wakes one for each peer. poll(2) would wake them all.
        listener.set_nonblocking(cfg!(not(target_os = "linux")))?;
        let listener = Arc::new(listener);
        let house = Arc::new(House::default());
        let (closing, closed) = UnixStream::pair()?;
        let watcher = thread::Builder::new().name("watcher".to_string()).spawn({
            let (stop, listener) = (stop.clone(), Arc::clone(&listener));
            let (house, drain) = (Arc::clone(&house), limits.drain);
            move || watch(&stop, &closed, &listener, &house, drain)
        })?;
        Ok(Acceptor {
            listener,
            service,
            limits,
            stop,
            house,
            watcher: Some(watcher),
            closing: Some(closing),
        })
    }

    /// Waits for the next peer, and for a place for it; `None` after the stop.
    ///
    /// # Errors
    ///
    /// The listener is broken.
    pub fn accept(&mut self) -> io::Result<Option<Visitor>> {
        let visitor = self.wait_for_peer();
        if visitor.is_err() {
            // Nobody would say stop to those who are still served, and the model may wait for them.
            self.closing = None;
        }
        visitor
    }

    fn wait_for_peer(&self) -> io::Result<Option<Visitor>> {
        loop {
            if !self.wait_for_place() {
                return Ok(None);
            }
            if cfg!(not(target_os = "linux")) {
                let mut wanted = [
                    PollFd::new(&*self.listener, PollFlags::IN),
                    PollFd::new(&self.stop, PollFlags::IN),
                ];
                poll(&mut wanted, None)?;
            }
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Some(self.admit(stream))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A watcher was here first, perhaps that of another process, and has ended the listener.
                Err(_) if self.stop.wait(Some(Duration::ZERO))? => return Ok(None),
                Err(error) => {
                    let pause = accept::on_error(error, &mut self.house.register().tally)?;
                    if let Some(pause) = pause
                        && self.stop.wait(Some(pause))?
                    {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Lets some time pass, or the stop come, when there is nothing to serve a peer with.
    ///
    /// # Errors
    ///
    /// Waiting itself failed.
    pub fn pause(&self, why: &str) -> io::Result<()> {
        tracing::warn!("{why}");
        self.stop.wait(Some(accept::PAUSE)).map(drop)
    }

    /// Waits until the limit leaves a place; false after the stop.
    fn wait_for_place(&self) -> bool {
        let register = self.house.register();
        let register = self
            .house
            .changed
            .wait_while(register, |register| {
                register.phase == Phase::Open
                    && register.present.len() >= self.limits.max_connections
            })
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        register.phase == Phase::Open
    }

    fn admit(&self, stream: TcpStream) -> Visitor {
        let stream = Arc::new(stream);
        let mut guest = Guest {
            stream: Arc::clone(&stream),
            told_to_end: false,
        };
        let mut register = self.house.register();
        register.tally.accepted += 1;
        if register.phase != Phase::Open {
            // The watcher has been through the register already.
            guest.end_input();
        }
        Visitor {
            place: register.present.insert(guest),
            stream,
            service: self.service.clone(),
            idle_timeout: self.limits.idle_timeout,
            house: Arc::clone(&self.house),
            ending: Ending::Refused,
        }
    }

    /// Ends: waits for the visitors that are still being served, and gives the account.
    pub fn finish(mut self) -> Tally {
        self.close();
        self.house.register().tally
    }

    fn close(&mut self) {
        self.closing = None;
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Drop for Acceptor {
    /// After a fatal error too, the watcher is joined and the visitors are drained.
    fn drop(&mut self) {
        self.close();
    }
}

/// The watcher's life: sleep until the stop, then end everybody's wait.
fn watch(stop: &Stop, closed: &UnixStream, listener: &TcpListener, house: &House, drain: Duration) {
    let mut wanted = [
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(closed, PollFlags::IN),
    ];
    if let Err(error) = poll(&mut wanted, None) {
        tracing::error!("cannot wait for the stop ({error}): stopping now");
    }
    let mut register = house.register();
    register.phase = Phase::Draining;
    // A listener that stayed open would let peers into the backlog during the drain, where nobody comes for them. On
    // Linux this ends it even while the acceptor is busy with a visitor; elsewhere it is an error and changes nothing.
    let _ = shutdown(listener, rustix::net::Shutdown::Read);
    for (_, guest) in &mut register.present {
        guest.end_input();
    }
    // Who waits for a place need not.
    house.changed.notify_all();
    let (mut register, _) = house
        .changed
        .wait_timeout_while(register, drain, |register| !register.present.is_empty())
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    register.phase = Phase::Cutting;
    for (_, guest) in &register.present {
        let _ = guest.stream.shutdown(Shutdown::Both);
    }
    let _gone = house
        .changed
        .wait_while(register, |register| !register.present.is_empty())
        .unwrap_or_else(std::sync::PoisonError::into_inner);
}

/// Ends a connection's wait for more input: what has arrived is still read, and then the end. Says whether that end is
/// our doing; if the peer's own has arrived already, then that is what will be read, and this does nothing.
///
/// All it does are system calls that may be made in a signal handler.
pub fn shut_input(stream: impl AsFd) -> bool {
    let ours = !has_hung_up(&stream);
    if ours {
        let _ = shutdown(stream, rustix::net::Shutdown::Read);
    }
    ours
}

/// Whether the peer has ended its input, though it may not all be read yet.
#[cfg(target_os = "linux")]
fn has_hung_up(stream: &impl AsFd) -> bool {
    let mut wanted = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut wanted, Some(Duration::ZERO)).is_ok()
        && wanted[0].revents().contains(PollFlags::RDHUP)
}

/// Whether the peer has ended its input: only Linux can tell before all is read. Elsewhere a last line without its end
/// that is still unread at the stop is cut.
#[cfg(not(target_os = "linux"))]
fn has_hung_up(_: &impl AsFd) -> bool {
    false
}

/// A peer that was accepted and has a place. Dropped without a conversation, it is counted as refused.
#[derive(Debug)]
pub struct Visitor {
    stream: Arc<TcpStream>,
    service: Service,
    idle_timeout: Duration,
    place: usize,
    house: Arc<House>,
    ending: Ending,
}

impl Visitor {
    /// Holds the whole conversation on the calling thread, and says how it ended.
    pub fn converse(mut self) -> Ending {
        if self.house.register().phase == Phase::Cutting {
            // It has waited for its turn for longer than the drain.
            self.ending = Ending::Cut;
            return self.ending;
        }
        let mut session = self.service.open();
        self.ending = converse(&*self.stream, session.as_mut(), self.idle_timeout, || {
            self.told_to_end()
        });
        // After the deadline the watcher has broken the connection off, whatever error came of it.
        if matches!(self.ending, Ending::Reset | Ending::TimedOut)
            && self.house.register().phase == Phase::Cutting
        {
            self.ending = Ending::Cut;
        }
        self.ending
    }

    fn told_to_end(&self) -> bool {
        let register = self.house.register();
        let guest = register.present.get(self.place);
        guest.is_some_and(|guest| guest.told_to_end)
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let mut register = self.house.register();
        register.present.try_remove(self.place);
        register.tally.count(self.ending);
        self.house.changed.notify_all();
    }
}

/// A thread that will hold conversations, to be spawned.
pub fn thread(name: String, stack: Option<usize>) -> thread::Builder {
    let thread = thread::Builder::new().name(name);
    match stack {
        Some(size) => thread.stack_size(size),
        None => thread,
    }
}

/// What a conversation is held over: something whose reads and writes wait until they can be carried out.
///
/// A socket that blocks its thread is one. So is everything that looks like that from inside, such as a coroutine that
/// others run in place of while it waits.
pub trait Wire {
    /// As read(2); an error of the kind `WouldBlock` when [`set_patience`](Self::set_patience) has run out.
    ///
    /// # Errors
    ///
    /// As read(2).
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// As write(2); an error of the kind `WouldBlock` when [`set_patience`](Self::set_patience) has run out.
    ///
    /// # Errors
    ///
    /// As write(2).
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// As [`files::send_file`]; an error of the kind `WouldBlock` when [`set_patience`](Self::set_patience) has run out.
    ///
    /// # Errors
    ///
    /// As that.
    fn send_file(&self, slice: &FileSlice) -> io::Result<usize>;

    /// Waits for so long. It may be less if the connection is broken off meanwhile.
    ///
    /// # Errors
    ///
    /// That was noticed.
    fn pause(&self, time: Duration) -> io::Result<()>;

    /// Does work that keeps a thread.
    ///
    /// # Errors
    ///
    /// The connection was broken off before it began.
    fn carry_out(&self, work: Work) -> io::Result<()> {
        work::carry_out(work);
        Ok(())
    }

    /// How long every read and every write may wait from now on.
    ///
    /// # Errors
    ///
    /// The socket is gone.
    fn set_patience(&self, patience: Duration) -> io::Result<()>;

    /// Ends the sending side: FIN.
    ///
    /// # Errors
    ///
    /// Nobody is connected any more.
    fn finish_sending(&self) -> io::Result<()>;
}

impl Wire for TcpStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, bytes)
    }

    fn send_file(&self, slice: &FileSlice) -> io::Result<usize> {
        files::send_file(self, slice)
    }

    fn pause(&self, time: Duration) -> io::Result<()> {
        // Nothing is waited for but the end of both directions, which always is: a sleep would last longer than the
        // drain if need be.
        let mut broken = [PollFd::new(self, PollFlags::empty())];
        poll(&mut broken, Some(time))?;
        match broken[0].revents().is_empty() {
            true => Ok(()),
            false => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }

    fn finish_sending(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Holds a whole conversation where reads and writes can wait, and says how it ended.
///
/// `told_to_end` says, after the end of input, whether that was our doing: the server was stopped and ended the
/// [reading side](shut_input).
pub fn converse(
    wire: &impl Wire,
    session: &mut dyn Session,
    idle_timeout: Duration,
    told_to_end: impl Fn() -> bool,
) -> Ending {
    steps(wire, session, idle_timeout, told_to_end).unwrap_or_else(|error| Ending::of(&error))
}

/// The conversation: take the next step, carry it out, report what came of it.
fn steps(
    wire: &impl Wire,
    session: &mut dyn Session,
    idle_timeout: Duration,
    told_to_end: impl Fn() -> bool,
) -> io::Result<Ending> {
    wire.set_patience(idle_timeout)?;
    let mut buffer = [0; READ_BUFFER];
    loop {
        match session.step() {
            Step::Read => match wire.read(&mut buffer) {
                Ok(0) if told_to_end() => {
                    // Not the peer has ended its input, we have: it may have been in the middle of a request.
                    let cut = session.mid_request();
                    return Ok(if cut { Ending::Cut } else { Ending::Served });
                }
                Ok(0) => session.end_of_input(),
                Ok(count) => session.receive(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            },
            Step::Write(bytes) => match wire.write(bytes) {
                Ok(count) => session.sent(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            },
            Step::SendFile(slice) => match wire.send_file(slice) {
                Ok(count) => session.sent(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            },
            Step::Work(Work::Wait(time)) => {
                wire.pause(time)?;
                session.worked();
            }
            Step::Work(work) => {
                wire.carry_out(work)?;
                session.worked();
            }
            Step::Close(farewell) => {
                if farewell == CloseReason::Refused {
                    linger(wire, &mut buffer);
                }
                return Ok(farewell.into());
            }
        }
    }
}

/// Gives a refused peer time to read why. See [`CloseReason::Refused`].
fn linger(wire: &impl Wire, buffer: &mut [u8]) {
    let deadline = Instant::now() + LINGER;
    let _ = wire.finish_sending();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || wire.set_patience(left).is_err() {
            return;
        }
        match wire.read(buffer) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
