//! What the test files share: an oracle that knows what each protocol ought to say, and a driver without sockets.

#![allow(
    dead_code,
    reason = "every test file is a crate of its own and uses a part of this"
)]

use protocol::{
    Bulk, CloseReason, FileSlice, PROTOCOLS, Protocol, Session, SessionOptions, Step, Work,
};

pub(crate) const GREETING: &[u8] = b"Hello from server!";

/// What the sessions of [`open`] send, if they are of `bulk`: small, so that every cut of it can be tried.
pub(crate) const BULK: Bulk = Bulk { size: 9, count: 2 };

/// One of those messages.
pub(crate) const MESSAGE: &[u8] = b"head.tail\r<--EOM-->\r";

pub(crate) const TERMINATOR: &[u8] = b"\r<--EOM-->\r";

/// What `bulk` is asked.
pub(crate) const START: &[u8] = b"start\r<--EOM-->\r";

/// The protocols whose replies [`oracle`] knows: all but one, which has tests of its own. (What it replies depends on
/// files and on the time.)
pub(crate) fn generic() -> impl Iterator<Item = &'static Protocol> {
    PROTOCOLS.iter().filter(|protocol| protocol.name != "http")
}

/// What came out of a conversation, from its beginning to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) output: Vec<u8>,
    pub(crate) farewell: CloseReason,
}

/// What the protocol ought to say to a peer that sends `input` and then FIN. It sees the input whole, keeps no state
/// and is told of no cuts, so it can't share a mistake with a session.
pub(crate) fn oracle(protocol: &str, input: &[u8], max_line: usize) -> Said {
    let done = |output: Vec<u8>| Said {
        output,
        farewell: CloseReason::Done,
    };
    match protocol {
        "pair" => in_lines(input, max_line, |previous| previous),
        "echo" => in_lines(input, max_line, |_| b""),
        "upper" => done(input.to_ascii_uppercase()),
        "hello" if input.is_empty() => done(Vec::new()),
        "hello" => done(GREETING.to_vec()),
        "bulk" => in_messages(input, max_line),
        other => panic!("{other} has no oracle: a new protocol needs its few lines here"),
    }
}

/// Every line comes back, after what is `remembered` of the one before it.
fn in_lines(input: &[u8], max_line: usize, remembered: fn(&[u8]) -> &[u8]) -> Said {
    let mut output = Vec::new();
    let mut previous: &[u8] = b"";
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        if line.len() > max_line {
            output.extend_from_slice(&complaint(max_line));
            return Said {
                output,
                farewell: CloseReason::Refused,
            };
        }
        output.extend_from_slice(remembered(previous));
        output.extend_from_slice(line);
        previous = line;
    }
    Said {
        output,
        farewell: CloseReason::Done,
    }
}

/// Each `start` gets its messages, everything else nothing.
fn in_messages(input: &[u8], max_message: usize) -> Said {
    let mut output = Vec::new();
    let mut rest = input;
    loop {
        let end = message_end(rest);
        // The last bytes may be a terminator that has begun; what is before them surely belongs to the message.
        let length = end.unwrap_or(rest.len().saturating_sub(TERMINATOR.len() - 1));
        if length > max_message {
            output.extend_from_slice(b"error: a message may have ");
            output.extend_from_slice(max_message.to_string().as_bytes());
            output.extend_from_slice(b" bytes\r<--EOM-->\r");
            return Said {
                output,
                farewell: CloseReason::Refused,
            };
        }
        let Some(end) = end else {
            return Said {
                output,
                farewell: CloseReason::Done,
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

/// How much of `input` is whole requests.
pub(crate) fn whole_requests(protocol: &Protocol, input: &[u8]) -> usize {
    match protocol.name {
        "bulk" => {
            let mut whole = 0;
            while let Some(end) = message_end(&input[whole..]) {
                whole += end + TERMINATOR.len();
            }
            whole
        }
        _ if has_lines(protocol) => {
            let last = input.iter().rposition(|byte| *byte == b'\n');
            last.map_or(0, |end| end + 1)
        }
        _ => input.len(),
    }
}

/// What a peer is told whose line is longer than `max_line`.
pub(crate) fn complaint(max_line: usize) -> Vec<u8> {
    format!("error: a line may have {max_line} bytes\n").into_bytes()
}

/// Whether the protocol frames its input in lines (and so has a limit to their length).
pub(crate) fn has_lines(protocol: &Protocol) -> bool {
    matches!(protocol.name, "pair" | "echo")
}

pub(crate) fn find(name: &str) -> &'static Protocol {
    Protocol::find(name).expect("the protocol exists")
}

pub(crate) fn open(protocol: &Protocol, max_line: usize) -> Box<dyn Session> {
    (protocol.open)(&SessionOptions {
        max_line,
        bulk: BULK,
        ..SessionOptions::default()
    })
}

/// A step as it can be kept beside its session: with its bytes, and with where they were.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Read,
    Write(*const u8, Vec<u8>),
    SendFile(FileSlice),
    Work(Work),
    Close(CloseReason),
}

impl From<Step<'_>> for Seen {
    fn from(step: Step<'_>) -> Self {
        match step {
            Step::Read => Seen::Read,
            Step::Write(bytes) => Seen::Write(bytes.as_ptr(), bytes.to_vec()),
            Step::SendFile(slice) => Seen::SendFile(slice.clone()),
            Step::Work(work) => Seen::Work(work),
            Step::Close(farewell) => Seen::Close(farewell),
        }
    }
}

/// Asks for the same step three times, the last time after the box has been somewhere else, and gives the box back.
/// Nothing may change, not even the address.
pub(crate) fn same_step_again(mut session: Box<dyn Session>) -> Box<dyn Session> {
    let first = Seen::from(session.step());
    assert_eq!(Seen::from(session.step()), first, "asked again");
    let mut elsewhere = Box::new([Some(session)]);
    let moved = elsewhere[0].as_mut().expect("was just put there");
    assert_eq!(Seen::from(moved.step()), first, "asked after a move");
    elsewhere[0].take().expect("is still there")
}

/// Holds a whole conversation as the contract asks for it: reads only on [`Step::Read`], one piece at a time, then
/// FIN. The socket takes `take(n)` of the `n` bytes that it is offered. Every step is asked for more than once.
///
/// It panics where a conversation would not come to its end: a reply is at most three times as long as what it answers
/// (or one greeting or complaint), and every step must use up a piece, the FIN or at least one byte of a reply.
pub(crate) fn converse<'i>(
    mut session: Box<dyn Session>,
    pieces: impl IntoIterator<Item = &'i [u8]>,
    mut take: impl FnMut(usize) -> usize,
) -> Said {
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
                    assert!(!fin, "a read after FIN never ends");
                    fin = true;
                    session.end_of_input();
                }
            },
            Step::Write(bytes) => {
                assert!(!bytes.is_empty(), "a write of nothing is no step");
                let count = take(bytes.len());
                output.extend_from_slice(&bytes[..count]);
                session.sent(count);
            }
            Step::SendFile(_) | Step::Work(_) => panic!("there are no files and no work here"),
            Step::Close(farewell) => return Said { output, farewell },
        }
    }
}

/// A socket that takes whatever it is offered.
pub(crate) fn all(offered: usize) -> usize {
    offered
}

/// Cuts `input` into pieces of these sizes, over and over; without sizes it stays whole.
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
