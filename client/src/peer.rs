//! One peer of a [driver](crate::PeerDriver): its state, its actions and its transcript.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use protocol::{ReplyStatus, Script};
use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};

use crate::actions::{Action, Cut, PeerScript};
use crate::timers::nanos;

/// Receive buffer of a peer with small buffers, in bytes.
const SMALL_RECEIVE_BUFFER: usize = 4096;

/// Send buffer of a peer with small buffers, in bytes. If it were smaller than two segments (of 64 KiB, on the loopback
/// interface), each would have to wait for an acknowledgement that comes 40 ms later.
const SMALL_SEND_BUFFER: usize = 128 * 1024;

/// Bytes of one read or write that a transcript keeps.
const EXCERPT: usize = 64;

/// Number of lines that a transcript keeps from its beginning.
const FIRST_LINES: usize = 24;

/// Number of lines that a transcript keeps from its end.
const LAST_LINES: usize = 24;

/// Number of reads and writes in one turn. A peer that sends or receives without end must not keep the other peers from
/// their turns, nor the driver from its commands.
const CALLS_PER_TURN: u32 = 64;

/// Bytes that a peer keeps of those received by the actions that read whatever arrives.
const MAX_KEPT: usize = 4096;

/// Outcome of a peer.
#[derive(Debug)]
pub struct PeerOutcome {
    /// Position of the peer among the scripts of its group, from 0.
    pub number: usize,
    /// Fault that ended the script, if there was one. A peer that left before the end of its actions has no fault.
    pub fault: Option<PeerFault>,
    /// Whether the peer completed its actions.
    pub done: bool,
    /// Time from the opening of the driver to the completion of each action, for the last time that it was completed;
    /// `None`: it was not. The first entry is the connect.
    pub done_at: Vec<Option<Duration>>,
    /// Bytes that [`Action::ReadToEnd`], [`Action::ExpectReset`] and [`Action::ReadBytes`] received, as far as they are
    /// kept (4 KiB).
    pub received: Vec<u8>,
    /// Number of bytes that the kernel accepted for the server.
    pub bytes_sent: u64,
    /// Number of bytes received from the server.
    pub bytes_received: u64,
    /// Transcript of the sent and received bytes.
    pub transcript: Transcript,
}

/// Fault that ended a peer's script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFault {
    /// Kind of the fault.
    pub kind: FaultKind,
    /// Description of what the peer expected.
    pub expected: String,
    /// Description of what the peer saw instead.
    pub seen: String,
}

impl fmt::Display for PeerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, saw {}", self.expected, self.seen)
    }
}

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The connection could not be opened.
    Connect,
    /// The client's side could not do its part.
    Local,
    /// Other bytes arrived than expected.
    WrongBytes,
    /// The server closed (FIN) too early.
    End,
    /// The connection was reset.
    Reset,
    /// The expected bytes did not arrive in time.
    NoReply,
}

/// Transcript of the sent and received bytes, in order. The middle of a long transcript is left out.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    first: Vec<Line>,
    last: VecDeque<Line>,
    left_out: u64,
    /// Time at which the peer last acted.
    last_acted: Duration,
    /// Longest time between two things that the peer did.
    longest_pause: Duration,
}

#[derive(Debug, Clone)]
struct Line {
    at: Duration,
    event: PeerEvent,
}

#[derive(Debug, Clone)]
enum PeerEvent {
    Connected,
    Sent(usize, Vec<u8>),
    Received(usize, Vec<u8>),
    Action(&'static str),
    Observed(String),
}

impl Transcript {
    fn add(&mut self, now: u64, event: PeerEvent) {
        let at = Duration::from_nanos(now);
        match event {
            PeerEvent::Connected => self.last_acted = at,
            // A close is not counted: the driver may have told the peer to leave.
            PeerEvent::Action("close") => {}
            PeerEvent::Sent(..) | PeerEvent::Action(_) => {
                let pause = at.saturating_sub(self.last_acted);
                self.longest_pause = self.longest_pause.max(pause);
                self.last_acted = at;
            }
            PeerEvent::Received(..) | PeerEvent::Observed(_) => {}
        }
        if self.first.len() < FIRST_LINES {
            self.first.push(Line { at, event });
            return;
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
            self.left_out += 1;
        }
        self.last.push_back(Line { at, event });
    }

    /// Returns the longest time between two things that the peer itself did: connected, sent, half-closed. The server
    /// can have seen the peer idle for no longer. The time after the last of them does not count as a pause, because it
    /// may be the server that does nothing.
    pub fn longest_pause(&self) -> Duration {
        self.longest_pause
    }

    /// Returns whether the transcript is empty: the peer has not even connected.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

/// Prints a line for each read or write: seconds since the driver was opened, `>` for what the peer sent, `<` for what
/// it received, `-` for everything else.
impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.first {
            writeln!(f, "{line}")?;
        }
        if self.left_out > 0 {
            writeln!(f, "          … {} more lines …", self.left_out)?;
        }
        for line in &self.last {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.4} ", self.at.as_secs_f64())?;
        let mut bytes = |sign: char, count: usize, bytes: &[u8]| {
            let dots = if bytes.len() < count { "…" } else { "" };
            write!(
                f,
                "{sign} \"{}\"{dots} ({count} bytes)",
                bytes.escape_ascii()
            )
        };
        match &self.event {
            PeerEvent::Sent(count, start) => bytes('>', *count, start),
            PeerEvent::Received(count, start) => bytes('<', *count, start),
            PeerEvent::Connected => write!(f, "- connected"),
            PeerEvent::Action(what) => write!(f, "> {what}"),
            PeerEvent::Observed(what) => write!(f, "< {what}"),
        }
    }
}

/// Progress of a peer in one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerProgress {
    /// The peer waits for its socket; until this time at most, if there is one.
    WaitsForSocket(Option<u64>),
    /// The peer goes on at this time, and may do so earlier.
    Until(u64),
    /// The peer waits for its next turn and nothing else.
    YieldsTurn,
    WaitsForSignal,
    /// The peer has completed its actions, and begins anew.
    Again,
    Done,
    Failed,
}

/// Result of a step of an action.
enum PeerStep {
    Done,
    /// Waits for the socket, at most for the driver's patience.
    WaitsForSocket,
    /// Waits for the socket without a limit.
    WaitsWithoutLimit,
    /// Waits until this time.
    Until(u64),
    WaitsForSignal,
}

pub(crate) struct Peer {
    number: usize,
    peer_script: PeerScript,
    stream: Option<TcpStream>,
    /// Number of connects that the peer has begun.
    rounds: u64,
    connected: bool,
    action: usize,
    /// Time at which the current action began, or last made progress.
    since: u64,
    /// Number of bytes that the current action has sent.
    action_sent: usize,
    /// Number of bytes that the current action has received; of a flood, sent.
    action_received: u64,
    /// Time before which nothing is sent.
    resume: u64,
    signalled: bool,
    /// Whether an action that does not begin with reading has begun to read.
    reading: bool,
    /// Whether an action that half-closes on the way has done so.
    half_closed: bool,
    /// Number of reads and writes that are left in this turn.
    calls_left: u32,
    /// Whether the peer had more to read or write than this turn allows.
    turn_is_over: bool,
    script: Option<Box<dyn Script>>,
    /// Bytes from the script that the socket has yet to accept.
    output: Vec<u8>,
    requests_asked: u64,
    sent: u64,
    received: u64,
    kept: Vec<u8>,
    done_at: Vec<Option<Duration>>,
    transcript: Transcript,
    fault: Option<PeerFault>,
    done: bool,
    /// Time at which the driver will wake the peer after a pause.
    pub(crate) wakes_at: Option<u64>,
    /// Time at which the driver will check whether its patience is over.
    pub(crate) times_out_at: Option<u64>,
    /// Whether the peer waits for a signal that it has not got yet.
    pub(crate) waits_for_signal: bool,
}

impl Peer {
    pub(crate) fn new(number: usize, peer_script: PeerScript) -> Peer {
        let done_at = vec![None; peer_script.actions.len() + 1];
        Peer {
            number,
            peer_script,
            stream: None,
            rounds: 0,
            connected: false,
            action: 0,
            since: 0,
            action_sent: 0,
            action_received: 0,
            resume: 0,
            signalled: false,
            reading: false,
            half_closed: false,
            calls_left: 0,
            turn_is_over: false,
            script: None,
            output: Vec::new(),
            requests_asked: 0,
            sent: 0,
            received: 0,
            kept: Vec::new(),
            done_at,
            transcript: Transcript::default(),
            fault: None,
            done: false,
            wakes_at: None,
            times_out_at: None,
            waits_for_signal: false,
        }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn connects(&self) -> u64 {
        self.rounds - u64::from(self.stream.is_some() && !self.connected)
    }

    pub(crate) fn signal(&mut self) {
        self.signalled = true;
        self.waits_for_signal = false;
    }

    /// Closes the connection. Returns the outcome.
    pub(crate) fn into_outcome(mut self, now: u64) -> PeerOutcome {
        if self.stream.take().is_some() {
            self.transcript.add(now, PeerEvent::Action("close"));
        }
        PeerOutcome {
            number: self.number,
            fault: self.fault,
            done: self.done,
            done_at: self.done_at,
            received: self.kept,
            bytes_sent: self.sent,
            bytes_received: self.received,
            transcript: self.transcript,
        }
    }

    /// Runs the peer's actions until it has to wait.
    pub(crate) fn run(
        &mut self,
        now: u64,
        address: SocketAddr,
        registry: &Registry,
        token: Token,
        patience: u64,
    ) -> PeerProgress {
        self.calls_left = CALLS_PER_TURN;
        self.turn_is_over = false;
        loop {
            let connecting = !self.connected;
            let step = if self.connected {
                match self.peer_script.actions.get(self.action).cloned() {
                    Some(action) => self.perform(&action, now),
                    None => return self.end_run(now),
                }
            } else {
                self.connect(now, address, registry, token)
            };
            match step {
                Ok(PeerStep::Done) => {
                    // The connect is the first entry of `done_at`.
                    self.action += usize::from(!connecting);
                    self.done_at[self.action] = Some(Duration::from_nanos(now));
                    self.begin(now);
                }
                Ok(PeerStep::WaitsForSignal) => return PeerProgress::WaitsForSignal,
                Ok(_) if self.turn_is_over => return PeerProgress::YieldsTurn,
                Ok(PeerStep::WaitsForSocket) => {
                    let limit = self.since.saturating_add(patience);
                    if now < limit {
                        return PeerProgress::WaitsForSocket(Some(limit));
                    }
                    let fault = self.patience_fault(patience);
                    return self.fail(now, fault);
                }
                Ok(PeerStep::WaitsWithoutLimit) => return PeerProgress::WaitsForSocket(None),
                Ok(PeerStep::Until(then)) => return PeerProgress::Until(then),
                Err(fault) => return self.fail(now, fault),
            }
        }
    }

    fn begin(&mut self, now: u64) {
        self.since = now;
        self.action_sent = 0;
        self.action_received = 0;
        self.resume = 0;
        self.signalled = false;
        self.reading = false;
        self.half_closed = false;
        self.script = None;
        self.output.clear();
        self.requests_asked = 0;
    }

    fn end_run(&mut self, now: u64) -> PeerProgress {
        self.stream = None;
        self.connected = false;
        self.action = 0;
        self.done = true;
        self.begin(now);
        if !self.peer_script.again {
            return PeerProgress::Done;
        }
        self.transcript = Transcript::default();
        self.kept.clear();
        PeerProgress::Again
    }

    fn fail(&mut self, now: u64, fault: PeerFault) -> PeerProgress {
        self.transcript
            .add(now, PeerEvent::Observed(fault.seen.clone()));
        self.stream = None;
        self.fault = Some(fault);
        self.done = false;
        PeerProgress::Failed
    }

    fn patience_fault(&self, patience: u64) -> PeerFault {
        let action = self.peer_script.actions.get(self.action);
        let expected = match action {
            _ if !self.connected => "a connection".to_string(),
            Some(Action::Ask { reply, .. }) => {
                let rest = &reply[usize::try_from(self.action_received)
                    .unwrap_or(0)
                    .min(reply.len())..];
                format!(
                    "{} (after {} bytes of it)",
                    excerpt(rest),
                    self.action_received
                )
            }
            Some(Action::Converse { .. } | Action::Overfill { .. }) => {
                format!(
                    "the rest of reply {} ({} bytes of it came)",
                    self.requests_asked, self.action_received
                )
            }
            Some(Action::ExpectFin) => "the end of the connection".to_string(),
            Some(Action::ReadToEnd) => "the end of the connection, or a reset".to_string(),
            Some(Action::ExpectReset) => "a reset".to_string(),
            Some(Action::Send(bytes, _)) => format!(
                "the server to read on ({} of {} bytes were accepted)",
                self.action_sent,
                bytes.len()
            ),
            Some(Action::ReadBytes(most)) => {
                format!("{} more bytes", most.saturating_sub(self.action_received))
            }
            Some(other) => format!("the end of the action \"{}\"", other.name()),
            None => "nothing".to_string(),
        };
        PeerFault {
            kind: FaultKind::NoReply,
            expected,
            seen: format!("nothing for {:?}", Duration::from_nanos(patience)),
        }
    }

    fn connect(
        &mut self,
        now: u64,
        address: SocketAddr,
        registry: &Registry,
        token: Token,
    ) -> Result<PeerStep, PeerFault> {
        let failed = |why: &io::Error| {
            let local = matches!(
                Errno::from_io_error(why),
                Some(
                    Errno::MFILE
                        | Errno::NFILE
                        | Errno::ADDRNOTAVAIL
                        | Errno::NOBUFS
                        | Errno::NOMEM
                )
            );
            PeerFault {
                kind: if local {
                    FaultKind::Local
                } else {
                    FaultKind::Connect
                },
                expected: format!("a connection to {address}"),
                seen: why.to_string(),
            }
        };
        let Some(stream) = &self.stream else {
            let mut stream = begin_connect(address, self.peer_script.small_buffers)
                .map_err(|why| failed(&why))?;
            // Both interests, and never changed again: every action tries first, and then waits for an edge.
            registry
                .register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
                .map_err(|why| failed(&why))?;
            self.stream = Some(stream);
            self.rounds += 1;
            self.since = now;
            return Ok(PeerStep::WaitsForSocket);
        };
        match stream.take_error() {
            Ok(None) => {}
            Ok(Some(why)) | Err(why) => return Err(failed(&why)),
        }
        match stream.peer_addr() {
            Ok(_) => {
                self.connected = true;
                self.transcript.add(now, PeerEvent::Connected);
                Ok(PeerStep::Done)
            }
            Err(why) if why.kind() == ErrorKind::NotConnected => Ok(PeerStep::WaitsForSocket),
            Err(why) => Err(failed(&why)),
        }
    }

    fn perform(&mut self, action: &Action, now: u64) -> Result<PeerStep, PeerFault> {
        let needs_no_connection = matches!(
            action,
            Action::Pause(_) | Action::WaitForSignal | Action::StayIdle
        );
        if self.stream.is_none() && !needs_no_connection {
            return Err(PeerFault {
                kind: FaultKind::Local,
                expected: format!("a connection for \"{}\"", action.name()),
                seen: "a connection that the peer itself has closed".to_string(),
            });
        }
        match action {
            Action::Send(bytes, cut) => self.send(now, bytes, *cut),
            Action::Ask {
                request,
                cut,
                reply,
            } => self.ask(now, request, *cut, reply),
            Action::Converse {
                script,
                requests,
                cut,
            } => {
                if self.script.is_none() {
                    self.script = Some(script(self.rounds - 1));
                }
                self.converse(now, *requests, *cut)
            }
            Action::Overfill {
                script,
                still,
                finish,
            } => {
                if self.script.is_none() {
                    self.script = Some(script(self.rounds - 1));
                }
                self.overfill(now, nanos(*still), *finish)
            }
            Action::Flood { bytes, most, stuck } => self.flood(now, bytes, *most, nanos(*stuck)),
            Action::ReadSlowly(pause) => {
                if now < self.resume {
                    return Ok(PeerStep::Until(self.resume));
                }
                let mut one = [0];
                match self.read(now, &mut one, "the next byte")? {
                    None => Ok(PeerStep::WaitsWithoutLimit),
                    Some(0) => Ok(PeerStep::Done),
                    Some(_) => {
                        self.resume = now + nanos(*pause);
                        Ok(PeerStep::Until(self.resume))
                    }
                }
            }
            Action::ReadBytes(most) => self.read_any(now, *most),
            Action::HalfClose => {
                self.finish(now)?;
                Ok(PeerStep::Done)
            }
            Action::ExpectFin => {
                let mut extra = [0; EXCERPT];
                match self.read(now, &mut extra, "the end of the connection")? {
                    None => Ok(PeerStep::WaitsForSocket),
                    Some(0) => Ok(PeerStep::Done),
                    Some(count) => Err(PeerFault {
                        kind: FaultKind::WrongBytes,
                        expected: "the end of the connection".to_string(),
                        seen: excerpt(&extra[..count]),
                    }),
                }
            }
            Action::ReadToEnd => match self.read_any(now, u64::MAX) {
                Ok(PeerStep::Done) => Ok(PeerStep::Done),
                Err(fault) if matches!(fault.kind, FaultKind::Reset | FaultKind::End) => {
                    self.transcript.add(now, PeerEvent::Observed(fault.seen));
                    Ok(PeerStep::Done)
                }
                other => other,
            },
            Action::ExpectReset => match self.read_any(now, u64::MAX) {
                Err(fault) if fault.kind == FaultKind::Reset => {
                    self.transcript.add(now, PeerEvent::Observed(fault.seen));
                    Ok(PeerStep::Done)
                }
                Err(fault) => Err(PeerFault {
                    expected: "a reset".to_string(),
                    ..fault
                }),
                other => other,
            },
            Action::Reset => {
                let _ = SockRef::from(self.stream()).set_linger(Some(Duration::ZERO));
                self.transcript.add(now, PeerEvent::Action("RST"));
                self.stream = None;
                Ok(PeerStep::Done)
            }
            Action::Close => {
                self.transcript.add(now, PeerEvent::Action("close"));
                self.stream = None;
                Ok(PeerStep::Done)
            }
            Action::Pause(pause) => {
                let then = self.since + nanos(*pause);
                Ok(if now < then {
                    PeerStep::Until(then)
                } else {
                    PeerStep::Done
                })
            }
            Action::WaitForSignal if self.signalled => Ok(PeerStep::Done),
            Action::WaitForSignal => Ok(PeerStep::WaitsForSignal),
            Action::StayIdle => Ok(PeerStep::WaitsWithoutLimit),
        }
    }

    fn stream(&self) -> &TcpStream {
        self.stream
            .as_ref()
            .expect("actions that need a connection run only with one")
    }

    fn finish(&mut self, now: u64) -> Result<(), PeerFault> {
        let half_closed = self.stream().shutdown(Shutdown::Write);
        half_closed.map_err(|why| io_fault("an open connection", &why))?;
        self.transcript.add(now, PeerEvent::Action("FIN"));
        Ok(())
    }

    /// Sends the bytes that may be sent now; `None`: all are sent.
    fn send_some(
        &mut self,
        now: u64,
        bytes: &[u8],
        cut: Cut,
    ) -> Result<Option<PeerStep>, PeerFault> {
        while self.action_sent < bytes.len() {
            if now < self.resume {
                return Ok(Some(PeerStep::Until(self.resume)));
            }
            let (size, pause) = cut.next(self.action_sent, bytes.len());
            let piece = &bytes[self.action_sent..self.action_sent + size];
            let Some(count) = self.write(now, piece)? else {
                return Ok(Some(PeerStep::WaitsForSocket));
            };
            self.action_sent += count;
            if count == size {
                self.resume = now + nanos(pause);
            }
        }
        Ok(None)
    }

    fn send(&mut self, now: u64, bytes: &[u8], cut: Cut) -> Result<PeerStep, PeerFault> {
        Ok(self.send_some(now, bytes, cut)?.unwrap_or(PeerStep::Done))
    }

    fn ask(
        &mut self,
        now: u64,
        request: &[u8],
        cut: Cut,
        reply: &[u8],
    ) -> Result<PeerStep, PeerFault> {
        loop {
            let sending = self.send_some(now, request, cut)?;
            let action_received = usize::try_from(self.action_received).unwrap_or(usize::MAX);
            if action_received == reply.len() {
                return Ok(sending.unwrap_or(PeerStep::Done));
            }
            let mut buffer = [0; 16 * 1024];
            let most = buffer.len().min(reply.len() - action_received);
            let expected = &reply[action_received..];
            match self.read_within(now, &mut buffer[..most], || excerpt(expected))? {
                None => return Ok(sending.unwrap_or(PeerStep::WaitsForSocket)),
                Some(0) => {
                    return Err(PeerFault {
                        kind: FaultKind::End,
                        expected: excerpt(expected),
                        seen: format!("the end of the connection after {action_received} bytes"),
                    });
                }
                Some(count) => {
                    let got = &buffer[..count];
                    let wrong = got.iter().zip(expected).position(|(got, want)| got != want);
                    if let Some(at) = wrong {
                        return Err(PeerFault {
                            kind: FaultKind::WrongBytes,
                            expected: format!(
                                "{} at byte {}",
                                excerpt(&expected[at..]),
                                action_received + at
                            ),
                            seen: excerpt(&got[at..]),
                        });
                    }
                    self.action_received += count as u64;
                }
            }
        }
    }

    fn converse(&mut self, now: u64, requests: u64, cut: Cut) -> Result<PeerStep, PeerFault> {
        let mut script = self
            .script
            .take()
            .expect("the script is created when the action begins");
        let step = self.converse_by(now, requests, cut, script.as_mut());
        self.script = Some(script);
        step
    }

    /// Sends until the kernel accepts nothing more; from then on the action is a conversation of one request.
    fn overfill(&mut self, now: u64, still: u64, finish: bool) -> Result<PeerStep, PeerFault> {
        if !self.reading {
            if self.requests_asked == 0
                && let Some(script) = &mut self.script
            {
                script.ask(&mut self.output);
                self.requests_asked = 1;
            }
            let output = std::mem::take(&mut self.output);
            let sending = self.send_some(now, &output, Cut::Whole);
            self.output = output;
            if sending?.is_none() {
                self.half_close_once(now, finish)?;
            }
            let then = self.since.saturating_add(still);
            if self.turn_is_over || now < then {
                return Ok(PeerStep::Until(then));
            }
            self.reading = true;
            self.since = now;
        }
        let step = self.converse(now, 1, Cut::Whole)?;
        if self.output.is_empty() {
            self.half_close_once(now, finish)?;
        }
        Ok(step)
    }

    fn half_close_once(&mut self, now: u64, finish: bool) -> Result<(), PeerFault> {
        if finish && !self.half_closed {
            self.half_closed = true;
            self.finish(now)?;
        }
        Ok(())
    }

    fn converse_by(
        &mut self,
        now: u64,
        requests: u64,
        cut: Cut,
        script: &mut dyn Script,
    ) -> Result<PeerStep, PeerFault> {
        if requests == 0 {
            return Ok(PeerStep::Done);
        }
        if self.requests_asked == 0 {
            script.ask(&mut self.output);
            self.requests_asked = 1;
        }
        loop {
            let output = std::mem::take(&mut self.output);
            let sending = self.send_some(now, &output, cut);
            self.output = output;
            let sending = sending?;
            if sending.is_none() {
                self.output.clear();
                self.action_sent = 0;
            }
            if self.requests_asked > requests {
                // All requests are answered; the last receipts may have to wait.
                return Ok(sending.unwrap_or(PeerStep::Done));
            }
            let mut buffer = [0; 16 * 1024];
            let count = match self.read(now, &mut buffer, "a reply")? {
                None => return Ok(sending.unwrap_or(PeerStep::WaitsForSocket)),
                Some(0) => {
                    return Err(PeerFault {
                        kind: FaultKind::End,
                        expected: format!("the rest of reply {}", self.requests_asked),
                        seen: "the end of the connection".to_string(),
                    });
                }
                Some(count) => count,
            };
            self.action_received += count as u64;
            let status = script
                .receive(&buffer[..count])
                .map_err(|wrong| PeerFault {
                    kind: FaultKind::WrongBytes,
                    expected: match &wrong.words {
                        None if wrong.expected.is_empty() => "nothing more".to_string(),
                        None => format!(
                            "{} at byte {} of reply {}",
                            excerpt(&wrong.expected),
                            wrong.offset,
                            self.requests_asked
                        ),
                        Some(_) => format!("a correct reply {}", self.requests_asked),
                    },
                    seen: match &wrong.words {
                        None => excerpt(&wrong.got),
                        Some(words) => words.clone(),
                    },
                })?;
            script.interject(&mut self.output);
            match status {
                ReplyStatus::Partial => {}
                ReplyStatus::Last if self.requests_asked < requests => {
                    return Err(PeerFault {
                        kind: FaultKind::End,
                        expected: format!("{requests} requests in one conversation"),
                        seen: format!(
                            "the end of the conversation after reply {}",
                            self.requests_asked
                        ),
                    });
                }
                ReplyStatus::Complete | ReplyStatus::Last => {
                    self.requests_asked += 1;
                    self.action_received = 0;
                    if self.requests_asked <= requests {
                        script.ask(&mut self.output);
                    }
                }
            }
        }
    }

    fn flood(
        &mut self,
        now: u64,
        bytes: &Arc<[u8]>,
        most: u64,
        stuck: u64,
    ) -> Result<PeerStep, PeerFault> {
        loop {
            let left = usize::try_from(most - self.action_received).unwrap_or(usize::MAX);
            let piece = &bytes[self.action_sent..];
            let piece = &piece[..piece.len().min(left)];
            if piece.is_empty() {
                return Ok(PeerStep::Done);
            }
            match self.write(now, piece)? {
                Some(count) => {
                    self.action_received += count as u64;
                    self.action_sent = (self.action_sent + count) % bytes.len();
                }
                None if !self.turn_is_over && now >= self.since + stuck => {
                    return Ok(PeerStep::Done);
                }
                None => return Ok(PeerStep::Until(self.since + stuck)),
            }
        }
    }

    fn read_any(&mut self, now: u64, most: u64) -> Result<PeerStep, PeerFault> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let left = most - self.action_received;
            if left == 0 {
                return Ok(PeerStep::Done);
            }
            let size = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            match self.read(now, &mut buffer[..size], "more bytes")? {
                None => return Ok(PeerStep::WaitsForSocket),
                Some(0) => {
                    return Err(PeerFault {
                        kind: FaultKind::End,
                        expected: "more bytes".to_string(),
                        seen: "the end of the connection".to_string(),
                    });
                }
                Some(count) => {
                    self.action_received += count as u64;
                    let room = MAX_KEPT - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..count.min(room)]);
                }
            }
        }
    }

    /// Uses up one read or write of this turn. Returns whether there was one left. If not, the peer behaves as if the
    /// socket were not ready, but no event will report that it is.
    fn use_call(&mut self) -> bool {
        self.turn_is_over |= self.calls_left == 0;
        self.calls_left = self.calls_left.saturating_sub(1);
        !self.turn_is_over
    }

    /// Reads once; `None`: no bytes are there now.
    fn read(
        &mut self,
        now: u64,
        buffer: &mut [u8],
        expected: &str,
    ) -> Result<Option<usize>, PeerFault> {
        self.read_within(now, buffer, || expected.to_string())
    }

    fn read_within(
        &mut self,
        now: u64,
        buffer: &mut [u8],
        expected: impl Fn() -> String,
    ) -> Result<Option<usize>, PeerFault> {
        if !self.use_call() {
            return Ok(None);
        }
        loop {
            match self.stream().read(buffer) {
                Ok(0) => {
                    self.transcript
                        .add(now, PeerEvent::Observed("FIN".to_string()));
                    return Ok(Some(0));
                }
                Ok(count) => {
                    self.since = now;
                    self.received += count as u64;
                    let start = buffer[..count.min(EXCERPT)].to_vec();
                    self.transcript.add(now, PeerEvent::Received(count, start));
                    return Ok(Some(count));
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(why) => return Err(io_fault(&expected(), &why)),
            }
        }
    }

    /// Writes once; `None`: the socket has no room now.
    fn write(&mut self, now: u64, bytes: &[u8]) -> Result<Option<usize>, PeerFault> {
        if !self.use_call() {
            return Ok(None);
        }
        loop {
            match self.stream().write(bytes) {
                Ok(count) => {
                    self.since = now;
                    self.sent += count as u64;
                    let start = bytes[..count.min(EXCERPT)].to_vec();
                    self.transcript.add(now, PeerEvent::Sent(count, start));
                    return Ok(Some(count));
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(why) => return Err(io_fault("an open connection", &why)),
            }
        }
    }
}

fn io_fault(expected: &str, why: &io::Error) -> PeerFault {
    let kind = match why.kind() {
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::NotConnected => FaultKind::Reset,
        _ => FaultKind::Local,
    };
    PeerFault {
        kind,
        expected: expected.to_string(),
        seen: why.to_string(),
    }
}

/// Returns the beginning of some bytes in printable form.
fn excerpt(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing more".to_string();
    }
    let shown = &bytes[..bytes.len().min(48)];
    let dots = if shown.len() < bytes.len() { "…" } else { "" };
    format!("\"{}\"{dots}", shown.escape_ascii())
}

fn begin_connect(address: SocketAddr, small_buffers: bool) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if small_buffers {
        // Set before the connect: the server may send what is offered then.
        socket.set_recv_buffer_size(SMALL_RECEIVE_BUFFER)?;
        socket.set_send_buffer_size(SMALL_SEND_BUFFER)?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(why) if Errno::from_io_error(&why) == Some(Errno::INPROGRESS) => {}
        Err(why) => return Err(why),
    }
    Ok(TcpStream::from_std(socket.into()))
}
