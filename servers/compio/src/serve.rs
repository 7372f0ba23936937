//! The server. No conversation abandons an operation: its buffer is the kernel's until it completes, and what a
//! cancelled read had taken would be lost (see `tests/cancelled_read.rs`). Whoever must not wait any longer is told from
//! outside, by shutdown(2), and that completes the operation: with what had arrived, and then with the end. Who sleeps is
//! woken: that is no operation.

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
    // The kernel waits in our place; but older ones do not where a descriptor says that nobody shall.
    listener.set_nonblocking(false)?;
    let listener = TcpListener::from_std(listener)?;
    let shared = Rc::new(RefCell::new(Shared {
        offload: limits.offload,
        ..Shared::default()
    }));
    let stop = PollFd::new(stop.stream()?)?;
    let watcher = spawn(watch(stop, listener.clone(), Rc::clone(&shared)));
    let _clock = spawn(keep_time(Rc::clone(&shared), limits.idle_timeout));

    let ended = loop {
        until(&shared, |shared| {
            shared.stopping || shared.present.len() < limits.max_connections
        })
        .await;
        if shared.borrow().stopping {
            break Ok(());
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = shared.borrow_mut().admit(stream, limits.idle_timeout);
                spawn(visit(connection, service.open(), Rc::clone(&shared))).detach();
            }
            // The watcher has ended the listener.
            Err(_) if shared.borrow().stopping => break Ok(()),
            Err(error) => {
                let sorted = accept::on_error(error, &mut shared.borrow_mut().tally);
                match sorted {
                    Ok(None) => {}
                    Ok(Some(pause)) => {
                        let _ = timeout(pause, until(&shared, |shared| shared.stopping)).await;
                    }
                    Err(broken) => break Err(broken),
                }
            }
        }
    };

    // Stopped or broken, those who are here are served to the end.
    drop(listener);
    let watched = watcher.cancel().await.unwrap_or(Ok(()));
    shared.borrow_mut().stop();
    let empty = |shared: &Shared| shared.present.is_empty();
    if timeout(limits.drain, until(&shared, empty)).await.is_err() {
        for (_, connection) in &shared.borrow().present {
            connection.give_up(Ending::Cut);
        }
        until(&shared, empty).await;
    }
    let tally = shared.borrow().tally;
    ended.and(watched).map(|()| tally)
}

/// What all tasks share. They are on one thread: a borrow conflicts with another only if it is held across an `await`.
#[derive(Default)]
struct Shared {
    present: Slab<Rc<Connection>>,
    tally: Tally,
    stopping: bool,
    /// When to look at those who are present again, by place.
    deadlines: Deadlines,
    /// Work kept the thread until then, and nobody was heard meanwhile.
    kept_until: Option<Instant>,
    /// Such work goes to other threads.
    offload: bool,
    /// The accepting task, when it waits for a change here.
    waiting: Option<Waker>,
}

/// Waits until something is so. (Only one may wait at a time.)
async fn until(shared: &RefCell<Shared>, so: impl Fn(&Shared) -> bool) {
    poll_fn(|context| {
        let mut shared = shared.borrow_mut();
        if so(&shared) {
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
        let place = self.present.vacant_entry();
        self.deadlines.arm(place.key(), now + idle_timeout);
        let connection = Rc::new(Connection {
            stream,
            place: place.key(),
            progress: Cell::new(now),
            working: Cell::new(false),
            told_to_end: Cell::new(false),
            given_up: Cell::new(None),
            asleep: Cell::new(None),
        });
        place.insert(Rc::clone(&connection));
        if self.stopping {
            // The watcher has been through the shared already.
            connection.end_input();
        }
        connection
    }

    fn leave(&mut self, connection: &Connection, ending: Ending) {
        self.present.remove(connection.place);
        self.tally.count(ending);
        self.changed();
    }

    /// Gives up those whose time is over; says when the next may be.
    fn expire(&mut self, now: Instant, idle_timeout: Duration) -> Instant {
        while let Some(place) = self.deadlines.pop_due(now) {
            let Some(connection) = self.present.get(place) else {
                continue;
            };
            let heard = self.kept_until.max(Some(connection.progress.get()));
            let since = heard.filter(|_| !connection.working.get());
            let deadline = since.unwrap_or(now) + idle_timeout;
            if deadline > now {
                self.deadlines.arm(place, deadline);
            } else {
                connection.give_up(Ending::TimedOut);
            }
        }
        // Whoever comes later is due later.
        self.deadlines.next().unwrap_or(now + idle_timeout)
    }

    fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            for (_, connection) in &self.present {
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

/// A connection, as those see it who must end its wait.
struct Connection {
    stream: TcpStream,
    place: usize,
    /// When it last took or gave a byte, or had its work done.
    progress: Cell<Instant>,
    /// It does not wait for its peer, but for a file or for work. That is not idleness.
    working: Cell<bool>,
    /// The end of its input is our doing, not the peer's.
    told_to_end: Cell<bool>,
    /// We have broken it off, and this is why.
    given_up: Cell<Option<Ending>>,
    /// Its task, where that sleeps, to be woken then.
    asleep: Cell<Option<Waker>>,
}

impl Connection {
    /// Ends its wait for more input. What has arrived is still read.
    fn end_input(&self) {
        self.told_to_end.set(shut_input(&self.stream));
    }

    /// Ends every wait of it.
    fn give_up(&self, why: Ending) {
        self.given_up.set(Some(why));
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Both);
        if let Some(asleep) = self.asleep.take() {
            asleep.wake();
        }
    }

    /// Waits until it is given up.
    async fn broken_off(&self) {
        poll_fn(|context| match self.given_up.get() {
            Some(_) => Poll::Ready(()),
            None => {
                self.asleep.set(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await;
    }
}

/// The watcher's life: wait until the stop is readable, without reading it; then end everybody's wait.
async fn watch(
    stop: PollFd<UnixStream>,
    listener: TcpListener,
    shared: Rc<RefCell<Shared>>,
) -> io::Result<()> {
    let stopped = stop.read_ready().await;
    shared.borrow_mut().stop();
    // Completes the accept that is under way; or it has completed before, and its peer is one of those who are served.
    let _ = SockRef::from(&listener).shutdown(Shutdown::Read);
    stopped
}

/// The clock's life: give up those who made no progress for too long. It has the only timer for that; one for every read
/// would cost more than the reading.
async fn keep_time(shared: Rc<RefCell<Shared>>, idle_timeout: Duration) {
    loop {
        let next = shared.borrow_mut().expire(Instant::now(), idle_timeout);
        sleep_until(next).await;
    }
}

/// A task's life: a conversation, and word of how it ended.
async fn visit(connection: Rc<Connection>, session: Box<dyn Session>, shared: Rc<RefCell<Shared>>) {
    let ended = converse(&connection, session, &shared).await;
    // After we had broken it off, no error is the peer's.
    let broken_off = |error| connection.given_up.get().unwrap_or(Ending::of(&error));
    let ending = ended.unwrap_or_else(broken_off);
    shared.borrow_mut().leave(&connection, ending);
}

/// The conversation: take the next step, carry it out, report what came of it.
async fn converse(
    connection: &Connection,
    mut session: Box<dyn Session>,
    shared: &RefCell<Shared>,
) -> io::Result<Ending> {
    let mut stream = &connection.stream;
    // Two buffers for each peer, also while it is silent: a read that waits in the kernel has its buffer there.
    let mut input = Vec::with_capacity(READ_BUFFER);
    let mut output = Vec::new();
    // A third for whoever is being sent a file.
    let mut chunk = Vec::new();

    loop {
        match session.step() {
            Step::Read => {
                chunk = Vec::new();
                let BufResult(read, buffer) = stream.read(input).await;
                input = buffer;
                match read? {
                    0 if connection.told_to_end.get() => {
                        // Not the peer has ended its input, we have: it may have been in the middle of a request.
                        let cut = session.mid_request();
                        return Ok(if cut { Ending::Cut } else { Ending::Served });
                    }
                    0 if connection.given_up.get().is_some() => {
                        return Err(io::ErrorKind::NotConnected.into());
                    }
                    0 => session.end_of_input(),
                    count => session.receive(&input[..count]),
                }
            }
            Step::Write(bytes) => {
                // They are lent by the session, and the kernel takes only what it can keep.
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
            Step::Close(farewell) => {
                if farewell == CloseReason::Refused {
                    // From now on it has a time-out of its own.
                    connection.progress.set(Instant::now() + LINGER);
                    let _ = timeout(LINGER, linger(stream, input)).await;
                }
                return Ok(farewell.into());
            }
        }
        connection.progress.set(Instant::now());
    }
}

/// Reads the beginning of a range, and sends it; gives how many bytes. The kernel waits for the disk as it does for a
/// socket, so that no thread has to.
async fn send_file(
    connection: &Connection,
    slice: &FileSlice,
    chunk: &mut Vec<u8>,
) -> io::Result<usize> {
    let mut buffer = mem::take(chunk);
    buffer.resize(FILE_BUFFER, 0);
    let most = usize::try_from(slice.len()).map_or(FILE_BUFFER, |len| len.min(FILE_BUFFER));
    // The file moves into the operation too, and is shared: whoever else is sent it reads from the same descriptor.
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

/// Does what is to be done before a reply.
async fn carry_out(
    work: Work,
    connection: &Connection,
    shared: &RefCell<Shared>,
) -> io::Result<()> {
    let offload = shared.borrow().offload;
    match work {
        Work::Wait(time) => match timeout(time, connection.broken_off()).await {
            Ok(()) => Err(io::ErrorKind::NotConnected.into()),
            Err(_) => Ok(()),
        },
        // (While 256 are at it, the runtime has no thread for one more, and keeps its own until there is.)
        _ if offload => {
            let done = spawn_blocking(move || work::carry_out(work)).await;
            done.map_err(|_| io::Error::other("the work has panicked"))
        }
        _ => {
            // Here and now, and everybody else waits.
            work::carry_out(work);
            shared.borrow_mut().kept_until = Some(Instant::now());
            Ok(())
        }
    }
}

/// Gives a refused peer time to read why: see [`CloseReason::Refused`]. (When the time is over, the read is cancelled: what
/// it had taken would be thrown away too.)
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

    /// What was said meanwhile nobody has heard yet; and whoever is at work has nothing to say.
    #[test]
    fn nobody_is_idle_while_the_thread_is_kept_or_at_its_own_work() {
        if let Err(why) = crate::available() {
            eprintln!("compio cannot run here: {why}; not checked");
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        runtime().unwrap().block_on(async {
            let mut shared = Shared::default();
            let idle_timeout = Duration::from_secs(1);
            let guests = [(); 2].map(|()| {
                let _peer = std::net::TcpStream::connect(address).unwrap();
                let (stream, _) = listener.accept().unwrap();
                shared.admit(TcpStream::from_std(stream).unwrap(), idle_timeout)
            });
            let given_up = || {
                guests
                    .each_ref()
                    .map(|connection| connection.given_up.get())
            };
            guests[1].working.set(true);
            let kept_until = Instant::now() + 5 * idle_timeout;
            shared.kept_until = Some(kept_until);
            let next = shared.expire(kept_until, idle_timeout);
            assert_eq!(next, kept_until + idle_timeout);
            assert_eq!(given_up(), [None, None]);
            shared.expire(next, idle_timeout);
            assert_eq!(given_up(), [Some(Ending::TimedOut), None]);
        });
    }

    /// An accept may complete just before the watcher ends the listener, and be heard of just after.
    #[test]
    fn who_is_admitted_after_the_stop_is_told_too() {
        if let Err(why) = crate::available() {
            eprintln!("compio cannot run here: {why}; not checked");
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
            assert!(connection.told_to_end.get());
            let BufResult(read, _) = (&connection.stream).read(Vec::with_capacity(1)).await;
            assert_eq!(read.unwrap(), 0);
        });
    }
}
