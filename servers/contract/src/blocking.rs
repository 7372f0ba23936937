//! Conversations on blocking sockets, for every model that gives a peer something that can wait: a thread, a process,
//! or (in `serial`) the whole server. The models differ in *who* calls [`Connection::converse`].
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
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
    /// Closed when the acceptor ends for another reason than the stop, so that the watcher ends too.
    closing: Option<UnixStream>,
}

/// Everything that the acceptor, the watcher and the connections share. Locked a few times per connection, never per request.
#[derive(Debug, Default)]
struct Shared {
    registry: Mutex<Registry>,
    /// Somebody left, or the phase changed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Registry {
    present: Slab<RegisteredConnection>,
    tally: Tally,
    phase: Phase,
}

#[derive(Debug)]
struct RegisteredConnection {
    stream: Arc<TcpStream>,
    /// The end of its input is our doing, not the peer's.
    told_to_end: bool,
}

impl RegisteredConnection {
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

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Poisoned or not: nothing that can panic runs under this lock, and a tally is worth giving in any case.
        self.registry
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
        let shared = Arc::new(Shared::default());
        let (closing, closed) = UnixStream::pair()?;
        let watcher = thread::Builder::new().name("watcher".to_string()).spawn({
            let (stop, listener) = (stop.clone(), Arc::clone(&listener));
            let (shared, drain) = (Arc::clone(&shared), limits.drain);
            move || watch(&stop, &closed, &listener, &shared, drain)
        })?;
        Ok(Acceptor {
            listener,
            service,
            limits,
            stop,
            shared,
            watcher: Some(watcher),
            closing: Some(closing),
        })
    }

    /// Waits for the next peer, and for a place for it; `None` after the stop.
    ///
    /// # Errors
    ///
    /// The listener is broken.
    pub fn accept(&mut self) -> io::Result<Option<Connection>> {
        let connection = self.wait_for_peer();
        if connection.is_err() {
            // Nobody would say stop to those who are still served, and the model may wait for them.
            self.closing = None;
        }
        connection
    }

    fn wait_for_peer(&self) -> io::Result<Option<Connection>> {
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
                    let pause = accept::on_error(error, &mut self.shared.registry().tally)?;
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
        let registry = self.shared.registry();
        let registry = self
            .shared
            .changed
            .wait_while(registry, |registry| {
                registry.phase == Phase::Open
                    && registry.present.len() >= self.limits.max_connections
            })
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        registry.phase == Phase::Open
    }

    fn admit(&self, stream: TcpStream) -> Connection {
        let stream = Arc::new(stream);
        let mut entry = RegisteredConnection {
            stream: Arc::clone(&stream),
            told_to_end: false,
        };
        let mut registry = self.shared.registry();
        registry.tally.accepted += 1;
        if registry.phase != Phase::Open {
            // The watcher has been through the registry already.
            entry.end_input();
        }
        Connection {
            place: registry.present.insert(entry),
            stream,
            service: self.service.clone(),
            idle_timeout: self.limits.idle_timeout,
            shared: Arc::clone(&self.shared),
            ending: Ending::Refused,
        }
    }

    /// Ends: waits for the connections that are still being served, and gives the account.
    pub fn finish(mut self) -> Tally {
        self.close();
        self.shared.registry().tally
    }

    fn close(&mut self) {
        self.closing = None;
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Drop for Acceptor {
    /// After a fatal error too, the watcher is joined and the connections are drained.
    fn drop(&mut self) {
        self.close();
    }
}

/// The watcher's life: sleep until the stop, then end everybody's wait.
fn watch(
    stop: &Stop,
    closed: &UnixStream,
    listener: &TcpListener,
    shared: &Shared,
    drain: Duration,
) {
    let mut wanted = [
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(closed, PollFlags::IN),
    ];
    if let Err(error) = poll(&mut wanted, None) {
        tracing::error!("cannot wait for the stop ({error}): stopping now");
    }
    let mut registry = shared.registry();
    registry.phase = Phase::Draining;
    // A listener that stayed open would let peers into the backlog during the drain, where nobody comes for them. On
    // Linux this ends it even while the acceptor is busy with a connection; elsewhere it is an error and changes nothing.
    let _ = shutdown(listener, rustix::net::Shutdown::Read);
    for (_, entry) in &mut registry.present {
        entry.end_input();
    }
    // Who waits for a place need not.
    shared.changed.notify_all();
    let (mut registry, _) = shared
        .changed
        .wait_timeout_while(registry, drain, |registry| !registry.present.is_empty())
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    registry.phase = Phase::Cutting;
    for (_, entry) in &registry.present {
        let _ = entry.stream.shutdown(Shutdown::Both);
    }
    let _gone = shared
        .changed
        .wait_while(registry, |registry| !registry.present.is_empty())
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
pub struct Connection {
    stream: Arc<TcpStream>,
    service: Service,
    idle_timeout: Duration,
    place: usize,
    shared: Arc<Shared>,
    ending: Ending,
}

impl Connection {
    /// Holds the whole conversation on the calling thread, and says how it ended.
    pub fn converse(mut self) -> Ending {
        if self.shared.registry().phase == Phase::Cutting {
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
            && self.shared.registry().phase == Phase::Cutting
        {
            self.ending = Ending::Cut;
        }
        self.ending
    }

    fn told_to_end(&self) -> bool {
        let registry = self.shared.registry();
        let entry = registry.present.get(self.place);
        entry.is_some_and(|entry| entry.told_to_end)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut registry = self.shared.registry();
        registry.present.try_remove(self.place);
        registry.tally.count(self.ending);
        self.shared.changed.notify_all();
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
pub trait Transport {
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

impl Transport for TcpStream {
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
    transport: &impl Transport,
    session: &mut dyn Session,
    idle_timeout: Duration,
    told_to_end: impl Fn() -> bool,
) -> Ending {
    steps(transport, session, idle_timeout, told_to_end).unwrap_or_else(|error| Ending::of(&error))
}

/// The conversation: take the next step, carry it out, report what came of it.
fn steps(
    transport: &impl Transport,
    session: &mut dyn Session,
    idle_timeout: Duration,
    told_to_end: impl Fn() -> bool,
) -> io::Result<Ending> {
    transport.set_patience(idle_timeout)?;
    let mut buffer = [0; READ_BUFFER];
    loop {
        match session.step() {
            Step::Read => match transport.read(&mut buffer) {
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
            Step::Write(bytes) => match transport.write(bytes) {
                Ok(count) => session.sent(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            },
            Step::SendFile(slice) => match transport.send_file(slice) {
                Ok(count) => session.sent(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            },
            Step::Work(Work::Wait(time)) => {
                transport.pause(time)?;
                session.worked();
            }
            Step::Work(work) => {
                transport.carry_out(work)?;
                session.worked();
            }
            Step::Close(farewell) => {
                if farewell == CloseReason::Refused {
                    linger(transport, &mut buffer);
                }
                return Ok(farewell.into());
            }
        }
    }
}

/// Gives a refused peer time to read why. See [`CloseReason::Refused`].
fn linger(transport: &impl Transport, buffer: &mut [u8]) {
    let deadline = Instant::now() + LINGER;
    let _ = transport.finish_sending();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || transport.set_patience(left).is_err() {
            return;
        }
        match transport.read(buffer) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
