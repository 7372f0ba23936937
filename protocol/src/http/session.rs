//! The server's side.

use std::sync::Arc;

use super::file_store::{FileStore, Lookup};
use super::request::{Method, Persistence, RequestHead, RequestPath};
use super::response::{Response, Status};
use crate::file::FileSlice;
use crate::session::{CloseReason, Session, SessionOptions, Step};
use crate::work::PendingWork;

/// Answers are gathered until they are this long, so that a pipelining client costs one write for many. What a file
/// has is not counted: it is sent from there.
const GATHER: usize = 16 * 1024;

/// Buffers that grew for an unusual peer are given back once they are empty. Unusual are long heads, and listings: a
/// small file goes out through the buffer with its head.
const KEEP_INPUT: usize = 4 * 1024;
const KEEP_OUTPUT: usize = GATHER + 4 * 1024;

pub(super) struct Responder {
    file_store: Arc<dyn FileStore>,
    /// The longest head, and the longest body behind it.
    max_head: usize,
    /// What arrived; the part before `answered` is done with. Before `scanned` no head ends.
    input: Vec<u8>,
    answered: usize,
    scanned: usize,
    /// The request at `answered`, when its head is understood.
    heard: Option<CurrentRequest>,
    /// Where the last path was decoded.
    names: Vec<u8>,
    /// What is to be sent: bytes, of which the part before `taken` was taken by the socket, and then a file.
    output: Vec<u8>,
    taken: usize,
    file: Option<FileSlice>,
    pending_work: PendingWork,
    ended: Option<CloseReason>,
}

/// A request whose head is here.
#[derive(Clone, Copy)]
struct CurrentRequest {
    asked: RequestHead,
    /// Its length in bytes.
    head: usize,
}

impl Responder {
    pub(super) fn new(options: &SessionOptions) -> Self {
        Responder {
            file_store: Arc::clone(&options.file_store),
            max_head: options.max_line,
            input: Vec::new(),
            answered: 0,
            scanned: 0,
            heard: None,
            names: Vec::new(),
            output: Vec::new(),
            taken: 0,
            file: None,
            pending_work: PendingWork::of(options.work.as_ref()),
            ended: None,
        }
    }

    /// Answers requests until there is enough to send, or no whole request is left.
    fn answer_some(&mut self) {
        while self.output.len() < GATHER && self.file.is_none() {
            let heard = match self.receive() {
                Ok(Some(heard)) => heard,
                Ok(None) => return,
                Err(status) => {
                    let head_only = self.input[self.answered..].starts_with(b"HEAD ");
                    Response::last(head_only, &mut self.output, self.file_store.now())
                        .status(status);
                    return self.end(CloseReason::Refused);
                }
            };
            // What was answered before goes out first: it need not wait for this request's work.
            let head = &self.input[self.answered..][..heard.head];
            if self.pending_work.due(head).is_some() {
                return;
            }
            self.answer(heard);
            self.pending_work.replied();
            self.answered += heard.head;
            self.scanned = self.answered;
            self.heard = None;
            if heard.asked.leaves_body {
                return self.end(CloseReason::Refused);
            }
            if heard.asked.connection == Persistence::Closes {
                return self.end(CloseReason::Done);
            }
        }
    }

    /// The next request, when all of it is here. Of its body nothing is left then.
    fn receive(&mut self) -> Result<Option<CurrentRequest>, Status> {
        let mut heard = match self.heard {
            Some(heard) => heard,
            None => match self.find_head()? {
                None => return Ok(None),
                Some(head) => CurrentRequest {
                    asked: RequestHead::understand(
                        &self.input[self.answered..][..head],
                        self.max_head,
                    )?,
                    head,
                },
            },
        };
        let body = &mut heard.asked.body;
        if !body.is_over() {
            let start = self.answered + heard.head;
            let skipped = body.skip(&self.input[start..], self.max_head)?;
            self.input.drain(start..start + skipped);
        }
        let whole = body.is_over();
        self.heard = Some(heard);
        Ok(whole.then_some(heard))
    }

    /// The length of the head that comes next, when all of it is here.
    fn find_head(&mut self) -> Result<Option<usize>, Status> {
        if self.scanned == self.answered {
            self.answered += blank(&self.input[self.answered..]);
            self.scanned = self.answered;
        }
        let input = &self.input[self.answered..];
        match input {
            [] | [b'\r'] => return Ok(None),
            // Nothing begins like this, in HTTP. TLS does, and would wait for an answer.
            [first, ..] if !first.is_ascii_graphic() => return Err(Status::BadRequest),
            _ => {}
        }
        let end = loop {
            let Some(offset) = memchr::memchr(b'\n', &self.input[self.scanned..]) else {
                self.scanned = self.input.len();
                break None;
            };
            let line_end = self.scanned + offset;
            self.scanned = line_end + 1;
            match &self.input[line_end + 1..] {
                [b'\n', ..] => break Some(line_end + 2),
                [b'\r', b'\n', ..] => break Some(line_end + 3),
                // What comes next will tell: this line's end is looked at once more.
                [] | [b'\r'] => {
                    self.scanned = line_end;
                    break None;
                }
                _ => {}
            }
        };
        let length = end.map(|end| end - self.answered);
        if length.unwrap_or(input.len()) > self.max_head {
            return Err(match memchr::memchr(b'\n', &input[..self.max_head]) {
                Some(_) => Status::FieldsTooLarge,
                None => Status::UriTooLong,
            });
        }
        Ok(length)
    }

    fn answer(&mut self, heard: CurrentRequest) {
        let asked = &heard.asked;
        let head = &self.input[self.answered..][..heard.head];
        let answer = Response::to(asked, &mut self.output, self.file_store.now());
        if asked.method == Method::Other {
            return answer.status(Status::MethodNotAllowed);
        }
        let place = asked.place(head, &mut self.names);
        let found = match place {
            RequestPath::Nowhere => Ok(Lookup::Nothing),
            RequestPath::Anything | RequestPath::Directory => self.file_store.look_up(&self.names),
        };
        match found {
            Ok(Lookup::File(file)) if place == RequestPath::Anything => {
                self.file = answer.file(asked, &self.names, &file);
            }
            Ok(Lookup::Directory { entries, more }) => {
                answer.listing(asked, &self.names, &entries, more);
            }
            Ok(Lookup::File(_) | Lookup::Nothing) => answer.status(Status::NotFound),
            Err(_) => answer.status(Status::Unavailable),
        }
    }

    /// Whatever else the peer says, it was the last answer.
    fn end(&mut self, farewell: CloseReason) {
        self.forget();
        self.ended = Some(farewell);
    }

    fn forget(&mut self) {
        self.input = Vec::new();
        self.answered = 0;
        self.scanned = 0;
        self.heard = None;
    }
}

/// How many bytes of empty lines come first. They may stand before a request (RFC 9112, 2.2), and belong to none.
fn blank(input: &[u8]) -> usize {
    let mut rest = input;
    while let [b'\n', after @ ..] | [b'\r', b'\n', after @ ..] = rest {
        rest = after;
    }
    input.len() - rest.len()
}

impl Session for Responder {
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
        if self.taken == self.output.len() && self.file.is_none() {
            self.output.clear();
            self.taken = 0;
            self.answer_some();
        }
        if self.taken < self.output.len() {
            return Step::Write(&self.output[self.taken..]);
        }
        if self.file.is_some() {
            return self.file.as_ref().map_or(Step::Read, Step::SendFile);
        }
        if let Some(work) = self.pending_work.pending() {
            return Step::Work(work);
        }
        if self.answered == self.input.len() {
            self.input.clear();
            self.answered = 0;
            self.scanned = 0;
            self.input.shrink_to(KEEP_INPUT);
            self.output.shrink_to(KEEP_OUTPUT);
            self.names.clear();
            self.names.shrink_to(KEEP_INPUT);
        }
        match self.ended {
            Some(farewell) => {
                // What is left is the beginning of a request that will never be whole.
                self.forget();
                Step::Close(farewell)
            }
            None => Step::Read,
        }
    }

    fn sent(&mut self, count: usize) {
        if self.taken < self.output.len() {
            self.taken += count;
            debug_assert!(self.taken <= self.output.len(), "more sent than offered");
        } else if let Some(file) = &mut self.file {
            file.advance(count as u64);
            if file.is_empty() {
                self.file = None;
            }
        }
    }

    fn worked(&mut self) {
        self.pending_work.worked();
    }

    fn mid_request(&self) -> bool {
        let input = &self.input[self.answered..];
        let begun = !matches!(&input[blank(input)..], [] | [b'\r']);
        begun || self.taken < self.output.len() || self.file.is_some()
    }
}
