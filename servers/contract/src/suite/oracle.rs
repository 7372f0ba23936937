//! What a server must say, according to the protocol itself.

use protocol::{AskOptions, Farewell, Protocol, Session, SessionOptions, Step};

/// A session that is driven by hand.
pub(super) struct Oracle {
    session: Box<dyn Session>,
    over: Option<Farewell>,
}

impl Oracle {
    pub(super) fn new(protocol: &'static Protocol) -> Oracle {
        Oracle {
            session: (protocol.open)(&SessionOptions::default()),
            over: None,
        }
    }

    /// What is replied to `input`, before more comes.
    pub(super) fn hear(&mut self, input: &[u8]) -> Vec<u8> {
        self.session.receive(input);
        self.speak()
    }

    /// What is replied to the end of input.
    pub(super) fn hear_the_end(&mut self) -> Vec<u8> {
        self.session.end_of_input();
        self.speak()
    }

    /// How the conversation ended, if it has.
    pub(super) fn over(&self) -> Option<Farewell> {
        self.over
    }

    fn speak(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        loop {
            match self.session.step() {
                Step::Read => return said,
                Step::Write(bytes) => {
                    said.extend_from_slice(bytes);
                    let count = bytes.len();
                    self.session.sent(count);
                }
                Step::Close(farewell) => {
                    self.over = Some(farewell);
                    return said;
                }
            }
        }
    }
}

/// All replies to `input` and its end.
pub(super) fn replies(protocol: &'static Protocol, input: &[u8]) -> Vec<u8> {
    let mut oracle = Oracle::new(protocol);
    let mut said = oracle.hear(input);
    said.extend(oracle.hear_the_end());
    said
}

/// What a well-behaved client asks in one conversation, request by request; of `size` bytes each if the protocol has
/// a choice.
pub(super) fn requests(
    protocol: &'static Protocol,
    client: u64,
    count: usize,
    size: Option<usize>,
) -> Vec<Vec<u8>> {
    let options = AskOptions {
        size,
        seed: 1,
        client,
    };
    let mut script = (protocol.ask)(&options);
    let mut oracle = Oracle::new(protocol);
    let most = protocol.requests_per_connection.unwrap_or(u64::MAX);
    (0..count.min(usize::try_from(most).unwrap_or(usize::MAX)))
        .map(|_| {
            let mut request = Vec::new();
            script.ask(&mut request);
            // Scripts are asked only after the last reply.
            let reply = oracle.hear(&request);
            script.hear(&reply).expect("a session and its script agree");
            request
        })
        .collect()
}
