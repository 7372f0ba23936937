//! `echo`: a line in, the same line out.

use crate::lines::{LineHandler, Lines};
use crate::script::{Expected, LineMaker, ReplyStatus, Script, ScriptOptions, WrongReply};
use crate::{DefaultLoad, Protocol};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "echo",
    summary: "the client sends a line, and the server answers with the same line",
    open: |options| Box::new(Lines::new(Echo, options)),
    ask: |options| Box::new(EchoScript::new(options)),
    requests_per_connection: None,
    requests_differ: true,
    default_load: DefaultLoad::SMALL_MESSAGES,
};

/// Server side. It has no state.
struct Echo;

impl LineHandler for Echo {
    fn answer(&mut self, line: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(line);
    }
}

/// Client side.
struct EchoScript {
    lines: LineMaker,
    expected: Expected,
}

impl EchoScript {
    fn new(options: &ScriptOptions) -> Self {
        EchoScript {
            lines: LineMaker::new(options),
            expected: Expected::default(),
        }
    }
}

impl Script for EchoScript {
    fn ask(&mut self, request: &mut Vec<u8>) {
        let start = request.len();
        self.lines.next_line(request);
        self.expected.begin().extend_from_slice(&request[start..]);
    }

    fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        self.expected.receive(input)
    }
}
