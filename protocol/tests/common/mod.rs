//! Shared parts of the tests: an oracle, which predicts the replies of each protocol, and a driver without sockets.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this file"
)]

use protocol::{
    Bulk, CloseReason, FileSlice, PROTOCOLS, Protocol, Session, SessionOptions, Step, Work,
};

/// Reply of `hello`.
pub(crate) const GREETING: &[u8] = b"Hello from server!";

/// Size and number of the messages in the `bulk` sessions of [`open`]. They are small, so that every cut can be tried.
pub(crate) const BULK: Bulk = Bulk { size: 9, count: 2 };

/// One message of [`BULK`].
pub(crate) const MESSAGE: &[u8] = b"head.tail\r<--EOM-->\r";

/// Terminator of the messages of `bulk`.
pub(crate) const TERMINATOR: &[u8] = b"\r<--EOM-->\r";

/// Request of `bulk`.
pub(crate) const START: &[u8] = b"start\r<--EOM-->\r";

/// Returns the protocols whose replies [`oracle`] predicts: all except `http`, whose replies depend on files and on the
/// time. `http` has tests of its own.
pub(crate) fn with_oracle() -> impl Iterator<Item = &'static Protocol> {
    PROTOCOLS.iter().filter(|protocol| protocol.name != "http")
}

/// Result of a complete conversation: all bytes that the session sent, and the reason of its close.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) output: Vec<u8>,
    pub(crate) reason: CloseReason,
}

/// Predicts the outcome for a peer that sends `input` and then FIN. The oracle gets the complete input at once, without
/// its cuts, and keeps no state, so it can't share a mistake with a session.
pub(crate) fn oracle(protocol: &str, input: &[u8], max_line: usize) -> Outcome {
    let done = |output: Vec<u8>| Outcome {
        output,
        reason: CloseReason::Done,
    };
    match protocol {
        "pair" => answer_lines(input, max_line, |previous| previous),
        "echo" => answer_lines(input, max_line, |_| b""),
        "upper" => done(input.to_ascii_uppercase()),
        "hello" if input.is_empty() => done(Vec::new()),
        "hello" => done(GREETING.to_vec()),
        "bulk" => answer_messages(input, max_line),
        other => panic!("{other} has no oracle: add the lines for the new protocol here"),
    }
}

/// Predicts the outcome of a protocol in lines: the reply to a line is `remembered(previous line)` and the line.
fn answer_lines(input: &[u8], max_line: usize, remembered: fn(&[u8]) -> &[u8]) -> Outcome {
    let mut output = Vec::new();
    let mut previous: &[u8] = b"";
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        if line.len() > max_line {
            output.extend_from_slice(&error_reply(max_line));
            return Outcome {
                output,
                reason: CloseReason::Refused,
            };
        }
        output.extend_from_slice(remembered(previous));
        output.extend_from_slice(line);
        previous = line;
    }
    Outcome {
        output,
        reason: CloseReason::Done,
    }
}

/// Predicts the outcome of `bulk`: each `start` gets the messages of [`BULK`], and other messages get no reply.
fn answer_messages(input: &[u8], max_message: usize) -> Outcome {
    let mut output = Vec::new();
    let mut rest = input;
    loop {
        let end = message_end(rest);
        // The last bytes may be the beginning of a terminator; the bytes before them belong to the message.
        let length = end.unwrap_or(rest.len().saturating_sub(TERMINATOR.len() - 1));
        if length > max_message {
            output.extend_from_slice(b"error: a message may have ");
            output.extend_from_slice(max_message.to_string().as_bytes());
            output.extend_from_slice(b" bytes\r<--EOM-->\r");
            return Outcome {
                output,
                reason: CloseReason::Refused,
            };
        }
        let Some(end) = end else {
            return Outcome {
                output,
                reason: CloseReason::Done,
            };
        };
        if &rest[..end] == b"start" {
            output.extend_from_slice(&MESSAGE.repeat(BULK.count as usize));
        }
        rest = &rest[end + TERMINATOR.len()..];
    }
}

/// Where the first terminator begins.
fn message_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(TERMINATOR.len())
        .position(|window| window == TERMINATOR)
}

/// Returns the length in bytes of the complete requests at the beginning of `input`.
pub(crate) fn complete_requests(protocol: &Protocol, input: &[u8]) -> usize {
    match protocol.name {
        "bulk" => {
            let mut complete = 0;
            while let Some(end) = message_end(&input[complete..]) {
                complete += end + TERMINATOR.len();
            }
            complete
        }
        _ if has_lines(protocol) => {
            let last = input.iter().rposition(|byte| *byte == b'\n');
            last.map_or(0, |end| end + 1)
        }
        _ => input.len(),
    }
}

/// Returns the error reply to a peer whose line is longer than `max_line` bytes.
pub(crate) fn error_reply(max_line: usize) -> Vec<u8> {
    format!("error: a line may have {max_line} bytes\n").into_bytes()
}

/// Returns whether the protocol frames its input in lines, and so limits their length.
pub(crate) fn has_lines(protocol: &Protocol) -> bool {
    matches!(protocol.name, "pair" | "echo")
}

/// Returns the protocol with this name.
pub(crate) fn find(name: &str) -> &'static Protocol {
    Protocol::find(name).expect("the protocol exists")
}

/// Opens a session with [`BULK`] and without work.
pub(crate) fn open(protocol: &Protocol, max_line: usize) -> Box<dyn Session> {
    (protocol.open)(&SessionOptions {
        max_line,
        bulk: BULK,
        ..SessionOptions::default()
    })
}

/// Copy of a step that can be kept beside its session: with its bytes, and with their address.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StepCopy {
    Read,
    Write(*const u8, Vec<u8>),
    SendFile(FileSlice),
    Work(Work),
    Close(CloseReason),
}

impl From<Step<'_>> for StepCopy {
    fn from(step: Step<'_>) -> Self {
        match step {
            Step::Read => StepCopy::Read,
            Step::Write(bytes) => StepCopy::Write(bytes.as_ptr(), bytes.to_vec()),
            Step::SendFile(slice) => StepCopy::SendFile(slice.clone()),
            Step::Work(work) => StepCopy::Work(work),
            Step::Close(reason) => StepCopy::Close(reason),
        }
    }
}

/// Calls `step` three times, the last time after the box was moved, and returns the box. The step must be the same each
/// time, with its bytes at the same address.
pub(crate) fn same_step_again(mut session: Box<dyn Session>) -> Box<dyn Session> {
    let first = StepCopy::from(session.step());
    assert_eq!(StepCopy::from(session.step()), first, "the second call");
    let mut elsewhere = Box::new([Some(session)]);
    let moved = elsewhere[0]
        .as_mut()
        .expect("the session was just put there");
    assert_eq!(StepCopy::from(moved.step()), first, "the call after a move");
    elsewhere[0].take().expect("the session is still there")
}

/// Drives a complete conversation as the contract requires: reads only on [`Step::Read`], one piece at a time, then
/// FIN. The socket takes `take(n)` of the `n` bytes that it is offered. The driver calls `step` more than once for each
/// step.
///
/// # Panics
///
/// The conversation does not end. A reply is at most three times as long as its request (or one greeting or error
/// reply), and every step must consume a piece, the FIN or at least one byte of a reply.
pub(crate) fn converse<'i>(
    mut session: Box<dyn Session>,
    pieces: impl IntoIterator<Item = &'i [u8]>,
    mut take: impl FnMut(usize) -> usize,
) -> Outcome {
    let mut pieces = pieces.into_iter();
    let mut fin = false;
    let mut output = Vec::new();
    let mut steps_left = 100;
    loop {
        assert!(steps_left > 0, "the conversation does not end");
        steps_left -= 1;
        session = same_step_again(session);
        match session.step() {
            Step::Read => match pieces.next() {
                Some(piece) => {
                    steps_left += 1 + 3 * piece.len();
                    session.receive(piece);
                }
                None => {
                    assert!(!fin, "the session reads after FIN");
                    fin = true;
                    session.end_of_input();
                }
            },
            Step::Write(bytes) => {
                assert!(!bytes.is_empty(), "the session writes no bytes");
                let count = take(bytes.len());
                output.extend_from_slice(&bytes[..count]);
                session.sent(count);
            }
            Step::SendFile(_) | Step::Work(_) => panic!("this protocol has no files and no work"),
            Step::Close(reason) => return Outcome { output, reason },
        }
    }
}

/// Behaviour of a socket that takes all bytes that it is offered.
pub(crate) fn take_all(offered: usize) -> usize {
    offered
}

/// Cuts `input` into pieces of these sizes, in a cycle. Without sizes, `input` is one piece.
pub(crate) fn cut<'i>(input: &'i [u8], sizes: &[usize]) -> Vec<&'i [u8]> {
    let mut rest = input;
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            return pieces;
        }
        let (piece, after) = rest.split_at(rest.len().min(*size));
        pieces.push(piece);
        rest = after;
    }
    vec![input]
}
