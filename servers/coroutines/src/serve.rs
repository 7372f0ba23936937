//! What runs on the coroutines. It is written as if each had a thread: it loops, reads, writes and waits.

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

/// Accepts peers until the stop. The listener is closed when this returns: it lies on this stack.
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
            // Until somebody leaves.
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
                        "no stack for a peer: {error} (each takes two of vm.max_map_count)"
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

/// Lets some time pass, or the stop come.
fn pause(green: &Green<'_>, time: Duration) {
    let until = Instant::now() + time;
    while green.hub().now() < until && !green.hub().is_stopping() {
        green.wait(Some(until));
    }
}

/// Gives a peer a coroutine of its own.
fn admit(hub: &Rc<Hub>, stream: TcpStream, service: &Service, limits: &Limits) -> io::Result<()> {
    let (service, idle_timeout) = (service.clone(), limits.idle_timeout);
    hub.spawn(move |green| {
        let mut session = service.open();
        let ending = match Socket::new(green, stream) {
            Ok(socket) => converse(&socket, session.as_mut(), idle_timeout, || {
                socket.told_to_end.get()
            }),
            Err(_) => Ending::Refused,
        };
        green.hub().leave(ending);
        Ok(())
    })
}

/// A non-blocking socket that looks like a blocking one from inside a coroutine: it tries first, and where that would
/// block, others run until the hub has heard of the socket.
struct Socket<'c> {
    green: &'c Green<'c>,
    stream: TcpStream,
    patience: Cell<Duration>,
    /// A read would only say "would block"; the hub will hear when that is over.
    drained: Cell<bool>,
    /// A short read does not mean that it is drained.
    hung_up: Cell<bool>,
    /// The end of its input is our doing, not the peer's.
    told_to_end: Cell<bool>,
}

impl<'c> Socket<'c> {
    fn new(green: &'c Green<'c>, stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        green.register(&stream)?;
        Ok(Socket {
            green,
            stream,
            patience: Cell::new(Duration::ZERO),
            // Whatever it may hold already, the hub hears of it: it reports what it finds when it begins to look.
            drained: Cell::new(true),
            hung_up: Cell::new(false),
            told_to_end: Cell::new(false),
        })
    }

    /// Lets others run until something has happened at the socket, for no longer than its patience in all.
    fn wait(&self, until: &mut Option<Instant>) -> io::Result<()> {
        // Not by the hub's clock: that stands still while a coroutine computes, and those who come after it would be
        // given so much less time.
        let until = *until.get_or_insert_with(|| Instant::now() + self.patience.get());
        let edge = self.green.wait(Some(until));
        self.note(edge);
        if edge.is_empty() && until <= self.green.hub().now() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Takes note of what the hub has heard while others ran. It won't hear it twice.
    fn note(&self, edge: EventFlags) {
        if !edge.is_empty() {
            self.drained.set(false);
        }
        // Behind what a short read gives there may be more: the end of the input, or what follows urgent data, which a
        // read never reaches across.
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
                        // All that had arrived has been read: to the conversation, that is the end.
                        self.told_to_end.set(true);
                        return Ok(0);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => {
                        // A short read has emptied the socket (epoll(7)), so the next would only say EAGAIN.
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
                // The peer has broken off: nobody waits for this.
                return Err(error);
            }
        }
        Ok(())
    }

    fn carry_out(&self, work: Work) -> io::Result<()> {
        // The others first, and each time: a peer that asks for much at once would have them wait for all of it.
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
