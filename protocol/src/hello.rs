//! `hello`: any first bytes in, a greeting out, and the server closes.

use crate::Protocol;
use crate::script::{AskOptions, Expected, Heard, LineMaker, Script, WrongReply};
use crate::session::{Farewell, Session, Step};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "hello",
    summary: "any first bytes in; a greeting out, and the server closes",
    open: |_| Box::new(Hello::Listening),
    ask: |options| Box::new(HelloScript::new(options)),
    requests_per_connection: Some(1),
};

const GREETING: &[u8] = b"Hello from server!";

/// The server's side.
enum Hello {
    Listening,
    Greeting { taken: usize },
    Ended,
}

impl Session for Hello {
    fn receive(&mut self, input: &[u8]) {
        if matches!(self, Hello::Listening) && !input.is_empty() {
            *self = Hello::Greeting { taken: 0 };
        }
    }

    fn end_of_input(&mut self) {
        if matches!(self, Hello::Listening) {
            *self = Hello::Ended;
        }
    }

    fn step(&mut self) -> Step<'_> {
        match *self {
            Hello::Listening => Step::Read,
            Hello::Greeting { taken } if taken < GREETING.len() => Step::Write(&GREETING[taken..]),
            Hello::Greeting { .. } | Hello::Ended => Step::Close(Farewell::Done),
        }
    }

    fn sent(&mut self, count: usize) {
        if let Hello::Greeting { taken } = self {
            *taken += count;
            debug_assert!(*taken <= GREETING.len(), "more sent than offered");
        }
    }

    fn mid_request(&self) -> bool {
        matches!(*self, Hello::Greeting { taken } if taken < GREETING.len())
    }
}

/// The client's side. It leaves when it has heard the greeting, as the original's client does.
struct HelloScript {
    lines: LineMaker,
    expected: Expected,
}

impl HelloScript {
    fn new(options: &AskOptions) -> Self {
        HelloScript {
            lines: LineMaker::new(options),
            expected: Expected::default(),
        }
    }
}

impl Script for HelloScript {
    fn ask(&mut self, request: &mut Vec<u8>) {
        self.lines.next_line(request);
        self.expected.begin().extend_from_slice(GREETING);
    }

    fn hear(&mut self, input: &[u8]) -> Result<Heard, WrongReply> {
        // The conversation is over at the greeting's last byte. Servers exist that repeat it for as long as the
        // client stays (one of the originals does); what they say to a client that has left concerns nobody.
        let owed = input.len().min(self.expected.owed());
        match self.expected.hear(&input[..owed])? {
            Heard::Complete => Ok(Heard::Over),
            other => Ok(other),
        }
    }
}
