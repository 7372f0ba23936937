//! `pair`: a line in; the previous line and this one out. It is the smallest conversation with a state, so a server
//! that mixes up two connections sends a wrong reply at once.

use crate::lines::{LineHandler, Lines};
use crate::script::{Expected, LineMaker, ReplyStatus, Script, ScriptOptions, WrongReply};
use crate::{DefaultLoad, Protocol};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "pair",
    summary: "the client sends a line, and the server answers with the previous line and this one",
    open: |options| Box::new(Lines::new(Pair::default(), options)),
    ask: |options| Box::new(PairScript::new(options)),
    requests_per_connection: None,
    requests_differ: true,
    default_load: DefaultLoad::SMALL_MESSAGES,
};

/// Server side. It remembers the previous line.
#[derive(Default)]
struct Pair {
    previous: Vec<u8>,
}

impl LineHandler for Pair {
    fn answer(&mut self, line: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.previous);
        reply.extend_from_slice(line);
        self.previous.clear();
        self.previous.extend_from_slice(line);
    }
}

/// Client side.
struct PairScript {
    lines: LineMaker,
    previous: Vec<u8>,
    expected: Expected,
}

impl PairScript {
    fn new(options: &ScriptOptions) -> Self {
        PairScript {
            lines: LineMaker::new(options),
            previous: Vec::new(),
            expected: Expected::default(),
        }
    }
}

impl Script for PairScript {
    fn ask(&mut self, request: &mut Vec<u8>) {
        let start = request.len();
        self.lines.next_line(request);
        let line = &request[start..];
        let expected = self.expected.begin();
        expected.extend_from_slice(&self.previous);
        expected.extend_from_slice(line);
        self.previous.clear();
        self.previous.extend_from_slice(line);
    }

    fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        self.expected.receive(input)
    }
}
