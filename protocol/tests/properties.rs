//! What holds for every session, whatever arrives, however it is cut, and however little the socket takes.
//!
//! Each property is tried on all protocols: a new one is tested here as soon as it has its oracle.

mod common;

use common::{
    START, Said, TERMINATOR, converse, cut, generic, has_lines, open, oracle, whole_requests,
};
use proptest::collection::vec;
use proptest::prelude::*;
use protocol::{SessionOptions, Step};

/// A failure is printed with its smallest input. It belongs into a plain test, not into a file of random seeds.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Bytes that make lines and messages of all lengths up to about the limits below: none, some, too many.
fn text(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        8 => b'a'..=b'z',
        4 => b'A'..=b'Z',
        3 => Just(b'\n'),
        1 => Just(0),
        1 => any::<u8>(),
    ];
    // No random bytes would ever be what `bulk` looks for.
    let part = prop_oneof![
        40 => byte.prop_map(|byte| vec![byte]),
        2 => Just(START.to_vec()),
        2 => (0..=TERMINATOR.len()).prop_map(|end| TERMINATOR[..end].to_vec()),
        1 => Just(TERMINATOR.to_vec()),
    ];
    let parts = vec(part, 0..longest).prop_map(|parts| parts.concat());
    parts.prop_map(move |mut text| {
        text.truncate(longest);
        text
    })
}

/// Sizes of pieces: of arrivals, or of what the socket takes.
fn sizes() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![3 => 1..4usize, 1 => 1..100usize], 1..20)
}

proptest! {
    #![proptest_config(config(150))]

    /// Cuts on the way in and partial sends on the way out are invisible.
    #[test]
    fn cuts_and_partial_sends_change_nothing(
        input in text(300),
        max_line in 1..40usize,
        arrivals in sizes(),
        takes in sizes(),
    ) {
        for protocol in generic() {
            let mut takes = takes.iter().cycle();
            let said = converse(
                open(protocol, max_line),
                cut(&input, &arrivals),
                |offered| offered.min(*takes.next().unwrap_or(&1)),
            );
            prop_assert_eq!(said, oracle(protocol.name, &input, max_line), "{}", protocol.name);
        }
    }

    /// Nothing that can arrive makes a session panic or go on for ever (`converse` counts the steps).
    #[test]
    fn garbage_is_answered_or_refused_but_ends(
        input in vec(prop_oneof![any::<u8>(), Just(0), Just(b'\n')], 0..400),
        arrivals in vec(1..100usize, 1..10),
        strict in any::<bool>(),
    ) {
        let default = SessionOptions::default().max_line;
        // A limit of nothing is a strange thing to ask for, but it has a meaning.
        let max_line = if strict { input.len() % 8 } else { default };
        for protocol in generic() {
            let said = converse(open(protocol, max_line), cut(&input, &arrivals), common::all);
            prop_assert_eq!(said, oracle(protocol.name, &input, max_line), "{}", protocol.name);
        }
    }

    /// A driver may also report arrivals while it still has something to send (a reader task beside a writer task
    /// does). Whatever the order of reports, at every moment:
    ///
    /// * `mid_request` is true when the peer is owed something for what it has sent, the line it has begun included, and
    ///   where every request is answered, only then;
    /// * `Read` means that all whole requests are answered, so a session holds less than one request, and `mid_request`
    ///   is true exactly if it does hold some.
    #[test]
    fn any_order_of_reports_gives_the_same_conversation(
        input in text(120),
        max_line in 1..30usize,
        // How many bytes arrive (none is allowed), and how many the socket would then take (none: nobody asks it).
        turns in vec((0..12usize, 0..12usize), 0..60),
    ) {
        for protocol in generic() {
            let name = protocol.name;
            let owed = |received: usize| oracle(name, &input[..received], max_line).output.len();
            let right = |mid_request: bool, output: &[u8], received: usize| {
                let owes = output.len() < owed(received);
                // Most of what `bulk` hears needs no answer. Whether it does is not known before it is whole, and then
                // not before the next step.
                mid_request == owes || (name == "bulk" && mid_request)
            };
            let mut session = open(protocol, max_line);
            let (mut received, mut fin) = (0, false);
            let mut output = Vec::new();
            let mut turns = turns.iter().copied().chain(std::iter::repeat((1, 1)));
            let farewell = loop {
                let (arriving, taking) = turns.next().unwrap_or((1, 1));
                if received < input.len() {
                    let until = input.len().min(received + arriving);
                    session.receive(&input[received..until]);
                    received = until;
                } else if !fin {
                    session.end_of_input();
                    fin = true;
                }
                prop_assert!(right(session.mid_request(), &output, received), "{}", name);
                if taking == 0 {
                    continue;
                }
                match session.step() {
                    Step::Read => {
                        prop_assert!(!fin, "{} reads after FIN", name);
                        let whole = whole_requests(protocol, &input[..received]);
                        prop_assert_eq!(output.len(), owed(whole), "{} reads too early", name);
                        prop_assert_eq!(session.mid_request(), whole < received, "{}", name);
                        let most = match name {
                            "bulk" => max_line + TERMINATOR.len() - 1,
                            _ if has_lines(protocol) => max_line,
                            _ => 0,
                        };
                        prop_assert!(received - whole <= most, "{} holds too much", name);
                    }
                    Step::Write(bytes) => {
                        let count = bytes.len().min(taking);
                        prop_assert!(count > 0, "{} writes nothing", name);
                        output.extend_from_slice(&bytes[..count]);
                        prop_assert!(output.len() <= owed(received), "{} says too much", name);
                        session.sent(count);
                    }
                    Step::SendFile(_) | Step::Work(_) => prop_assert!(false, "{}", name),
                    Step::Close(farewell) => break farewell,
                }
                prop_assert!(right(session.mid_request(), &output, received), "{}", name);
            };

            // `Close` is final: what is reported now changes nothing.
            session.receive(&input[received..]);
            session.receive(b"more\n");
            session.end_of_input();
            prop_assert_eq!(session.step(), Step::Close(farewell));
            prop_assert!(!session.mid_request());
            prop_assert_eq!(Said { output, farewell }, oracle(name, &input, max_line), "{}", name);
        }
    }
}
