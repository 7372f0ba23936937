//! The client's side of a conversation.

use std::fmt;
use std::sync::Arc;

use crate::bulk::Bulk;
use crate::http::Page;

/// What to ask, and whether the answer was right.
///
/// The order is fixed: [`ask`](Script::ask) once, then [`receive`](Script::receive) until it says that the reply is
/// complete, then ask again.
pub trait Script: Send {
    /// Appends the next request.
    fn ask(&mut self, request: &mut Vec<u8>);

    /// Takes what the server sent, cut anywhere, and checks every byte of it.
    ///
    /// # Errors
    ///
    /// The first byte that should not have been there. The conversation can't go on after that.
    fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply>;

    /// Appends what is to be said beside the requests (the receipts of `bulk`). To be asked after each
    /// [`receive`](Script::receive), the one that completes a reply too, and to be sent before anything else is.
    fn interject(&mut self, output: &mut Vec<u8>) {
        let _ = output;
    }
}

/// How far a reply has come.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum ReplyStatus {
    /// All right so far, and more is owed.
    Partial,
    /// The reply is complete and right; the next request may go out.
    Complete,
    /// The reply is complete and right, and the conversation is over: the next request needs a new connection.
    Last,
}

/// What a client must be told when it opens a conversation.
#[derive(Debug, Clone, Default)]
pub struct ScriptOptions {
    /// Bytes per request, with the line's end. `None` gives the original's lines, `Hello World!:0` and so on; client 0
    /// says exactly them, every other adds its number. A size too small for that is not padded.
    pub size: Option<usize>,
    /// The same seed gives the same requests.
    pub seed: u64,
    /// Which client this is: two clients never say the same lines, so that swapped replies are seen.
    pub client: u64,
    /// What `bulk` is to send.
    pub bulk: Bulk,
    /// What `http` is asked for.
    pub page: Arc<Page>,
}

/// A reply that is not what the protocol says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongReply {
    /// The offset in the reply of the first wrong byte.
    pub offset: usize,
    /// What should have come from there on (at most [`WrongReply::EXCERPT`] bytes; empty: nothing more).
    pub expected: Vec<u8>,
    /// What came instead (at most [`WrongReply::EXCERPT`] bytes).
    pub got: Vec<u8>,
    /// What is wrong in words, where bytes alone would tell nobody: "expected status 200, got 404". Then `expected` is
    /// empty.
    pub words: Option<String>,
}

impl WrongReply {
    /// How many bytes of a wrong reply are kept to be shown.
    pub const EXCERPT: usize = 48;

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

    /// The bytes are no help, or not kept.
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

/// The reply that is owed, and how much of it has come.
#[derive(Default)]
pub(crate) struct Expected {
    reply: Vec<u8>,
    heard: usize,
}

impl Expected {
    /// Forgets the last reply; the caller appends the next one.
    pub(crate) fn begin(&mut self) -> &mut Vec<u8> {
        debug_assert_eq!(self.owed(), 0, "asked before the last reply was complete");
        self.reply.clear();
        self.heard = 0;
        &mut self.reply
    }

    /// How many bytes are still to come.
    pub(crate) fn owed(&self) -> usize {
        self.reply.len() - self.heard
    }

    pub(crate) fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        let owed = &self.reply[self.heard..];
        if !owed.starts_with(input) {
            let wrong = owed.iter().zip(input).take_while(|(a, b)| a == b).count();
            return Err(WrongReply::new(
                self.heard + wrong,
                &owed[wrong..],
                &input[wrong..],
            ));
        }
        self.heard += input.len();
        Ok(if self.owed() == 0 {
            ReplyStatus::Complete
        } else {
            ReplyStatus::Partial
        })
    }
}

/// Makes lines that no other client and no other moment says, so that a wrong answer can't be right by accident.
pub(crate) struct LineMaker {
    size: Option<usize>,
    client: u64,
    random: fastrand::Rng,
    count: u64,
}

impl LineMaker {
    pub(crate) fn new(options: &ScriptOptions) -> Self {
        // Clients with neighbouring numbers get seeds that have nothing in common.
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

    pub(crate) fn next_line(&mut self, line: &mut Vec<u8>) {
        let start = line.len();
        line.extend_from_slice(b"Hello World!:");
        push_decimal(line, self.count);
        self.count += 1;
        // Short lines have no room for random letters, or for too few to be sure; the number is always there. The
        // original's client knows of no others, and client 0 says what it says.
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
                // Eight letters from `a` to `p` at a time: filling must cost the client next to nothing.
                let letters = (self.random.u64(..) & 0x0f0f_0f0f_0f0f_0f0f) + 0x6161_6161_6161_6161;
                let letters = letters.to_le_bytes();
                line.extend_from_slice(&letters[..letters.len().min(body - line.len())]);
            }
        }
        line.push(b'\n');
    }
}

/// Appends a number without the machinery of `format!`, which costs more than all else that a request does here.
fn push_decimal(line: &mut Vec<u8>, number: u64) {
    if number >= 10 {
        push_decimal(line, number / 10);
    }
    line.push(b'0' + (number % 10) as u8);
}
