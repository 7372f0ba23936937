//! Stand-in for `ring` on systems without io_uring: the same types, but no ring can be created. So the server compiles
//! there, and can report why it does not run.
#![allow(dead_code)]

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use protocol::{CloseReason, Session, Work};
use rustix::io::Errno;

pub(crate) struct Ring;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket;

pub(crate) enum Completion {
    Accepted(Option<TcpListener>, Result<TcpStream, Errno>),
    Readable,
    Received(usize, RingConnection, Result<Input, Errno>),
    Sent(usize, RingConnection, Result<usize, Errno>),
    FileRead(usize, RingConnection, Result<usize, Errno>),
    Slept(usize, RingConnection, Result<(), Errno>),
}

pub(crate) struct RingConnection;

pub(crate) struct Lent;

pub(crate) struct Reading;

pub(crate) type Input = Box<[u8]>;

pub(crate) enum Next {
    Read(RingConnection),
    Write(Lent),
    ReadFile(Reading),
    Work(RingConnection, Work),
    Close(RingConnection, CloseReason),
}

impl Ring {
    pub(crate) fn new() -> io::Result<Ring> {
        Ring::with(0, 0)
    }

    pub(crate) fn with(_: u32, _: u32) -> io::Result<Ring> {
        Err(Errno::NOSYS.into())
    }

    pub(crate) fn burst(&self) -> usize {
        unreachable!("there is no ring")
    }

    pub(crate) fn accept(&mut self, _: TcpListener, _: bool) -> Ticket {
        unreachable!("there is no ring")
    }

    pub(crate) fn watch(&mut self, _: UnixStream) -> Ticket {
        unreachable!("there is no ring")
    }

    pub(crate) fn receive(&mut self, _: usize, _: RingConnection, _: bool) -> Ticket {
        unreachable!("there is no ring")
    }

    pub(crate) fn send(&mut self, _: usize, _: Lent) -> Ticket {
        unreachable!("there is no ring")
    }

    pub(crate) fn read_file(&mut self, _: usize, _: Reading) -> Ticket {
        unreachable!("there is no ring")
    }

    pub(crate) fn sleep(&mut self, _: usize, _: RingConnection, _: Duration) -> Ticket {
        unreachable!("there is no ring")
    }

    pub(crate) fn cancel(&mut self, _: Ticket) {
        unreachable!("there is no ring")
    }

    pub(crate) fn wait(&mut self, _: Option<Duration>) -> Result<(), Errno> {
        unreachable!("there is no ring")
    }

    pub(crate) fn next(&mut self) -> Option<Completion> {
        unreachable!("there is no ring")
    }
}

impl Ticket {
    pub(crate) const NONE: Ticket = Ticket;
}

impl RingConnection {
    pub(crate) fn new(_: TcpStream, _: Box<dyn Session>) -> RingConnection {
        unreachable!("there is no ring")
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        unreachable!("there is no ring")
    }

    pub(crate) fn session(&mut self) -> &mut dyn Session {
        unreachable!("there is no ring")
    }

    pub(crate) fn step(self) -> Next {
        unreachable!("there is no ring")
    }

    pub(crate) fn sent(&mut self, _: usize) {
        unreachable!("there is no ring")
    }
}
