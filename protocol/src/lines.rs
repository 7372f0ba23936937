//! Framing in lines, which `pair` and `echo` share.

use crate::session::{CloseReason, Session, SessionOptions, Step};
use crate::work::PendingWork;

/// Size in bytes up to which replies are gathered before they are sent, so that a pipelining client costs one write for
/// many lines. It also bounds the output that a session holds: at most this size, and the reply that exceeded it. The
/// input that a session holds is at most one line and one read.
const GATHER: usize = 16 * 1024;

/// Capacity in bytes that an empty buffer keeps. A buffer that grew for an unusual peer is shrunk to it.
const KEEP: usize = 4 * 1024;

/// Rule of a protocol in lines: the reply to one line.
pub(crate) trait LineHandler: Send {
    /// Appends the reply to `line` to `reply`. The line has its `\n`, except for a last line that the peer ended
    /// with FIN.
    fn answer(&mut self, line: &[u8], reply: &mut Vec<u8>);
}

/// Session that answers line by line.
pub(crate) struct Lines<H> {
    handler: H,
    /// Maximum length of a line in bytes, with its end.
    max_line: usize,
    /// Bytes that arrived. The lines before `answered` are answered, and between `answered` and `scanned` there is no
    /// line end.
    input: Vec<u8>,
    answered: usize,
    scanned: usize,
    /// Bytes to send. The socket has taken the first `taken` of them.
    output: Vec<u8>,
    taken: usize,
    pending_work: PendingWork,
    /// Reason of the close after all output is sent; `None`: the conversation continues.
    close_reason: Option<CloseReason>,
}

impl<H: LineHandler> Lines<H> {
    pub(crate) fn new(handler: H, options: &SessionOptions) -> Self {
        Lines {
            handler,
            max_line: options.max_line,
            input: Vec::new(),
            answered: 0,
            scanned: 0,
            output: Vec::new(),
            taken: 0,
            pending_work: PendingWork::of(options.work.as_ref()),
            close_reason: None,
        }
    }

    /// Answers lines until [`GATHER`] bytes are to be sent, or no complete line is left.
    fn answer_some(&mut self) {
        while self.output.len() < GATHER {
            let end = match memchr::memchr(b'\n', &self.input[self.scanned..]) {
                Some(offset) => self.scanned + offset + 1,
                None => {
                    self.scanned = self.input.len();
                    let rest = self.input.len() - self.answered;
                    if rest > self.max_line {
                        return self.refuse();
                    }
                    // The last line needs no `\n`: FIN ends it.
                    if self.close_reason.is_none() || rest == 0 {
                        return;
                    }
                    self.input.len()
                }
            };
            let line = &self.input[self.answered..end];
            if line.len() > self.max_line {
                return self.refuse();
            }
            // The replies to the lines before are sent first: they need not wait for the work of this line.
            if self.pending_work.due(line).is_some() {
                return;
            }
            self.handler.answer(line, &mut self.output);
            self.pending_work.replied();
            self.answered = end;
            self.scanned = end;
        }
    }

    /// Discards the input, appends an error reply to the output, and sets the close after it.
    fn refuse(&mut self) {
        let error_reply = format!("error: a line may have {} bytes\n", self.max_line);
        self.output.extend_from_slice(error_reply.as_bytes());
        self.input = Vec::new();
        self.answered = 0;
        self.scanned = 0;
        self.close_reason = Some(CloseReason::Refused);
    }
}

impl<H: LineHandler> Session for Lines<H> {
    fn receive(&mut self, input: &[u8]) {
        if self.close_reason.is_some() {
            return;
        }
        if self.answered > 0 {
            self.input.drain(..self.answered);
            self.scanned -= self.answered;
            self.answered = 0;
        }
        self.input.extend_from_slice(input);
    }

    fn end_of_input(&mut self) {
        self.close_reason.get_or_insert(CloseReason::Done);
    }

    fn step(&mut self) -> Step<'_> {
        if self.taken == self.output.len() {
            self.output.clear();
            self.taken = 0;
            self.answer_some();
        }
        if self.taken < self.output.len() {
            return Step::Write(&self.output[self.taken..]);
        }
        if let Some(work) = self.pending_work.pending() {
            return Step::Work(work);
        }
        if self.answered == self.input.len() {
            self.input.clear();
            self.answered = 0;
            self.scanned = 0;
            self.input.shrink_to(KEEP);
            self.output.shrink_to(KEEP);
        }
        match self.close_reason {
            Some(reason) => Step::Close(reason),
            None => Step::Read,
        }
    }

    fn sent(&mut self, count: usize) {
        self.taken += count;
        debug_assert!(
            self.taken <= self.output.len(),
            "more bytes sent than offered"
        );
    }

    fn worked(&mut self) {
        self.pending_work.worked();
    }

    fn mid_request(&self) -> bool {
        self.answered < self.input.len() || self.taken < self.output.len()
    }
}
