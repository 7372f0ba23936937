//! Work before replies: who has to do it, when, and that nothing else changes.

mod common;

use std::time::Duration;

use common::{BULK, MESSAGE, START, Said, converse, cut, find, oracle, same_step_again};
use protocol::{
    CloseReason, PROTOCOLS, Protocol, ScriptOptions, Session, SessionOptions, Step, Work, WorkKind,
    WorkPlan,
};

fn plan(percent: u8) -> WorkPlan {
    let time = Duration::from_millis(5);
    WorkPlan::new(WorkKind::Wait, time..=time, percent, 3)
}

const TO_DO: Work = Work::Wait(Duration::from_millis(5));

fn open(protocol: &Protocol, plan: &WorkPlan) -> Box<dyn Session> {
    (protocol.open)(&SessionOptions {
        work: Some(plan.clone()),
        bulk: BULK,
        ..SessionOptions::default()
    })
}

/// What happened, in order: bytes that went out, and work.
#[derive(Debug, PartialEq, Eq, Clone)]
enum Event {
    Said(Vec<u8>),
    Worked,
}

fn said(bytes: &[u8]) -> Event {
    Event::Said(bytes.to_vec())
}

/// Holds a conversation. Every step is asked for more than once, and whoever is owed work is in the middle of a request.
fn hold(mut session: Box<dyn Session>, pieces: &[&[u8]], take: fn(usize) -> usize) -> Vec<Event> {
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
                    Some(Event::Said(said)) => said.extend_from_slice(&bytes[..count]),
                    _ => events.push(said(&bytes[..count])),
                }
                session.sent(count);
            }
            Step::Work(work) => {
                assert_eq!(work, TO_DO);
                assert!(session.mid_request(), "its reply is owed");
                events.push(Event::Worked);
                session.worked();
                assert!(session.mid_request(), "and still is");
                assert!(!matches!(session.step(), Step::Work(_)), "done once");
            }
            Step::SendFile(_) => panic!("there are no files here"),
            Step::Close(farewell) => {
                assert_eq!(farewell, CloseReason::Done);
                assert!(!session.mid_request());
                return events;
            }
        }
    }
    panic!("the conversation does not end");
}

/// The conversation with all work left out.
fn output(events: &[Event]) -> Vec<u8> {
    let said = events.iter().filter_map(|event| match event {
        Event::Said(bytes) => Some(&bytes[..]),
        Event::Worked => None,
    });
    said.collect::<Vec<_>>().concat()
}

const LINES: &[u8] = b"a\nbb\nccc\nno end";

#[test]
fn before_every_reply_something_is_to_be_done_once() {
    let work = Event::Worked;
    for (name, input, expected) in [
        (
            "echo",
            LINES,
            vec![
                work.clone(),
                said(b"a\n"),
                work.clone(),
                said(b"bb\n"),
                work.clone(),
                said(b"ccc\n"),
                work.clone(),
                said(b"no end"),
            ],
        ),
        (
            "pair",
            b"a\nbb\n",
            vec![work.clone(), said(b"a\n"), work.clone(), said(b"a\nbb\n")],
        ),
        (
            "hello",
            b"x",
            vec![work.clone(), said(b"Hello from server!")],
        ),
        (
            "upper",
            b"abc\ndef\n",
            vec![work.clone(), said(b"ABC\nDEF\n")],
        ),
        (
            "bulk",
            START,
            vec![work.clone(), said(MESSAGE), work.clone(), said(MESSAGE)],
        ),
    ] {
        for take in [|offered: usize| offered, |_: usize| 1] {
            let events = hold(open(find(name), &plan(100)), &[input], take);
            assert_eq!(events, expected, "{name}");
        }
    }
}

/// What was answered before goes out first, and what is not chosen waits for nothing.
#[test]
fn only_the_chosen_are_worked_for_and_in_their_turn() {
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
            Some(Event::Said(said)) => said.extend_from_slice(line),
            _ => expected.push(said(line)),
        }
    }
    let chosen = expected.iter().filter(|one| **one == Event::Worked).count();
    assert!((20..120).contains(&chosen), "{chosen} of 200");
    let input = lines.concat();
    for sizes in [&[1][..], &[7, 100, 1], &[]] {
        let events = hold(open(find("echo"), &plan), &cut(&input, sizes), |n| n);
        // Cuts part what goes out in one write, and work alone parts it here.
        assert_eq!(events, expected, "{sizes:?}");
    }
}

#[test]
fn cuts_change_nothing_but_the_count_of_upper() {
    for name in ["pair", "echo", "hello", "bulk", "upper"] {
        let input = match name {
            "bulk" => START.repeat(2),
            _ => LINES.to_vec(),
        };
        let right = oracle(name, &input, 1000).output;
        for percent in [100, 50] {
            let whole = hold(open(find(name), &plan(percent)), &[&input], |n| n);
            assert_eq!(output(&whole), right, "{name}");
            for at in 1..input.len() {
                let pieces = [&input[..at], &input[at..]];
                // What `hello` hears is whatever comes first.
                let same = !matches!((name, percent), ("upper", _) | ("hello", 50));
                let events = hold(open(find(name), &plan(percent)), &pieces, |n| n.div_ceil(2));
                assert_eq!(output(&events), right, "{name} cut at {at}");
                assert!(!same || events == whole, "{name} cut at {at}");
            }
        }
    }
    let parts = hold(open(find("upper"), &plan(100)), &[b"a", b"b"], |n| n);
    assert_eq!(
        parts,
        [Event::Worked, said(b"A"), Event::Worked, said(b"B")]
    );
}

/// A client with the same plan knows of each request whether the server has something to do.
#[test]
fn both_sides_agree_on_who_costs_work() {
    for protocol in PROTOCOLS.iter().filter(|one| one.requests_differ) {
        let name = protocol.name;
        for seed in 0..100 {
            let plan = plan(30).with_seed(seed);
            let mut script = (find(name).ask)(&ScriptOptions::default());
            let mut request = Vec::new();
            script.ask(&mut request);
            let events = hold(open(find(name), &plan), &[&request], |n| n);
            assert_eq!(
                plan.chooses(&request),
                events.contains(&Event::Worked),
                "{name}, {seed}"
            );
        }
    }
}

/// Refusing costs no work, and neither does what is not answered.
#[test]
fn nothing_is_done_for_those_that_get_no_reply() {
    for name in ["pair", "echo", "hello", "upper", "bulk"] {
        assert_eq!(hold(open(find(name), &plan(100)), &[], |n| n), []);
    }
    let receipt = b"received 1\r<--EOM-->\r";
    assert_eq!(hold(open(find("bulk"), &plan(100)), &[receipt], |n| n), []);
    for name in ["pair", "echo"] {
        let session = (find(name).open)(&SessionOptions {
            max_line: 3,
            work: Some(plan(100)),
            ..SessionOptions::default()
        });
        // It panics at work.
        let Said { output, farewell } = converse(session, [&b"too long\n"[..]], |n| n);
        assert_eq!(output, common::complaint(3));
        assert_eq!(farewell, CloseReason::Refused);
    }
}
