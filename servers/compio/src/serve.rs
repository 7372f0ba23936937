//! The server. No conversation abandons an operation: its buffer belongs to the kernel until the operation completes,
//! and the bytes that a cancelled read had taken would be lost (see `tests/cancelled_read.rs`). The wait of a
//! conversation is ended from outside, by shutdown(2), and that completes the operation: with the bytes that had
//! arrived, and then with the end of input. A conversation that sleeps is woken, because a sleep is no operation.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use compio::BufResult;
use compio::buf::{IntoInner, IoBuf};
use compio::driver::op::ReadAt;
use compio::io::{AsyncRead, AsyncWrite};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::fd::PollFd;
use compio::runtime::{spawn, spawn_blocking, submit};
use compio::time::{sleep_until, timeout};
use contract::blocking::shut_input;
use contract::files::{FILE_BUFFER, shorter};
use contract::{
    Deadlines, Ending, LINGER, Limits, READ_BUFFER, Service, Stop, Tally, accept, work,
};
use protocol::{CloseReason, FileSlice, Session, Step, Work};
use slab::Slab;
use socket2::SockRef;

use crate::runtime::runtime;

pub(crate) fn serve(
    listener: std::net::TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
) -> io::Result<Tally> {
    runtime()?.block_on(run(listener, service, limits, stop))
}

async fn run(
    listener: std::net::TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
) -> io::Result<Tally> {
    // The kernel waits for the server; but older kernels do not wait on a descriptor that is non-blocking.
    listener.set_nonblocking(false)?;
    let listener = TcpListener::from_std(listener)?;
    let shared = Rc::new(RefCell::new(Shared {
        offload: limits.offload,
        ..Shared::default()
    }));
    let stop = PollFd::new(stop.stream()?)?;
    let watcher = spawn(watch(stop, listener.clone(), Rc::clone(&shared)));
    let _clock = spawn(run_clock(Rc::clone(&shared), limits.idle_timeout));

    let ended = loop {
        wait_until(&shared, |shared| {
            shared.stopping || shared.connections.len() < limits.max_connections
        })
        .await;
        if shared.borrow().stopping {
            break Ok(());
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = shared.borrow_mut().admit(stream, limits.idle_timeout);
                spawn(serve_connection(
                    connection,
                    service.open(),
                    Rc::clone(&shared),
                ))
                .detach();
            }
            // The watcher has shut the listener down.
            Err(_) if shared.borrow().stopping => break Ok(()),
            Err(error) => {
                let sorted = accept::on_error(error, &mut shared.borrow_mut().tally);
                match sorted {
                    Ok(None) => {}
                    Ok(Some(pause)) => {
                        let _ = timeout(pause, wait_until(&shared, |shared| shared.stopping)).await;
                    }
                    Err(broken) => break Err(broken),
                }
            }
        }
    };

    // The server was stopped, or the listener is broken. In both cases the connections are drained.
    drop(listener);
    let watched = watcher.cancel().await.unwrap_or(Ok(()));
    shared.borrow_mut().stop();
    let empty = |shared: &Shared| shared.connections.is_empty();
    if timeout(limits.drain, wait_until(&shared, empty))
        .await
        .is_err()
    {
        for (_, connection) in &shared.borrow().connections {
            connection.break_off(Ending::Cut);
        }
        wait_until(&shared, empty).await;
    }
    let tally = shared.borrow().tally;
    ended.and(watched).map(|()| tally)
}

/// State that all tasks share. All run on one thread: a borrow conflicts with another only if it is held across an
/// `await`.
#[derive(Default)]
struct Shared {
    connections: Slab<Rc<Connection>>,
    tally: Tally,
    stopping: bool,
    /// Times at which to check the connections for idleness again, by slot.
    deadlines: Deadlines,
    /// Time until which work last occupied the thread; no connection's input was read meanwhile.
    occupied_until: Option<Instant>,
    /// True if work that occupies a thread is moved to other threads.
    offload: bool,
    /// Waker of the accepting task, while it waits for a change here.
    waiting: Option<Waker>,
}

/// Waits until the condition is true. Only one task may wait at a time.
async fn wait_until(shared: &RefCell<Shared>, condition: impl Fn(&Shared) -> bool) {
    poll_fn(|context| {
        let mut shared = shared.borrow_mut();
        if condition(&shared) {
            return Poll::Ready(());
        }
        shared.waiting = Some(context.waker().clone());
        Poll::Pending
    })
    .await;
}

impl Shared {
    fn admit(&mut self, stream: TcpStream, idle_timeout: Duration) -> Rc<Connection> {
        self.tally.accepted += 1;
        let now = Instant::now();
        let slot = self.connections.vacant_entry();
        self.deadlines.arm(slot.key(), now + idle_timeout);
        let connection = Rc::new(Connection {
            stream,
            slot: slot.key(),
            progress: Cell::new(now),
            working: Cell::new(false),
            input_ended_by_server: Cell::new(false),
            broken_off: Cell::new(None),
            sleeping: Cell::new(None),
        });
        slot.insert(Rc::clone(&connection));
        if self.stopping {
            // The watcher has already ended the input of all registered connections, and would miss this one.
            connection.end_input();
        }
        connection
    }

    fn leave(&mut self, connection: &Connection, ending: Ending) {
        self.connections.remove(connection.slot);
        self.tally.count(ending);
        self.changed();
    }

    /// Breaks off the connections that were idle for too long. Returns the time at which the next may be due.
    fn expire(&mut self, now: Instant, idle_timeout: Duration) -> Instant {
        while let Some(slot) = self.deadlines.pop_due(now) {
            let Some(connection) = self.connections.get(slot) else {
                continue;
            };
            let active = self.occupied_until.max(Some(connection.progress.get()));
            let since = active.filter(|_| !connection.working.get());
            let deadline = since.unwrap_or(now) + idle_timeout;
            if deadline > now {
                self.deadlines.arm(slot, deadline);
            } else {
                connection.break_off(Ending::TimedOut);
            }
        }
        // A connection that is admitted later is due later.
        self.deadlines.next().unwrap_or(now + idle_timeout)
    }

    fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            for (_, connection) in &self.connections {
                connection.end_input();
            }
            self.changed();
        }
    }

    fn changed(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

/// The part of a connection that other tasks use to end its wait.
struct Connection {
    stream: TcpStream,
    slot: usize,
    /// Time of the last progress: a byte received or sent, or work done.
    progress: Cell<Instant>,
    /// True while the connection waits for a file or for work, and not for its peer. That is not idleness.
    working: Cell<bool>,
    /// True if the server, and not the peer, has ended the connection's input.
    input_ended_by_server: Cell<bool>,
    /// Ending that the server has decided by breaking the connection off; `None` if it has not.
    broken_off: Cell<Option<Ending>>,
    /// Waker of the connection's task, while it sleeps.
    sleeping: Cell<Option<Waker>>,
}

impl Connection {
    /// Ends the connection's wait for more input. Input that has arrived is still read.
    fn end_input(&self) {
        self.input_ended_by_server.set(shut_input(&self.stream));
    }

    /// Ends every wait of the connection, which is then counted with this ending.
    fn break_off(&self, ending: Ending) {
        self.broken_off.set(Some(ending));
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Both);
        if let Some(sleeping) = self.sleeping.take() {
            sleeping.wake();
        }
    }

    /// Waits until the connection is broken off.
    async fn wait_for_break(&self) {
        poll_fn(|context| match self.broken_off.get() {
            Some(_) => Poll::Ready(()),
            None => {
                self.sleeping.set(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await;
    }
}

/// Runs the watcher: waits until the stop is readable, without reading from it, and then ends the input of all
/// connections.
async fn watch(
    stop: PollFd<UnixStream>,
    listener: TcpListener,
    shared: Rc<RefCell<Shared>>,
) -> io::Result<()> {
    let stopped = stop.read_ready().await;
    shared.borrow_mut().stop();
    // This completes the accept that is under way. If it has already completed, its peer is served.
    let _ = SockRef::from(&listener).shutdown(Shutdown::Read);
    stopped
}

/// Runs the clock: breaks off the connections that made no progress for too long. It has the only timer for that; a
/// timer for every read would cost more than the read.
async fn run_clock(shared: Rc<RefCell<Shared>>, idle_timeout: Duration) {
    loop {
        let next = shared.borrow_mut().expire(Instant::now(), idle_timeout);
        sleep_until(next).await;
    }
}

/// Runs the task of a connection: holds the conversation, and counts its ending.
async fn serve_connection(
    connection: Rc<Connection>,
    session: Box<dyn Session>,
    shared: Rc<RefCell<Shared>>,
) {
    let ended = converse(&connection, session, &shared).await;
    // After the server has broken the connection off, an error does not come from the peer.
    let ending_of = |error| connection.broken_off.get().unwrap_or(Ending::of(&error));
    let ending = ended.unwrap_or_else(ending_of);
    shared.borrow_mut().leave(&connection, ending);
}

/// Holds the conversation: takes the session's next step, carries it out, and reports the result to the session.
async fn converse(
    connection: &Connection,
    mut session: Box<dyn Session>,
    shared: &RefCell<Shared>,
) -> io::Result<Ending> {
    let mut stream = &connection.stream;
    // Two buffers for each peer, even while it is idle: a read that waits in the kernel has its buffer there.
    let mut input = Vec::with_capacity(READ_BUFFER);
    let mut output = Vec::new();
    // A third buffer for a peer that is being sent a file.
    let mut chunk = Vec::new();

    loop {
        match session.step() {
            Step::Read => {
                chunk = Vec::new();
                let BufResult(read, buffer) = stream.read(input).await;
                input = buffer;
                match read? {
                    0 if connection.input_ended_by_server.get() => {
                        // The server has ended the input, not the peer: it may have been in the middle of a request.
                        let cut = session.mid_request();
                        return Ok(if cut { Ending::Cut } else { Ending::Served });
                    }
                    0 if connection.broken_off.get().is_some() => {
                        return Err(io::ErrorKind::NotConnected.into());
                    }
                    0 => session.end_of_input(),
                    count => session.receive(&input[..count]),
                }
            }
            Step::Write(bytes) => {
                // The session only lends its bytes, and the kernel takes only a buffer that it can keep: so they are
                // copied.
                output.clear();
                output.extend_from_slice(&bytes[..bytes.len().min(READ_BUFFER)]);
                let BufResult(written, buffer) = stream.write(output).await;
                output = buffer;
                session.sent(written?);
            }
            Step::SendFile(slice) => {
                let slice = slice.clone();
                let sent = send_file(connection, &slice, &mut chunk).await?;
                session.sent(sent);
            }
            Step::Work(work) => {
                connection.working.set(true);
                carry_out(work, connection, shared).await?;
                connection.working.set(false);
                session.worked();
            }
            Step::Close(reason) => {
                if reason == CloseReason::Refused {
                    // From now on the connection has a time-out of its own.
                    connection.progress.set(Instant::now() + LINGER);
                    let _ = timeout(LINGER, linger(stream, input)).await;
                }
                return Ok(reason.into());
            }
        }
        connection.progress.set(Instant::now());
    }
}

/// Reads the beginning of a range of a file, sends it, and returns the number of bytes. The kernel waits for the disk
/// as it does for a socket, so no thread has to wait.
async fn send_file(
    connection: &Connection,
    slice: &FileSlice,
    chunk: &mut Vec<u8>,
) -> io::Result<usize> {
    let mut buffer = mem::take(chunk);
    buffer.resize(FILE_BUFFER, 0);
    let most = usize::try_from(slice.len()).map_or(FILE_BUFFER, |len| len.min(FILE_BUFFER));
    // The file moves into the operation too, and is shared: other connections that are sent it read from the same
    // descriptor.
    let file = Arc::clone(slice.file());
    connection.working.set(true);
    let read = submit(ReadAt::new(file, slice.offset(), buffer.slice(..most)));
    let BufResult(read, operation) = read.await;
    connection.working.set(false);
    let count = read?;
    if count == 0 {
        return Err(shorter());
    }
    let mut buffer = operation.into_inner().into_inner();
    let mut sent = 0;
    while sent < count {
        connection.progress.set(Instant::now());
        let BufResult(written, rest) = (&connection.stream).write(buffer.slice(sent..count)).await;
        buffer = rest.into_inner();
        sent += written?;
    }
    *chunk = buffer;
    Ok(sent)
}

/// Carries out the work before a reply.
///
/// # Errors
///
/// The connection was broken off, or the work panicked on another thread.
async fn carry_out(
    work: Work,
    connection: &Connection,
    shared: &RefCell<Shared>,
) -> io::Result<()> {
    let offload = shared.borrow().offload;
    match work {
        Work::Wait(time) => match timeout(time, connection.wait_for_break()).await {
            Ok(()) => Err(io::ErrorKind::NotConnected.into()),
            Err(_) => Ok(()),
        },
        // While 256 threads are busy, the runtime has no thread for more work, and blocks its own thread until there is
        // one.
        _ if offload => {
            let done = spawn_blocking(move || work::carry_out(work)).await;
            done.map_err(|_| io::Error::other("the work panicked"))
        }
        _ => {
            // The work runs on this thread, and all other connections wait.
            work::carry_out(work);
            shared.borrow_mut().occupied_until = Some(Instant::now());
            Ok(())
        }
    }
}

/// Gives a refused peer time to read the error reply: see [`CloseReason::Refused`]. When the time is over, the read is
/// cancelled: the bytes that it had taken would be thrown away in any case.
async fn linger(mut stream: &TcpStream, mut input: Vec<u8>) -> io::Result<()> {
    SockRef::from(stream).shutdown(Shutdown::Write)?;
    loop {
        let BufResult(read, buffer) = stream.read(input).await;
        if read? == 0 {
            return Ok(());
        }
        input = buffer;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While the thread is occupied, input that arrives is not read; and a peer whose connection works sends nothing.
    #[test]
    fn connection_is_not_idle_while_it_works_or_the_thread_is_occupied() {
        if let Err(reason) = crate::available() {
            eprintln!("compio cannot run here: {reason}; not checked");
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        runtime().unwrap().block_on(async {
            let mut shared = Shared::default();
            let idle_timeout = Duration::from_secs(1);
            let connections = [(); 2].map(|()| {
                let _peer = std::net::TcpStream::connect(address).unwrap();
                let (stream, _) = listener.accept().unwrap();
                shared.admit(TcpStream::from_std(stream).unwrap(), idle_timeout)
            });
            let endings = || {
                connections
                    .each_ref()
                    .map(|connection| connection.broken_off.get())
            };
            connections[1].working.set(true);
            let occupied_until = Instant::now() + 5 * idle_timeout;
            shared.occupied_until = Some(occupied_until);
            let next = shared.expire(occupied_until, idle_timeout);
            assert_eq!(next, occupied_until + idle_timeout);
            assert_eq!(endings(), [None, None]);
            shared.expire(next, idle_timeout);
            assert_eq!(endings(), [Some(Ending::TimedOut), None]);
        });
    }

    /// An accept may complete just before the watcher shuts the listener down, and be noticed just after.
    #[test]
    fn connection_admitted_after_the_stop_sees_the_end_of_input() {
        if let Err(reason) = crate::available() {
            eprintln!("compio cannot run here: {reason}; not checked");
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        runtime().unwrap().block_on(async {
            let mut shared = Shared::default();
            shared.stop();
            let stream = TcpStream::from_std(stream).unwrap();
            let connection = shared.admit(stream, Duration::from_secs(60));
            assert!(connection.input_ended_by_server.get());
            let BufResult(read, _) = (&connection.stream).read(Vec::with_capacity(1)).await;
            assert_eq!(read.unwrap(), 0);
        });
    }
}
