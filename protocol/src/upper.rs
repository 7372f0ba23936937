//! `upper`: bytes in; the same bytes out, ASCII letters in upper case. There is no framing: bytes are answered as they
//! arrive.

use crate::script::{Expected, LineMaker, ReplyStatus, Script, ScriptOptions, WrongReply};
use crate::session::{CloseReason, Session, SessionOptions, Step};
use crate::work::PendingWork;
use crate::{DefaultLoad, Protocol};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "upper",
    summary: "the client sends bytes, and the server returns them with ASCII letters in upper case",
    open: |options| Box::new(Upper::new(options)),
    ask: |options| Box::new(UpperScript::new(options)),
    requests_per_connection: None,
    requests_differ: true,
    default_load: DefaultLoad::SMALL_MESSAGES,
};

/// Server side. It answers the bytes of each read before the next read, so `output` is never longer than the read
/// buffer of the driver.
#[derive(Default)]
struct Upper {
    /// Bytes to send. The socket has taken the first `taken` of them.
    output: Vec<u8>,
    taken: usize,
    pending_work: PendingWork,
    ended: bool,
}

impl Upper {
    fn new(options: &SessionOptions) -> Self {
        Upper {
            pending_work: PendingWork::of(options.work.as_ref()),
            ..Upper::default()
        }
    }
}

impl Session for Upper {
    fn receive(&mut self, input: &[u8]) {
        if self.ended {
            return;
        }
        self.output.drain(..self.taken);
        self.taken = 0;
        let start = self.output.len();
        // There is no framing, so bytes that arrived together cost work together. The client knows them as it sent
        // them.
        if start == 0 && !input.is_empty() {
            self.pending_work.due(input);
        }
        self.output.extend_from_slice(input);
        self.output[start..].make_ascii_uppercase();
    }

    fn end_of_input(&mut self) {
        self.ended = true;
    }

    fn step(&mut self) -> Step<'_> {
        if self.taken < self.output.len() {
            match self.pending_work.pending() {
                Some(work) => Step::Work(work),
                None => Step::Write(&self.output[self.taken..]),
            }
        } else if self.ended {
            Step::Close(CloseReason::Done)
        } else {
            Step::Read
        }
    }

    fn sent(&mut self, count: usize) {
        self.taken += count;
        debug_assert!(
            self.taken <= self.output.len(),
            "more bytes sent than offered"
        );
        if self.taken == self.output.len() {
            self.pending_work.replied();
        }
    }

    fn worked(&mut self) {
        self.pending_work.worked();
    }

    fn mid_request(&self) -> bool {
        self.taken < self.output.len()
    }
}

/// Client side. Its requests are lines only so that a trace of them is easy to read.
struct UpperScript {
    lines: LineMaker,
    expected: Expected,
}

impl UpperScript {
    fn new(options: &ScriptOptions) -> Self {
        UpperScript {
            lines: LineMaker::new(options),
            expected: Expected::default(),
        }
    }
}

impl Script for UpperScript {
    fn ask(&mut self, request: &mut Vec<u8>) {
        let start = request.len();
        self.lines.next_line(request);
        let expected = self.expected.begin();
        expected.extend_from_slice(&request[start..]);
        expected.make_ascii_uppercase();
    }

    fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        self.expected.receive(input)
    }
}
