//! `upper`: bytes in, the same bytes out with ASCII letters in upper case. No framing at all: what arrives is
//! answered as it arrives.

use crate::script::{AskOptions, Expected, Heard, LineMaker, Script, WrongReply};
use crate::session::{Farewell, Session, SessionOptions, Step};
use crate::work::Chores;
use crate::{Protocol, Usual};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "upper",
    summary: "bytes in; the same bytes out, ASCII letters in upper case",
    open: |options| Box::new(Upper::new(options)),
    ask: |options| Box::new(UpperScript::new(options)),
    requests_per_connection: None,
    requests_differ: true,
    usual: Usual::CROWD,
};

/// The server's side. What a driver read at once is answered at once, so `output` is never longer than its buffer.
#[derive(Default)]
struct Upper {
    output: Vec<u8>,
    taken: usize,
    chores: Chores,
    ended: bool,
}

impl Upper {
    fn new(options: &SessionOptions) -> Self {
        Upper {
            chores: Chores::of(options.work.as_ref()),
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
        // There are no requests to tell apart: what came together costs work together. The client knows it as it was sent.
        if start == 0 && !input.is_empty() {
            self.chores.due(input);
        }
        self.output.extend_from_slice(input);
        self.output[start..].make_ascii_uppercase();
    }

    fn end_of_input(&mut self) {
        self.ended = true;
    }

    fn step(&mut self) -> Step<'_> {
        if self.taken < self.output.len() {
            match self.chores.pending() {
                Some(work) => Step::Work(work),
                None => Step::Write(&self.output[self.taken..]),
            }
        } else if self.ended {
            Step::Close(Farewell::Done)
        } else {
            Step::Read
        }
    }

    fn sent(&mut self, count: usize) {
        self.taken += count;
        debug_assert!(self.taken <= self.output.len(), "more sent than offered");
        if self.taken == self.output.len() {
            self.chores.replied();
        }
    }

    fn worked(&mut self) {
        self.chores.worked();
    }

    fn mid_request(&self) -> bool {
        self.taken < self.output.len()
    }
}

/// The client's side: a request is a line only so that people can read it.
struct UpperScript {
    lines: LineMaker,
    expected: Expected,
}

impl UpperScript {
    fn new(options: &AskOptions) -> Self {
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

    fn hear(&mut self, input: &[u8]) -> Result<Heard, WrongReply> {
        self.expected.hear(input)
    }
}
