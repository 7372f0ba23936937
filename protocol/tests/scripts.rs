//! Scripts: what the client asks, that it accepts what its session answers, and that it lets nothing else pass.

mod common;

use std::collections::HashSet;

use common::{BULK, GREETING, START, find, generic, open, oracle};
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

/// The protocols whose requests are lines, each one different.
fn in_lines() -> impl Iterator<Item = &'static Protocol> {
    generic().filter(|protocol| protocol.name != "bulk")
}

fn ask(script: &mut dyn Script) -> Vec<u8> {
    let mut request = Vec::new();
    script.ask(&mut request);
    request
}

/// A script that has asked and heard `before` times and has just asked once more, and the reply it must now accept.
/// The replies come from the oracle, not from a session.
fn waiting(
    protocol: &Protocol,
    options: &ScriptOptions,
    before: usize,
) -> (Box<dyn Script>, Vec<u8>) {
    let mut script = (protocol.ask)(options);
    let mut asked = Vec::new();
    let mut heard = 0;
    for _ in 0..before {
        script.ask(&mut asked);
        let replies = oracle(protocol.name, &asked, MAX_LINE).output;
        assert_eq!(script.receive(&replies[heard..]), Ok(ReplyStatus::Complete));
        heard = replies.len();
    }
    script.ask(&mut asked);
    let reply = oracle(protocol.name, &asked, MAX_LINE)
        .output
        .split_off(heard);
    (script, reply)
}

/// How many requests a wrong reply is tried after: the first has no memory behind it, the third has.
fn rounds(protocol: &Protocol) -> &'static [usize] {
    match protocol.requests_per_connection {
        Some(1) => &[0],
        _ => &[0, 2],
    }
}

/// What a script says in the end to a reply that comes in these pieces.
fn receive(script: &mut dyn Script, pieces: &[&[u8]]) -> Result<ReplyStatus, WrongReply> {
    let mut heard = ReplyStatus::Partial;
    for piece in pieces {
        heard = script.receive(piece)?;
    }
    Ok(heard)
}

/// A connection without sockets: requests and replies are cut anywhere on their way, and may wait on it.
struct Connection<'r> {
    session: Box<dyn Session>,
    script: Box<dyn Script>,
    random: &'r mut fastrand::Rng,
}

impl Connection<'_> {
    /// One request and its reply. The script must accept every byte, and be content at the last one and not before.
    fn exchange(&mut self) -> ReplyStatus {
        let request = ask(&mut *self.script);
        let mut to_server = request;
        let mut to_client = Vec::new();
        let mut heard = ReplyStatus::Partial;
        loop {
            let said_all = match self.session.step() {
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
                Step::SendFile(_) | Step::Work(_) => panic!("there are no files and no work here"),
                Step::Close(_) => {
                    // Nobody is there to hear the rest.
                    to_server.clear();
                    true
                }
            };
            while !to_client.is_empty() && (said_all || self.random.bool()) {
                assert_eq!(heard, ReplyStatus::Partial, "content before the last byte");
                let count = self.random.usize(1..=to_client.len());
                let hear = self.script.receive(&to_client[..count]);
                heard = hear.expect("the session's reply is right");
                to_client.drain(..count);
                self.script.interject(&mut to_server);
            }
            if said_all && to_server.is_empty() {
                return heard;
            }
        }
    }
}

#[test]
fn every_script_accepts_its_session_however_the_bytes_are_cut() {
    let mut random = fastrand::Rng::with_seed(1);
    for protocol in generic() {
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
fn without_a_size_the_first_client_says_the_originals_lines() {
    for protocol in in_lines() {
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

/// A request is appended: a driver may have put something before it.
#[test]
fn asking_leaves_alone_what_is_there() {
    for protocol in generic() {
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

/// The line of request `number`, with all before it answered.
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

/// At every size, also where no room is left for random letters.
#[test]
fn no_two_clients_and_no_two_moments_say_the_same_line() {
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
fn the_same_seed_gives_the_same_requests_and_another_gives_others() {
    for protocol in in_lines() {
        let requests = |seed| {
            let size = Some(64);
            let (client, mut asked) = (3, Vec::new());
            let mut script = (protocol.ask)(&ScriptOptions {
                size,
                seed,
                client,
                ..ScriptOptions::default()
            });
            script.ask(&mut asked);
            asked
        };
        assert_eq!(requests(1), requests(1), "{}", protocol.name);
        assert_ne!(requests(1), requests(2), "{}", protocol.name);
    }
    assert_eq!(lines(Some(64), 3, 1, 100), lines(Some(64), 3, 1, 100));
    assert_ne!(lines(Some(64), 3, 1, 100), lines(Some(64), 3, 2, 100));
}

/// A size is the length in bytes, the line's end included; where the line can't be as short as that, it is as short
/// as it can be.
#[test]
fn sizes_are_exact() {
    for protocol in in_lines() {
        for client in [0, 9, 1234] {
            let shortest = ask(&mut *(protocol.ask)(&options(None, client)));
            for size in (0..200).chain([1024, 16 * 1024, MAX_LINE]) {
                let line = ask(&mut *(protocol.ask)(&options(Some(size), client)));
                let who = format!("{}, client {client}, size {size}", protocol.name);
                assert_eq!(line.len(), size.max(shortest.len()), "{who}");
                let ends = line.iter().filter(|byte| **byte == b'\n').count();
                assert!(ends == 1 && line.ends_with(b"\n"), "{who}: {ends} ends");
                let body = &line[..line.len() - 1];
                // What was added stands apart, for people who read a trace.
                let (start, added) = body.split_at(shortest.len() - 1);
                assert_eq!(start, &shortest[..shortest.len() - 1], "{who}");
                assert!(added.is_empty() || added[0] == b' ', "{who}");
                let printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
                assert!(body.iter().all(printable), "{who}: not text");
            }
        }
    }
    // Later lines have longer numbers, and the same size.
    assert!(
        lines(Some(40), 1, 7, 1200)
            .iter()
            .all(|line| line.len() == 40)
    );
}

#[test]
fn a_flipped_byte_is_found_where_it_is() {
    for protocol in generic() {
        for &before in rounds(protocol) {
            let (_, right) = waiting(protocol, &options(Some(40), 2), before);
            for at in 0..right.len() {
                for flip in 1..=255 {
                    let (mut script, mut wrong) = waiting(protocol, &options(Some(40), 2), before);
                    wrong[at] ^= flip;
                    // Cut in the middle, at the wrong byte, or one byte before the end of the whole.
                    let cut = [0, at, wrong.len() - 1][flip as usize % 3];
                    let (first, second) = wrong.split_at(cut);
                    let error = receive(&mut *script, &[first, second]).expect_err("wrong");
                    assert_eq!(error.offset, at, "{} ^ {flip}", protocol.name);
                    assert_eq!(error.expected[0], right[at]);
                    assert_eq!(error.got[0], wrong[at]);
                }
            }
        }
    }
}

#[test]
fn a_dropped_byte_never_makes_a_complete_reply() {
    for protocol in generic() {
        for &before in rounds(protocol) {
            let (_, right) = waiting(protocol, &options(Some(40), 2), before);
            for at in 0..right.len() {
                for cut in 0..right.len() {
                    let (mut script, mut wrong) = waiting(protocol, &options(Some(40), 2), before);
                    wrong.remove(at);
                    let (first, second) = wrong.split_at(cut);
                    match receive(&mut *script, &[first, second]) {
                        Err(error) => assert!(error.offset >= at, "{error}"),
                        // Only the end can be missing without being missed yet.
                        Ok(heard) => assert_eq!((heard, at), (ReplyStatus::Partial, wrong.len())),
                    }
                }
            }
        }
    }
}

#[test]
fn a_doubled_byte_is_refused_wherever_the_reply_is_cut() {
    for protocol in generic() {
        for &before in rounds(protocol) {
            let (_, right) = waiting(protocol, &options(Some(40), 2), before);
            for at in 0..right.len() {
                for cut in 0..=right.len() {
                    let (mut script, mut wrong) = waiting(protocol, &options(Some(40), 2), before);
                    wrong.insert(at, wrong[at]);
                    let (first, second) = wrong.split_at(cut);
                    let heard = receive(&mut *script, &[first, second]);
                    if protocol.name == "hello" && at == right.len() - 1 {
                        // The greeting is whole; what follows it concerns nobody.
                        assert_eq!(heard, Ok(ReplyStatus::Last));
                        continue;
                    }
                    let error = heard.expect_err("one byte too many");
                    assert!(error.offset > at, "{}: {error}", protocol.name);
                }
            }
        }
    }
}

#[test]
fn a_second_answer_is_refused_and_a_second_greeting_ignored() {
    for protocol in generic() {
        for &before in rounds(protocol) {
            for at_once in [true, false] {
                let (mut script, reply) = waiting(protocol, &options(None, 2), before);
                let twice = reply.repeat(2);
                let heard = match at_once {
                    true => script.receive(&twice),
                    false => receive(&mut *script, &[&reply, &reply]),
                };
                match protocol.name {
                    "hello" => assert_eq!(heard, Ok(ReplyStatus::Last)),
                    name => {
                        let error = heard.expect_err("answered twice");
                        assert_eq!(error.offset, reply.len(), "{name}");
                        assert_eq!(error.expected, b"", "{name}: nothing more was owed");
                        assert_eq!(error.got, &reply[..error.got.len()], "{name}");
                    }
                }
            }
        }
    }
}

/// Mixed-up connections are what a concurrent server gets wrong first. With lines of any size, another client's reply
/// is a wrong reply, and so is this client's last one.
#[test]
fn a_swapped_or_stale_reply_is_wrong() {
    for name in ["pair", "echo", "upper"] {
        for size in [None, Some(16), Some(64)] {
            for before in 0..3 {
                let (mut mine, _) = waiting(find(name), &options(size, 1), before);
                let (_, theirs) = waiting(find(name), &options(size, 2), before);
                let heard = mine.receive(&theirs);
                assert!(
                    heard.is_err(),
                    "{name}, {size:?}: {heard:?} to a neighbour's"
                );

                let (mut now, _) = waiting(find(name), &options(size, 1), before + 1);
                let (_, stale) = waiting(find(name), &options(size, 1), before);
                // `pair` says its last line again: its first reply begins its second, but does not complete it.
                let heard = now.receive(&stale);
                assert_ne!(
                    heard,
                    Ok(ReplyStatus::Complete),
                    "{name}, {size:?}: an old reply"
                );
            }
        }
    }
}

/// A reply that belongs to no request: an answer nobody asked for.
#[test]
fn an_unasked_reply_is_wrong_between_two_requests() {
    for name in ["pair", "echo", "upper"] {
        let (mut script, reply) = waiting(find(name), &options(None, 0), 1);
        assert_eq!(script.receive(&reply), Ok(ReplyStatus::Complete), "{name}");
        assert_eq!(
            script.receive(b""),
            Ok(ReplyStatus::Complete),
            "nothing is no byte"
        );
        assert_eq!(script.receive(b"x").expect_err(name).offset, reply.len());
    }
}

/// Two slices of at most this much are shown, never a reply of megabytes; and bytes that are no text do not reach a
/// terminal.
#[test]
fn a_wrong_reply_is_shown_short_and_readable() {
    let (mut script, mut reply) = waiting(find("echo"), &options(Some(5000), 1), 0);
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

    let (mut script, _) = waiting(find("echo"), &options(None, 0), 0);
    let error = script
        .receive(b"Hello World!:0\nmore")
        .expect_err("surplus");
    assert_eq!(
        error.to_string(),
        "wrong reply at byte 15: expected nothing more, got \"more\""
    );
}

#[test]
fn the_greeting_is_the_one_of_the_original() {
    let (mut script, reply) = waiting(find("hello"), &options(None, 0), 0);
    assert_eq!(reply, GREETING);
    for byte in &GREETING[..GREETING.len() - 1] {
        assert_eq!(script.receive(&[*byte]), Ok(ReplyStatus::Partial));
    }
    assert_eq!(script.receive(b"!"), Ok(ReplyStatus::Last));
}
