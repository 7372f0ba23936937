//! `bulk`: messages with a terminator of several bytes, cut anywhere, and replies that are never copied.

mod common;

use common::{
    BULK, MESSAGE, Outcome, START, TERMINATOR, converse, cut, find, open, oracle, same_step_again,
    take_all,
};
use protocol::{
    Bulk, CloseReason, Protocol, ReplyStatus, Script, ScriptOptions, Session, SessionOptions, Step,
};

fn bulk() -> &'static Protocol {
    find("bulk")
}

/// Opens a session that sends these messages.
fn session_of(bulk: Bulk) -> Box<dyn Session> {
    (find("bulk").open)(&SessionOptions {
        bulk,
        ..SessionOptions::default()
    })
}

/// Opens a script that has sent its request.
fn script_after_request(bulk: Bulk) -> Box<dyn Script> {
    let mut script = (find("bulk").ask)(&ScriptOptions {
        bulk,
        ..ScriptOptions::default()
    });
    script.ask(&mut Vec::new());
    script
}

/// Makes a message of `size` bytes, independently of the code of the session.
fn message(size: usize) -> Vec<u8> {
    let mut message = b"head".to_vec();
    message.resize(size - 4, b'.');
    message.extend_from_slice(b"tail");
    message.extend_from_slice(TERMINATOR);
    message
}

fn outcome(output: Vec<u8>, reason: CloseReason) -> Outcome {
    Outcome { output, reason }
}

/// Returns the error reply to a message of more than `most` bytes.
fn error_reply(most: usize) -> Vec<u8> {
    format!("error: a message may have {most} bytes\r<--EOM-->\r").into_bytes()
}

#[test]
fn replies_do_not_depend_on_cuts() {
    let receipts = [START, b"received 1", TERMINATOR, b"received 2", TERMINATOR].concat();
    let inputs: [&[u8]; 12] = [
        START,
        b"start",
        b"start\r<--EOM-->",
        &START.repeat(2),
        &receipts,
        &[b"received 1", TERMINATOR, START].concat(),
        TERMINATOR,
        &TERMINATOR.repeat(3),
        // These terminators overlap: the end of a terminator is not the beginning of the next.
        b"start\r<--EOM-->\r<--EOM-->\rstart\r<--EOM-->\r",
        b"\r<--EOM-\r<--EOM-->\rstart\r<--EOM-->\r",
        b"START\r<--EOM-->\rstart \r<--EOM-->\r",
        b"xstart\r\r<--EOM-->\r<--EOM-->\r",
    ];
    for input in inputs {
        let expected = oracle("bulk", input, 12);
        for take in [take_all, |_: usize| 1] {
            let check = |pieces: &[&[u8]]| {
                let outcome = converse(open(bulk(), 12), pieces.iter().copied(), take);
                assert_eq!(outcome, expected, "{pieces:?}");
            };
            check(&cut(input, &[1]));
            for second in 0..=input.len() {
                for first in 0..=second {
                    check(&[&input[..first], &input[first..second], &input[second..]]);
                }
            }
        }
    }
}

#[test]
fn start_gets_its_messages_and_a_receipt_gets_none() {
    let twice = converse(open(bulk(), 100), [&START.repeat(2)[..]], take_all);
    assert_eq!(twice, outcome(MESSAGE.repeat(4), CloseReason::Done));
    let receipt = [b"received 7", TERMINATOR].concat();
    let none = converse(open(bulk(), 100), [&receipt[..]], take_all);
    assert_eq!(none, outcome(Vec::new(), CloseReason::Done));
    // FIN ends no message: an incomplete `start` is no request.
    let unfinished = converse(open(bulk(), 100), [&b"start"[..]], take_all);
    assert_eq!(unfinished, outcome(Vec::new(), CloseReason::Done));
}

/// Tries the sizes around every size at which a message is cut into pieces differently.
#[test]
fn messages_of_every_size_are_exact() {
    const DOTS: usize = 256 * 1024;
    let around = |size: usize| size - 2..=size + 2;
    let sizes = (8..40).chain(around(DOTS)).chain(around(DOTS + 4));
    let sizes = sizes.chain(around(DOTS + 8)).chain(around(2 * DOTS + 8));
    for size in sizes.chain(around(3 << 20)) {
        let options = Bulk {
            size: size as u64,
            count: 2,
        };
        let expected = message(size);
        assert_eq!(expected.len(), size + TERMINATOR.len());
        for most in [usize::MAX, 200_001] {
            let mut session = session_of(options);
            session.receive(START);
            let mut offset = 0;
            while let Step::Write(bytes) = session.step() {
                let at = offset % expected.len();
                let count = bytes.len().min(most);
                assert!(
                    bytes[..count] == expected[at..at + count],
                    "size {size}, offset {at}"
                );
                offset += count;
                session.sent(count);
            }
            assert_eq!(offset, 2 * expected.len(), "size {size}");
        }
        assert_eq!(
            script_after_request(options).receive(&expected.repeat(2)),
            Ok(ReplyStatus::Complete)
        );
    }
}

/// For any size and any session, all bytes that are sent lie in the same few hundred KiB.
#[test]
fn messages_of_all_sizes_are_sent_from_one_block() {
    let mut addresses: Option<(usize, usize)> = None;
    let mut sessions = Vec::new();
    for size in [8, 9, 5000, 3 << 20, 3 << 20, 1 << 30] {
        let mut session = session_of(Bulk { size, count: 3 });
        session.receive(START);
        let mut sent = 0_u64;
        loop {
            session = same_step_again(session);
            let Step::Write(bytes) = session.step() else {
                break;
            };
            let range = bytes.as_ptr_range();
            let (first, last) = addresses.unwrap_or((range.start.addr(), range.end.addr()));
            addresses = Some((first.min(range.start.addr()), last.max(range.end.addr())));
            let count = bytes.len();
            sent += count as u64;
            session.sent(count);
            if sent > 20 << 20 {
                break;
            }
        }
        sessions.push(session);
    }
    let (first, last) = addresses.unwrap();
    assert!(last - first <= 256 * 1024 + 64, "{} bytes", last - first);
}

#[test]
fn message_of_the_limit_is_accepted_and_one_byte_more_is_refused() {
    let refused = |before: &[u8]| outcome([before, &error_reply(8)].concat(), CloseReason::Refused);
    let accepted = |output: &[u8]| outcome(output.to_vec(), CloseReason::Done);
    let reply = MESSAGE.repeat(2);
    let with_end = |text: &[u8]| [text, TERMINATOR].concat();
    for (input, expected) in [
        (with_end(b"12345678"), accepted(b"")),
        (with_end(b"123456789"), refused(b"")),
        ([&with_end(b"123456789")[..], START].concat(), refused(b"")),
        // Requests before the message that is too long are answered.
        ([START, &with_end(b"123456789")].concat(), refused(&reply)),
        (
            [START, b"12345678\r<--EOM--", START].concat(),
            refused(&reply),
        ),
        // The bytes after the eight may still become a terminator.
        ([START, b"12345678\r<--EOM-->"].concat(), accepted(&reply)),
    ] {
        for at in 0..=input.len() {
            let pieces = [&input[..at], &input[at..]];
            let outcome = converse(open(bulk(), 8), pieces, take_all);
            assert_eq!(outcome, expected, "{pieces:?}");
        }
        let outcome = converse(open(bulk(), 8), cut(&input, &[1]), |_| 1);
        assert_eq!(outcome, expected);
    }
}

#[test]
fn endless_message_is_refused_and_further_input_is_ignored() {
    let mut session = open(bulk(), 100);
    // The last ten bytes may be the beginning of a terminator, so they do not count yet.
    for _ in 0..110 {
        session.receive(b"x");
        assert_eq!(session.step(), Step::Read);
        assert!(session.mid_request());
    }
    session.receive(b"x");
    assert_eq!(session.step(), Step::Write(&error_reply(100)));
    session.receive(START);
    session.end_of_input();
    assert_eq!(session.step(), Step::Write(&error_reply(100)));
    session.sent(5);
    assert!(session.mid_request());
    assert_eq!(session.step(), Step::Write(&error_reply(100)[5..]));
    session.sent(error_reply(100).len() - 5);
    assert!(!session.mid_request());
    session.receive(START);
    assert_eq!(session.step(), Step::Close(CloseReason::Refused));
    assert!(!session.mid_request());
}

/// The session reads only after all requests are answered, so a peer that sends a thousand requests at once gets one
/// message after another and costs no memory.
#[test]
fn request_is_parsed_after_the_replies_to_earlier_requests() {
    let mut session = open(bulk(), 8);
    // The last message is too long; the requests before it are answered nevertheless.
    session.receive(&[&START.repeat(1000)[..], b"far too long", TERMINATOR].concat());
    let expected = MESSAGE.repeat(1000 * BULK.count as usize);
    let mut sent = 0;
    while sent < expected.len() {
        let Step::Write(bytes) = session.step() else {
            panic!("the session has not sent all messages");
        };
        assert!(expected[sent..].starts_with(bytes), "at {sent}");
        let count = bytes.len();
        sent += count;
        session.sent(count);
    }
    assert_eq!(session.step(), Step::Write(&error_reply(8)));
}

#[test]
fn mid_request_is_true_from_the_first_byte_in_to_the_last_byte_out() {
    let mut session = open(bulk(), 100);
    assert!(!session.mid_request());
    session.receive(b"sta");
    assert!(session.mid_request(), "a message has begun");
    assert_eq!(session.step(), Step::Read);
    session.receive(&START[3..]);
    let mut left = 2 * MESSAGE.len();
    while left > 0 {
        assert!(session.mid_request(), "{left} bytes are still to be sent");
        assert!(matches!(session.step(), Step::Write(_)));
        session.sent(1);
        left -= 1;
    }
    assert!(!session.mid_request());
    assert_eq!(session.step(), Step::Read);
    session.receive(b"received 1\r<--E");
    assert_eq!(session.step(), Step::Read);
    assert!(session.mid_request(), "a receipt has begun");
    session.receive(b"OM-->\r");
    assert_eq!(session.step(), Step::Read);
    assert!(!session.mid_request(), "the receipt is complete");
    session.receive(b"rec");
    session.end_of_input();
    assert_eq!(session.step(), Step::Close(CloseReason::Done));
    assert!(!session.mid_request());
}

#[test]
fn script_accepts_exactly_the_right_bytes_however_they_are_cut() {
    let right = MESSAGE.repeat(2);
    for second in 0..=right.len() {
        for first in 0..=second {
            let mut script = script_after_request(BULK);
            let mut status = ReplyStatus::Partial;
            for piece in [&right[..first], &right[first..second], &right[second..]] {
                if !piece.is_empty() {
                    assert_eq!(status, ReplyStatus::Partial);
                    status = script.receive(piece).unwrap();
                }
            }
            assert_eq!(status, ReplyStatus::Complete);
        }
    }
    // Too few bytes are not complete, and too many are wrong, in the same piece or in a later one.
    let (last, all_but_last) = right.split_last().unwrap();
    let mut script = script_after_request(BULK);
    assert_eq!(script.receive(all_but_last), Ok(ReplyStatus::Partial));
    assert_eq!(script.receive(&[*last]), Ok(ReplyStatus::Complete));
    assert_eq!(script.receive(b"h").unwrap_err().offset, right.len());
    let wrong = script_after_request(BULK)
        .receive(&MESSAGE.repeat(3))
        .unwrap_err();
    assert_eq!(
        (wrong.offset, wrong.expected.len(), &wrong.got[..]),
        (right.len(), 0, MESSAGE)
    );
}

/// The script sends one receipt per message, as soon as the message is complete, even if its last piece contains more.
/// The numbers continue over several requests.
#[test]
fn receipt_is_sent_once_per_message() {
    let receipts = |script: &mut dyn Script| {
        let mut output = b"before ".to_vec();
        script.interject(&mut output);
        String::from_utf8(output.split_off(7)).unwrap()
    };
    let receipt = |number| format!("received {number}\r<--EOM-->\r");
    let mut script = script_after_request(BULK);
    assert_eq!(receipts(&mut *script), "");
    script.receive(&MESSAGE[..19]).unwrap();
    assert_eq!(receipts(&mut *script), "", "one byte is missing");
    script.receive(&[&MESSAGE[19..], b"he"].concat()).unwrap();
    assert_eq!(receipts(&mut *script), receipt(1));
    assert_eq!(receipts(&mut *script), "", "each receipt is sent once");
    assert_eq!(script.receive(&MESSAGE[2..]), Ok(ReplyStatus::Complete));
    assert_eq!(receipts(&mut *script), receipt(2));
    script.ask(&mut Vec::new());
    assert_eq!(receipts(&mut *script), "");
    assert_eq!(
        script.receive(&MESSAGE.repeat(2)),
        Ok(ReplyStatus::Complete)
    );
    assert_eq!(receipts(&mut *script), receipt(3) + &receipt(4));
}
