//! `hello`: any first bytes in, a greeting out, and the server closes.

use crate::script::{Expected, LineMaker, ReplyStatus, Script, ScriptOptions, WrongReply};
use crate::session::{CloseReason, Session, SessionOptions, Step};
use crate::work::PendingWork;
use crate::{DefaultLoad, Protocol};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "hello",
    summary: "any first bytes in; a greeting out, and the server closes",
    open: |options| Box::new(Hello::new(options)),
    ask: |options| Box::new(HelloScript::new(options)),
    requests_per_connection: Some(1),
    requests_differ: true,
    default_load: DefaultLoad::SMALL_MESSAGES,
};

const GREETING: &[u8] = b"Hello from server!";

/// The server's side.
struct Hello {
    stage: HelloState,
    pending_work: PendingWork,
}

enum HelloState {
    Listening,
    Greeting { taken: usize },
    Ended,
}

impl Hello {
    fn new(options: &SessionOptions) -> Self {
        Hello {
            stage: HelloState::Listening,
            pending_work: PendingWork::of(options.work.as_ref()),
        }
    }
}

impl Session for Hello {
    fn receive(&mut self, input: &[u8]) {
        if matches!(self.stage, HelloState::Listening) && !input.is_empty() {
            self.stage = HelloState::Greeting { taken: 0 };
            self.pending_work.due(input);
        }
    }

    fn end_of_input(&mut self) {
        if matches!(self.stage, HelloState::Listening) {
            self.stage = HelloState::Ended;
        }
    }

    fn step(&mut self) -> Step<'_> {
        if let Some(work) = self.pending_work.pending() {
            return Step::Work(work);
        }
        match self.stage {
            HelloState::Listening => Step::Read,
            HelloState::Greeting { taken } if taken < GREETING.len() => {
                Step::Write(&GREETING[taken..])
            }
            HelloState::Greeting { .. } | HelloState::Ended => Step::Close(CloseReason::Done),
        }
    }

    fn sent(&mut self, count: usize) {
        if let HelloState::Greeting { taken } = &mut self.stage {
            *taken += count;
            debug_assert!(*taken <= GREETING.len(), "more sent than offered");
        }
    }

    fn worked(&mut self) {
        self.pending_work.worked();
    }

    fn mid_request(&self) -> bool {
        matches!(self.stage, HelloState::Greeting { taken } if taken < GREETING.len())
    }
}

/// The client's side. It leaves when it has heard the greeting, as the original's client does.
struct HelloScript {
    lines: LineMaker,
    expected: Expected,
}

impl HelloScript {
    fn new(options: &ScriptOptions) -> Self {
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

    fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        // The conversation is over at the greeting's last byte. Servers exist that repeat it for as long as the
        // client stays (one of the originals does); what they say to a client that has left concerns nobody.
        let owed = input.len().min(self.expected.owed());
        match self.expected.receive(&input[..owed])? {
            ReplyStatus::Complete => Ok(ReplyStatus::Last),
            other => Ok(other),
        }
    }
}
