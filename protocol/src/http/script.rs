//! Client side of `http`: requests one page again and again, and checks every reply.

use std::fmt;
use std::hash::Hasher;
use std::sync::{Arc, OnceLock};

use httparse::{EMPTY_HEADER, Header, Response, Status};
use twox_hash::XxHash3_64;

use crate::script::{ReplyStatus, Script, ScriptOptions, WrongReply};

/// Page that clients request, and its expected content. All clients of a load share it.
#[derive(Debug)]
pub struct Page {
    /// Target of the request, such as `/files/13b`.
    pub path: String,
    /// Value of the `Host` field.
    pub host: String,
    /// Expected body. If it is not set beforehand, the first reply sets it, and every other reply must be the same.
    pub content: OnceLock<Content>,
}

impl Default for Page {
    fn default() -> Self {
        Page {
            path: "/files/13b".to_string(),
            host: "localhost".to_string(),
            content: OnceLock::new(),
        }
    }
}

/// Length and hash of a body, for comparison with other bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Length in bytes.
    pub length: u64,
    /// XXH3 hash of 64 bits, with seed 0.
    pub hash: u64,
}

impl Content {
    /// Returns the content of these bytes. For bytes that arrive in pieces, use [`Hashing`].
    pub fn of(bytes: &[u8]) -> Content {
        let mut hashing = Hashing::default();
        hashing.add(bytes);
        hashing.content()
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes with XXH3 {:016x}", self.length, self.hash)
    }
}

/// Computation of a [`Content`] from bytes that arrive in pieces. It stores none of the bytes.
#[derive(Default)]
pub struct Hashing {
    length: u64,
    hash: XxHash3_64,
}

impl fmt::Debug for Hashing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hashing({})", self.content())
    }
}

impl Hashing {
    /// Adds the next piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.hash.write(piece);
    }

    /// Returns the content of the pieces so far.
    pub fn content(&self) -> Content {
        Content {
            length: self.length,
            hash: self.hash.finish(),
        }
    }
}

/// Maximum length of a head, or of a line between chunks, in bytes. No server needs this much.
const LONGEST_HEAD: usize = 64 * 1024;

/// Maximum number of fields in a head.
const FIELDS: usize = 128;

/// Client side.
pub(super) struct HttpScript {
    page: Arc<Page>,
    state: ReplyState,
    /// Bytes so far of an item that can be parsed only when it is complete: a head, or the line before a chunk.
    partial_item: Vec<u8>,
    /// Number of bytes of the reply that have arrived.
    received: u64,
    body: Hashing,
    /// Whether the server closes the connection after this reply.
    last: bool,
}

/// Part of the reply that is expected next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReplyState {
    /// Nothing: no request was sent, or the reply is complete.
    Nothing,
    /// A head.
    Head,
    /// This number of bytes, which end the reply.
    Body(u64),
    /// The line with a chunk's size.
    ChunkSize,
    /// This number of bytes of a chunk.
    Chunk(u64),
    /// CR LF after a chunk.
    ChunkEnd,
    /// Fields after the last chunk. They are skipped: this client requests none.
    Trailer,
}

/// Parsed head of a reply: the parts that this client uses.
struct Head {
    status: u16,
    /// Whether the server closes the connection after this reply.
    last: bool,
    /// Expected part after the head.
    body: ReplyState,
}

impl HttpScript {
    pub(super) fn new(options: &ScriptOptions) -> Self {
        HttpScript {
            page: Arc::clone(&options.page),
            state: ReplyState::Nothing,
            partial_item: Vec::new(),
            received: 0,
            body: Hashing::default(),
            last: false,
        }
    }

    /// Takes the bytes of the current item from `input`. Returns their number, and the parsed item once it is complete.
    /// `parse` returns the length of a complete item and the item, or `None` for an incomplete item.
    ///
    /// # Errors
    ///
    /// The item is malformed, or longer than [`LONGEST_HEAD`].
    fn parse_item<T>(
        &mut self,
        input: &[u8],
        parse: impl Fn(&[u8]) -> Result<Option<(usize, T)>, String>,
    ) -> Result<(usize, Option<T>), WrongReply> {
        let before = self.partial_item.len();
        let room = LONGEST_HEAD - before;
        let taken = &input[..input.len().min(room)];
        // Few items arrive in pieces, so few are copied.
        let parsed = match before {
            0 => parse(taken),
            _ => {
                self.partial_item.extend_from_slice(taken);
                parse(&self.partial_item)
            }
        };
        let wrong = |words| WrongReply::in_words(self.received - before as u64, words);
        match parsed.map_err(wrong)? {
            Some((length, item)) => {
                self.partial_item = Vec::new();
                let count = length.saturating_sub(before);
                self.received += count as u64;
                Ok((count, Some(item)))
            }
            None if taken.len() == room => Err(wrong(format!(
                "expected a head, or the size of a chunk, of less than {LONGEST_HEAD} bytes, got {LONGEST_HEAD} bytes \
                 without an end"
            ))),
            None => {
                if before == 0 {
                    self.partial_item.extend_from_slice(taken);
                }
                self.received += taken.len() as u64;
                Ok((taken.len(), None))
            }
        }
    }

    /// Takes bytes of the body from `input`, at most `left`, and returns their number.
    fn receive_body(&mut self, input: &[u8], left: u64) -> usize {
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let count = input.len().min(most);
        self.body.add(&input[..count]);
        self.received += count as u64;
        count
    }

    /// Handles a complete head.
    ///
    /// # Errors
    ///
    /// The announced length differs from the length of the expected body, or an empty body is wrong.
    fn begin_body(&mut self, head: &Head) -> Result<(), WrongReply> {
        self.state = match (head.status, head.body) {
            // An interim response: another head follows.
            (100 | 102..200, _) => ReplyState::Head,
            (_, ReplyState::Body(length)) => {
                if let Some(content) = self.page.content.get()
                    && content.length != length
                {
                    let words = format!(
                        "expected a body of {} bytes, got Content-Length: {length}",
                        content.length
                    );
                    return Err(WrongReply::in_words(self.received, words));
                }
                ReplyState::Body(length)
            }
            (_, body) => body,
        };
        self.last = head.last;
        if self.state == ReplyState::Body(0) {
            self.end_body()?;
        }
        Ok(())
    }

    /// Handles the end of the body.
    ///
    /// # Errors
    ///
    /// The body differs from the expected body.
    fn end_body(&mut self) -> Result<(), WrongReply> {
        self.state = ReplyState::Nothing;
        let content = self.body.content();
        let expected = self.page.content.get_or_init(|| content);
        if *expected != content {
            let words = format!("expected a body of {expected}, got {content}");
            return Err(WrongReply::in_words(self.received, words));
        }
        Ok(())
    }
}

impl Script for HttpScript {
    fn ask(&mut self, request: &mut Vec<u8>) {
        debug_assert!(
            self.state == ReplyState::Nothing,
            "a request was sent before the last reply was complete"
        );
        self.state = ReplyState::Head;
        self.received = 0;
        self.body = Hashing::default();
        for part in [
            "GET ",
            &self.page.path,
            " HTTP/1.1\r\nHost: ",
            &self.page.host,
            "\r\nUser-Agent: samewire\r\n\r\n",
        ] {
            request.extend_from_slice(part.as_bytes());
        }
    }

    fn receive(&mut self, mut input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        while !input.is_empty() {
            let count = match self.state {
                ReplyState::Nothing => {
                    let offset = usize::try_from(self.received).unwrap_or(usize::MAX);
                    return Err(WrongReply::new(offset, b"", input));
                }
                ReplyState::Head => {
                    let (count, head) = self.parse_item(input, parse_head)?;
                    if let Some(head) = head {
                        self.begin_body(&head)?;
                    }
                    count
                }
                ReplyState::Body(left) => {
                    let count = self.receive_body(input, left);
                    self.state = ReplyState::Body(left - count as u64);
                    if self.state == ReplyState::Body(0) {
                        self.end_body()?;
                    }
                    count
                }
                ReplyState::ChunkSize => {
                    let (count, size) = self.parse_item(input, parse_chunk_size)?;
                    self.state = match size {
                        None => ReplyState::ChunkSize,
                        Some(0) => ReplyState::Trailer,
                        Some(size) => ReplyState::Chunk(size),
                    };
                    count
                }
                ReplyState::Chunk(left) => {
                    let count = self.receive_body(input, left);
                    self.state = match left - count as u64 {
                        0 => ReplyState::ChunkEnd,
                        left => ReplyState::Chunk(left),
                    };
                    count
                }
                ReplyState::ChunkEnd => {
                    let (count, end) = self.parse_item(input, parse_chunk_end)?;
                    if end.is_some() {
                        self.state = ReplyState::ChunkSize;
                    }
                    count
                }
                ReplyState::Trailer => {
                    let (count, end) = self.parse_item(input, parse_trailer)?;
                    if end.is_some() {
                        self.end_body()?;
                    }
                    count
                }
            };
            input = &input[count..];
        }
        Ok(match self.state {
            ReplyState::Nothing if self.last => ReplyStatus::Last,
            ReplyState::Nothing => ReplyStatus::Complete,
            _ => ReplyStatus::Partial,
        })
    }
}

/// Parses a head. Returns its length with it; `None`: it is incomplete.
///
/// # Errors
///
/// The bytes are no head, the status is not 200, or the end of the body can't be determined.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Head)>, String> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    let mut response = Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => {
            let got = bytes[..bytes.len().min(WrongReply::EXCERPT)].escape_ascii();
            return Err(format!(
                "expected the head of an HTTP reply, got \"{got}\" ({error})"
            ));
        }
    };
    let (status, version) = (
        response.code.unwrap_or_default(),
        response.version.unwrap_or_default(),
    );
    let interim = matches!(status, 100 | 102..200);
    if status != 200 && !interim {
        let reason = response.reason.unwrap_or_default();
        return Err(format!(
            "expected status 200, got {status} {}",
            reason.escape_debug()
        ));
    }
    let fields = response.headers;
    let announces =
        |option| options(fields, "connection").any(|other| other.eq_ignore_ascii_case(option));
    let head = Head {
        status,
        last: announces("close") || (version == 0 && !announces("keep-alive")),
        body: match interim {
            true => ReplyState::Nothing,
            false => framing(fields)?,
        },
    };
    Ok(Some((length, head)))
}

/// Returns how the body is framed: by its length or in chunks.
///
/// # Errors
///
/// The fields contradict each other, or the framing is not supported.
fn framing(fields: &[Header<'_>]) -> Result<ReplyState, String> {
    let mut lengths = options(fields, "content-length");
    let mut codings = options(fields, "transfer-encoding");
    match (lengths.next(), codings.next()) {
        (Some(length), None) => {
            if let Some(other) = lengths.find(|other| *other != length) {
                return Err(format!(
                    "expected one Content-Length, got {length:?} and {other:?}"
                ));
            }
            let digits = length.bytes().all(|byte| byte.is_ascii_digit());
            let number = length.parse().ok().filter(|_| digits);
            number.map(ReplyState::Body).ok_or_else(|| {
                format!("expected a number of bytes as Content-Length, got {length:?}")
            })
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => match codings.next() {
            None => Ok(ReplyState::ChunkSize),
            Some(other) => Err(format!(
                "expected Transfer-Encoding: chunked and nothing more, got {other:?} too"
            )),
        },
        (None, Some(coding)) => Err(format!(
            "expected no Transfer-Encoding but chunked, got {coding:?}"
        )),
        (Some(_), Some(_)) => {
            Err("expected Content-Length or Transfer-Encoding, got both".to_string())
        }
        // A body that was cut off would look complete.
        (None, None) => Err(
            "expected Content-Length or Transfer-Encoding: chunked, got neither (bodies that end with the connection \
             are not supported)"
                .to_string(),
        ),
    }
}

/// Returns the members of a list field, from all its lines. A member that is not UTF-8 contains U+FFFD, so it equals no
/// option that this client knows.
fn options<'h>(fields: &'h [Header<'_>], name: &'static str) -> impl Iterator<Item = String> + 'h {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .flat_map(|field| field.value.split(|byte| *byte == b','))
        .map(|option| String::from_utf8_lossy(option.trim_ascii()).into_owned())
}

/// Parses the line with a chunk's size. Returns its length and the size; `None`: it is incomplete.
fn parse_chunk_size(bytes: &[u8]) -> Result<Option<(usize, u64)>, String> {
    match httparse::parse_chunk_size(bytes) {
        Ok(Status::Complete(parsed)) => Ok(Some(parsed)),
        Ok(Status::Partial) => Ok(None),
        Err(_) => {
            let got = bytes[..bytes.len().min(WrongReply::EXCERPT)].escape_ascii();
            Err(format!("expected the size of a chunk, got \"{got}\""))
        }
    }
}

/// Parses the CR LF after a chunk. Returns its length; `None`: it is incomplete.
fn parse_chunk_end(bytes: &[u8]) -> Result<Option<(usize, ())>, String> {
    const END: &[u8] = b"\r\n";
    if bytes.starts_with(END) {
        return Ok(Some((END.len(), ())));
    }
    if END.starts_with(bytes) {
        return Ok(None);
    }
    let got = bytes[..bytes.len().min(WrongReply::EXCERPT)].escape_ascii();
    Err(format!("expected the end of a chunk, got \"{got}\""))
}

/// Parses the fields after the last chunk, up to an empty line. Returns their length; `None`: they are incomplete.
fn parse_trailer(bytes: &[u8]) -> Result<Option<(usize, ())>, String> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    match httparse::parse_headers(bytes, &mut fields) {
        Ok(Status::Complete((length, _))) => Ok(Some((length, ()))),
        Ok(Status::Partial) => Ok(None),
        Err(error) => Err(format!(
            "expected the end of a chunked body, or fields after it ({error})"
        )),
    }
}
