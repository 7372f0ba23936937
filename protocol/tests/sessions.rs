//! Sessions one by one: what they say to whom, with the cases written out.

mod common;

use std::collections::HashSet;

use common::{
    MESSAGE, START, Said, Seen, all, complaint, converse, cut, find, generic, has_lines, open,
    oracle,
};
use protocol::{CloseReason, PROTOCOLS, Protocol, Session, SessionOptions, Step};

const READ_SIZE: usize = 16 * 1024;

/// The whole conversation, for inputs where nothing is refused.
fn reply(protocol: &str, input: &[u8]) -> Vec<u8> {
    let session = open(find(protocol), SessionOptions::default().max_line);
    let said = converse(session, [input], all);
    assert_eq!(said.farewell, CloseReason::Done);
    said.output
}

#[test]
fn each_protocol_says_what_it_is_known_for() {
    assert_eq!(reply("pair", b"a\nb\nc\n"), b"a\na\nb\nb\nc\n");
    assert_eq!(reply("echo", b"a\nb\nc\n"), b"a\nb\nc\n");
    assert_eq!(reply("upper", b"Mixed 1\xe4\n\0z"), b"MIXED 1\xe4\n\0Z");
    assert_eq!(reply("hello", b"a\nb\nc\n"), b"Hello from server!");
    assert_eq!(reply("bulk", START), MESSAGE.repeat(2));
}

#[test]
fn the_last_line_needs_no_end_before_fin() {
    assert_eq!(reply("pair", b"one"), b"one");
    assert_eq!(reply("pair", b"one\ntwo"), b"one\none\ntwo");
    assert_eq!(reply("echo", b"one\ntwo"), b"one\ntwo");
    // An empty line is a line; the nothing after its end is none.
    assert_eq!(reply("pair", b"\n"), b"\n");
    assert_eq!(reply("pair", b"\n\n"), b"\n\n\n");
}

#[test]
fn a_peer_that_says_nothing_is_told_nothing() {
    for protocol in generic() {
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

/// All ways to cut in three (with empty pieces among them), and one byte at a time, against what is said to the whole.
#[test]
fn no_cut_of_a_short_input_can_be_seen() {
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
    for protocol in generic() {
        for input in inputs {
            let expected = oracle(protocol.name, input, MAX_LINE);
            let check = |pieces: &[&[u8]], take: fn(usize) -> usize| {
                let said = converse(open(protocol, MAX_LINE), pieces.iter().copied(), take);
                assert_eq!(said, expected, "{} hears {pieces:?}", protocol.name);
            };
            for take in [all, |_: usize| 1, |offered: usize| offered.div_ceil(2)] {
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
fn a_line_of_the_limit_is_answered_and_one_byte_more_is_refused() {
    let refused = |before: &[u8]| Said {
        output: [before, b"error: a line may have 8 bytes\n"].concat(),
        farewell: CloseReason::Refused,
    };
    let answered = |output: &[u8]| Said {
        output: output.to_vec(),
        farewell: CloseReason::Done,
    };
    let cases: [(&[u8], Said); 8] = [
        (b"1234567\n", answered(b"1234567\n")),
        (b"12345678", answered(b"12345678")),
        (b"12345678\n", refused(b"")),
        (b"123456789", refused(b"")),
        // Whatever follows a refused line, end or no end, is not looked at.
        (b"12345678\nok\n", refused(b"")),
        (b"1234567890123\nok\n", refused(b"")),
        // Those who came in time get their replies first.
        (b"a\nb\n12345678\nc\n", refused(b"a\na\nb\n")),
        (b"a\n1234567\n123456789", refused(b"a\na\n1234567\n")),
    ];
    for (input, expected) in cases {
        for at in 0..=input.len() {
            let pieces = [&input[..at], &input[at..]];
            let said = converse(open(find("pair"), 8), pieces, all);
            assert_eq!(said, expected, "{pieces:?}");
        }
        assert_eq!(converse(open(find("pair"), 8), [input], |_| 1), expected);
        assert_eq!(
            converse(open(find("pair"), 8), cut(input, &[1]), all),
            expected
        );
    }
}

/// The refusal does not wait for a line end that may never come: one byte over the limit is enough.
#[test]
fn an_endless_line_is_refused_at_the_first_byte_too_many() {
    for protocol in PROTOCOLS.iter().filter(|protocol| has_lines(protocol)) {
        let mut session = open(protocol, 100);
        for _ in 0..100 {
            session.receive(b"x");
            assert_eq!(session.step(), Step::Read, "{}", protocol.name);
        }
        session.receive(b"x");
        assert_eq!(session.step(), Step::Write(&complaint(100)));
    }
}

#[test]
fn nothing_moves_a_session_that_has_refused() {
    for protocol in PROTOCOLS.iter().filter(|protocol| has_lines(protocol)) {
        let mut session = open(protocol, 4);
        session.receive(b"much too long\nok\n");
        let complaining = Seen::from(session.step());
        assert!(matches!(&complaining, Seen::Write(_, bytes) if *bytes == complaint(4)));
        let more = |session: &mut dyn Session| {
            session.receive(b"ok\n");
            session.receive(&[0; 1000]);
            session.end_of_input();
        };
        more(&mut *session);
        assert_eq!(Seen::from(session.step()), complaining, "{}", protocol.name);
        session.sent(complaint(4).len());
        assert_eq!(session.step(), Step::Close(CloseReason::Refused));
        more(&mut *session);
        assert_eq!(session.step(), Step::Close(CloseReason::Refused));
        assert!(!session.mid_request(), "{}", protocol.name);
    }
}

/// The default limit, which no random input above is long enough for.
#[test]
fn the_default_limit_is_64_kib() {
    let line = |length: usize| {
        let mut line = vec![b'x'; length - 1];
        line.push(b'\n');
        line
    };
    for protocol in PROTOCOLS.iter().filter(|protocol| has_lines(protocol)) {
        for (length, farewell) in [(65_536, CloseReason::Done), (65_537, CloseReason::Refused)] {
            let session = (protocol.open)(&SessionOptions::default());
            let input = line(length);
            let said = converse(session, cut(&input, &[READ_SIZE]), all);
            assert_eq!(said.farewell, farewell, "{}", protocol.name);
            assert_eq!(said, oracle(protocol.name, &input, 65_536));
        }
    }
}

/// Peers that try to make a session hold much: they send whatever makes the most of 16 KiB reads, for as long as they
/// are read from. What is offered to the socket never exceeds the 16 KiB up to which replies are gathered and the one
/// reply that crosses them: `pair`'s, of two whole lines, or the complaint.
#[test]
fn no_peer_makes_a_session_hold_more_than_its_bound() {
    const GATHER: usize = 16 * 1024;
    const SENT: usize = 12 * READ_SIZE;

    for max_line in [1, 100, READ_SIZE, 64 * 1024] {
        let bound = GATHER - 1 + (2 * max_line).max(complaint(max_line).len());
        let line = |length: usize| [vec![b'x'; length - 1], vec![b'\n']].concat();
        let peers: [(&str, Vec<u8>); 7] = [
            ("empty lines", line(1)),
            ("longest lines", line(max_line)),
            ("long and short", [line(max_line), line(1)].concat()),
            (
                "a full gather, then the longest",
                [line(1).repeat(GATHER - 1), line(max_line)].concat(),
            ),
            ("one endless line", vec![b'x']),
            ("NULs", vec![0]),
            ("one start after the other", START.to_vec()),
        ];
        for (peer, pattern) in peers {
            let input: Vec<u8> = pattern.iter().copied().cycle().take(SENT).collect();
            for protocol in generic() {
                let mut longest = 0;
                let said = converse(
                    open(protocol, max_line),
                    cut(&input, &[READ_SIZE]),
                    |offered| {
                        longest = longest.max(offered);
                        offered
                    },
                );
                let who = format!("{} to {peer}, {max_line}", protocol.name);
                assert!(longest <= bound, "{who}: {longest} > {bound}");
                let expected = oracle(protocol.name, &input, max_line);
                assert!(said == expected, "{who}: the wrong replies");
            }
        }
    }
}

/// What was said is forgotten: a connection that lives for days holds no more than one that has just begun, and its
/// buffers are used again. A session that kept what it sent would offer each reply from another place.
#[test]
fn a_long_conversation_uses_the_same_memory_again() {
    // What `bulk` sends was never in a session's memory.
    let long = |protocol: &&Protocol| {
        protocol.requests_per_connection.is_none() && protocol.name != "bulk"
    };
    for protocol in generic().filter(long) {
        let mut session = open(protocol, 1000);
        let mut places = HashSet::new();
        let line = [vec![b'x'; 999], vec![b'\n']].concat();
        for _ in 0..1000 {
            session.receive(&line);
            let Step::Write(bytes) = session.step() else {
                panic!("{} owes a reply", protocol.name);
            };
            places.insert(bytes.as_ptr());
            let count = bytes.len();
            session.sent(count);
            assert_eq!(session.step(), Step::Read, "{}", protocol.name);
        }
        // A buffer may move while it finds its size.
        assert!(places.len() < 10, "{}: {}", protocol.name, places.len());
    }
}

/// A pipelining client costs one write for many lines, not one each.
#[test]
fn replies_to_one_read_are_gathered() {
    for protocol in PROTOCOLS.iter().filter(|protocol| has_lines(protocol)) {
        let mut writes = 0;
        let input = b"line\n".repeat(1000);
        let said = converse(open(protocol, 100), [&input[..]], |offered| {
            writes += 1;
            offered
        });
        assert_eq!(writes, 1, "{}: {} bytes", protocol.name, said.output.len());
    }
}

#[test]
fn mid_request_is_true_from_the_first_byte_in_to_the_last_byte_out() {
    let mut pair = open(find("pair"), 100);
    assert!(!pair.mid_request(), "nothing has been asked");
    pair.receive(b"on");
    assert!(pair.mid_request(), "a line has begun");
    assert_eq!(pair.step(), Step::Read);
    assert!(pair.mid_request(), "and a read does not finish it");
    pair.receive(b"e\n");
    assert!(pair.mid_request(), "whole, but not answered");
    assert_eq!(pair.step(), Step::Write(b"one\n"));
    pair.sent(3);
    assert!(pair.mid_request(), "one byte is still owed");
    pair.sent(1);
    assert!(!pair.mid_request(), "answered");
    assert_eq!(pair.step(), Step::Read);
    assert!(!pair.mid_request(), "between two requests");
    pair.receive(b"two\nth");
    assert_eq!(pair.step(), Step::Write(b"one\ntwo\n"));
    pair.sent(8);
    assert!(pair.mid_request(), "the next has begun");
    pair.end_of_input();
    assert!(pair.mid_request(), "FIN makes it whole, not answered");
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

/// A refused peer is owed the complaint, and nothing after it.
#[test]
fn mid_request_ends_with_the_complaint() {
    let mut session = open(find("echo"), 3);
    session.receive(b"long");
    assert!(session.mid_request());
    assert_eq!(session.step(), Step::Write(&complaint(3)));
    session.sent(complaint(3).len() - 1);
    assert!(session.mid_request());
    session.sent(1);
    assert!(!session.mid_request());
}

/// The address is part of the guarantee: a completion driver hands the kernel a pointer and moves the box.
/// (`converse` asks all of this at every step of every other test, too.)
#[test]
fn a_step_stays_what_and_where_it_is_until_something_is_reported() {
    for protocol in generic() {
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
fn protocols_are_found_by_their_names_and_the_names_are_unique() {
    let names: Vec<_> = PROTOCOLS.iter().map(|protocol| protocol.name).collect();
    assert_eq!(names[0], "pair", "the default comes first");
    for (index, name) in names.iter().enumerate() {
        assert_eq!(find(name).name, *name);
        assert!(!names[..index].contains(name), "{name} twice");
    }
    assert!(Protocol::find("no such").is_none());
}

/// Whoever is left out of the tests that go through all protocols must be so by name.
#[test]
fn all_protocols_but_http_have_an_oracle() {
    let known: Vec<_> = generic().map(|protocol| protocol.name).collect();
    let all = PROTOCOLS.iter().map(|protocol| protocol.name);
    let left_out: Vec<_> = all.filter(|name| !known.contains(name)).collect();
    assert_eq!(left_out, ["http"]);
    for name in known {
        oracle(name, b"", 10);
    }
}
