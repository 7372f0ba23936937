//! Work before replies: which requests need it, when it is due, and that it changes no reply.

mod common;

use std::time::Duration;

use common::{BULK, MESSAGE, Outcome, START, converse, cut, find, oracle, same_step_again};
use protocol::{
    CloseReason, PROTOCOLS, Protocol, ScriptOptions, Session, SessionOptions, Step, Work, WorkKind,
    WorkPlan,
};

fn plan(percent: u8) -> WorkPlan {
    let time = Duration::from_millis(5);
    WorkPlan::new(WorkKind::Wait, time..=time, percent, 3)
}

/// Work of the plans above.
const EXPECTED_WORK: Work = Work::Wait(Duration::from_millis(5));

fn open(protocol: &Protocol, plan: &WorkPlan) -> Box<dyn Session> {
    (protocol.open)(&SessionOptions {
        work: Some(plan.clone()),
        bulk: BULK,
        ..SessionOptions::default()
    })
}

/// Event of a conversation: bytes that the session sent, or work.
#[derive(Debug, PartialEq, Eq, Clone)]
enum Event {
    Sent(Vec<u8>),
    Worked,
}

fn sent(bytes: &[u8]) -> Event {
    Event::Sent(bytes.to_vec())
}

/// Drives a conversation and returns its events. The driver calls `step` more than once for each step, and checks that
/// the peer is in the middle of a request while work is due.
fn events_of(
    mut session: Box<dyn Session>,
    pieces: &[&[u8]],
    take: fn(usize) -> usize,
) -> Vec<Event> {
    let mut pieces = pieces.iter();
    let mut events = Vec::new();
    for _ in 0..10_000 {
        session = same_step_again(session);
        match session.step() {
            Step::Read => match pieces.next() {
                Some(piece) => session.receive(piece),
                None => session.end_of_input(),
            },
            Step::Write(bytes) => {
                let count = take(bytes.len());
                match events.last_mut() {
                    Some(Event::Sent(sent)) => sent.extend_from_slice(&bytes[..count]),
                    _ => events.push(sent(&bytes[..count])),
                }
                session.sent(count);
            }
            Step::Work(work) => {
                assert_eq!(work, EXPECTED_WORK);
                assert!(session.mid_request(), "the reply is not sent yet");
                events.push(Event::Worked);
                session.worked();
                assert!(session.mid_request(), "the reply is still not sent");
                assert!(
                    !matches!(session.step(), Step::Work(_)),
                    "work is due twice before one reply"
                );
            }
            Step::SendFile(_) => panic!("this protocol has no files"),
            Step::Close(reason) => {
                assert_eq!(reason, CloseReason::Done);
                assert!(!session.mid_request());
                return events;
            }
        }
    }
    panic!("the conversation does not end");
}

/// Returns the bytes of the conversation, without the work.
fn output(events: &[Event]) -> Vec<u8> {
    let sent = events.iter().filter_map(|event| match event {
        Event::Sent(bytes) => Some(&bytes[..]),
        Event::Worked => None,
    });
    sent.collect::<Vec<_>>().concat()
}

const LINES: &[u8] = b"a\nbb\nccc\nno end";

#[test]
fn work_is_due_once_before_each_reply() {
    let work = Event::Worked;
    for (name, input, expected) in [
        (
            "echo",
            LINES,
            vec![
                work.clone(),
                sent(b"a\n"),
                work.clone(),
                sent(b"bb\n"),
                work.clone(),
                sent(b"ccc\n"),
                work.clone(),
                sent(b"no end"),
            ],
        ),
        (
            "pair",
            b"a\nbb\n",
            vec![work.clone(), sent(b"a\n"), work.clone(), sent(b"a\nbb\n")],
        ),
        (
            "hello",
            b"x",
            vec![work.clone(), sent(b"Hello from server!")],
        ),
        (
            "upper",
            b"abc\ndef\n",
            vec![work.clone(), sent(b"ABC\nDEF\n")],
        ),
        (
            "bulk",
            START,
            vec![work.clone(), sent(MESSAGE), work.clone(), sent(MESSAGE)],
        ),
    ] {
        for take in [|offered: usize| offered, |_: usize| 1] {
            let events = events_of(open(find(name), &plan(100)), &[input], take);
            assert_eq!(events, expected, "{name}");
        }
    }
}

/// Replies to earlier requests are sent first, and requests that are not chosen wait for nothing.
#[test]
fn work_is_due_only_before_chosen_replies_and_in_order() {
    let plan = plan(30);
    let lines: Vec<Vec<u8>> = (0..200)
        .map(|n| format!("line {n}\n").into_bytes())
        .collect();
    let mut expected: Vec<Event> = Vec::new();
    for line in &lines {
        if plan.chooses(line) {
            expected.push(Event::Worked);
        }
        match expected.last_mut() {
            Some(Event::Sent(sent)) => sent.extend_from_slice(line),
            _ => expected.push(sent(line)),
        }
    }
    let chosen = expected
        .iter()
        .filter(|event| **event == Event::Worked)
        .count();
    assert!((20..120).contains(&chosen), "{chosen} of 200");
    let input = lines.concat();
    for sizes in [&[1][..], &[7, 100, 1], &[]] {
        let events = events_of(open(find("echo"), &plan), &cut(&input, sizes), |n| n);
        // Bytes of several writes are one event here, so cuts don't matter: only work separates events.
        assert_eq!(events, expected, "{sizes:?}");
    }
}

#[test]
fn cuts_change_no_reply_and_only_the_work_of_upper_and_hello() {
    for name in ["pair", "echo", "hello", "bulk", "upper"] {
        let input = match name {
            "bulk" => START.repeat(2),
            _ => LINES.to_vec(),
        };
        let expected = oracle(name, &input, 1000).output;
        for percent in [100, 50] {
            let uncut = events_of(open(find(name), &plan(percent)), &[&input], |n| n);
            assert_eq!(output(&uncut), expected, "{name}");
            for at in 1..input.len() {
                let pieces = [&input[..at], &input[at..]];
                // The request of `hello` is the first piece.
                let same_work = !matches!((name, percent), ("upper", _) | ("hello", 50));
                let events =
                    events_of(open(find(name), &plan(percent)), &pieces, |n| n.div_ceil(2));
                assert_eq!(output(&events), expected, "{name} cut at {at}");
                assert!(!same_work || events == uncut, "{name} cut at {at}");
            }
        }
    }
    let parts = events_of(open(find("upper"), &plan(100)), &[b"a", b"b"], |n| n);
    assert_eq!(
        parts,
        [Event::Worked, sent(b"A"), Event::Worked, sent(b"B")]
    );
}

/// A client with the same plan predicts for each request whether the server has work.
#[test]
fn both_sides_agree_which_requests_cost_work() {
    for protocol in PROTOCOLS.iter().filter(|one| one.requests_differ) {
        let name = protocol.name;
        for seed in 0..100 {
            let plan = plan(30).with_seed(seed);
            let mut script = (find(name).ask)(&ScriptOptions::default());
            let mut request = Vec::new();
            script.ask(&mut request);
            let events = events_of(open(find(name), &plan), &[&request], |n| n);
            assert_eq!(
                plan.chooses(&request),
                events.contains(&Event::Worked),
                "{name}, {seed}"
            );
        }
    }
}

/// A refusal costs no work, and neither does input that gets no reply.
#[test]
fn requests_without_a_reply_cost_no_work() {
    for name in ["pair", "echo", "hello", "upper", "bulk"] {
        assert_eq!(events_of(open(find(name), &plan(100)), &[], |n| n), []);
    }
    let receipt = b"received 1\r<--EOM-->\r";
    assert_eq!(
        events_of(open(find("bulk"), &plan(100)), &[receipt], |n| n),
        []
    );
    for name in ["pair", "echo"] {
        let session = (find(name).open)(&SessionOptions {
            max_line: 3,
            work: Some(plan(100)),
            ..SessionOptions::default()
        });
        // `converse` panics if work is due.
        let Outcome { output, reason } = converse(session, [&b"too long\n"[..]], |n| n);
        assert_eq!(output, common::error_reply(3));
        assert_eq!(reason, CloseReason::Refused);
    }
}
