//! Conversations on blocking sockets, for every model that dedicates to each peer a unit that can wait: a thread, a
//! process, or (in `serial`) the whole server. The models differ in *which* thread or process calls
//! [`Connection::converse`].
//!
//! Waiting inside read(2) costs nothing, but a thread that waits there notices no stop and no deadline: its wait must
//! be ended from outside the thread. The kernel ends waits that are too long (SO_RCVTIMEO, SO_SNDTIMEO). One thread
//! that does nothing else, the *watcher*, waits for the stop and then ends all waits by shutdown(2): first the reading
//! side, which a blocked read sees as the end of input after everything that has already arrived; after the drain
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

/// Acceptor of peers until the stop, within the connection limit.
#[derive(Debug)]
pub struct Acceptor {
    listener: Arc<TcpListener>,
    service: Service,
    limits: Limits,
    stop: Stop,
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
    /// Closed when the acceptor ends for a reason other than the stop, so that the watcher ends too.
    closing: Option<UnixStream>,
}

/// State that the acceptor, the watcher and the connections share. It is locked a few times per connection, never per
/// request.
#[derive(Debug, Default)]
struct Shared {
    registry: Mutex<Registry>,
    /// Notified when a connection has left the registry, or the phase has changed.
    changed: Condvar,
}

/// The connections that are being served, and the tally of all.
#[derive(Debug, Default)]
struct Registry {
    connections: Slab<RegisteredConnection>,
    /// True while the acceptor may hold a peer that it has accepted and not yet registered. The drain waits for that
    /// peer too: it was accepted before the stop, so its requests are owed a reply.
    accepting: bool,
    tally: Tally,
    phase: Phase,
}

impl Registry {
    /// Returns true if no peer is being served or about to be.
    fn is_empty(&self) -> bool {
        self.connections.is_empty() && !self.accepting
    }
}

/// The registry's entry of a connection.
#[derive(Debug)]
struct RegisteredConnection {
    stream: Arc<TcpStream>,
    /// True if the server, and not the peer, has ended the connection's input.
    input_ended_by_server: bool,
}

impl RegisteredConnection {
    /// Ends the connection's wait for more input. Input that has arrived is still read. If the peer's own end of input
    /// has arrived too, that end is read after it.
    fn end_input(&mut self) {
        self.input_ended_by_server |= shut_input(&*self.stream);
    }
}

/// The phases of an acceptor.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Peers are accepted.
    #[default]
    Open,
    /// The server was stopped: requests that have arrived are being finished.
    Draining,
    /// The drain deadline has passed: a conversation that fails now was cut by the server.
    Cutting,
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        // A poisoned lock is used too: no code that can panic runs under this lock, and the tally is useful in any
        // case.
        self.registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Acceptor {
    /// Creates an acceptor and starts its watcher, which waits for the stop.
    ///
    /// # Errors
    ///
    /// No thread or no descriptor is available.
    pub fn new(
        listener: TcpListener,
        service: Service,
        limits: Limits,
        stop: Stop,
    ) -> io::Result<Acceptor> {
        // On Linux the watcher can end a wait in accept(2), so the acceptor needs no poll(2) before it. This also
        // matters to processes that share a listener: of those that wait in accept(2), the kernel wakes one for each
        // peer, where poll(2) would wake them all.
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

    /// Waits for a free slot and for the next peer. Returns `None` after the stop.
    ///
    /// # Errors
    ///
    /// The listener is broken.
    pub fn accept(&mut self) -> io::Result<Option<Connection>> {
        let connection = self.wait_for_peer();
        if !matches!(connection, Ok(Some(_))) {
            self.shared.registry().accepting = false;
            self.shared.changed.notify_all();
        }
        if connection.is_err() {
            // The model may now wait for the connections that are still being served. Without a stop they would never
            // be asked to end; closing this makes the watcher stop them.
            self.closing = None;
        }
        connection
    }

    fn wait_for_peer(&self) -> io::Result<Option<Connection>> {
        loop {
            if !self.wait_for_slot() {
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
                // A watcher, perhaps that of another process, has already shut the listener down.
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

    /// Logs the reason, and then waits for [`accept::PAUSE`] or until the stop. For times when the server lacks the
    /// resources to serve a peer.
    ///
    /// # Errors
    ///
    /// poll(2) failed.
    pub fn pause(&self, reason: &str) -> io::Result<()> {
        tracing::warn!("{reason}");
        self.stop.wait(Some(accept::PAUSE)).map(drop)
    }

    /// Waits until a slot of the connection limit is free. Returns false after the stop. After true the acceptor counts
    /// as accepting until it registers a peer or [`accept`](Self::accept) returns.
    fn wait_for_slot(&self) -> bool {
        let registry = self.shared.registry();
        let mut registry = self
            .shared
            .changed
            .wait_while(registry, |registry| {
                registry.phase == Phase::Open
                    && registry.connections.len() >= self.limits.max_connections
            })
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        registry.accepting = registry.phase == Phase::Open;
        registry.accepting
    }

    /// Registers an accepted connection.
    fn admit(&self, stream: TcpStream) -> Connection {
        let stream = Arc::new(stream);
        let mut entry = RegisteredConnection {
            stream: Arc::clone(&stream),
            input_ended_by_server: false,
        };
        let mut registry = self.shared.registry();
        registry.tally.accepted += 1;
        registry.accepting = false;
        if registry.phase != Phase::Open {
            // The watcher has already ended the input of all registered connections, and would miss this one.
            entry.end_input();
        }
        Connection {
            slot: registry.connections.insert(entry),
            stream,
            service: self.service.clone(),
            idle_timeout: self.limits.idle_timeout,
            shared: Arc::clone(&self.shared),
            ending: Ending::Refused,
        }
    }

    /// Waits for the connections that are still being served, and returns the tally.
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
    /// Joins the watcher and drains the connections, also after a fatal error.
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs the watcher: sleeps until the stop, and then ends the wait of every connection.
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
        tracing::error!("cannot wait for the stop: {error}; the server stops now");
    }
    let mut registry = shared.registry();
    registry.phase = Phase::Draining;
    // A listener that stayed open would let peers into the backlog during the drain, and they would never be accepted.
    // On Linux this ends the listener even while the acceptor is busy with a connection; on other systems it fails and
    // changes nothing.
    let _ = shutdown(listener, rustix::net::Shutdown::Read);
    for (_, entry) in &mut registry.connections {
        entry.end_input();
    }
    // Wake the acceptor, which may be waiting for a slot that it no longer needs.
    shared.changed.notify_all();
    let (mut registry, _) = shared
        .changed
        .wait_timeout_while(registry, drain, |registry| !registry.is_empty())
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    registry.phase = Phase::Cutting;
    for (_, entry) in &registry.connections {
        let _ = entry.stream.shutdown(Shutdown::Both);
    }
    let _gone = shared
        .changed
        .wait_while(registry, |registry| !registry.connections.is_empty())
        .unwrap_or_else(std::sync::PoisonError::into_inner);
}

/// Ends a connection's wait for more input: the server still reads the input that has arrived, and then the end of
/// input. Returns true if this call caused that end. If the peer's own end of input has already arrived, this call does
/// nothing and returns false.
///
/// It makes only system calls that are allowed in a signal handler.
pub fn shut_input(stream: impl AsFd) -> bool {
    let ours = !has_hung_up(&stream);
    if ours {
        let _ = shutdown(stream, rustix::net::Shutdown::Read);
    }
    ours
}

/// Returns true if the peer has ended its input, even if not all of the input has been read.
#[cfg(target_os = "linux")]
fn has_hung_up(stream: &impl AsFd) -> bool {
    let mut wanted = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut wanted, Some(Duration::ZERO)).is_ok()
        && wanted[0].revents().contains(PollFlags::RDHUP)
}

/// Returns false: only Linux reports that the peer has ended its input before all of it is read. On other systems a
/// last line without a line end that is still unread at the stop is cut.
#[cfg(not(target_os = "linux"))]
fn has_hung_up(_: &impl AsFd) -> bool {
    false
}

/// An accepted connection, which has a slot of the connection limit. A connection that is dropped without a
/// conversation is counted as refused.
#[derive(Debug)]
pub struct Connection {
    stream: Arc<TcpStream>,
    service: Service,
    idle_timeout: Duration,
    slot: usize,
    shared: Arc<Shared>,
    ending: Ending,
}

impl Connection {
    /// Holds the whole conversation on the calling thread, and returns how it ended.
    pub fn converse(mut self) -> Ending {
        if self.shared.registry().phase == Phase::Cutting {
            // The connection has waited for a thread for longer than the drain.
            self.ending = Ending::Cut;
            return self.ending;
        }
        let mut session = self.service.open();
        self.ending = converse(&*self.stream, session.as_mut(), self.idle_timeout, || {
            self.input_ended_by_server()
        });
        // After the drain deadline the watcher has broken the connection off, so any error is counted as cut.
        if matches!(self.ending, Ending::Reset | Ending::TimedOut)
            && self.shared.registry().phase == Phase::Cutting
        {
            self.ending = Ending::Cut;
        }
        self.ending
    }

    fn input_ended_by_server(&self) -> bool {
        let registry = self.shared.registry();
        let entry = registry.connections.get(self.slot);
        entry.is_some_and(|entry| entry.input_ended_by_server)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut registry = self.shared.registry();
        registry.connections.try_remove(self.slot);
        registry.tally.count(self.ending);
        self.shared.changed.notify_all();
    }
}

/// Returns the builder of a thread that will hold conversations; `stack` is the size of its stack in bytes (`None`: the
/// default of the standard library).
pub fn thread(name: String, stack: Option<usize>) -> thread::Builder {
    let thread = thread::Builder::new().name(name);
    match stack {
        Some(size) => thread.stack_size(size),
        None => thread,
    }
}

/// A connection that a conversation is held over: its reads and writes wait until they can be carried out.
///
/// A socket that blocks its thread is a transport. So is everything that behaves in the same way for its caller, such
/// as the socket of a coroutine, where other coroutines run while this one waits.
pub trait Transport {
    /// Reads as read(2) does. Fails with an error of the kind `WouldBlock` after the time set by
    /// [`set_patience`](Self::set_patience).
    ///
    /// # Errors
    ///
    /// The errors of read(2).
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes as write(2) does. Fails with an error of the kind `WouldBlock` after the time set by
    /// [`set_patience`](Self::set_patience).
    ///
    /// # Errors
    ///
    /// The errors of write(2).
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Sends a range of a file as [`files::send_file`] does. Fails with an error of the kind `WouldBlock` after the
    /// time set by [`set_patience`](Self::set_patience).
    ///
    /// # Errors
    ///
    /// The errors of [`files::send_file`].
    fn send_file(&self, slice: &FileSlice) -> io::Result<usize>;

    /// Waits for `time`, or less if the connection is broken off meanwhile.
    ///
    /// # Errors
    ///
    /// The connection was broken off, and the transport noticed it.
    fn pause(&self, time: Duration) -> io::Result<()>;

    /// Carries out work that occupies a thread.
    ///
    /// # Errors
    ///
    /// The connection was broken off before the work began.
    fn carry_out(&self, work: Work) -> io::Result<()> {
        work::carry_out(work);
        Ok(())
    }

    /// Sets how long each read and each write may wait from now on.
    ///
    /// # Errors
    ///
    /// The socket does not exist any more.
    fn set_patience(&self, patience: Duration) -> io::Result<()>;

    /// Ends the sending side: sends FIN.
    ///
    /// # Errors
    ///
    /// The socket is no longer connected.
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
        // With no event requested, poll(2) still reports the end of both directions. A sleep could not be interrupted
        // by it, and might last longer than the drain.
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

/// Holds a whole conversation where reads and writes can wait, and returns how it ended.
///
/// `input_ended_by_server` is called after the end of input. It returns true if the server, and not the peer, ended the
/// input: the server was stopped and ended the [reading side](shut_input).
pub fn converse(
    transport: &impl Transport,
    session: &mut dyn Session,
    idle_timeout: Duration,
    input_ended_by_server: impl Fn() -> bool,
) -> Ending {
    steps(transport, session, idle_timeout, input_ended_by_server)
        .unwrap_or_else(|error| Ending::of(&error))
}

/// Holds the conversation: takes the next step, carries it out, and reports the result to the session.
fn steps(
    transport: &impl Transport,
    session: &mut dyn Session,
    idle_timeout: Duration,
    input_ended_by_server: impl Fn() -> bool,
) -> io::Result<Ending> {
    transport.set_patience(idle_timeout)?;
    let mut buffer = [0; READ_BUFFER];
    loop {
        match session.step() {
            Step::Read => match transport.read(&mut buffer) {
                Ok(0) if input_ended_by_server() => {
                    // The peer has not ended its input, so it may have been in the middle of a request.
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
            Step::Close(reason) => {
                if reason == CloseReason::Refused {
                    linger(transport, &mut buffer);
                }
                return Ok(reason.into());
            }
        }
    }
}

/// Sends FIN, and then reads and discards input for at most [`LINGER`]: a refused peer gets time to read the error
/// reply. See [`CloseReason::Refused`].
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A session that answers each byte with itself.
    #[derive(Debug, Default)]
    struct Echo(Vec<u8>);

    impl Session for Echo {
        fn step(&mut self) -> Step<'_> {
            match self.0.is_empty() {
                true => Step::Read,
                false => Step::Write(&self.0),
            }
        }

        fn receive(&mut self, input: &[u8]) {
            self.0.extend_from_slice(input);
        }

        fn end_of_input(&mut self) {}

        fn sent(&mut self, count: usize) {
            self.0.drain(..count);
        }

        fn mid_request(&self) -> bool {
            false
        }
    }

    #[test]
    fn peer_accepted_just_before_the_stop_and_registered_after_it_is_answered() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (stopper, stop) = Stop::channel().unwrap();
        let service = Service::new(|| Box::<Echo>::default());
        let acceptor = Acceptor::new(listener, service, Limits::default(), stop).unwrap();

        assert!(acceptor.wait_for_slot());
        let mut peer = TcpStream::connect(address).unwrap();
        peer.write_all(b"x").unwrap();
        let (stream, _) = acceptor.listener.accept().unwrap();
        stream.peek(&mut [0]).unwrap();
        drop(stopper);
        // The watcher keeps the lock while it goes from the first phase to the next, unless it waits for this peer.
        while acceptor.shared.registry().phase == Phase::Open {
            thread::yield_now();
        }

        assert_eq!(acceptor.admit(stream).converse(), Ending::Served);
        let mut reply = Vec::new();
        peer.read_to_end(&mut reply).unwrap();
        assert_eq!(reply, b"x");
        assert_eq!(acceptor.finish().served, 1);
    }
}
