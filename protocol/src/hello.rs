//! `hello`: any first bytes in, a greeting out, and the server closes.

use crate::script::{AskOptions, Expected, Heard, LineMaker, Script, WrongReply};
use crate::session::{Farewell, Session, SessionOptions, Step};
use crate::work::Chores;
use crate::{Protocol, Usual};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "hello",
    summary: "any first bytes in; a greeting out, and the server closes",
    open: |options| Box::new(Hello::new(options)),
    ask: |options| Box::new(HelloScript::new(options)),
    requests_per_connection: Some(1),
    requests_differ: true,
    usual: Usual::CROWD,
};

const GREETING: &[u8] = b"Hello from server!";

/// The server's side.
struct Hello {
    stage: Stage,
    chores: Chores,
}

enum Stage {
    Listening,
    Greeting { taken: usize },
    Ended,
}

impl Hello {
    fn new(options: &SessionOptions) -> Self {
        Hello {
            stage: Stage::Listening,
            chores: Chores::of(options.work.as_ref()),
        }
    }
}

impl Session for Hello {
    fn receive(&mut self, input: &[u8]) {
        if matches!(self.stage, Stage::Listening) && !input.is_empty() {
            self.stage = Stage::Greeting { taken: 0 };
            self.chores.due(input);
        }
    }

    fn end_of_input(&mut self) {
        if matches!(self.stage, Stage::Listening) {
            self.stage = Stage::Ended;
        }
    }

    fn step(&mut self) -> Step<'_> {
        if let Some(work) = self.chores.pending() {
            return Step::Work(work);
        }
        match self.stage {
            Stage::Listening => Step::Read,
            Stage::Greeting { taken } if taken < GREETING.len() => Step::Write(&GREETING[taken..]),
            Stage::Greeting { .. } | Stage::Ended => Step::Close(Farewell::Done),
        }
    }

    fn sent(&mut self, count: usize) {
        if let Stage::Greeting { taken } = &mut self.stage {
            *taken += count;
            debug_assert!(*taken <= GREETING.len(), "more sent than offered");
        }
    }

    fn worked(&mut self) {
        self.chores.worked();
    }

    fn mid_request(&self) -> bool {
        matches!(self.stage, Stage::Greeting { taken } if taken < GREETING.len())
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
