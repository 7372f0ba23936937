//! One client: its socket, its conversation, and its state.

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

/// State of a client. The engine decides which clients have a [`Due::Wake`](crate::timers::Due) set: at most one per
/// client, and only for clients that have nothing under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not connected, and no connect is under way.
    Disconnected,
    /// A connect is under way.
    Connecting,
    /// Connected; no request is under way.
    Ready,
    /// The connection failed while no request was under way. The next request fails with that error: a client with
    /// blocking calls would find it out then, and the count must not depend on whether the error or the request came
    /// first.
    Broken,
    /// A request is sent (or being sent), and has no complete reply yet.
    Waiting,
    /// All requests are answered, and the socket has yet to accept the last receipts.
    Closing,
    /// The client has nothing more to do: all its requests are done, or it gave up.
    Finished,
}

/// Failure of a request or of a connect.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

/// One client. Its buffers hold bytes only while the kernel has no room for them, so ten thousand clients are small.
pub(crate) struct Client {
    /// Number of the client among those of all threads.
    pub(crate) number: usize,
    pub(crate) state: State,
    stream: Option<TcpStream>,
    established: bool,
    script: Box<dyn Script>,
    /// Bytes that the socket did not accept at once. It has accepted the part before `written` since.
    output: Vec<u8>,
    written: usize,
    /// Number of conversations that the client has begun. Each of them sends other bytes.
    conversations: u64,
    /// Number of requests answered in this conversation.
    pub(crate) answered_on_connection: u64,
    /// Planned time of the request that is under way, or else of the next one.
    pub(crate) planned: u64,
    /// Time at which the connect or the request that is under way began.
    pub(crate) since: u64,
    /// Whether the request that is under way is a bystander: the server has no work to do before its reply, but has
    /// before other replies.
    pub(crate) bystander: bool,
    /// Whether a [`Due::TimeoutCheck`](crate::timers::Due) is set.
    pub(crate) timeout_check_set: bool,
    pub(crate) schedule: Option<Schedule>,
    /// Reason for [`State::Broken`].
    pub(crate) fault: Option<Fault>,
    /// Number of failures since the last correct reply.
    pub(crate) failures: u32,
    pub(crate) gave_up: bool,
    /// Whether the client has had a correct reply at any time.
    pub(crate) ever_served: bool,
    /// Number of correct replies in the window.
    pub(crate) completed: u64,
    // The fields below are about the current round.
    /// Whether the client takes part in the round and is not yet counted in the report.
    pub(crate) in_round: bool,
    /// Time at which the client planned to connect.
    pub(crate) connect_planned: u64,
    /// Whether the client has had a correct reply in this round.
    pub(crate) served: bool,
    /// Whether no request of this round has failed or stayed unanswered.
    pub(crate) flawless: bool,
    /// Number of requests of this round that were answered or failed.
    pub(crate) requests_done: u64,
}

impl Client {
    pub(crate) fn new(plan: &Plan, number: usize) -> Self {
        Client {
            number,
            state: State::Disconnected,
            stream: None,
            established: false,
            script: new_script(plan, number, 0),
            output: Vec::new(),
            written: 0,
            conversations: 0,
            answered_on_connection: 0,
            planned: u64::MAX,
            since: 0,
            bystander: false,
            timeout_check_set: false,
            schedule: None,
            fault: None,
            failures: 0,
            gave_up: false,
            ever_served: false,
            completed: 0,
            in_round: false,
            connect_planned: 0,
            served: false,
            flawless: true,
            requests_done: 0,
        }
    }

    pub(crate) fn begin_round(&mut self, connect_planned: u64) {
        self.state = State::Disconnected;
        self.in_round = true;
        self.connect_planned = connect_planned;
        self.planned = connect_planned;
        self.served = false;
        self.flawless = true;
        self.requests_done = 0;
    }

    /// Begins a connect, and a new conversation.
    pub(crate) fn connect(
        &mut self,
        plan: &Plan,
        registry: &Registry,
        token: Token,
    ) -> Result<(), Fault> {
        debug_assert!(self.stream.is_none(), "the client is already connected");
        self.script = new_script(plan, self.number, self.conversations);
        self.conversations += 1;
        self.answered_on_connection = 0;
        let mut stream =
            TcpStream::connect(plan.address).map_err(|why| Fault::connect(plan.address, &why))?;
        // Both interests, and never changed again: with edge-triggered events, unneeded readiness costs nothing, and an
        // `epoll_ctl` per request would.
        registry
            .register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
            .map_err(|why| Fault::connect(plan.address, &why))?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Returns whether the connect is complete.
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
            // An early event: the connect is still under way.
            Err(why) if why.kind() == ErrorKind::NotConnected => Ok(false),
            Err(why) => Err(Fault::connect(address, &why)),
        }
    }

    /// Sends the next request. Returns the number of bytes that the socket accepted now. `scratch` is shared by all
    /// clients, so that a request that is accepted at once never needs a buffer of its own.
    pub(crate) fn ask(&mut self, plan: &Plan, scratch: &mut Vec<u8>) -> io::Result<usize> {
        scratch.clear();
        self.script.ask(scratch);
        self.bystander = plan.some_work().is_some_and(|work| !work.chooses(scratch));
        self.send(scratch)
    }

    /// Sends the bytes that accompany the requests (receipts), if there are any. Returns the number of bytes that the
    /// socket accepted now.
    pub(crate) fn interject(&mut self, scratch: &mut Vec<u8>) -> io::Result<usize> {
        scratch.clear();
        self.script.interject(scratch);
        self.send(scratch)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        // A reply can be complete before its request or the receipts are sent: then these bytes wait behind the rest of
        // them.
        if !self.output.is_empty() {
            self.output.drain(..self.written);
            self.written = 0;
            self.output.extend_from_slice(bytes);
            return self.flush();
        }
        let mut written = 0;
        while written < bytes.len() {
            let count = self.write(&bytes[written..])?;
            if count == 0 {
                self.output.extend_from_slice(&bytes[written..]);
                break;
            }
            written += count;
        }
        Ok(written)
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Sends more of the output. Returns the number of bytes that the socket accepted now. It stops only when the
    /// socket has no room, since only after that is there another edge.
    pub(crate) fn flush(&mut self) -> io::Result<usize> {
        let mut total = 0;
        while self.written < self.output.len() {
            let Some(stream) = &mut self.stream else {
                break;
            };
            let count = write(stream, &self.output[self.written..])?;
            if count == 0 {
                return Ok(total);
            }
            self.written += count;
            total += count;
        }
        // The buffer is freed, not kept: a connection with nothing to send holds no buffer.
        self.forget_output();
        Ok(total)
    }

    /// Discards the output, which the server will not read any more.
    pub(crate) fn forget_output(&mut self) {
        self.output = Vec::new();
        self.written = 0;
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Some(stream) => write(stream, bytes),
            None => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Reads once. `None`: no bytes are there now.
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

    /// Closes the connection. Returns whether one was established. All received bytes were read, so this sends FIN and
    /// not RST; and the system removes a closed descriptor from the poll by itself.
    pub(crate) fn close(&mut self) -> bool {
        self.forget_output();
        self.stream = None;
        std::mem::take(&mut self.established)
    }
}

/// Returns the script of a client's next conversation. No two conversations send the same bytes, so that bytes from an
/// earlier connection are recognised as wrong.
fn new_script(plan: &Plan, number: usize, conversation: u64) -> Box<dyn Script> {
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

/// Writes once. 0: the socket has no room now.
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

    /// Classifies a system error. The text begins with `doing`.
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
    fn io_errors_are_classified_and_explained() {
        let classified = |errno: Errno| Fault::io("connecting", &errno.into());
        assert_eq!(classified(Errno::CONNREFUSED).kind, Kind::Refused);
        assert_eq!(classified(Errno::CONNRESET).kind, Kind::Reset);
        assert_eq!(classified(Errno::PIPE).kind, Kind::Reset);
        assert_eq!(classified(Errno::TIMEDOUT).kind, Kind::TimedOut);
        for local in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::ADDRNOTAVAIL,
            Errno::NOBUFS,
        ] {
            assert_eq!(classified(local).kind, Kind::Local);
        }
        assert!(classified(Errno::MFILE).text.contains("ulimit -n"));
        assert!(
            classified(Errno::ADDRNOTAVAIL)
                .text
                .contains("ip_local_port_range")
        );
    }
}
