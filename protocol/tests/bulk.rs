//! `bulk`: messages that end with several bytes, cut anywhere, and replies that are never copied.

mod common;

use common::{
    BULK, MESSAGE, START, Said, TERMINATOR, all, converse, cut, find, open, oracle, same_step_again,
};
use protocol::{
    Bulk, CloseReason, Protocol, ReplyStatus, Script, ScriptOptions, Session, SessionOptions, Step,
};

fn bulk() -> &'static Protocol {
    find("bulk")
}

fn sender(bulk: Bulk) -> Box<dyn Session> {
    (find("bulk").open)(&SessionOptions {
        bulk,
        ..SessionOptions::default()
    })
}

/// A script that has asked.
fn receiver(bulk: Bulk) -> Box<dyn Script> {
    let mut script = (find("bulk").ask)(&ScriptOptions {
        bulk,
        ..ScriptOptions::default()
    });
    script.ask(&mut Vec::new());
    script
}

/// A message, made without a look at how a session does it.
fn message(size: usize) -> Vec<u8> {
    let mut message = b"head".to_vec();
    message.resize(size - 4, b'.');
    message.extend_from_slice(b"tail");
    message.extend_from_slice(TERMINATOR);
    message
}

fn said(output: Vec<u8>, farewell: CloseReason) -> Said {
    Said { output, farewell }
}

fn complaint(most: usize) -> Vec<u8> {
    format!("error: a message may have {most} bytes\r<--EOM-->\r").into_bytes()
}

#[test]
fn no_cut_of_what_is_said_can_be_seen() {
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
        // Those overlap: the end of one is not the beginning of the next.
        b"start\r<--EOM-->\r<--EOM-->\rstart\r<--EOM-->\r",
        b"\r<--EOM-\r<--EOM-->\rstart\r<--EOM-->\r",
        b"START\r<--EOM-->\rstart \r<--EOM-->\r",
        b"xstart\r\r<--EOM-->\r<--EOM-->\r",
    ];
    for input in inputs {
        let expected = oracle("bulk", input, 12);
        for take in [all, |_: usize| 1] {
            let check = |pieces: &[&[u8]]| {
                let said = converse(open(bulk(), 12), pieces.iter().copied(), take);
                assert_eq!(said, expected, "{pieces:?}");
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
fn each_start_has_its_messages_and_a_receipt_has_none() {
    let twice = converse(open(bulk(), 100), [&START.repeat(2)[..]], all);
    assert_eq!(twice, said(MESSAGE.repeat(4), CloseReason::Done));
    let receipt = [b"received 7", TERMINATOR].concat();
    let none = converse(open(bulk(), 100), [&receipt[..]], all);
    assert_eq!(none, said(Vec::new(), CloseReason::Done));
    // FIN ends no message: who did not say all of it has not asked.
    let unfinished = converse(open(bulk(), 100), [&b"start"[..]], all);
    assert_eq!(unfinished, said(Vec::new(), CloseReason::Done));
}

/// Around every size at which a message is cut into other pieces.
#[test]
fn messages_of_every_size_are_right() {
    const DOTS: usize = 256 * 1024;
    let around = |size: usize| size - 2..=size + 2;
    let sizes = (8..40).chain(around(DOTS)).chain(around(DOTS + 4));
    let sizes = sizes.chain(around(DOTS + 8)).chain(around(2 * DOTS + 8));
    for size in sizes.chain(around(3 << 20)) {
        let options = Bulk {
            size: size as u64,
            count: 2,
        };
        let whole = message(size);
        assert_eq!(whole.len(), size + TERMINATOR.len());
        for most in [usize::MAX, 200_001] {
            let mut session = sender(options);
            session.receive(START);
            let mut offset = 0;
            while let Step::Write(bytes) = session.step() {
                let at = offset % whole.len();
                let count = bytes.len().min(most);
                assert!(bytes[..count] == whole[at..at + count], "{size} at {at}");
                offset += count;
                session.sent(count);
            }
            assert_eq!(offset, 2 * whole.len(), "{size}");
        }
        assert_eq!(
            receiver(options).receive(&whole.repeat(2)),
            Ok(ReplyStatus::Complete)
        );
    }
}

/// Whatever the size and whoever asks, what is sent lies in the same few hundred KiB.
#[test]
fn all_messages_are_sent_from_one_place() {
    let mut places: Option<(usize, usize)> = None;
    let mut sessions = Vec::new();
    for size in [8, 9, 5000, 3 << 20, 3 << 20, 1 << 30] {
        let mut session = sender(Bulk { size, count: 3 });
        session.receive(START);
        let mut sent = 0_u64;
        loop {
            session = same_step_again(session);
            let Step::Write(bytes) = session.step() else {
                break;
            };
            let range = bytes.as_ptr_range();
            let (first, last) = places.unwrap_or((range.start.addr(), range.end.addr()));
            places = Some((first.min(range.start.addr()), last.max(range.end.addr())));
            let count = bytes.len();
            sent += count as u64;
            session.sent(count);
            if sent > 20 << 20 {
                break;
            }
        }
        sessions.push(session);
    }
    let (first, last) = places.unwrap();
    assert!(last - first <= 256 * 1024 + 64, "{} bytes", last - first);
}

#[test]
fn a_message_of_the_limit_is_heard_and_one_byte_more_is_refused() {
    let refused = |before: &[u8]| said([before, &complaint(8)].concat(), CloseReason::Refused);
    let heard = |output: &[u8]| said(output.to_vec(), CloseReason::Done);
    let reply = MESSAGE.repeat(2);
    let with_end = |text: &[u8]| [text, TERMINATOR].concat();
    for (input, expected) in [
        (with_end(b"12345678"), heard(b"")),
        (with_end(b"123456789"), refused(b"")),
        ([&with_end(b"123456789")[..], START].concat(), refused(b"")),
        // In time: they get what they asked for before that.
        ([START, &with_end(b"123456789")].concat(), refused(&reply)),
        (
            [START, b"12345678\r<--EOM--", START].concat(),
            refused(&reply),
        ),
        // It may still be a terminator that comes after the eight.
        ([START, b"12345678\r<--EOM-->"].concat(), heard(&reply)),
    ] {
        for at in 0..=input.len() {
            let pieces = [&input[..at], &input[at..]];
            let said = converse(open(bulk(), 8), pieces, all);
            assert_eq!(said, expected, "{pieces:?}");
        }
        let said = converse(open(bulk(), 8), cut(&input, &[1]), |_| 1);
        assert_eq!(said, expected);
    }
}

#[test]
fn an_endless_message_is_refused_and_nothing_moves_it_afterwards() {
    let mut session = open(bulk(), 100);
    // As long as the last ten bytes may be the beginning of a terminator.
    for _ in 0..110 {
        session.receive(b"x");
        assert_eq!(session.step(), Step::Read);
        assert!(session.mid_request());
    }
    session.receive(b"x");
    assert_eq!(session.step(), Step::Write(&complaint(100)));
    session.receive(START);
    session.end_of_input();
    assert_eq!(session.step(), Step::Write(&complaint(100)));
    session.sent(5);
    assert!(session.mid_request());
    assert_eq!(session.step(), Step::Write(&complaint(100)[5..]));
    session.sent(complaint(100).len() - 5);
    assert!(!session.mid_request());
    session.receive(START);
    assert_eq!(session.step(), Step::Close(CloseReason::Refused));
    assert!(!session.mid_request());
}

/// Reads are asked for only when all that was asked is answered, so a peer that asks a thousand times at once has one
/// message after the other and costs no memory.
#[test]
fn a_request_is_looked_at_when_its_turn_comes() {
    let mut session = open(bulk(), 8);
    // The last of them is too long; the first is answered all the same.
    session.receive(&[&START.repeat(1000)[..], b"far too long", TERMINATOR].concat());
    let expected = MESSAGE.repeat(1000 * BULK.count as usize);
    let mut sent = 0;
    while sent < expected.len() {
        let Step::Write(bytes) = session.step() else {
            panic!("more is owed");
        };
        assert!(expected[sent..].starts_with(bytes), "at {sent}");
        let count = bytes.len();
        sent += count;
        session.sent(count);
    }
    assert_eq!(session.step(), Step::Write(&complaint(8)));
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
        assert!(session.mid_request(), "{left} bytes are owed");
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
    assert!(!session.mid_request(), "and is heard");
    session.receive(b"rec");
    session.end_of_input();
    assert_eq!(session.step(), Step::Close(CloseReason::Done));
    assert!(!session.mid_request());
}

#[test]
fn the_client_accepts_exactly_the_right_bytes_however_they_are_cut() {
    let right = MESSAGE.repeat(2);
    for second in 0..=right.len() {
        for first in 0..=second {
            let mut script = receiver(BULK);
            let mut heard = ReplyStatus::Partial;
            for piece in [&right[..first], &right[first..second], &right[second..]] {
                if !piece.is_empty() {
                    assert_eq!(heard, ReplyStatus::Partial);
                    heard = script.receive(piece).unwrap();
                }
            }
            assert_eq!(heard, ReplyStatus::Complete);
        }
    }
    // Too little is not complete, and too much is wrong, at once or afterwards.
    let (last, all_but_last) = right.split_last().unwrap();
    let mut script = receiver(BULK);
    assert_eq!(script.receive(all_but_last), Ok(ReplyStatus::Partial));
    assert_eq!(script.receive(&[*last]), Ok(ReplyStatus::Complete));
    assert_eq!(script.receive(b"h").unwrap_err().offset, right.len());
    let wrong = receiver(BULK).receive(&MESSAGE.repeat(3)).unwrap_err();
    assert_eq!(
        (wrong.offset, wrong.expected.len(), &wrong.got[..]),
        (right.len(), 0, MESSAGE)
    );
}

/// Once per message, as soon as it is whole, whatever else came in the same piece; and numbered on over the starts.
#[test]
fn receipts_come_once_per_message() {
    let said = |script: &mut dyn Script| {
        let mut said = b"before ".to_vec();
        script.interject(&mut said);
        String::from_utf8(said.split_off(7)).unwrap()
    };
    let receipt = |number| format!("received {number}\r<--EOM-->\r");
    let mut script = receiver(BULK);
    assert_eq!(said(&mut *script), "");
    script.receive(&MESSAGE[..19]).unwrap();
    assert_eq!(said(&mut *script), "", "one byte is missing");
    script.receive(&[&MESSAGE[19..], b"he"].concat()).unwrap();
    assert_eq!(said(&mut *script), receipt(1));
    assert_eq!(said(&mut *script), "", "given");
    assert_eq!(script.receive(&MESSAGE[2..]), Ok(ReplyStatus::Complete));
    assert_eq!(said(&mut *script), receipt(2));
    script.ask(&mut Vec::new());
    assert_eq!(said(&mut *script), "");
    assert_eq!(
        script.receive(&MESSAGE.repeat(2)),
        Ok(ReplyStatus::Complete)
    );
    assert_eq!(said(&mut *script), receipt(3) + &receipt(4));
}
