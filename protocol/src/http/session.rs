//! Server side of `http`.

use std::sync::Arc;

use super::file_store::{FileStore, Lookup};
use super::request::{Method, Persistence, RequestHead, RequestPath};
use super::response::{Response, Status};
use crate::file::FileSlice;
use crate::session::{CloseReason, Session, SessionOptions, Step};
use crate::work::PendingWork;

/// Size in bytes up to which responses are gathered before they are sent, so that a pipelining client costs one write
/// for many responses. The content of a file that is sent from the file does not count.
const GATHER: usize = 16 * 1024;

/// Capacity in bytes that the empty input buffer keeps. A buffer that grew for an unusually long head is shrunk to it.
const KEEP_INPUT: usize = 4 * 1024;

/// Capacity in bytes that the empty output buffer keeps. Only a listing needs more: a small file is sent through the
/// buffer with its head, and fits.
const KEEP_OUTPUT: usize = GATHER + 4 * 1024;

/// Server side.
pub(super) struct HttpSession {
    file_store: Arc<dyn FileStore>,
    /// Maximum length of a head in bytes, and of the body after it.
    max_head: usize,
    /// Bytes that arrived. The requests before `answered` are answered, and no head ends between `answered` and
    /// `scanned`.
    input: Vec<u8>,
    answered: usize,
    scanned: usize,
    /// Request at `answered`; `None`: its head is not parsed yet.
    current: Option<CurrentRequest>,
    /// Buffer in which paths are decoded.
    names: Vec<u8>,
    /// Bytes to send. The socket has taken the first `taken` of them.
    output: Vec<u8>,
    taken: usize,
    /// Range of a file to send after them.
    file: Option<FileSlice>,
    pending_work: PendingWork,
    /// Reason of the close after all output is sent; `None`: the conversation continues.
    close_reason: Option<CloseReason>,
}

/// Request whose head has arrived.
#[derive(Clone, Copy)]
struct CurrentRequest {
    head: RequestHead,
    /// Length of the head in bytes.
    head_length: usize,
}

impl HttpSession {
    pub(super) fn new(options: &SessionOptions) -> Self {
        HttpSession {
            file_store: Arc::clone(&options.file_store),
            max_head: options.max_line,
            input: Vec::new(),
            answered: 0,
            scanned: 0,
            current: None,
            names: Vec::new(),
            output: Vec::new(),
            taken: 0,
            file: None,
            pending_work: PendingWork::of(options.work.as_ref()),
            close_reason: None,
        }
    }

    /// Answers requests until [`GATHER`] bytes or a file are to be sent, or no complete request is left.
    fn answer_some(&mut self) {
        while self.output.len() < GATHER && self.file.is_none() {
            let request = match self.next_request() {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(status) => {
                    let head_only = self.input[self.answered..].starts_with(b"HEAD ");
                    Response::to_invalid(head_only, &mut self.output, self.file_store.now())
                        .status(status);
                    return self.end(CloseReason::Refused);
                }
            };
            // The responses to earlier requests are sent first: they need not wait for the work of this request.
            let head = &self.input[self.answered..][..request.head_length];
            if self.pending_work.due(head).is_some() {
                return;
            }
            self.answer(request);
            self.pending_work.replied();
            self.answered += request.head_length;
            self.scanned = self.answered;
            self.current = None;
            if request.head.unread_body {
                return self.end(CloseReason::Refused);
            }
            if request.head.persistence == Persistence::Close {
                return self.end(CloseReason::Done);
            }
        }
    }

    /// Returns the next request if all of it has arrived; its body is skipped then. `None`: more input is needed.
    ///
    /// # Errors
    ///
    /// The request is refused; the status is that of the response.
    fn next_request(&mut self) -> Result<Option<CurrentRequest>, Status> {
        let mut request = match self.current {
            Some(request) => request,
            None => match self.find_head()? {
                None => return Ok(None),
                Some(head_length) => CurrentRequest {
                    head: RequestHead::parse(
                        &self.input[self.answered..][..head_length],
                        self.max_head,
                    )?,
                    head_length,
                },
            },
        };
        let body = &mut request.head.body;
        if !body.is_over() {
            let start = self.answered + request.head_length;
            let skipped = body.skip(&self.input[start..], self.max_head)?;
            self.input.drain(start..start + skipped);
        }
        let complete = body.is_over();
        self.current = Some(request);
        Ok(complete.then_some(request))
    }

    /// Returns the length in bytes of the next head if all of it has arrived. `None`: more input is needed.
    ///
    /// # Errors
    ///
    /// The head is too long, or its first byte can't begin a request.
    fn find_head(&mut self) -> Result<Option<usize>, Status> {
        if self.scanned == self.answered {
            self.answered += empty_lines(&self.input[self.answered..]);
            self.scanned = self.answered;
        }
        let input = &self.input[self.answered..];
        match input {
            [] | [b'\r'] => return Ok(None),
            // No HTTP request begins with such a byte. A TLS handshake does, and its client would wait for a reply.
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
                // The next bytes decide whether the head ends here, so this line end is checked again later.
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

    /// Appends the response to a request.
    fn answer(&mut self, current: CurrentRequest) {
        let request = &current.head;
        let head = &self.input[self.answered..][..current.head_length];
        let response = Response::to_request(request, &mut self.output, self.file_store.now());
        if request.method == Method::Other {
            return response.status(Status::MethodNotAllowed);
        }
        let kind = request.decode_path(head, &mut self.names);
        let lookup = match kind {
            RequestPath::NotServed => Ok(Lookup::Nothing),
            RequestPath::FileOrDirectory | RequestPath::Directory => {
                self.file_store.look_up(&self.names)
            }
        };
        match lookup {
            Ok(Lookup::File(file)) if kind == RequestPath::FileOrDirectory => {
                self.file = response.file(request, &self.names, &file);
            }
            Ok(Lookup::Directory { entries, more }) => {
                response.listing(request, &self.names, &entries, more);
            }
            Ok(Lookup::File(_) | Lookup::Nothing) => response.status(Status::NotFound),
            Err(_) => response.status(Status::Unavailable),
        }
    }

    /// Makes the last response the end of the conversation: all further input is ignored.
    fn end(&mut self, reason: CloseReason) {
        self.clear_input();
        self.close_reason = Some(reason);
    }

    /// Discards the input and frees its buffer.
    fn clear_input(&mut self) {
        self.input = Vec::new();
        self.answered = 0;
        self.scanned = 0;
        self.current = None;
    }
}

/// Returns the length in bytes of the empty lines at the beginning of `input`. A client may send empty lines before a
/// request (RFC 9112, 2.2), and they belong to no request.
fn empty_lines(input: &[u8]) -> usize {
    let mut rest = input;
    while let [b'\n', after @ ..] | [b'\r', b'\n', after @ ..] = rest {
        rest = after;
    }
    input.len() - rest.len()
}

impl Session for HttpSession {
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
        match self.close_reason {
            Some(reason) => {
                // The rest of the input is the beginning of a request that will never be complete.
                self.clear_input();
                Step::Close(reason)
            }
            None => Step::Read,
        }
    }

    fn sent(&mut self, count: usize) {
        if self.taken < self.output.len() {
            self.taken += count;
            debug_assert!(
                self.taken <= self.output.len(),
                "more bytes sent than offered"
            );
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
        let request_begun = !matches!(&input[empty_lines(input)..], [] | [b'\r']);
        request_begun || self.taken < self.output.len() || self.file.is_some()
    }
}
