//! Client side of a conversation: [`Script`], and the report of a wrong reply.

use std::fmt;
use std::sync::Arc;

use crate::bulk::Bulk;
use crate::http::Page;

/// Client side of one conversation, as a state machine without I/O: produces requests and checks replies.
///
/// The order of calls is fixed: [`ask`](Script::ask) once, then [`receive`](Script::receive) until the reply is
/// [complete](ReplyStatus::Complete), then `ask` again. After [`ReplyStatus::Last`] the next request needs a new script
/// and a new connection.
///
/// ```
/// # use protocol::{Protocol, ReplyStatus, ScriptOptions};
/// let echo = Protocol::find("echo").unwrap();
/// let mut script = (echo.ask)(&ScriptOptions::default());
/// let mut request = Vec::new();
/// script.ask(&mut request);
/// assert_eq!(request, b"Hello World!:0\n");
/// assert_eq!(script.receive(b"Hello "), Ok(ReplyStatus::Partial));
/// assert_eq!(script.receive(b"World!:0\n"), Ok(ReplyStatus::Complete));
/// ```
pub trait Script: Send {
    /// Appends the next request to `request`.
    fn ask(&mut self, request: &mut Vec<u8>);

    /// Checks every byte of `input`, which the server sent, and returns how much of the reply has arrived. TCP may cut
    /// a reply anywhere.
    ///
    /// # Errors
    ///
    /// A byte of the reply is wrong; the error names the first such byte. The conversation can't continue after that.
    fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply>;

    /// Appends bytes that are to be sent beside the requests (the receipts of `bulk`). The driver calls it after each
    /// [`receive`](Script::receive), also after the one that completes a reply, and sends the bytes before all others.
    fn interject(&mut self, output: &mut Vec<u8>) {
        let _ = output;
    }
}

/// Progress of a reply.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum ReplyStatus {
    /// All bytes so far are right, and more must follow.
    Partial,
    /// The reply is complete and right. The next request may be sent.
    Complete,
    /// The reply is complete and right, and the conversation has ended. The next request needs a new connection.
    Last,
}

/// Options of a script, given when it is opened.
#[derive(Debug, Clone, Default)]
pub struct ScriptOptions {
    /// Size of a request in bytes, with the line's end. `None` gives the lines of the published original:
    /// `Hello World!:0` and so on. Client 0 sends exactly these lines, and every other client appends its number. If
    /// the size is too small for such a line, the line is sent without padding and is longer than the size.
    pub size: Option<usize>,
    /// Seed of the random letters in the requests. The same seed gives the same requests.
    pub seed: u64,
    /// Number of the client. Two clients never send the same line, so that swapped replies are detected.
    pub client: u64,
    /// Size and number of the messages that the server must send in `bulk`.
    pub bulk: Bulk,
    /// Page that `http` requests.
    pub page: Arc<Page>,
}

/// Error of a reply that differs from the reply that the protocol requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongReply {
    /// Offset of the first wrong byte, in bytes from the beginning of the reply.
    pub offset: usize,
    /// Expected bytes from that offset on, at most [`WrongReply::EXCERPT`]. Empty: the reply should have ended there.
    pub expected: Vec<u8>,
    /// Received bytes from that offset on, at most [`WrongReply::EXCERPT`].
    pub got: Vec<u8>,
    /// Description of the error where the bytes alone would explain nothing: "expected status 200, got 404". Then
    /// `expected` is empty. `None`: `expected` and `got` describe the error.
    pub words: Option<String>,
}

impl WrongReply {
    /// Maximum number of bytes of a wrong reply that are kept for display.
    pub const EXCERPT: usize = 48;

    /// Makes an error from the bytes from `offset` on. It keeps an excerpt of them.
    #[cold]
    pub(crate) fn new(offset: usize, expected: &[u8], got: &[u8]) -> Self {
        let excerpt = |bytes: &[u8]| bytes[..bytes.len().min(Self::EXCERPT)].to_vec();
        WrongReply {
            offset,
            expected: excerpt(expected),
            got: excerpt(got),
            words: None,
        }
    }

    /// Makes an error with a description, for bytes that would explain nothing or were not kept.
    #[cold]
    pub(crate) fn in_words(offset: u64, words: String) -> Self {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        WrongReply {
            words: Some(words),
            ..WrongReply::new(offset, b"", b"")
        }
    }
}

impl fmt::Display for WrongReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(words) = &self.words {
            return write!(f, "wrong reply at byte {}: {words}", self.offset);
        }
        write!(
            f,
            "wrong reply at byte {}: expected {}, got \"{}\"",
            self.offset,
            if self.expected.is_empty() {
                "nothing more".to_string()
            } else {
                format!("\"{}\"", self.expected.escape_ascii())
            },
            self.got.escape_ascii()
        )
    }
}

impl std::error::Error for WrongReply {}

/// Reply that the server owes, and the number of its bytes that have arrived.
#[derive(Default)]
pub(crate) struct Expected {
    reply: Vec<u8>,
    received: usize,
}

impl Expected {
    /// Discards the last reply and returns the empty buffer, to which the caller appends the next reply.
    pub(crate) fn begin(&mut self) -> &mut Vec<u8> {
        debug_assert_eq!(
            self.remaining(),
            0,
            "a request was sent before the last reply was complete"
        );
        self.reply.clear();
        self.received = 0;
        &mut self.reply
    }

    /// Returns the number of bytes of the reply that have not arrived.
    pub(crate) fn remaining(&self) -> usize {
        self.reply.len() - self.received
    }

    /// Compares `input` with the next bytes of the reply.
    ///
    /// # Errors
    ///
    /// A byte differs, or `input` is longer than the rest of the reply.
    pub(crate) fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        let expected = &self.reply[self.received..];
        if !expected.starts_with(input) {
            let equal = expected
                .iter()
                .zip(input)
                .take_while(|(a, b)| a == b)
                .count();
            return Err(WrongReply::new(
                self.received + equal,
                &expected[equal..],
                &input[equal..],
            ));
        }
        self.received += input.len();
        Ok(if self.remaining() == 0 {
            ReplyStatus::Complete
        } else {
            ReplyStatus::Partial
        })
    }
}

/// Generator of request lines. No two clients send the same line, and no client sends a line twice, so that a wrong
/// reply can't be right by accident.
pub(crate) struct LineMaker {
    size: Option<usize>,
    client: u64,
    random: fastrand::Rng,
    count: u64,
}

impl LineMaker {
    pub(crate) fn new(options: &ScriptOptions) -> Self {
        // The multiplication gives clients with neighbouring numbers unrelated seeds.
        let seed = options
            .seed
            .wrapping_add(options.client.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        LineMaker {
            size: options.size,
            client: options.client,
            random: fastrand::Rng::with_seed(seed),
            count: 0,
        }
    }

    /// Appends the next line to `line`.
    pub(crate) fn next_line(&mut self, line: &mut Vec<u8>) {
        let start = line.len();
        line.extend_from_slice(b"Hello World!:");
        push_decimal(line, self.count);
        self.count += 1;
        // A short line has no room for random letters, or for too few to make it unique. The client number makes it
        // unique at any size. The original's client has no number, and client 0 sends the same lines as that client.
        if self.client > 0 {
            line.push(b' ');
            push_decimal(line, self.client);
        }
        if let Some(size) = self.size {
            let body = start + size.saturating_sub(1);
            if line.len() < body {
                line.push(b' ');
            }
            while line.len() < body {
                // Eight letters from `a` to `p` at a time: padding must cost the client almost no CPU time.
                let letters = (self.random.u64(..) & 0x0f0f_0f0f_0f0f_0f0f) + 0x6161_6161_6161_6161;
                let letters = letters.to_le_bytes();
                line.extend_from_slice(&letters[..letters.len().min(body - line.len())]);
            }
        }
        line.push(b'\n');
    }
}

/// Appends a number in decimal digits. `format!` would cost more than everything else that a request needs here.
fn push_decimal(line: &mut Vec<u8>, number: u64) {
    if number >= 10 {
        push_decimal(line, number / 10);
    }
    line.push(b'0' + (number % 10) as u8);
}
