//! Scripts: the requests of the client, and that a script accepts the replies of its session and no others.

mod common;

use std::collections::HashSet;

use common::{BULK, GREETING, START, find, open, oracle, with_oracle};
use protocol::{Protocol, ReplyStatus, Script, ScriptOptions, Session, Step, WrongReply};

const MAX_LINE: usize = 64 * 1024;

fn options(size: Option<usize>, client: u64) -> ScriptOptions {
    ScriptOptions {
        size,
        seed: 7,
        client,
        bulk: BULK,
        ..ScriptOptions::default()
    }
}

/// Returns the protocols whose requests are lines, each one different.
fn with_request_lines() -> impl Iterator<Item = &'static Protocol> {
    with_oracle().filter(|protocol| protocol.name != "bulk")
}

/// Returns the next request of the script.
fn ask(script: &mut dyn Script) -> Vec<u8> {
    let mut request = Vec::new();
    script.ask(&mut request);
    request
}

/// Opens a script that has completed `before` requests and has sent one more. Returns it with the reply that it must
/// accept now. The replies are those of the oracle, not of a session.
fn script_and_reply(
    protocol: &Protocol,
    options: &ScriptOptions,
    before: usize,
) -> (Box<dyn Script>, Vec<u8>) {
    let mut script = (protocol.ask)(options);
    let mut requests = Vec::new();
    let mut received = 0;
    for _ in 0..before {
        script.ask(&mut requests);
        let replies = oracle(protocol.name, &requests, MAX_LINE).output;
        assert_eq!(
            script.receive(&replies[received..]),
            Ok(ReplyStatus::Complete)
        );
        received = replies.len();
    }
    script.ask(&mut requests);
    let reply = oracle(protocol.name, &requests, MAX_LINE)
        .output
        .split_off(received);
    (script, reply)
}

/// Returns the numbers of completed requests after which a wrong reply is tried. After none the script has no state,
/// after two it has.
fn rounds(protocol: &Protocol) -> &'static [usize] {
    match protocol.requests_per_connection {
        Some(1) => &[0],
        _ => &[0, 2],
    }
}

/// Returns the last result of a script that receives a reply in these pieces.
fn receive(script: &mut dyn Script, pieces: &[&[u8]]) -> Result<ReplyStatus, WrongReply> {
    let mut status = ReplyStatus::Partial;
    for piece in pieces {
        status = script.receive(piece)?;
    }
    Ok(status)
}

/// Connection without sockets. Requests and replies are cut anywhere, and their delivery may be delayed.
struct Connection<'r> {
    session: Box<dyn Session>,
    script: Box<dyn Script>,
    random: &'r mut fastrand::Rng,
}

impl Connection<'_> {
    /// Exchanges one request and its reply. The script must accept every byte, and must report the reply as complete at
    /// the last byte and not before.
    fn exchange(&mut self) -> ReplyStatus {
        let request = ask(&mut *self.script);
        let mut to_server = request;
        let mut to_client = Vec::new();
        let mut status = ReplyStatus::Partial;
        loop {
            let session_is_done = match self.session.step() {
                Step::Read if to_server.is_empty() => true,
                Step::Read => {
                    let count = self.random.usize(1..=to_server.len());
                    self.session.receive(&to_server[..count]);
                    to_server.drain(..count);
                    false
                }
                Step::Write(bytes) => {
                    let count = self.random.usize(1..=bytes.len());
                    to_client.extend_from_slice(&bytes[..count]);
                    self.session.sent(count);
                    false
                }
                Step::SendFile(_) | Step::Work(_) => {
                    panic!("this protocol has no files and no work")
                }
                Step::Close(_) => {
                    // The session has closed, so the rest is not delivered.
                    to_server.clear();
                    true
                }
            };
            while !to_client.is_empty() && (session_is_done || self.random.bool()) {
                assert_eq!(
                    status,
                    ReplyStatus::Partial,
                    "complete before the last byte"
                );
                let count = self.random.usize(1..=to_client.len());
                let result = self.script.receive(&to_client[..count]);
                status = result.expect("the session's reply is right");
                to_client.drain(..count);
                self.script.interject(&mut to_server);
            }
            if session_is_done && to_server.is_empty() {
                return status;
            }
        }
    }
}

#[test]
fn script_accepts_the_replies_of_its_session_however_they_are_cut() {
    let mut random = fastrand::Rng::with_seed(1);
    for protocol in with_oracle() {
        let requests = 200;
        let per_connection = protocol.requests_per_connection.unwrap_or(requests);
        for size in [None, Some(1), Some(64), Some(3000)] {
            for client in 0..requests / per_connection {
                let mut connection = Connection {
                    session: open(protocol, MAX_LINE),
                    script: (protocol.ask)(&options(size, client)),
                    random: &mut random,
                };
                for request in 1..=per_connection {
                    let end = match protocol.requests_per_connection {
                        Some(last) if request == last => ReplyStatus::Last,
                        _ => ReplyStatus::Complete,
                    };
                    assert_eq!(connection.exchange(), end, "{}", protocol.name);
                }
                assert!(!connection.session.mid_request(), "{}", protocol.name);
            }
        }
    }
}

#[test]
fn client_0_without_a_size_sends_the_lines_of_the_original() {
    for protocol in with_request_lines() {
        let mut script = (protocol.ask)(&options(None, 0));
        assert_eq!(ask(&mut *script), b"Hello World!:0\n", "{}", protocol.name);
    }
    assert_eq!(ask(&mut *(find("bulk").ask)(&options(None, 0))), START);
    let mut script = (find("echo").ask)(&options(None, 0));
    for number in 0..1001 {
        let line = format!("Hello World!:{number}\n").into_bytes();
        assert_eq!(ask(&mut *script), line);
        assert_eq!(script.receive(&line), Ok(ReplyStatus::Complete));
    }
}

/// A request is appended, because the buffer of the driver may already contain other bytes.
#[test]
fn ask_appends_to_the_buffer() {
    for protocol in with_oracle() {
        for size in [None, Some(40)] {
            let alone = ask(&mut *(protocol.ask)(&options(size, 5)));
            let mut buffer = b"before".to_vec();
            let mut script = (protocol.ask)(&options(size, 5));
            script.ask(&mut buffer);
            assert_eq!(buffer, [b"before", &alone[..]].concat());
            let reply = oracle(protocol.name, &alone, MAX_LINE).output;
            assert!(script.receive(&reply).is_ok(), "{}", protocol.name);
        }
    }
}

/// Returns the first `count` request lines of a client.
fn lines(size: Option<usize>, client: u64, seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut script = (find("echo").ask)(&ScriptOptions {
        size,
        seed,
        client,
        ..ScriptOptions::default()
    });
    (0..count)
        .map(|_| {
            let line = ask(&mut *script);
            assert_eq!(script.receive(&line), Ok(ReplyStatus::Complete));
            line
        })
        .collect()
}

/// The lines are unique at every size, also if there is no room for random letters.
#[test]
fn request_lines_are_unique_over_clients_and_requests() {
    for size in [
        None,
        Some(1),
        Some(15),
        Some(16),
        Some(17),
        Some(18),
        Some(64),
    ] {
        let mut seen = HashSet::new();
        for client in 0..50 {
            for line in lines(size, client, 7, 120) {
                let text = line.escape_ascii().to_string();
                assert!(seen.insert(line), "client {client}, {size:?}: {text}");
            }
        }
    }
}

#[test]
fn requests_are_equal_for_equal_seeds_only() {
    for protocol in with_request_lines() {
        let requests = |seed| {
            let size = Some(64);
            let (client, mut request) = (3, Vec::new());
            let mut script = (protocol.ask)(&ScriptOptions {
                size,
                seed,
                client,
                ..ScriptOptions::default()
            });
            script.ask(&mut request);
            request
        };
        assert_eq!(requests(1), requests(1), "{}", protocol.name);
        assert_ne!(requests(1), requests(2), "{}", protocol.name);
    }
    assert_eq!(lines(Some(64), 3, 1, 100), lines(Some(64), 3, 1, 100));
    assert_ne!(lines(Some(64), 3, 1, 100), lines(Some(64), 3, 2, 100));
}

/// A size is the length in bytes, with the line's end. If the line can't be that short, it is as short as possible.
#[test]
fn request_has_exactly_the_size() {
    for protocol in with_request_lines() {
        for client in [0, 9, 1234] {
            let shortest = ask(&mut *(protocol.ask)(&options(None, client)));
            for size in (0..200).chain([1024, 16 * 1024, MAX_LINE]) {
                let line = ask(&mut *(protocol.ask)(&options(Some(size), client)));
                let case = format!("{}, client {client}, size {size}", protocol.name);
                assert_eq!(line.len(), size.max(shortest.len()), "{case}");
                let ends = line.iter().filter(|byte| **byte == b'\n').count();
                assert!(ends == 1 && line.ends_with(b"\n"), "{case}: {ends} ends");
                let body = &line[..line.len() - 1];
                // A space separates the padding, so that a trace is easy to read.
                let (start, padding) = body.split_at(shortest.len() - 1);
                assert_eq!(start, &shortest[..shortest.len() - 1], "{case}");
                assert!(padding.is_empty() || padding[0] == b' ', "{case}");
                let printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
                assert!(body.iter().all(printable), "{case}: not text");
            }
        }
    }
    // Later lines have longer numbers and the same size.
    assert!(
        lines(Some(40), 1, 7, 1200)
            .iter()
            .all(|line| line.len() == 40)
    );
}

#[test]
fn flipped_byte_is_reported_at_its_offset() {
    for protocol in with_oracle() {
        for &before in rounds(protocol) {
            let (_, right) = script_and_reply(protocol, &options(Some(40), 2), before);
            for at in 0..right.len() {
                for flip in 1..=255 {
                    let (mut script, mut wrong) =
                        script_and_reply(protocol, &options(Some(40), 2), before);
                    wrong[at] ^= flip;
                    // Cut in the middle, at the wrong byte, or one byte before the end.
                    let cut = [0, at, wrong.len() - 1][flip as usize % 3];
                    let (first, second) = wrong.split_at(cut);
                    let error =
                        receive(&mut *script, &[first, second]).expect_err("the reply is wrong");
                    assert_eq!(error.offset, at, "{} ^ {flip}", protocol.name);
                    assert_eq!(error.expected[0], right[at]);
                    assert_eq!(error.got[0], wrong[at]);
                }
            }
        }
    }
}

#[test]
fn reply_without_one_byte_is_never_complete() {
    for protocol in with_oracle() {
        for &before in rounds(protocol) {
            let (_, right) = script_and_reply(protocol, &options(Some(40), 2), before);
            for at in 0..right.len() {
                for cut in 0..right.len() {
                    let (mut script, mut wrong) =
                        script_and_reply(protocol, &options(Some(40), 2), before);
                    wrong.remove(at);
                    let (first, second) = wrong.split_at(cut);
                    match receive(&mut *script, &[first, second]) {
                        Err(error) => assert!(error.offset >= at, "{error}"),
                        // Only a missing last byte is not yet an error.
                        Ok(status) => assert_eq!((status, at), (ReplyStatus::Partial, wrong.len())),
                    }
                }
            }
        }
    }
}

#[test]
fn doubled_byte_is_refused_however_the_reply_is_cut() {
    for protocol in with_oracle() {
        for &before in rounds(protocol) {
            let (_, right) = script_and_reply(protocol, &options(Some(40), 2), before);
            for at in 0..right.len() {
                for cut in 0..=right.len() {
                    let (mut script, mut wrong) =
                        script_and_reply(protocol, &options(Some(40), 2), before);
                    wrong.insert(at, wrong[at]);
                    let (first, second) = wrong.split_at(cut);
                    let status = receive(&mut *script, &[first, second]);
                    if protocol.name == "hello" && at == right.len() - 1 {
                        // The greeting is complete, and later bytes are not checked.
                        assert_eq!(status, Ok(ReplyStatus::Last));
                        continue;
                    }
                    let error = status.expect_err("one byte too many");
                    assert!(error.offset > at, "{}: {error}", protocol.name);
                }
            }
        }
    }
}

#[test]
fn second_reply_is_refused_and_a_second_greeting_ignored() {
    for protocol in with_oracle() {
        for &before in rounds(protocol) {
            for at_once in [true, false] {
                let (mut script, reply) = script_and_reply(protocol, &options(None, 2), before);
                let twice = reply.repeat(2);
                let status = match at_once {
                    true => script.receive(&twice),
                    false => receive(&mut *script, &[&reply, &reply]),
                };
                match protocol.name {
                    "hello" => assert_eq!(status, Ok(ReplyStatus::Last)),
                    name => {
                        let error = status.expect_err("the second reply is wrong");
                        assert_eq!(error.offset, reply.len(), "{name}");
                        assert_eq!(error.expected, b"", "{name}: no more bytes are expected");
                        assert_eq!(error.got, &reply[..error.got.len()], "{name}");
                    }
                }
            }
        }
    }
}

/// Mixing up connections is the first error that a concurrent server makes. With lines of any size, the reply to
/// another client is wrong, and so is the last reply to the same client.
#[test]
fn reply_of_another_client_or_request_is_wrong() {
    for name in ["pair", "echo", "upper"] {
        for size in [None, Some(16), Some(64)] {
            for before in 0..3 {
                let (mut mine, _) = script_and_reply(find(name), &options(size, 1), before);
                let (_, theirs) = script_and_reply(find(name), &options(size, 2), before);
                let status = mine.receive(&theirs);
                assert!(
                    status.is_err(),
                    "{name}, {size:?}: {status:?} for the reply to another client"
                );

                let (mut now, _) = script_and_reply(find(name), &options(size, 1), before + 1);
                let (_, stale) = script_and_reply(find(name), &options(size, 1), before);
                // `pair` repeats the previous line: its first reply is the beginning of its second, but not all of it.
                let status = now.receive(&stale);
                assert_ne!(
                    status,
                    Ok(ReplyStatus::Complete),
                    "{name}, {size:?}: an old reply"
                );
            }
        }
    }
}

/// A reply without a request is wrong.
#[test]
fn reply_without_a_request_is_wrong() {
    for name in ["pair", "echo", "upper"] {
        let (mut script, reply) = script_and_reply(find(name), &options(None, 0), 1);
        assert_eq!(script.receive(&reply), Ok(ReplyStatus::Complete), "{name}");
        assert_eq!(
            script.receive(b""),
            Ok(ReplyStatus::Complete),
            "an empty piece is no error"
        );
        assert_eq!(script.receive(b"x").expect_err(name).offset, reply.len());
    }
}

/// The error shows two excerpts of at most [`WrongReply::EXCERPT`] bytes, never a reply of megabytes. Bytes that are
/// not printable are escaped, so that they do not reach a terminal.
#[test]
fn wrong_reply_is_displayed_short_and_printable() {
    let (mut script, mut reply) = script_and_reply(find("echo"), &options(Some(5000), 1), 0);
    reply[100] = 0x1b;
    let error = script.receive(&reply).expect_err("one byte is wrong");
    assert_eq!(error.expected.len(), WrongReply::EXCERPT);
    assert_eq!(error.got, &reply[100..100 + WrongReply::EXCERPT]);
    let shown = error.to_string();
    assert!(
        shown.starts_with("wrong reply at byte 100: expected \""),
        "{shown}"
    );
    assert!(shown.contains("got \"\\x1b"), "{shown}");
    assert!(shown.is_ascii() && !shown.contains('\x1b'), "{shown}");

    let (mut script, _) = script_and_reply(find("echo"), &options(None, 0), 0);
    let error = script
        .receive(b"Hello World!:0\nmore")
        .expect_err("there are too many bytes");
    assert_eq!(
        error.to_string(),
        "wrong reply at byte 15: expected nothing more, got \"more\""
    );
}

#[test]
fn greeting_equals_that_of_the_original() {
    let (mut script, reply) = script_and_reply(find("hello"), &options(None, 0), 0);
    assert_eq!(reply, GREETING);
    for byte in &GREETING[..GREETING.len() - 1] {
        assert_eq!(script.receive(&[*byte]), Ok(ReplyStatus::Partial));
    }
    assert_eq!(script.receive(b"!"), Ok(ReplyStatus::Last));
}
