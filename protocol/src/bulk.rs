//! `bulk`: `start` in; some big messages out, and a receipt back for each. The framing is not by lines: each message
//! ends with a terminator of several bytes, which may arrive cut anywhere.

use memchr::memmem;

use crate::script::{ReplyStatus, Script, ScriptOptions, WrongReply};
use crate::session::{CloseReason, Session, SessionOptions, Step};
use crate::work::PendingWork;
use crate::{DefaultLoad, Protocol};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "bulk",
    summary: "the client sends `start`, the server 3 messages of 3 MiB, and the client confirms each",
    open: |options| Box::new(BulkSession::new(options)),
    ask: |options| Box::new(BulkScript::new(options)),
    requests_per_connection: None,
    requests_differ: false,
    default_load: DefaultLoad {
        connections: 3,
        messages: 1,
    },
};

/// Terminator of every message, in both directions.
const TERMINATOR: &[u8] = b"\r<--EOM-->\r";

/// Message with which the client requests the big messages, without its terminator.
const START: &[u8] = b"start";

/// Beginning of every big message.
const HEAD: &[u8] = b"head";

/// End of every big message, with its terminator. Between the beginning and the end are dots.
const END: &[u8] = b"tail\r<--EOM-->\r";

/// Length of the end in bytes, without the terminator.
const TAIL: usize = END.len() - TERMINATOR.len();

/// Bytes from which all messages are cut: a head, dots and an end. So a message of any length needs no memory of its
/// own, no message is ever copied, and a repeated call of `step` returns the same address.
static BLOCK: [u8; HEAD.len() + DOTS + END.len()] = {
    let mut block = [b'.'; HEAD.len() + DOTS + END.len()];
    let (head, rest) = block.split_at_mut(HEAD.len());
    head.copy_from_slice(HEAD);
    rest.split_at_mut(DOTS).1.copy_from_slice(END);
    block
};

/// Number of dots in [`BLOCK`].
const DOTS: usize = 256 * 1024;

/// Size and number of the messages that are the reply to `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bulk {
    /// Size of each message in bytes, without its terminator; at least [`Bulk::LEAST`]. A smaller size counts as that.
    pub size: u64,
    /// Number of messages, at least one.
    pub count: u64,
}

impl Bulk {
    /// Smallest size of a message in bytes: its head and its tail.
    pub const LEAST: u64 = (HEAD.len() + TAIL) as u64;

    /// Returns the size of a message in bytes, with its terminator.
    fn framed_size(&self) -> u64 {
        self.size.max(Bulk::LEAST) + TERMINATOR.len() as u64
    }

    /// Returns bytes of a message from `offset` on: at least one before its end, and not necessarily all of the rest.
    fn bytes_from(&self, offset: u64) -> &'static [u8] {
        let left = usize::try_from(self.framed_size() - offset).unwrap_or(usize::MAX);
        let start = HEAD
            .len()
            .min(usize::try_from(offset).unwrap_or(usize::MAX));
        if start == HEAD.len() && left <= DOTS + END.len() {
            return &BLOCK[BLOCK.len() - left..];
        }
        // From here the end can't be in the same piece: the piece begins in the head, or more dots are left than
        // `BLOCK` has. So the piece ends before the end of the message.
        let most = HEAD.len() + DOTS - start;
        &BLOCK[start..][..most.min(left - END.len())]
    }
}

impl Default for Bulk {
    /// Returns the load of the published original: 3 messages of 3 MiB.
    fn default() -> Self {
        Bulk {
            size: 3 << 20,
            count: 3,
        }
    }
}

/// Returns the key of a message by which a work plan decides whether the message costs work. All `start` requests are
/// equal, so the key is the number of messages that the request still has, this one included.
fn work_key(messages_left: u64) -> [u8; 8] {
    messages_left.to_le_bytes()
}

/// Server side.
struct BulkSession {
    bulk: Bulk,
    /// Maximum length of a message of the peer in bytes, without its terminator.
    max_message: usize,
    /// Bytes that arrived. The messages before `parsed` are processed, and from `parsed` on no terminator begins before
    /// `scanned`.
    input: Vec<u8>,
    parsed: usize,
    scanned: usize,
    /// Number of messages that are still to be sent; the socket has taken `message_sent` bytes of the first.
    messages_left: u64,
    message_sent: u64,
    pending_work: PendingWork,
    /// Rest of the error reply that is still to be sent.
    error_reply: Vec<u8>,
    /// Reason of the close after all output is sent; `None`: the conversation continues.
    close_reason: Option<CloseReason>,
}

impl BulkSession {
    fn new(options: &SessionOptions) -> Self {
        BulkSession {
            bulk: options.bulk,
            max_message: options.max_line,
            input: Vec::new(),
            parsed: 0,
            scanned: 0,
            messages_left: 0,
            message_sent: 0,
            pending_work: PendingWork::of(options.work.as_ref()),
            error_reply: Vec::new(),
            close_reason: None,
        }
    }

    /// Parses the input up to the next `start`.
    fn parse_input(&mut self) {
        while self.messages_left == 0 {
            let Some(offset) = memmem::find(&self.input[self.scanned..], TERMINATOR) else {
                // The last bytes of the input may be the beginning of a terminator.
                let possible_start = self.input.len().saturating_sub(TERMINATOR.len() - 1);
                self.scanned = possible_start.max(self.scanned);
                break;
            };
            let end = self.scanned + offset;
            if end - self.parsed > self.max_message {
                return self.refuse();
            }
            if &self.input[self.parsed..end] == START {
                self.messages_left = self.bulk.count;
            }
            // Every other message is a receipt. Its text is for readers of a trace and is not checked.
            self.parsed = end + TERMINATOR.len();
            self.scanned = self.parsed;
        }
        // Bytes from `scanned` on may be the beginning of a terminator and not part of the message, so they do not
        // count yet.
        if self.messages_left == 0 && self.scanned - self.parsed > self.max_message {
            self.refuse();
        }
    }

    /// Discards the input, and sets the error reply and the close after it.
    fn refuse(&mut self) {
        self.error_reply = format!("error: a message may have {} bytes", self.max_message).into();
        self.error_reply.extend_from_slice(TERMINATOR);
        self.clear_input();
        self.close_reason = Some(CloseReason::Refused);
    }

    /// Discards the input and frees its buffer.
    fn clear_input(&mut self) {
        self.input = Vec::new();
        self.parsed = 0;
        self.scanned = 0;
    }
}

impl Session for BulkSession {
    fn receive(&mut self, input: &[u8]) {
        if self.close_reason.is_some() {
            return;
        }
        self.input.drain(..self.parsed);
        self.scanned -= self.parsed;
        self.parsed = 0;
        self.input.extend_from_slice(input);
    }

    fn end_of_input(&mut self) {
        self.close_reason.get_or_insert(CloseReason::Done);
    }

    fn step(&mut self) -> Step<'_> {
        if self.messages_left == 0 {
            self.parse_input();
        }
        if self.messages_left > 0 {
            if self.message_sent == 0
                && let Some(work) = self.pending_work.due(&work_key(self.messages_left))
            {
                return Step::Work(work);
            }
            return Step::Write(self.bulk.bytes_from(self.message_sent));
        }
        match self.close_reason {
            Some(_) if !self.error_reply.is_empty() => Step::Write(&self.error_reply),
            Some(reason) => {
                // The rest of the input is the beginning of a message that will never be complete.
                self.clear_input();
                Step::Close(reason)
            }
            None => Step::Read,
        }
    }

    fn sent(&mut self, count: usize) {
        if self.messages_left == 0 {
            self.error_reply.drain(..count);
            return;
        }
        self.message_sent += count as u64;
        debug_assert!(
            self.message_sent <= self.bulk.framed_size(),
            "more bytes sent than offered"
        );
        if self.message_sent >= self.bulk.framed_size() {
            self.message_sent = 0;
            self.messages_left -= 1;
            self.pending_work.replied();
        }
    }

    fn worked(&mut self) {
        self.pending_work.worked();
    }

    fn mid_request(&self) -> bool {
        self.messages_left > 0 || self.parsed < self.input.len() || !self.error_reply.is_empty()
    }
}

/// Client side. It requests the messages, checks each byte of them as it arrives, and sends a receipt for each message.
struct BulkScript {
    bulk: Bulk,
    /// Number of complete messages of this reply.
    messages: u64,
    /// Number of bytes that have arrived of the current message.
    message_received: u64,
    /// Number of receipts that are to be sent.
    receipts_due: u64,
    /// Number of receipts appended so far on this connection.
    receipts_sent: u64,
}

impl BulkScript {
    fn new(options: &ScriptOptions) -> Self {
        BulkScript {
            bulk: options.bulk,
            // No message is expected before a request.
            messages: options.bulk.count,
            message_received: 0,
            receipts_due: 0,
            receipts_sent: 0,
        }
    }
}

impl Script for BulkScript {
    fn ask(&mut self, request: &mut Vec<u8>) {
        debug_assert_eq!(
            self.messages, self.bulk.count,
            "a request was sent before all messages had arrived"
        );
        self.messages = 0;
        request.extend_from_slice(START);
        request.extend_from_slice(TERMINATOR);
    }

    fn receive(&mut self, mut input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        while !input.is_empty() {
            let expected = match self.messages < self.bulk.count {
                true => self.bulk.bytes_from(self.message_received),
                false => &[],
            };
            let count = expected.len().min(input.len());
            if count == 0 || expected[..count] != input[..count] {
                let equal = expected
                    .iter()
                    .zip(input)
                    .take_while(|(a, b)| a == b)
                    .count();
                let offset =
                    self.messages * self.bulk.framed_size() + self.message_received + equal as u64;
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                return Err(WrongReply::new(offset, &expected[equal..], &input[equal..]));
            }
            input = &input[count..];
            self.message_received += count as u64;
            if self.message_received == self.bulk.framed_size() {
                self.message_received = 0;
                self.messages += 1;
                self.receipts_due += 1;
            }
        }
        Ok(match self.messages < self.bulk.count {
            true => ReplyStatus::Partial,
            false => ReplyStatus::Complete,
        })
    }

    fn interject(&mut self, output: &mut Vec<u8>) {
        for _ in 0..std::mem::take(&mut self.receipts_due) {
            self.receipts_sent += 1;
            output.extend_from_slice(format!("received {}", self.receipts_sent).as_bytes());
            output.extend_from_slice(TERMINATOR);
        }
    }
}
