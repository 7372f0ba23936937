//! `bulk`: `start` in; some big messages out, and a receipt back for each. What is told apart here is not lines but
//! messages with a terminator of several bytes, which may arrive cut anywhere.

use memchr::memmem;

use crate::script::{ReplyStatus, Script, ScriptOptions, WrongReply};
use crate::session::{CloseReason, Session, SessionOptions, Step};
use crate::work::PendingWork;
use crate::{DefaultLoad, Protocol};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "bulk",
    summary: "`start` in; big messages out (3 of 3 MiB), a receipt back for each",
    open: |options| Box::new(Sender::new(options)),
    ask: |options| Box::new(Receiver::new(options)),
    requests_per_connection: None,
    requests_differ: false,
    default_load: DefaultLoad {
        connections: 3,
        messages: 1,
    },
};

/// Ends every message, in both directions.
const TERMINATOR: &[u8] = b"\r<--EOM-->\r";

const START: &[u8] = b"start";

/// Begins every message.
const HEAD: &[u8] = b"head";

/// Ends every message, with its terminator. Between the two are dots.
const END: &[u8] = b"tail\r<--EOM-->\r";
const TAIL: usize = END.len() - TERMINATOR.len();

/// What messages are cut from: a head, dots and an end. So a message of any length takes no memory, none is ever copied,
/// and a step that is asked for again gives the same address.
static BLOCK: [u8; HEAD.len() + DOTS + END.len()] = {
    let mut block = [b'.'; HEAD.len() + DOTS + END.len()];
    let (head, rest) = block.split_at_mut(HEAD.len());
    head.copy_from_slice(HEAD);
    rest.split_at_mut(DOTS).1.copy_from_slice(END);
    block
};
const DOTS: usize = 256 * 1024;

/// What is sent to whoever says `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bulk {
    /// Bytes of each message, without its terminator; at least [`Bulk::LEAST`].
    pub size: u64,
    /// How many messages, at least one.
    pub count: u64,
}

impl Bulk {
    /// The shortest message: its head and its tail.
    pub const LEAST: u64 = (HEAD.len() + TAIL) as u64;

    /// Bytes of a message with its terminator.
    fn whole(&self) -> u64 {
        self.size.max(Bulk::LEAST) + TERMINATOR.len() as u64
    }

    /// What a message has from this offset on: never nothing before its end, and not necessarily all of it.
    fn from(&self, offset: u64) -> &'static [u8] {
        let left = usize::try_from(self.whole() - offset).unwrap_or(usize::MAX);
        let start = HEAD
            .len()
            .min(usize::try_from(offset).unwrap_or(usize::MAX));
        if start == HEAD.len() && left <= DOTS + END.len() {
            return &BLOCK[BLOCK.len() - left..];
        }
        // The end stays behind: whoever begins with the head, or has too many dots left, can't have it in one piece.
        let most = HEAD.len() + DOTS - start;
        &BLOCK[start..][..most.min(left - END.len())]
    }
}

impl Default for Bulk {
    /// The original's: 3 messages of 3 MiB.
    fn default() -> Self {
        Bulk {
            size: 3 << 20,
            count: 3,
        }
    }
}

/// What stands for a message where it is decided whether it costs work: all starts are the same, and the messages of
/// one are told apart by how many are still owed.
fn which(owed: u64) -> [u8; 8] {
    owed.to_le_bytes()
}

/// The server's side.
struct Sender {
    bulk: Bulk,
    max_message: usize,
    /// What arrived; the part before `heard` is done with, and no terminator begins before `scanned`.
    input: Vec<u8>,
    heard: usize,
    scanned: usize,
    /// Messages that are still to be sent, and how much of the first is.
    owed: u64,
    taken: u64,
    pending_work: PendingWork,
    complaint: Vec<u8>,
    ended: Option<CloseReason>,
}

impl Sender {
    fn new(options: &SessionOptions) -> Self {
        Sender {
            bulk: options.bulk,
            max_message: options.max_line,
            input: Vec::new(),
            heard: 0,
            scanned: 0,
            owed: 0,
            taken: 0,
            pending_work: PendingWork::of(options.work.as_ref()),
            complaint: Vec::new(),
            ended: None,
        }
    }

    /// Goes through what the peer said, up to the next `start`.
    fn listen(&mut self) {
        while self.owed == 0 {
            let Some(found) = memmem::find(&self.input[self.scanned..], TERMINATOR) else {
                // The end of what is here may be the beginning of a terminator.
                let begun = self.input.len().saturating_sub(TERMINATOR.len() - 1);
                self.scanned = begun.max(self.scanned);
                break;
            };
            let end = self.scanned + found;
            if end - self.heard > self.max_message {
                return self.refuse();
            }
            if &self.input[self.heard..end] == START {
                self.owed = self.bulk.count;
            }
            // Everything else is a receipt: what it says is for people.
            self.heard = end + TERMINATOR.len();
            self.scanned = self.heard;
        }
        // The beginning of a terminator is no part of the message; whether it is one, more input tells.
        if self.owed == 0 && self.scanned - self.heard > self.max_message {
            self.refuse();
        }
    }

    fn refuse(&mut self) {
        self.complaint = format!("error: a message may have {} bytes", self.max_message).into();
        self.complaint.extend_from_slice(TERMINATOR);
        self.forget();
        self.ended = Some(CloseReason::Refused);
    }

    fn forget(&mut self) {
        self.input = Vec::new();
        self.heard = 0;
        self.scanned = 0;
    }
}

impl Session for Sender {
    fn receive(&mut self, input: &[u8]) {
        if self.ended.is_some() {
            return;
        }
        self.input.drain(..self.heard);
        self.scanned -= self.heard;
        self.heard = 0;
        self.input.extend_from_slice(input);
    }

    fn end_of_input(&mut self) {
        self.ended.get_or_insert(CloseReason::Done);
    }

    fn step(&mut self) -> Step<'_> {
        if self.owed == 0 {
            self.listen();
        }
        if self.owed > 0 {
            if self.taken == 0
                && let Some(work) = self.pending_work.due(&which(self.owed))
            {
                return Step::Work(work);
            }
            return Step::Write(self.bulk.from(self.taken));
        }
        match self.ended {
            Some(_) if !self.complaint.is_empty() => Step::Write(&self.complaint),
            Some(farewell) => {
                // What is left is the beginning of a message that will never be whole.
                self.forget();
                Step::Close(farewell)
            }
            None => Step::Read,
        }
    }

    fn sent(&mut self, count: usize) {
        if self.owed == 0 {
            self.complaint.drain(..count);
            return;
        }
        self.taken += count as u64;
        debug_assert!(self.taken <= self.bulk.whole(), "more sent than offered");
        if self.taken >= self.bulk.whole() {
            self.taken = 0;
            self.owed -= 1;
            self.pending_work.replied();
        }
    }

    fn worked(&mut self) {
        self.pending_work.worked();
    }

    fn mid_request(&self) -> bool {
        self.owed > 0 || self.heard < self.input.len() || !self.complaint.is_empty()
    }
}

/// The client's side: asks for the messages, checks each byte of them as it comes, and gives receipts.
struct Receiver {
    bulk: Bulk,
    /// Whole messages, of this reply.
    messages: u64,
    /// Of the message that is under way.
    heard: u64,
    /// Receipts that are due, and those that were given.
    due: u64,
    given: u64,
}

impl Receiver {
    fn new(options: &ScriptOptions) -> Self {
        Receiver {
            bulk: options.bulk,
            // Nothing is owed before it is asked for.
            messages: options.bulk.count,
            heard: 0,
            due: 0,
            given: 0,
        }
    }
}

impl Script for Receiver {
    fn ask(&mut self, request: &mut Vec<u8>) {
        debug_assert_eq!(self.messages, self.bulk.count, "asked before all had come");
        self.messages = 0;
        request.extend_from_slice(START);
        request.extend_from_slice(TERMINATOR);
    }

    fn receive(&mut self, mut input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        while !input.is_empty() {
            let owed = match self.messages < self.bulk.count {
                true => self.bulk.from(self.heard),
                false => &[],
            };
            let count = owed.len().min(input.len());
            if count == 0 || owed[..count] != input[..count] {
                let right = owed.iter().zip(input).take_while(|(a, b)| a == b).count();
                let offset = self.messages * self.bulk.whole() + self.heard + right as u64;
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                return Err(WrongReply::new(offset, &owed[right..], &input[right..]));
            }
            input = &input[count..];
            self.heard += count as u64;
            if self.heard == self.bulk.whole() {
                self.heard = 0;
                self.messages += 1;
                self.due += 1;
            }
        }
        Ok(match self.messages < self.bulk.count {
            true => ReplyStatus::Partial,
            false => ReplyStatus::Complete,
        })
    }

    fn interject(&mut self, output: &mut Vec<u8>) {
        for _ in 0..std::mem::take(&mut self.due) {
            self.given += 1;
            output.extend_from_slice(format!("received {}", self.given).as_bytes());
            output.extend_from_slice(TERMINATOR);
        }
    }
}
