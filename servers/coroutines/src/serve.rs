//! The code that runs on the coroutines. It is written as if each had a thread: it loops, reads, writes and waits.

use std::cell::Cell;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use contract::blocking::{Transport, converse};
use contract::{Ending, Limits, Service, Stop, Tally, accept, files, work};
use protocol::{FileSlice, Work};
use rustix::event::epoll::EventFlags;

use crate::hub::{Green, Hub};

pub(crate) fn serve(
    listener: TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
) -> io::Result<Tally> {
    let drain = limits.drain;
    let hub = Hub::new(&limits)?;
    // The first coroutine is the accept loop.
    hub.spawn(move |green| accept_peers(green, &listener, &service, &limits))?;
    hub.run(&stop, drain)
}

/// Accepts peers until the stop. The listener lies on this coroutine's stack, and is closed when the function returns.
fn accept_peers(
    green: &Green<'_>,
    listener: &TcpListener,
    service: &Service,
    limits: &Limits,
) -> io::Result<()> {
    let hub = green.hub();
    green.register(listener)?;
    while !hub.is_stopping() {
        if hub.is_full() {
            // Waits until a peer leaves.
            green.wait(None);
            continue;
        }
        green.step();
        match listener.accept() {
            Ok((stream, _)) => {
                hub.tally().accepted += 1;
                if let Err(error) = admit(hub, stream, service, limits) {
                    hub.leave(Ending::Refused);
                    tracing::warn!(
                        "cannot allocate a stack for a peer: {error}; the peer is refused (each stack takes two maps of \
                         vm.max_map_count)"
                    );
                    pause(green, accept::PAUSE);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => _ = green.wait(None),
            Err(error) => {
                let wanted = accept::on_error(error, &mut hub.tally())?;
                if let Some(time) = wanted {
                    pause(green, time);
                }
            }
        }
    }
    Ok(())
}

/// Waits for `time`, or until the stop.
fn pause(green: &Green<'_>, time: Duration) {
    let until = Instant::now() + time;
    while green.hub().now() < until && !green.hub().is_stopping() {
        green.wait(Some(until));
    }
}

/// Starts a coroutine that serves a peer.
fn admit(hub: &Rc<Hub>, stream: TcpStream, service: &Service, limits: &Limits) -> io::Result<()> {
    let (service, idle_timeout) = (service.clone(), limits.idle_timeout);
    hub.spawn(move |green| {
        let mut session = service.open();
        let ending = match Socket::new(green, stream) {
            Ok(socket) => converse(&socket, session.as_mut(), idle_timeout, || {
                socket.input_ended_by_server.get()
            }),
            Err(_) => Ending::Refused,
        };
        green.hub().leave(ending);
        Ok(())
    })
}

/// A non-blocking socket that looks like a blocking one to its coroutine: each call is tried first, and if it would
/// block, other coroutines run until the hub has an event for the socket.
struct Socket<'c> {
    green: &'c Green<'c>,
    stream: TcpStream,
    patience: Cell<Duration>,
    /// True if a read would only return "would block"; the hub gets an event when that has changed.
    drained: Cell<bool>,
    /// True if a short read does not mean that the socket is drained.
    hung_up: Cell<bool>,
    /// True if the server, and not the peer, has ended the input.
    input_ended_by_server: Cell<bool>,
}

impl<'c> Socket<'c> {
    fn new(green: &'c Green<'c>, stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        green.register(&stream)?;
        Ok(Socket {
            green,
            stream,
            patience: Cell::new(Duration::ZERO),
            // Input may be there already. The hub gets an event for it, because epoll reports what it finds when the
            // socket is registered.
            drained: Cell::new(true),
            hung_up: Cell::new(false),
            input_ended_by_server: Cell::new(false),
        })
    }

    /// Lets other coroutines run until the socket has an event. All calls with the same `until` wait for at most the
    /// patience in total.
    ///
    /// # Errors
    ///
    /// `WouldBlock` after that time.
    fn wait(&self, until: &mut Option<Instant>) -> io::Result<()> {
        // Computed from the real time: the hub's clock stands still while a coroutine computes, and the coroutines that
        // run after that one would have less time.
        let until = *until.get_or_insert_with(|| Instant::now() + self.patience.get());
        let edge = self.green.wait(Some(until));
        self.note(edge);
        if edge.is_empty() && until <= self.green.hub().now() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Records the socket's events that came while other coroutines ran. The hub does not get them again.
    fn note(&self, edge: EventFlags) {
        if !edge.is_empty() {
            self.drained.set(false);
        }
        // From now on a short read does not mean that the socket is empty: the end of the input may follow, or input
        // behind urgent data, where every read ends.
        if edge.intersects(EventFlags::RDHUP | EventFlags::PRI) {
            self.hung_up.set(true);
        }
    }
}

impl Transport for Socket<'_> {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.note(self.green.step());
        let mut until = None;
        loop {
            let stopping = self.green.hub().is_stopping();
            if !self.drained.get() || stopping {
                match self.stream.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && stopping => {
                        // All input that had arrived has been read. The conversation sees the end of input.
                        self.input_ended_by_server.set(true);
                        return Ok(0);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => {
                        // A short read has emptied the socket (epoll(7)), so the next would only return EAGAIN.
                        let short = matches!(read, Ok(count) if count < buffer.len());
                        self.drained.set(short && !self.hung_up.get());
                        return read;
                    }
                }
            }
            self.wait(&mut until)?;
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.note(self.green.step());
        let mut until = None;
        loop {
            match self.stream.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(&mut until)?,
                written => return written,
            }
        }
    }

    fn send_file(&self, slice: &FileSlice) -> io::Result<usize> {
        self.note(self.green.step());
        let mut until = None;
        loop {
            match files::send_file(&self.stream, slice) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(&mut until)?,
                sent => {
                    if matches!(sent, Ok(count) if count == files::FILE_TURN) {
                        self.green.give_way();
                    }
                    return sent;
                }
            }
        }
    }

    fn pause(&self, time: Duration) -> io::Result<()> {
        let until = Instant::now() + time;
        while self.green.hub().now() < until {
            let edge = self.green.wait(Some(until));
            self.note(edge);
            if edge.contains(EventFlags::ERR)
                && let Some(error) = self.stream.take_error()?
            {
                // The peer has broken off, and does not wait for the reply any more.
                return Err(error);
            }
        }
        Ok(())
    }

    fn carry_out(&self, work: Work) -> io::Result<()> {
        // The other coroutines run first, before every piece of work: otherwise they would wait for all the work of a
        // peer that sends many requests at once.
        self.green.give_way();
        self.note(self.green.step());
        work::carry_out(work);
        Ok(())
    }

    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.patience.set(patience);
        Ok(())
    }

    fn finish_sending(&self) -> io::Result<()> {
        self.stream.finish_sending()
    }
}
