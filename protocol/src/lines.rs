//! Conversations in lines: the framing that `pair` and `echo` share.

use crate::session::{CloseReason, Session, SessionOptions, Step};
use crate::work::PendingWork;

/// Replies are gathered until they are this long, so that a pipelining client costs one write for many lines.
/// It also bounds what a session holds to be sent: at most this, and the reply that crossed it. (To be answered, it
/// holds a line and a read at most.)
const GATHER: usize = 16 * 1024;

/// Buffers that grew for an unusual peer are given back once they are empty.
const KEEP: usize = 4 * 1024;

/// What is said to one line.
pub(crate) trait LineHandler: Send {
    /// Appends the reply to `line`. The line has its end, unless it is the last and the peer sent none.
    fn answer(&mut self, line: &[u8], reply: &mut Vec<u8>);
}

/// A session that answers line by line.
pub(crate) struct Lines<A> {
    answer: A,
    max_line: usize,
    /// What arrived; the part before `answered` is done with, and before `scanned` there is no further line end.
    input: Vec<u8>,
    answered: usize,
    scanned: usize,
    /// What is to be sent; the part before `taken` was taken by the socket.
    output: Vec<u8>,
    taken: usize,
    pending_work: PendingWork,
    ended: Option<CloseReason>,
}

impl<A: LineHandler> Lines<A> {
    pub(crate) fn new(answer: A, options: &SessionOptions) -> Self {
        Lines {
            answer,
            max_line: options.max_line,
            input: Vec::new(),
            answered: 0,
            scanned: 0,
            output: Vec::new(),
            taken: 0,
            pending_work: PendingWork::of(options.work.as_ref()),
            ended: None,
        }
    }

    /// Answers lines until there is enough to send, or no whole line is left.
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
                    // The last line needs no end: FIN is one.
                    if self.ended.is_none() || rest == 0 {
                        return;
                    }
                    self.input.len()
                }
            };
            let line = &self.input[self.answered..end];
            if line.len() > self.max_line {
                return self.refuse();
            }
            // What was answered before goes out first: it need not wait for this line's work.
            if self.pending_work.due(line).is_some() {
                return;
            }
            self.answer.answer(line, &mut self.output);
            self.pending_work.replied();
            self.answered = end;
            self.scanned = end;
        }
    }

    fn refuse(&mut self) {
        let complaint = format!("error: a line may have {} bytes\n", self.max_line);
        self.output.extend_from_slice(complaint.as_bytes());
        self.input = Vec::new();
        self.answered = 0;
        self.scanned = 0;
        self.ended = Some(CloseReason::Refused);
    }
}

impl<A: LineHandler> Session for Lines<A> {
    fn receive(&mut self, input: &[u8]) {
        if self.ended.is_some() {
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
        self.ended.get_or_insert(CloseReason::Done);
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
        match self.ended {
            Some(farewell) => Step::Close(farewell),
            None => Step::Read,
        }
    }

    fn sent(&mut self, count: usize) {
        self.taken += count;
        debug_assert!(self.taken <= self.output.len(), "more sent than offered");
    }

    fn worked(&mut self) {
        self.pending_work.worked();
    }

    fn mid_request(&self) -> bool {
        self.answered < self.input.len() || self.taken < self.output.len()
    }
}
