//! Sessions, one protocol at a time: the replies to inputs that are written out here.

mod common;

use std::collections::HashSet;

use common::{
    MESSAGE, Outcome, START, StepCopy, converse, cut, error_reply, find, has_lines, open, oracle,
    take_all, with_oracle,
};
use protocol::{CloseReason, PROTOCOLS, Protocol, Session, SessionOptions, Step};

/// Size of a read in bytes.
const READ_SIZE: usize = 16 * 1024;

/// Returns the complete output for an input that is not refused.
fn reply(protocol: &str, input: &[u8]) -> Vec<u8> {
    let session = open(find(protocol), SessionOptions::default().max_line);
    let outcome = converse(session, [input], take_all);
    assert_eq!(outcome.reason, CloseReason::Done);
    outcome.output
}

#[test]
fn each_protocol_sends_its_characteristic_reply() {
    assert_eq!(reply("pair", b"a\nb\nc\n"), b"a\na\nb\nb\nc\n");
    assert_eq!(reply("echo", b"a\nb\nc\n"), b"a\nb\nc\n");
    assert_eq!(reply("upper", b"Mixed 1\xe4\n\0z"), b"MIXED 1\xe4\n\0Z");
    assert_eq!(reply("hello", b"a\nb\nc\n"), b"Hello from server!");
    assert_eq!(reply("bulk", START), MESSAGE.repeat(2));
}

#[test]
fn last_line_without_end_before_fin_is_answered() {
    assert_eq!(reply("pair", b"one"), b"one");
    assert_eq!(reply("pair", b"one\ntwo"), b"one\none\ntwo");
    assert_eq!(reply("echo", b"one\ntwo"), b"one\ntwo");
    // An empty line is a line; an empty input after its end is none.
    assert_eq!(reply("pair", b"\n"), b"\n");
    assert_eq!(reply("pair", b"\n\n"), b"\n\n\n");
}

#[test]
fn session_without_input_sends_nothing() {
    for protocol in with_oracle() {
        let mut session = open(protocol, 10);
        assert_eq!(session.step(), Step::Read, "{}", protocol.name);
        assert!(!session.mid_request(), "{}", protocol.name);
        session.receive(b"");
        assert_eq!(session.step(), Step::Read, "{}", protocol.name);
        session.end_of_input();
        assert_eq!(session.step(), Step::Close(CloseReason::Done));
        assert!(!session.mid_request(), "{}", protocol.name);
    }
}

/// Compares all ways to cut an input in three (empty pieces included), and one byte at a time, with the replies to the
/// complete input.
#[test]
fn replies_to_short_inputs_do_not_depend_on_cuts() {
    const MAX_LINE: usize = 6;
    let inputs: [&[u8]; 12] = [
        b"",
        b"\n",
        b"one\n",
        b"no end",
        b"a\nbc\ndef\n",
        b"a\nbc\ndef",
        b"\n\n\nx\n\n",
        b"\r\n\r\n",
        b"\0\n\0\xff\n\0",
        b"12345\n12345\n",
        b"one\n123456\ntwo\n",
        b"one\n1234567",
    ];
    for protocol in with_oracle() {
        for input in inputs {
            let expected = oracle(protocol.name, input, MAX_LINE);
            let check = |pieces: &[&[u8]], take: fn(usize) -> usize| {
                let outcome = converse(open(protocol, MAX_LINE), pieces.iter().copied(), take);
                assert_eq!(outcome, expected, "{} receives {pieces:?}", protocol.name);
            };
            for take in [take_all, |_: usize| 1, |offered: usize| offered.div_ceil(2)] {
                check(&[input], take);
                check(&cut(input, &[1]), take);
                for second in 0..=input.len() {
                    for first in 0..=second {
                        let pieces = [&input[..first], &input[first..second], &input[second..]];
                        check(&pieces, take);
                    }
                }
            }
        }
    }
}

#[test]
fn line_of_the_limit_is_answered_and_one_byte_more_is_refused() {
    let refused = |before: &[u8]| Outcome {
        output: [before, b"error: a line may have 8 bytes\n"].concat(),
        reason: CloseReason::Refused,
    };
    let answered = |output: &[u8]| Outcome {
        output: output.to_vec(),
        reason: CloseReason::Done,
    };
    let cases: [(&[u8], Outcome); 8] = [
        (b"1234567\n", answered(b"1234567\n")),
        (b"12345678", answered(b"12345678")),
        (b"12345678\n", refused(b"")),
        (b"123456789", refused(b"")),
        // Bytes after a refused line are not parsed, with or without the end of that line.
        (b"12345678\nok\n", refused(b"")),
        (b"1234567890123\nok\n", refused(b"")),
        // Lines before the refused line are answered first.
        (b"a\nb\n12345678\nc\n", refused(b"a\na\nb\n")),
        (b"a\n1234567\n123456789", refused(b"a\na\n1234567\n")),
    ];
    for (input, expected) in cases {
        for at in 0..=input.len() {
            let pieces = [&input[..at], &input[at..]];
            let outcome = converse(open(find("pair"), 8), pieces, take_all);
            assert_eq!(outcome, expected, "{pieces:?}");
        }
        assert_eq!(converse(open(find("pair"), 8), [input], |_| 1), expected);
        assert_eq!(
            converse(open(find("pair"), 8), cut(input, &[1]), take_all),
            expected
        );
    }
}

/// The session does not wait for a line end that may never arrive: it refuses at one byte over the limit.
#[test]
fn endless_line_is_refused_at_the_first_byte_over_the_limit() {
    for protocol in PROTOCOLS.iter().filter(|protocol| has_lines(protocol)) {
        let mut session = open(protocol, 100);
        for _ in 0..100 {
            session.receive(b"x");
            assert_eq!(session.step(), Step::Read, "{}", protocol.name);
        }
        session.receive(b"x");
        assert_eq!(session.step(), Step::Write(&error_reply(100)));
    }
}

#[test]
fn refused_session_ignores_further_input() {
    for protocol in PROTOCOLS.iter().filter(|protocol| has_lines(protocol)) {
        let mut session = open(protocol, 4);
        session.receive(b"much too long\nok\n");
        let refusing_step = StepCopy::from(session.step());
        assert!(matches!(&refusing_step, StepCopy::Write(_, bytes) if *bytes == error_reply(4)));
        let more = |session: &mut dyn Session| {
            session.receive(b"ok\n");
            session.receive(&[0; 1000]);
            session.end_of_input();
        };
        more(&mut *session);
        assert_eq!(
            StepCopy::from(session.step()),
            refusing_step,
            "{}",
            protocol.name
        );
        session.sent(error_reply(4).len());
        assert_eq!(session.step(), Step::Close(CloseReason::Refused));
        more(&mut *session);
        assert_eq!(session.step(), Step::Close(CloseReason::Refused));
        assert!(!session.mid_request(), "{}", protocol.name);
    }
}

/// Checks the default limit: no random input above is long enough for it.
#[test]
fn line_limit_default_is_64_kib() {
    let line = |length: usize| {
        let mut line = vec![b'x'; length - 1];
        line.push(b'\n');
        line
    };
    for protocol in PROTOCOLS.iter().filter(|protocol| has_lines(protocol)) {
        for (length, reason) in [(65_536, CloseReason::Done), (65_537, CloseReason::Refused)] {
            let session = (protocol.open)(&SessionOptions::default());
            let input = line(length);
            let outcome = converse(session, cut(&input, &[READ_SIZE]), take_all);
            assert_eq!(outcome.reason, reason, "{}", protocol.name);
            assert_eq!(outcome, oracle(protocol.name, &input, 65_536));
        }
    }
}

/// Tries peers that make a session hold as much output as possible with reads of 16 KiB. They send for as long as the
/// session reads. The bytes offered to the socket never exceed 16 KiB, up to which replies are gathered, and the one
/// reply that exceeds this size: the reply of `pair`, which has two complete lines, or the error reply.
#[test]
fn session_output_never_exceeds_its_bound() {
    const GATHER: usize = 16 * 1024;
    const SENT: usize = 12 * READ_SIZE;

    for max_line in [1, 100, READ_SIZE, 64 * 1024] {
        let bound = GATHER - 1 + (2 * max_line).max(error_reply(max_line).len());
        let line = |length: usize| [vec![b'x'; length - 1], vec![b'\n']].concat();
        let peers: [(&str, Vec<u8>); 7] = [
            ("empty lines", line(1)),
            ("longest lines", line(max_line)),
            ("long and short", [line(max_line), line(1)].concat()),
            (
                "16 KiB of replies, then the longest",
                [line(1).repeat(GATHER - 1), line(max_line)].concat(),
            ),
            ("one endless line", vec![b'x']),
            ("NULs", vec![0]),
            ("one start after the other", START.to_vec()),
        ];
        for (peer, pattern) in peers {
            let input: Vec<u8> = pattern.iter().copied().cycle().take(SENT).collect();
            for protocol in with_oracle() {
                let mut longest = 0;
                let outcome = converse(
                    open(protocol, max_line),
                    cut(&input, &[READ_SIZE]),
                    |offered| {
                        longest = longest.max(offered);
                        offered
                    },
                );
                let case = format!("{} to {peer}, {max_line}", protocol.name);
                assert!(longest <= bound, "{case}: {longest} > {bound}");
                let expected = oracle(protocol.name, &input, max_line);
                assert!(outcome == expected, "{case}: wrong replies");
            }
        }
    }
}

/// A session discards processed bytes: a connection that is open for days holds no more memory than a new one, and its
/// buffers are reused. A session that kept sent bytes would offer each reply from another address.
#[test]
fn buffers_are_reused_in_a_long_conversation() {
    // The messages of `bulk` are never in the memory of a session.
    let long = |protocol: &&Protocol| {
        protocol.requests_per_connection.is_none() && protocol.name != "bulk"
    };
    for protocol in with_oracle().filter(long) {
        let mut session = open(protocol, 1000);
        let mut addresses = HashSet::new();
        let line = [vec![b'x'; 999], vec![b'\n']].concat();
        for _ in 0..1000 {
            session.receive(&line);
            let Step::Write(bytes) = session.step() else {
                panic!("{} sends no reply", protocol.name);
            };
            addresses.insert(bytes.as_ptr());
            let count = bytes.len();
            session.sent(count);
            assert_eq!(session.step(), Step::Read, "{}", protocol.name);
        }
        // A buffer may move while it grows to its size.
        assert!(
            addresses.len() < 10,
            "{}: {}",
            protocol.name,
            addresses.len()
        );
    }
}

/// A pipelining client costs one write for many lines, not one each.
#[test]
fn replies_to_one_read_are_gathered_in_one_write() {
    for protocol in PROTOCOLS.iter().filter(|protocol| has_lines(protocol)) {
        let mut writes = 0;
        let input = b"line\n".repeat(1000);
        let outcome = converse(open(protocol, 100), [&input[..]], |offered| {
            writes += 1;
            offered
        });
        assert_eq!(
            writes,
            1,
            "{}: {} bytes",
            protocol.name,
            outcome.output.len()
        );
    }
}

#[test]
fn mid_request_is_true_from_the_first_byte_in_to_the_last_byte_out() {
    let mut pair = open(find("pair"), 100);
    assert!(!pair.mid_request(), "no request has begun");
    pair.receive(b"on");
    assert!(pair.mid_request(), "a line has begun");
    assert_eq!(pair.step(), Step::Read);
    assert!(
        pair.mid_request(),
        "the line is not complete before the read"
    );
    pair.receive(b"e\n");
    assert!(pair.mid_request(), "the line is complete and not answered");
    assert_eq!(pair.step(), Step::Write(b"one\n"));
    pair.sent(3);
    assert!(pair.mid_request(), "one byte is still to be sent");
    pair.sent(1);
    assert!(!pair.mid_request(), "the line is answered");
    assert_eq!(pair.step(), Step::Read);
    assert!(!pair.mid_request(), "between two requests");
    pair.receive(b"two\nth");
    assert_eq!(pair.step(), Step::Write(b"one\ntwo\n"));
    pair.sent(8);
    assert!(pair.mid_request(), "the next line has begun");
    pair.end_of_input();
    assert!(
        pair.mid_request(),
        "FIN ends the line, which is not answered yet"
    );
    assert_eq!(pair.step(), Step::Write(b"two\nth"));
    pair.sent(6);
    assert!(!pair.mid_request());
    assert_eq!(pair.step(), Step::Close(CloseReason::Done));

    let mut hello = open(find("hello"), 100);
    assert!(!hello.mid_request());
    hello.receive(b"x");
    assert!(hello.mid_request());
    assert_eq!(hello.step(), Step::Write(b"Hello from server!"));
    hello.sent(17);
    assert!(hello.mid_request());
    hello.sent(1);
    assert!(!hello.mid_request());

    let mut upper = open(find("upper"), 100);
    assert!(!upper.mid_request());
    upper.receive(b"x");
    assert!(upper.mid_request());
    assert_eq!(upper.step(), Step::Write(b"X"));
    upper.sent(1);
    assert!(!upper.mid_request());
}

/// A refused peer gets the error reply, and nothing after it.
#[test]
fn mid_request_is_false_after_the_error_reply() {
    let mut session = open(find("echo"), 3);
    session.receive(b"long");
    assert!(session.mid_request());
    assert_eq!(session.step(), Step::Write(&error_reply(3)));
    session.sent(error_reply(3).len() - 1);
    assert!(session.mid_request());
    session.sent(1);
    assert!(!session.mid_request());
}

/// The address is part of the guarantee: a driver of a completion model gives the kernel a pointer and then moves the
/// box. `converse` checks the same at each step in all other tests.
#[test]
fn step_is_the_same_at_the_same_address_until_a_report() {
    for protocol in with_oracle() {
        let mut session = open(protocol, 100);
        session = common::same_step_again(session);
        session.receive(b"One\nTwo\n");
        let expected = oracle(protocol.name, b"One\nTwo\n", 100).output;
        let mut output = Vec::new();
        loop {
            session = common::same_step_again(session);
            let Step::Write(bytes) = session.step() else {
                break;
            };
            output.push(bytes[0]);
            session.sent(1);
            assert!(expected.starts_with(&output), "{}", protocol.name);
        }
        session.end_of_input();
        session = common::same_step_again(session);
        assert_eq!(session.step(), Step::Close(CloseReason::Done));
        assert_eq!(output, expected, "{}", protocol.name);
    }
}

#[test]
fn protocol_names_are_unique_and_found() {
    let names: Vec<_> = PROTOCOLS.iter().map(|protocol| protocol.name).collect();
    assert_eq!(names[0], "pair", "the default comes first");
    for (index, name) in names.iter().enumerate() {
        assert_eq!(find(name).name, *name);
        assert!(!names[..index].contains(name), "{name} twice");
    }
    assert!(Protocol::find("no such").is_none());
}

/// Names each protocol that the tests of all protocols leave out.
#[test]
fn all_protocols_but_http_have_an_oracle() {
    let covered: Vec<_> = with_oracle().map(|protocol| protocol.name).collect();
    let names = PROTOCOLS.iter().map(|protocol| protocol.name);
    let left_out: Vec<_> = names.filter(|name| !covered.contains(name)).collect();
    assert_eq!(left_out, ["http"]);
    for name in covered {
        oracle(name, b"", 10);
    }
}
