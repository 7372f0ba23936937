//! The client's side: asks for one page, again and again, and checks every reply to it.

use std::fmt;
use std::hash::Hasher;
use std::sync::{Arc, OnceLock};

use httparse::{EMPTY_HEADER, Header, Response, Status};
use twox_hash::XxHash3_64;

use crate::script::{ReplyStatus, Script, ScriptOptions, WrongReply};

/// What is asked for, and what must come. Shared by all clients of a load.
#[derive(Debug)]
pub struct Page {
    /// The request's target, such as `/files/13b`.
    pub path: String,
    /// The `Host` field.
    pub host: String,
    /// What the body must be. If nobody knows it beforehand, the first reply tells, and every other must be the same.
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

/// A body, by what can be kept of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// In bytes.
    pub length: u64,
    /// XXH3, 64 bits, seed 0.
    pub hash: u64,
}

impl Content {
    /// What is to be kept of these bytes. Those that come in pieces take a [`Hashing`].
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

/// Makes a [`Content`] of bytes that come in pieces, and keeps none of them.
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
    /// The next piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.hash.write(piece);
    }

    /// What came so far.
    pub fn content(&self) -> Content {
        Content {
            length: self.length,
            hash: self.hash.finish(),
        }
    }
}

/// The longest head, or line between chunks, that is taken, in bytes. No server needs as much.
const LONGEST_HEAD: usize = 64 * 1024;

/// The most fields of a head.
const FIELDS: usize = 128;

pub(super) struct Getter {
    page: Arc<Page>,
    stage: GetterState,
    /// What came of something that is understood only when it is whole: a head, the line before a chunk.
    begun: Vec<u8>,
    /// Of the reply.
    heard: u64,
    body: Hashing,
    /// The server means to close the connection after this reply.
    last: bool,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GetterState {
    /// Nothing: nothing was asked, or all has come.
    Nothing,
    Head,
    /// So many bytes, and then nothing.
    Body(u64),
    /// The line with a chunk's size.
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(u64),
    ChunkEnd,
    /// Fields after the last chunk. Nobody here asks for any.
    Trailer,
}

/// What a head says, as far as it matters here.
struct Head {
    status: u16,
    last: bool,
    body: GetterState,
}

impl Getter {
    pub(super) fn new(options: &ScriptOptions) -> Self {
        Getter {
            page: Arc::clone(&options.page),
            stage: GetterState::Nothing,
            begun: Vec::new(),
            heard: 0,
            body: Hashing::default(),
            last: false,
        }
    }

    /// Takes what belongs to the thing that has begun, and gives how much of `input` that was; with it what `parse` made
    /// of the thing, once it is whole. `parse` gives its length, too.
    fn whole<T>(
        &mut self,
        input: &[u8],
        parse: impl Fn(&[u8]) -> Result<Option<(usize, T)>, String>,
    ) -> Result<(usize, Option<T>), WrongReply> {
        let before = self.begun.len();
        let room = LONGEST_HEAD - before;
        let taken = &input[..input.len().min(room)];
        // Hardly any is cut, so hardly any is copied.
        let found = match before {
            0 => parse(taken),
            _ => {
                self.begun.extend_from_slice(taken);
                parse(&self.begun)
            }
        };
        let wrong = |words| WrongReply::in_words(self.heard - before as u64, words);
        match found.map_err(wrong)? {
            Some((length, thing)) => {
                self.begun = Vec::new();
                let count = length.saturating_sub(before);
                self.heard += count as u64;
                Ok((count, Some(thing)))
            }
            None if taken.len() == room => Err(wrong(format!(
                "expected a head, or the size of a chunk, of less than {LONGEST_HEAD} bytes, and this one does not end"
            ))),
            None => {
                if before == 0 {
                    self.begun.extend_from_slice(taken);
                }
                self.heard += taken.len() as u64;
                Ok((taken.len(), None))
            }
        }
    }

    /// The body's next bytes, `left` of which are still to come; gives how many of `input` they were.
    fn hear_body(&mut self, input: &[u8], left: u64) -> usize {
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let count = input.len().min(most);
        self.body.add(&input[..count]);
        self.heard += count as u64;
        count
    }

    /// A head is whole.
    fn begin_body(&mut self, head: &Head) -> Result<(), WrongReply> {
        self.stage = match (head.status, head.body) {
            // "Wait", or "it will be so": the reply comes after it.
            (100 | 102..200, _) => GetterState::Head,
            (_, GetterState::Body(length)) => {
                if let Some(content) = self.page.content.get()
                    && content.length != length
                {
                    let words = format!(
                        "expected a body of {} bytes, got Content-Length: {length}",
                        content.length
                    );
                    return Err(WrongReply::in_words(self.heard, words));
                }
                GetterState::Body(length)
            }
            (_, body) => body,
        };
        self.last = head.last;
        if self.stage == GetterState::Body(0) {
            self.end_body()?;
        }
        Ok(())
    }

    fn end_body(&mut self) -> Result<(), WrongReply> {
        self.stage = GetterState::Nothing;
        let content = self.body.content();
        let expected = self.page.content.get_or_init(|| content);
        if *expected != content {
            let words = format!("expected a body of {expected}, got {content}");
            return Err(WrongReply::in_words(self.heard, words));
        }
        Ok(())
    }
}

impl Script for Getter {
    fn ask(&mut self, request: &mut Vec<u8>) {
        debug_assert!(
            self.stage == GetterState::Nothing,
            "asked before the last reply was complete"
        );
        self.stage = GetterState::Head;
        self.heard = 0;
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
            let count = match self.stage {
                GetterState::Nothing => {
                    let offset = usize::try_from(self.heard).unwrap_or(usize::MAX);
                    return Err(WrongReply::new(offset, b"", input));
                }
                GetterState::Head => {
                    let (count, head) = self.whole(input, parse_head)?;
                    if let Some(head) = head {
                        self.begin_body(&head)?;
                    }
                    count
                }
                GetterState::Body(left) => {
                    let count = self.hear_body(input, left);
                    self.stage = GetterState::Body(left - count as u64);
                    if self.stage == GetterState::Body(0) {
                        self.end_body()?;
                    }
                    count
                }
                GetterState::ChunkSize => {
                    let (count, size) = self.whole(input, parse_chunk_size)?;
                    self.stage = match size {
                        None => GetterState::ChunkSize,
                        Some(0) => GetterState::Trailer,
                        Some(size) => GetterState::Chunk(size),
                    };
                    count
                }
                GetterState::Chunk(left) => {
                    let count = self.hear_body(input, left);
                    self.stage = match left - count as u64 {
                        0 => GetterState::ChunkEnd,
                        left => GetterState::Chunk(left),
                    };
                    count
                }
                GetterState::ChunkEnd => {
                    let (count, end) = self.whole(input, parse_chunk_end)?;
                    if end.is_some() {
                        self.stage = GetterState::ChunkSize;
                    }
                    count
                }
                GetterState::Trailer => {
                    let (count, end) = self.whole(input, parse_trailer)?;
                    if end.is_some() {
                        self.end_body()?;
                    }
                    count
                }
            };
            input = &input[count..];
        }
        Ok(match self.stage {
            GetterState::Nothing if self.last => ReplyStatus::Last,
            GetterState::Nothing => ReplyStatus::Complete,
            _ => ReplyStatus::Partial,
        })
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Head)>, String> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    let mut response = Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(why) => {
            let came = bytes[..bytes.len().min(WrongReply::EXCERPT)].escape_ascii();
            return Err(format!(
                "expected the head of an HTTP reply, got \"{came}\" ({why})"
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
    let says = |word| options(fields, "connection").any(|option| option.eq_ignore_ascii_case(word));
    let head = Head {
        status,
        last: says("close") || (version == 0 && !says("keep-alive")),
        body: match interim {
            true => GetterState::Nothing,
            false => framing(fields)?,
        },
    };
    Ok(Some((length, head)))
}

/// How the end of the body is known.
fn framing(fields: &[Header<'_>]) -> Result<GetterState, String> {
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
            number.map(GetterState::Body).ok_or_else(|| {
                format!("expected a number of bytes as Content-Length, got {length:?}")
            })
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => match codings.next() {
            None => Ok(GetterState::ChunkSize),
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
        // One that is cut off would look whole.
        (None, None) => Err(
            "expected Content-Length or Transfer-Encoding: chunked, got neither (bodies that end with the connection \
             are not supported)"
                .to_string(),
        ),
    }
}

/// What a field lists, in all its lines. One that is no text has U+FFFD in it, and so is nothing that is known here.
fn options<'h>(fields: &'h [Header<'_>], name: &'static str) -> impl Iterator<Item = String> + 'h {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .flat_map(|field| field.value.split(|byte| *byte == b','))
        .map(|option| String::from_utf8_lossy(option.trim_ascii()).into_owned())
}

fn parse_chunk_size(bytes: &[u8]) -> Result<Option<(usize, u64)>, String> {
    match httparse::parse_chunk_size(bytes) {
        Ok(Status::Complete(found)) => Ok(Some(found)),
        Ok(Status::Partial) => Ok(None),
        Err(_) => {
            let came = bytes[..bytes.len().min(WrongReply::EXCERPT)].escape_ascii();
            Err(format!("expected the size of a chunk, got \"{came}\""))
        }
    }
}

fn parse_chunk_end(bytes: &[u8]) -> Result<Option<(usize, ())>, String> {
    const END: &[u8] = b"\r\n";
    if bytes.starts_with(END) {
        return Ok(Some((END.len(), ())));
    }
    if END.starts_with(bytes) {
        return Ok(None);
    }
    let came = bytes[..bytes.len().min(WrongReply::EXCERPT)].escape_ascii();
    Err(format!("expected the end of a chunk, got \"{came}\""))
}

fn parse_trailer(bytes: &[u8]) -> Result<Option<(usize, ())>, String> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    match httparse::parse_headers(bytes, &mut fields) {
        Ok(Status::Complete((length, _))) => Ok(Some((length, ()))),
        Ok(Status::Partial) => Ok(None),
        Err(why) => Err(format!(
            "expected the end of a chunked body, or fields after it ({why})"
        )),
    }
}
