//! Properties of every session: for any input, any cuts of it, and any number of bytes that the socket takes.
//!
//! Each property is checked on all protocols. A new protocol is tested here as soon as it has its oracle.

mod common;

use common::{
    Outcome, START, TERMINATOR, complete_requests, converse, cut, has_lines, open, oracle,
    with_oracle,
};
use proptest::collection::vec;
use proptest::prelude::*;
use protocol::{SessionOptions, Step};

/// Returns the configuration of proptest. A failure is printed with its smallest input; add that input to a plain test
/// and not to a file of random seeds.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Generates bytes that form lines and messages of all lengths: empty, up to the limits below, and longer.
fn text(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        8 => b'a'..=b'z',
        4 => b'A'..=b'Z',
        3 => Just(b'\n'),
        1 => Just(0),
        1 => any::<u8>(),
    ];
    // Random bytes alone would never contain the terminator of `bulk`.
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

/// Generates sizes of pieces, for the input or for the bytes that the socket takes.
fn sizes() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![3 => 1..4usize, 1 => 1..100usize], 1..20)
}

proptest! {
    #![proptest_config(config(150))]

    /// Cuts of the input and partial sends of the output change no reply.
    #[test]
    fn replies_do_not_depend_on_cuts_and_partial_sends(
        input in text(300),
        max_line in 1..40usize,
        arrivals in sizes(),
        takes in sizes(),
    ) {
        for protocol in with_oracle() {
            let mut takes = takes.iter().cycle();
            let outcome = converse(
                open(protocol, max_line),
                cut(&input, &arrivals),
                |offered| offered.min(*takes.next().unwrap_or(&1)),
            );
            prop_assert_eq!(outcome, oracle(protocol.name, &input, max_line), "{}", protocol.name);
        }
    }

    /// No input makes a session panic or continue without end. `converse` counts the steps.
    #[test]
    fn garbage_is_answered_or_refused_and_the_conversation_ends(
        input in vec(prop_oneof![any::<u8>(), Just(0), Just(b'\n')], 0..400),
        arrivals in vec(1..100usize, 1..10),
        strict in any::<bool>(),
    ) {
        let default = SessionOptions::default().max_line;
        // A limit of zero is unusual, but it has a meaning.
        let max_line = if strict { input.len() % 8 } else { default };
        for protocol in with_oracle() {
            let outcome = converse(open(protocol, max_line), cut(&input, &arrivals), common::take_all);
            prop_assert_eq!(outcome, oracle(protocol.name, &input, max_line), "{}", protocol.name);
        }
    }

    /// A driver may also report arrivals while it still has bytes to send, as a reader task beside a writer task does.
    /// For any order of reports, two properties hold at all times:
    ///
    /// * `mid_request` is true if the session still owes bytes for the input so far, an incomplete line included. In
    ///   protocols in which every request is answered, it is true only then.
    /// * `Read` means that all complete requests are answered. So the session holds less than one request, and
    ///   `mid_request` is true exactly if it holds a part of one.
    #[test]
    fn conversation_does_not_depend_on_the_order_of_reports(
        input in text(120),
        max_line in 1..30usize,
        // Number of bytes that arrive (zero is allowed), and of bytes that the socket then takes (zero: no step).
        turns in vec((0..12usize, 0..12usize), 0..60),
    ) {
        for protocol in with_oracle() {
            let name = protocol.name;
            let owed = |received: usize| oracle(name, &input[..received], max_line).output.len();
            let mid_request_is_right = |mid_request: bool, output: &[u8], received: usize| {
                let owes = output.len() < owed(received);
                // Most messages to `bulk` get no reply. Whether a message gets one is decided when it is complete, and
                // then only at the next step.
                mid_request == owes || (name == "bulk" && mid_request)
            };
            let mut session = open(protocol, max_line);
            let (mut received, mut fin) = (0, false);
            let mut output = Vec::new();
            let mut turns = turns.iter().copied().chain(std::iter::repeat((1, 1)));
            let reason = loop {
                let (arriving, taking) = turns.next().unwrap_or((1, 1));
                if received < input.len() {
                    let until = input.len().min(received + arriving);
                    session.receive(&input[received..until]);
                    received = until;
                } else if !fin {
                    session.end_of_input();
                    fin = true;
                }
                prop_assert!(mid_request_is_right(session.mid_request(), &output, received), "{}", name);
                if taking == 0 {
                    continue;
                }
                match session.step() {
                    Step::Read => {
                        prop_assert!(!fin, "{} reads after FIN", name);
                        let complete = complete_requests(protocol, &input[..received]);
                        prop_assert_eq!(output.len(), owed(complete), "{} reads too early", name);
                        prop_assert_eq!(session.mid_request(), complete < received, "{}", name);
                        let most = match name {
                            "bulk" => max_line + TERMINATOR.len() - 1,
                            _ if has_lines(protocol) => max_line,
                            _ => 0,
                        };
                        prop_assert!(received - complete <= most, "{} holds too much", name);
                    }
                    Step::Write(bytes) => {
                        let count = bytes.len().min(taking);
                        prop_assert!(count > 0, "{} writes nothing", name);
                        output.extend_from_slice(&bytes[..count]);
                        prop_assert!(output.len() <= owed(received), "{} sends too much", name);
                        session.sent(count);
                    }
                    Step::SendFile(_) | Step::Work(_) => prop_assert!(false, "{}", name),
                    Step::Close(reason) => break reason,
                }
                prop_assert!(mid_request_is_right(session.mid_request(), &output, received), "{}", name);
            };

            // `Close` is final: later reports change nothing.
            session.receive(&input[received..]);
            session.receive(b"more\n");
            session.end_of_input();
            prop_assert_eq!(session.step(), Step::Close(reason));
            prop_assert!(!session.mid_request());
            prop_assert_eq!(Outcome { output, reason }, oracle(name, &input, max_line), "{}", name);
        }
    }
}
