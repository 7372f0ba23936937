//! `hello`: any first bytes in, a greeting out, and the server closes.

use crate::script::{Expected, LineMaker, ReplyStatus, Script, ScriptOptions, WrongReply};
use crate::session::{CloseReason, Session, SessionOptions, Step};
use crate::work::PendingWork;
use crate::{DefaultLoad, Protocol};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "hello",
    summary: "the client sends any bytes, and the server sends a greeting and closes",
    open: |options| Box::new(Hello::new(options)),
    ask: |options| Box::new(HelloScript::new(options)),
    requests_per_connection: Some(1),
    requests_differ: true,
    default_load: DefaultLoad::SMALL_MESSAGES,
};

const GREETING: &[u8] = b"Hello from server!";

/// Server side.
struct Hello {
    state: HelloState,
    pending_work: PendingWork,
}

/// State of the server side.
enum HelloState {
    Waiting,
    Greeting { sent: usize },
    Ended,
}

impl Hello {
    fn new(options: &SessionOptions) -> Self {
        Hello {
            state: HelloState::Waiting,
            pending_work: PendingWork::of(options.work.as_ref()),
        }
    }
}

impl Session for Hello {
    fn receive(&mut self, input: &[u8]) {
        if matches!(self.state, HelloState::Waiting) && !input.is_empty() {
            self.state = HelloState::Greeting { sent: 0 };
            self.pending_work.due(input);
        }
    }

    fn end_of_input(&mut self) {
        if matches!(self.state, HelloState::Waiting) {
            self.state = HelloState::Ended;
        }
    }

    fn step(&mut self) -> Step<'_> {
        if let Some(work) = self.pending_work.pending() {
            return Step::Work(work);
        }
        match self.state {
            HelloState::Waiting => Step::Read,
            HelloState::Greeting { sent } if sent < GREETING.len() => {
                Step::Write(&GREETING[sent..])
            }
            HelloState::Greeting { .. } | HelloState::Ended => Step::Close(CloseReason::Done),
        }
    }

    fn sent(&mut self, count: usize) {
        if let HelloState::Greeting { sent } = &mut self.state {
            *sent += count;
            debug_assert!(*sent <= GREETING.len(), "more bytes sent than offered");
        }
    }

    fn worked(&mut self) {
        self.pending_work.worked();
    }

    fn mid_request(&self) -> bool {
        matches!(self.state, HelloState::Greeting { sent } if sent < GREETING.len())
    }
}

/// Client side. It disconnects after the greeting, as the original's client does.
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
        // The conversation ends with the last byte of the greeting. Some servers repeat the greeting for as long as the
        // client stays connected (one of the originals does). The client has finished then, so later bytes are not
        // checked.
        let count = input.len().min(self.expected.remaining());
        match self.expected.receive(&input[..count])? {
            ReplyStatus::Complete => Ok(ReplyStatus::Last),
            other => Ok(other),
        }
    }
}
