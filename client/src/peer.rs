//! One peer on the [driver](crate::PeerDriver): what it does now, what it has said and heard.

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

/// The receive buffer of a peer that has small ones, in bytes.
const SMALL: usize = 4096;

/// Its send buffer: smaller than two segments (of 64 KiB, on the loopback interface), each would have to wait for an
/// acknowledgement that comes 40 ms later.
const SMALL_OUT: usize = 128 * 1024;

/// Bytes of one reading or writing that a transcript keeps.
const EXCERPT: usize = 64;

/// Lines of a transcript that are kept: the first of them, and the last.
const FIRST: usize = 24;
const LAST: usize = 24;

/// Readings and writings in one turn. Whoever talks without end, or is talked to, must not keep the others from theirs,
/// nor the driver from its orders.
const TURN: u32 = 64;

/// Bytes of what was heard that are kept by the actions that hear whatever comes.
const KEPT: usize = 4096;

/// PeerEvent became of a peer.
#[derive(Debug)]
pub struct PeerOutcome {
    /// Its place among the peer_scripts of its group.
    pub number: usize,
    /// PeerEvent went wrong, if something did. Who left before the end of its actions has nothing that went wrong.
    pub fault: Option<PeerFault>,
    /// Came to the end of its actions.
    pub done: bool,
    /// When each act was done, the last time that it was, since the driver was opened; `None`: it was not. The first of
    /// them is the connect.
    pub done_at: Vec<Option<Duration>>,
    /// PeerEvent [`Action::ReadToEnd`], [`Action::ExpectReset`] and [`Action::ReadBytes`] heard, as far as it was kept (4 KiB).
    pub heard: Vec<u8>,
    /// Bytes that the kernel took for the server.
    pub bytes_sent: u64,
    /// Bytes that came from the server.
    pub bytes_heard: u64,
    /// PeerEvent was said, byte by byte.
    pub transcript: Transcript,
}

/// PeerEvent went wrong for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFault {
    /// Of which kind it is.
    pub kind: FaultKind,
    /// PeerEvent should have come.
    pub expected: String,
    /// PeerEvent came.
    pub seen: String,
}

impl fmt::Display for PeerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, saw {}", self.expected, self.seen)
    }
}

/// The kinds of what can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The connection could not be opened.
    Connect,
    /// This side could not do its part.
    Local,
    /// Other bytes came than should have.
    WrongBytes,
    /// The server's end came too early.
    End,
    /// The connection was broken off.
    Reset,
    /// PeerEvent should have come did not.
    Silence,
}

/// PeerEvent was said and heard, in order; of a long one the middle is left out.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    first: Vec<Line>,
    last: VecDeque<Line>,
    left_out: u64,
    /// When the peer last did something,
    acted: Duration,
    /// and the longest that it did nothing before it did something.
    longest_pause: Duration,
}

#[derive(Debug, Clone)]
struct Line {
    at: Duration,
    what: PeerEvent,
}

#[derive(Debug, Clone)]
enum PeerEvent {
    Connected,
    Sent(usize, Vec<u8>),
    Heard(usize, Vec<u8>),
    Did(&'static str),
    Met(String),
}

impl Transcript {
    fn add(&mut self, now: u64, what: PeerEvent) {
        let at = Duration::from_nanos(now);
        match what {
            PeerEvent::Connected => self.acted = at,
            // Who is told to leave does not do so of its own.
            PeerEvent::Did("close") => {}
            PeerEvent::Sent(..) | PeerEvent::Did(_) => {
                let pause = at.saturating_sub(self.acted);
                self.longest_pause = self.longest_pause.max(pause);
                self.acted = at;
            }
            PeerEvent::Heard(..) | PeerEvent::Met(_) => {}
        }
        if self.first.len() < FIRST {
            self.first.push(Line { at, what });
            return;
        }
        if self.last.len() == LAST {
            self.last.pop_front();
            self.left_out += 1;
        }
        self.last.push_back(Line { at, what });
    }

    /// The longest time between two things that the peer itself did: connected, sent, ended its side. Whoever waits for
    /// it may have thought it idle for no longer. (PeerEvent comes after the last of them is no pause: it may be the server
    /// that does nothing.)
    pub fn longest_pause(&self) -> Duration {
        self.longest_pause
    }

    /// Whether nothing was said, or even begun.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

/// A line for each reading or writing: seconds since the driver was opened, `>` for what the peer sent, `<` for what it
/// heard, `-` for everything else.
impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.first {
            writeln!(f, "{line}")?;
        }
        if self.left_out > 0 {
            writeln!(f, "          … {} more …", self.left_out)?;
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
        match &self.what {
            PeerEvent::Sent(count, start) => bytes('>', *count, start),
            PeerEvent::Heard(count, start) => bytes('<', *count, start),
            PeerEvent::Connected => write!(f, "- connected"),
            PeerEvent::Did(what) => write!(f, "> {what}"),
            PeerEvent::Met(what) => write!(f, "< {what}"),
        }
    }
}

/// How far a peer came when it was its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerProgress {
    /// It waits for its socket; until then at most.
    Waits(Option<u64>),
    /// It goes on then, and may do so earlier.
    Until(u64),
    /// It waits for its next turn, and nothing else.
    ForItsTurn,
    ForSignal,
    /// It is done, and begins anew.
    Again,
    Done,
    Failed,
}

/// PeerEvent an act comes to.
enum PeerStep {
    Done,
    /// Waits for the socket, under the guard of the driver's patience.
    Waits,
    /// Waits for the socket for as long as it takes.
    WaitsLong,
    /// Waits until then.
    Until(u64),
    ForSignal,
}

pub(crate) struct Peer {
    number: usize,
    peer_script: PeerScript,
    stream: Option<TcpStream>,
    /// Times that it has connected.
    rounds: u64,
    connected: bool,
    act: usize,
    /// When this act began, or last came further.
    since: u64,
    /// Bytes of this act's that were sent,
    out: usize,
    /// and heard.
    come: u64,
    /// Nothing is sent before then.
    resume: u64,
    cued: bool,
    /// It has begun to read, in an act that does not begin with that;
    reads: bool,
    /// and it has ended its side, in one that does so on the way.
    finished: bool,
    /// Readings and writings that are left in this turn, and whether they were too few.
    turn: u32,
    more: bool,
    script: Option<Box<dyn Script>>,
    /// PeerEvent the script has said and the socket has yet to take.
    output: Vec<u8>,
    asked: u64,
    sent: u64,
    heard: u64,
    kept: Vec<u8>,
    done_at: Vec<Option<Duration>>,
    transcript: Transcript,
    fault: Option<PeerFault>,
    done: bool,
    /// The driver will wake it then, because it paused;
    pub(crate) wakes_at: Option<u64>,
    /// and then, to see whether its patience is over.
    pub(crate) guarded_at: Option<u64>,
    /// Nobody has given it its signal yet, for which it waits.
    pub(crate) awaits_signal: bool,
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
            act: 0,
            since: 0,
            out: 0,
            come: 0,
            resume: 0,
            cued: false,
            reads: false,
            finished: false,
            turn: 0,
            more: false,
            script: None,
            output: Vec::new(),
            asked: 0,
            sent: 0,
            heard: 0,
            kept: Vec::new(),
            done_at,
            transcript: Transcript::default(),
            fault: None,
            done: false,
            wakes_at: None,
            guarded_at: None,
            awaits_signal: false,
        }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    pub(crate) fn heard(&self) -> u64 {
        self.heard
    }

    pub(crate) fn connects(&self) -> u64 {
        self.rounds - u64::from(self.stream.is_some() && !self.connected)
    }

    pub(crate) fn signal(&mut self) {
        self.cued = true;
        self.awaits_signal = false;
    }

    /// Leaves the driver: its connection is closed.
    pub(crate) fn leave(mut self, now: u64) -> PeerOutcome {
        if self.stream.take().is_some() {
            self.transcript.add(now, PeerEvent::Did("close"));
        }
        PeerOutcome {
            number: self.number,
            fault: self.fault,
            done: self.done,
            done_at: self.done_at,
            heard: self.kept,
            bytes_sent: self.sent,
            bytes_heard: self.heard,
            transcript: self.transcript,
        }
    }

    /// Acts until it has to wait.
    pub(crate) fn act(
        &mut self,
        now: u64,
        address: SocketAddr,
        registry: &Registry,
        token: Token,
        patience: u64,
    ) -> PeerProgress {
        self.turn = TURN;
        self.more = false;
        loop {
            let connecting = !self.connected;
            let step = if self.connected {
                match self.peer_script.actions.get(self.act).cloned() {
                    Some(act) => self.carry_out(&act, now),
                    None => return self.come_to_the_end(now),
                }
            } else {
                self.connect(now, address, registry, token)
            };
            match step {
                Ok(PeerStep::Done) => {
                    // The connect is the first.
                    self.act += usize::from(!connecting);
                    self.done_at[self.act] = Some(Duration::from_nanos(now));
                    self.begin(now);
                }
                Ok(PeerStep::ForSignal) => return PeerProgress::ForSignal,
                Ok(_) if self.more => return PeerProgress::ForItsTurn,
                Ok(PeerStep::Waits) => {
                    let limit = self.since.saturating_add(patience);
                    if now < limit {
                        return PeerProgress::Waits(Some(limit));
                    }
                    let fault = self.silence(patience);
                    return self.fail(now, fault);
                }
                Ok(PeerStep::WaitsLong) => return PeerProgress::Waits(None),
                Ok(PeerStep::Until(then)) => return PeerProgress::Until(then),
                Err(fault) => return self.fail(now, fault),
            }
        }
    }

    fn begin(&mut self, now: u64) {
        self.since = now;
        self.out = 0;
        self.come = 0;
        self.resume = 0;
        self.cued = false;
        self.reads = false;
        self.finished = false;
        self.script = None;
        self.output.clear();
        self.asked = 0;
    }

    fn come_to_the_end(&mut self, now: u64) -> PeerProgress {
        self.stream = None;
        self.connected = false;
        self.act = 0;
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
        self.transcript.add(now, PeerEvent::Met(fault.seen.clone()));
        self.stream = None;
        self.fault = Some(fault);
        self.done = false;
        PeerProgress::Failed
    }

    fn silence(&self, patience: u64) -> PeerFault {
        let act = self.peer_script.actions.get(self.act);
        let expected = match act {
            _ if !self.connected => "a connection".to_string(),
            Some(Action::Ask { reply, .. }) => {
                let rest = &reply[usize::try_from(self.come).unwrap_or(0).min(reply.len())..];
                format!("{} (after {} bytes of it)", excerpt(rest), self.come)
            }
            Some(Action::Converse { .. } | Action::Overfill { .. }) => {
                format!(
                    "the rest of reply {} ({} bytes of it came)",
                    self.asked, self.come
                )
            }
            Some(Action::ExpectFin) => "the end of the connection".to_string(),
            Some(Action::ReadToEnd) => "the end of the connection, or a reset".to_string(),
            Some(Action::ExpectReset) => "a reset".to_string(),
            Some(Action::Send(bytes, _)) => format!(
                "that the server reads on ({} of {} bytes were taken)",
                self.out,
                bytes.len()
            ),
            Some(Action::ReadBytes(most)) => {
                format!("{} bytes more", most.saturating_sub(self.come))
            }
            Some(other) => format!("an end of \"{}\"", other.name()),
            None => "nothing".to_string(),
        };
        PeerFault {
            kind: FaultKind::Silence,
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
            let mut stream =
                open(address, self.peer_script.small_buffers).map_err(|why| failed(&why))?;
            // Both, and never changed again: every act tries first, and then waits for an edge.
            registry
                .register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
                .map_err(|why| failed(&why))?;
            self.stream = Some(stream);
            self.rounds += 1;
            self.since = now;
            return Ok(PeerStep::Waits);
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
            Err(why) if why.kind() == ErrorKind::NotConnected => Ok(PeerStep::Waits),
            Err(why) => Err(failed(&why)),
        }
    }

    fn carry_out(&mut self, act: &Action, now: u64) -> Result<PeerStep, PeerFault> {
        let at_ease = matches!(
            act,
            Action::Pause(_) | Action::WaitForSignal | Action::StayIdle
        );
        if self.stream.is_none() && !at_ease {
            return Err(PeerFault {
                kind: FaultKind::Local,
                expected: format!("a connection for \"{}\"", act.name()),
                seen: "that the peer itself has closed it".to_string(),
            });
        }
        match act {
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
                    None => Ok(PeerStep::WaitsLong),
                    Some(0) => Ok(PeerStep::Done),
                    Some(_) => {
                        self.resume = now + nanos(*pause);
                        Ok(PeerStep::Until(self.resume))
                    }
                }
            }
            Action::ReadBytes(most) => self.take(now, *most),
            Action::HalfClose => {
                self.finish(now)?;
                Ok(PeerStep::Done)
            }
            Action::ExpectFin => {
                let mut more = [0; EXCERPT];
                match self.read(now, &mut more, "the end of the connection")? {
                    None => Ok(PeerStep::Waits),
                    Some(0) => Ok(PeerStep::Done),
                    Some(count) => Err(PeerFault {
                        kind: FaultKind::WrongBytes,
                        expected: "the end of the connection".to_string(),
                        seen: excerpt(&more[..count]),
                    }),
                }
            }
            Action::ReadToEnd => match self.take(now, u64::MAX) {
                Ok(PeerStep::Done) => Ok(PeerStep::Done),
                Err(fault) if matches!(fault.kind, FaultKind::Reset | FaultKind::End) => {
                    self.transcript.add(now, PeerEvent::Met(fault.seen));
                    Ok(PeerStep::Done)
                }
                other => other,
            },
            Action::ExpectReset => match self.take(now, u64::MAX) {
                Err(fault) if fault.kind == FaultKind::Reset => {
                    self.transcript.add(now, PeerEvent::Met(fault.seen));
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
                self.transcript.add(now, PeerEvent::Did("RST"));
                self.stream = None;
                Ok(PeerStep::Done)
            }
            Action::Close => {
                self.transcript.add(now, PeerEvent::Did("close"));
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
            Action::WaitForSignal if self.cued => Ok(PeerStep::Done),
            Action::WaitForSignal => Ok(PeerStep::ForSignal),
            Action::StayIdle => Ok(PeerStep::WaitsLong),
        }
    }

    fn stream(&self) -> &TcpStream {
        self.stream
            .as_ref()
            .expect("without one no act comes so far")
    }

    fn finish(&mut self, now: u64) -> Result<(), PeerFault> {
        let finished = self.stream().shutdown(Shutdown::Write);
        finished.map_err(|why| broken("an open connection", &why))?;
        self.transcript.add(now, PeerEvent::Did("FIN"));
        Ok(())
    }

    /// Sends what may be sent now; `None`: all is sent.
    fn send_some(
        &mut self,
        now: u64,
        bytes: &[u8],
        cut: Cut,
    ) -> Result<Option<PeerStep>, PeerFault> {
        while self.out < bytes.len() {
            if now < self.resume {
                return Ok(Some(PeerStep::Until(self.resume)));
            }
            let (size, pause) = cut.next(self.out, bytes.len());
            let piece = &bytes[self.out..self.out + size];
            let Some(count) = self.write(now, piece)? else {
                return Ok(Some(PeerStep::Waits));
            };
            self.out += count;
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
            let come = usize::try_from(self.come).unwrap_or(usize::MAX);
            if come == reply.len() {
                return Ok(sending.unwrap_or(PeerStep::Done));
            }
            let mut buffer = [0; 16 * 1024];
            let most = buffer.len().min(reply.len() - come);
            let expected = &reply[come..];
            match self.read_within(now, &mut buffer[..most], || excerpt(expected))? {
                None => return Ok(sending.unwrap_or(PeerStep::Waits)),
                Some(0) => {
                    return Err(PeerFault {
                        kind: FaultKind::End,
                        expected: excerpt(expected),
                        seen: format!("the end of the connection after {come} bytes"),
                    });
                }
                Some(count) => {
                    let got = &buffer[..count];
                    let wrong = got.iter().zip(expected).position(|(got, want)| got != want);
                    if let Some(at) = wrong {
                        return Err(PeerFault {
                            kind: FaultKind::WrongBytes,
                            expected: format!("{} at byte {}", excerpt(&expected[at..]), come + at),
                            seen: excerpt(&got[at..]),
                        });
                    }
                    self.come += count as u64;
                }
            }
        }
    }

    fn converse(&mut self, now: u64, requests: u64, cut: Cut) -> Result<PeerStep, PeerFault> {
        let mut script = self.script.take().expect("opened with the act");
        let step = self.converse_by(now, requests, cut, script.as_mut());
        self.script = Some(script);
        step
    }

    /// Sends until nothing goes out any more; from then on it is a conversation of one request.
    fn overfill(&mut self, now: u64, still: u64, finish: bool) -> Result<PeerStep, PeerFault> {
        if !self.reads {
            if self.asked == 0
                && let Some(script) = &mut self.script
            {
                script.ask(&mut self.output);
                self.asked = 1;
            }
            let output = std::mem::take(&mut self.output);
            let sending = self.send_some(now, &output, Cut::Whole);
            self.output = output;
            if sending?.is_none() {
                self.finish_once(now, finish)?;
            }
            let then = self.since.saturating_add(still);
            if self.more || now < then {
                return Ok(PeerStep::Until(then));
            }
            self.reads = true;
            self.since = now;
        }
        let step = self.converse(now, 1, Cut::Whole)?;
        if self.output.is_empty() {
            self.finish_once(now, finish)?;
        }
        Ok(step)
    }

    fn finish_once(&mut self, now: u64, finish: bool) -> Result<(), PeerFault> {
        if finish && !self.finished {
            self.finished = true;
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
        if self.asked == 0 {
            script.ask(&mut self.output);
            self.asked = 1;
        }
        loop {
            let output = std::mem::take(&mut self.output);
            let sending = self.send_some(now, &output, cut);
            self.output = output;
            let sending = sending?;
            if sending.is_none() {
                self.output.clear();
                self.out = 0;
            }
            if self.asked > requests {
                // All is answered; the last receipts may have to wait.
                return Ok(sending.unwrap_or(PeerStep::Done));
            }
            let mut buffer = [0; 16 * 1024];
            let count = match self.read(now, &mut buffer, "a reply")? {
                None => return Ok(sending.unwrap_or(PeerStep::Waits)),
                Some(0) => {
                    return Err(PeerFault {
                        kind: FaultKind::End,
                        expected: format!("the rest of reply {}", self.asked),
                        seen: "the end of the connection".to_string(),
                    });
                }
                Some(count) => count,
            };
            self.come += count as u64;
            let heard = script
                .receive(&buffer[..count])
                .map_err(|wrong| PeerFault {
                    kind: FaultKind::WrongBytes,
                    expected: match &wrong.words {
                        None if wrong.expected.is_empty() => "nothing more".to_string(),
                        None => format!(
                            "{} at byte {} of reply {}",
                            excerpt(&wrong.expected),
                            wrong.offset,
                            self.asked
                        ),
                        Some(_) => format!("a right reply {}", self.asked),
                    },
                    seen: match &wrong.words {
                        None => excerpt(&wrong.got),
                        Some(words) => words.clone(),
                    },
                })?;
            script.interject(&mut self.output);
            match heard {
                ReplyStatus::Partial => {}
                ReplyStatus::Last if self.asked < requests => {
                    return Err(PeerFault {
                        kind: FaultKind::End,
                        expected: format!("{requests} requests in one conversation"),
                        seen: format!("that it is over after {}", self.asked),
                    });
                }
                ReplyStatus::Complete | ReplyStatus::Last => {
                    self.asked += 1;
                    self.come = 0;
                    if self.asked <= requests {
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
            let left = usize::try_from(most - self.come).unwrap_or(usize::MAX);
            let piece = &bytes[self.out..];
            let piece = &piece[..piece.len().min(left)];
            if piece.is_empty() {
                return Ok(PeerStep::Done);
            }
            match self.write(now, piece)? {
                Some(count) => {
                    self.come += count as u64;
                    self.out = (self.out + count) % bytes.len();
                }
                None if !self.more && now >= self.since + stuck => return Ok(PeerStep::Done),
                None => return Ok(PeerStep::Until(self.since + stuck)),
            }
        }
    }

    fn take(&mut self, now: u64, most: u64) -> Result<PeerStep, PeerFault> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let left = most - self.come;
            if left == 0 {
                return Ok(PeerStep::Done);
            }
            let size = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            match self.read(now, &mut buffer[..size], "more")? {
                None => return Ok(PeerStep::Waits),
                Some(0) => {
                    return Err(PeerFault {
                        kind: FaultKind::End,
                        expected: "more".to_string(),
                        seen: "the end of the connection".to_string(),
                    });
                }
                Some(count) => {
                    self.come += count as u64;
                    let room = KEPT - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..count.min(room)]);
                }
            }
        }
    }

    /// Whether it may read or write once more now. If not it is as if the socket were not ready, but no event will say
    /// that it is.
    fn has_a_turn(&mut self) -> bool {
        self.more |= self.turn == 0;
        self.turn = self.turn.saturating_sub(1);
        !self.more
    }

    /// Reads once; `None`: nothing is there now.
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
        if !self.has_a_turn() {
            return Ok(None);
        }
        loop {
            match self.stream().read(buffer) {
                Ok(0) => {
                    self.transcript.add(now, PeerEvent::Met("FIN".to_string()));
                    return Ok(Some(0));
                }
                Ok(count) => {
                    self.since = now;
                    self.heard += count as u64;
                    let start = buffer[..count.min(EXCERPT)].to_vec();
                    self.transcript.add(now, PeerEvent::Heard(count, start));
                    return Ok(Some(count));
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(why) => return Err(broken(&expected(), &why)),
            }
        }
    }

    /// Writes once; `None`: the socket has no room now.
    fn write(&mut self, now: u64, bytes: &[u8]) -> Result<Option<usize>, PeerFault> {
        if !self.has_a_turn() {
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
                Err(why) => return Err(broken("an open connection", &why)),
            }
        }
    }
}

fn broken(expected: &str, why: &io::Error) -> PeerFault {
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

/// The beginning of some bytes, as they can be printed.
fn excerpt(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing more".to_string();
    }
    let shown = &bytes[..bytes.len().min(48)];
    let dots = if shown.len() < bytes.len() { "…" } else { "" };
    format!("\"{}\"{dots}", shown.escape_ascii())
}

fn open(address: SocketAddr, small_buffers: bool) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if small_buffers {
        // Before the connect: what is offered then is what the server may send.
        socket.set_recv_buffer_size(SMALL)?;
        socket.set_send_buffer_size(SMALL_OUT)?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(why) if Errno::from_io_error(&why) == Some(Errno::INPROGRESS) => {}
        Err(why) => return Err(why),
    }
    Ok(TcpStream::from_std(socket.into()))
}
