//! One client: its socket, its conversation, and where it stands.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use protocol::{Script, ScriptOptions, WrongReply};
use rustix::io::Errno;

use crate::plan::Plan;
use crate::report::ErrorKind as Kind;
use crate::schedule::Schedule;

/// Where a client stands. Which of them have a [`Due::Wake`](crate::timers::Due) to come is a rule of the engine:
/// at most one, and only those that have nothing under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not connected, and not trying.
    Away,
    /// `connect` has begun.
    Connecting,
    /// Connected; nothing is asked.
    Ready,
    /// The server broke off while nothing was asked. The next request fails with that: a blocking client would find
    /// it out then, and the count must not depend on whether the news or the request came first.
    Broken,
    /// A request is sent (or being sent), and its reply is owed.
    Waiting,
    /// All is answered, and the socket has yet to take the last receipts.
    Leaving,
    /// Has nothing more to do: all is asked, or it gave up.
    Gone,
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

/// One client. Its buffers hold bytes only while the kernel has no room for them, so ten thousand of these are small.
pub(crate) struct Client {
    /// Among the clients of all threads.
    pub(crate) number: usize,
    pub(crate) state: State,
    stream: Option<TcpStream>,
    established: bool,
    script: Box<dyn Script>,
    /// What the socket did not take at once; the part before `taken` it has taken since.
    output: Vec<u8>,
    taken: usize,
    /// How many conversations it began: each says other things.
    conversations: u64,
    /// Requests answered in this conversation.
    pub(crate) answered_here: u64,
    /// When the request that is under way, or else the next one, was or is planned.
    pub(crate) planned: u64,
    /// When the connect or the request that is under way began.
    pub(crate) since: u64,
    /// The server has nothing to do before it answers the request that is under way, though it has before others.
    pub(crate) spared: bool,
    /// A [`Due::Guard`](crate::timers::Due) is set.
    pub(crate) guarded: bool,
    pub(crate) schedule: Option<Schedule>,
    /// Why it is [`State::Broken`].
    pub(crate) fault: Option<Fault>,
    /// Failures since the last right reply.
    pub(crate) failures: u32,
    pub(crate) gave_up: bool,
    /// Had a right reply at any time.
    pub(crate) ever_served: bool,
    /// Right replies in the window.
    pub(crate) completed: u64,
    // Of this round:
    /// Is in it, and not yet in the report.
    pub(crate) takes_part: bool,
    /// When it meant to connect.
    pub(crate) meant: u64,
    /// Had a right reply.
    pub(crate) served: bool,
    /// No request failed.
    pub(crate) flawless: bool,
    /// Requests that were answered or failed.
    pub(crate) settled: u64,
}

impl Client {
    pub(crate) fn new(plan: &Plan, number: usize) -> Self {
        Client {
            number,
            state: State::Away,
            stream: None,
            established: false,
            script: converse(plan, number, 0),
            output: Vec::new(),
            taken: 0,
            conversations: 0,
            answered_here: 0,
            planned: u64::MAX,
            since: 0,
            spared: false,
            guarded: false,
            schedule: None,
            fault: None,
            failures: 0,
            gave_up: false,
            ever_served: false,
            completed: 0,
            takes_part: false,
            meant: 0,
            served: false,
            flawless: true,
            settled: 0,
        }
    }

    pub(crate) fn begin_round(&mut self, meant: u64) {
        self.state = State::Away;
        self.takes_part = true;
        self.meant = meant;
        self.planned = meant;
        self.served = false;
        self.flawless = true;
        self.settled = 0;
    }

    /// Begins to connect, and a new conversation.
    pub(crate) fn connect(
        &mut self,
        plan: &Plan,
        registry: &Registry,
        token: Token,
    ) -> Result<(), Fault> {
        debug_assert!(self.stream.is_none(), "connects twice");
        self.script = converse(plan, self.number, self.conversations);
        self.conversations += 1;
        self.answered_here = 0;
        let mut stream =
            TcpStream::connect(plan.address).map_err(|why| Fault::connect(plan.address, &why))?;
        // Both, and never changed again: with edges, readiness that nobody waits for costs nothing, and
        // `epoll_ctl` per request would.
        registry
            .register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
            .map_err(|why| Fault::connect(plan.address, &why))?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Whether the connect has come to its end.
    pub(crate) fn connected(&mut self, address: SocketAddr) -> Result<bool, Fault> {
        let Some(stream) = &self.stream else {
            return Ok(false);
        };
        let peer = match stream.take_error() {
            Ok(None) => stream.peer_addr(),
            Ok(Some(why)) | Err(why) => Err(why),
        };
        match peer.and_then(|_| stream.set_nodelay(true)) {
            Ok(()) => {
                self.established = true;
                Ok(true)
            }
            // An early event: it is still being connected.
            Err(why) if why.kind() == ErrorKind::NotConnected => Ok(false),
            Err(why) => Err(Fault::connect(address, &why)),
        }
    }

    /// Sends the next request; gives how many bytes the socket took now. `scratch` is anybody's, so that a request
    /// that is taken at once never needs a buffer of its own.
    pub(crate) fn ask(&mut self, plan: &Plan, scratch: &mut Vec<u8>) -> io::Result<usize> {
        scratch.clear();
        self.script.ask(scratch);
        self.spared = plan.some_work().is_some_and(|work| !work.chooses(scratch));
        self.send(scratch)
    }

    /// Sends what is to be said beside the requests, if anything; gives how many bytes the socket took now.
    pub(crate) fn interject(&mut self, scratch: &mut Vec<u8>) -> io::Result<usize> {
        scratch.clear();
        self.script.interject(scratch);
        self.send(scratch)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        // A reply can be complete before its request was sent, or its receipts: then this waits behind the rest of that.
        if !self.output.is_empty() {
            self.output.drain(..self.taken);
            self.taken = 0;
            self.output.extend_from_slice(bytes);
            return self.flush();
        }
        let mut taken = 0;
        while taken < bytes.len() {
            let count = self.write(&bytes[taken..])?;
            if count == 0 {
                self.output.extend_from_slice(&bytes[taken..]);
                break;
            }
            taken += count;
        }
        Ok(taken)
    }

    pub(crate) fn owes_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Goes on sending; gives how many bytes the socket took now. It stops at a refusal only, since only after that
    /// is there another edge.
    pub(crate) fn flush(&mut self) -> io::Result<usize> {
        let mut total = 0;
        while self.taken < self.output.len() {
            let Some(stream) = &mut self.stream else {
                break;
            };
            let count = write(stream, &self.output[self.taken..])?;
            if count == 0 {
                return Ok(total);
            }
            self.taken += count;
            total += count;
        }
        // Given back, not kept: a connection with nothing to send holds no buffer.
        self.forget_output();
        Ok(total)
    }

    /// Nobody takes it any more.
    pub(crate) fn forget_output(&mut self) {
        self.output = Vec::new();
        self.taken = 0;
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Some(stream) => write(stream, bytes),
            None => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Reads once; `None`: nothing there now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(stream) = &mut self.stream else {
            return Ok(None);
        };
        loop {
            match stream.read(buffer) {
                Ok(count) => return Ok(Some(count)),
                Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
    }

    pub(crate) fn receive(&mut self, input: &[u8]) -> Result<protocol::ReplyStatus, WrongReply> {
        self.script.receive(input)
    }

    /// Closes the connection; says whether one was established. All that came was read, so this sends FIN and not
    /// RST; and the system takes a closed descriptor out of the poll by itself.
    pub(crate) fn close(&mut self) -> bool {
        self.forget_output();
        self.stream = None;
        std::mem::take(&mut self.established)
    }
}

/// The script of a client's next conversation. No two of them say the same, so that bytes from an earlier connection
/// are seen as wrong.
fn converse(plan: &Plan, number: usize, conversation: u64) -> Box<dyn Script> {
    (plan.protocol.ask)(&ScriptOptions {
        size: plan.size,
        seed: plan
            .seed
            .wrapping_add(conversation.wrapping_mul(0xd134_2543_de82_ef95)),
        client: number as u64,
        bulk: plan.bulk,
        page: Arc::clone(&plan.page),
    })
}

/// Writes once; 0: the socket has no room now.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match stream.write(bytes) {
            Ok(count) => return Ok(count),
            Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(why) if why.kind() == ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
}

impl Fault {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Fault {
            kind,
            text: text.into(),
        }
    }

    fn connect(address: SocketAddr, why: &io::Error) -> Self {
        Fault::io(&format!("connecting to {address}"), why)
    }

    /// Sorts what the system said; `doing` is for the text.
    pub(crate) fn io(doing: &str, why: &io::Error) -> Self {
        let kind = match why.kind() {
            ErrorKind::ConnectionRefused => Kind::Refused,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected => Kind::Reset,
            ErrorKind::TimedOut => Kind::TimedOut,
            _ => Kind::Local,
        };
        let hint = match Errno::from_io_error(why) {
            Some(Errno::MFILE) => {
                "; this process may open no more descriptors: raise the limit (ulimit -n) or use fewer connections"
            }
            Some(Errno::NFILE) => {
                "; the whole system has no more descriptors: use fewer connections"
            }
            Some(Errno::ADDRNOTAVAIL) => {
                "; no local port is free (closed connections keep theirs for a minute): wait, use fewer connections, \
                 or widen net.ipv4.ip_local_port_range"
            }
            Some(Errno::NOBUFS | Errno::NOMEM) => {
                "; the system has no memory for another socket: use fewer connections"
            }
            Some(Errno::CONNREFUSED) => "; is the server running, and is this its address?",
            _ => "",
        };
        Fault::new(kind, format!("{doing}: {why}{hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_sorted_and_explained() {
        let sorted = |errno: Errno| Fault::io("connecting", &errno.into());
        assert_eq!(sorted(Errno::CONNREFUSED).kind, Kind::Refused);
        assert_eq!(sorted(Errno::CONNRESET).kind, Kind::Reset);
        assert_eq!(sorted(Errno::PIPE).kind, Kind::Reset);
        assert_eq!(sorted(Errno::TIMEDOUT).kind, Kind::TimedOut);
        for local in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::ADDRNOTAVAIL,
            Errno::NOBUFS,
        ] {
            assert_eq!(sorted(local).kind, Kind::Local);
        }
        assert!(sorted(Errno::MFILE).text.contains("ulimit -n"));
        assert!(
            sorted(Errno::ADDRNOTAVAIL)
                .text
                .contains("ip_local_port_range")
        );
    }
}
