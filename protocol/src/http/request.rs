//! What is asked: a head, understood or refused. Sections are RFC 9112's, and RFC 9110's where they have its name.

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::time::SystemTime;

use httparse::{Error, Header, Request};
use percent_encoding::percent_decode;

use super::body::Body;
use super::response::Status;

/// The most fields that a head may have.
const FIELDS: usize = 100;

/// A head, as far as it matters for the answer. It holds no bytes of it, only where they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    /// Of the target, where its path is in the head; begins with `/`, or is empty.
    path: (usize, usize),
    /// What is to be thrown away before the answer.
    pub(super) body: Body,
    /// There is a body that nobody waits for: after the answer nothing can be understood any more.
    pub(super) leaves_body: bool,
    pub(super) connection: Persistence,
    pub(super) conditions: Conditions,
    pub(super) range: Option<ByteRange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Other,
}

/// What becomes of the connection after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It stays, as goes without saying.
    Stays,
    /// It stays, and is told so: HTTP/1.0 would not expect it.
    StaysForOnce,
    Closes,
}

/// What the peer knows already (RFC 9110, 13.1). There are no entity tags here, so none that is named ever matches.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Conditions {
    /// If-None-Match is there; and whether it is `*`, which everything that exists matches.
    pub(super) none_match: Option<bool>,
    pub(super) modified_since: Option<SystemTime>,
    /// If-Range is there; and its date, if it is one.
    pub(super) range_if: Option<Option<SystemTime>>,
}

/// One range of bytes (RFC 9110, 14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteRange {
    /// From this offset to that, both included.
    Between(u64, u64),
    /// So many at the end.
    Last(u64),
}

impl RequestHead {
    /// Understands a head, which is whole: from the request line to the empty line.
    pub(super) fn understand(head: &[u8], max_body: usize) -> Result<RequestHead, Status> {
        let mut fields = [const { MaybeUninit::<Header>::uninit() }; FIELDS];
        let mut request = Request::new(&mut []);
        match request.parse_with_uninit_headers(head, &mut fields) {
            Ok(parsed) if parsed.is_complete() => {}
            Err(Error::TooManyHeaders) => return Err(Status::FieldsTooLarge),
            Err(Error::Version) if is_other_version(head) => {
                return Err(Status::VersionNotSupported);
            }
            _ => return Err(Status::BadRequest),
        }
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(Status::BadRequest);
        };
        let fields = Fields::collect(request.headers)?;
        if fields.host.is_none() && minor > 0 {
            return Err(Status::BadRequest);
        }
        let method = match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            _ => Method::Other,
        };
        let body = fields.body(minor)?;
        let path = match method {
            // Targets of other methods may have other forms (3.2). They are not looked at.
            Method::Other => 0..0,
            Method::Get | Method::Head => path(target)?,
        };
        // Other methods are refused, and whoever expects a word before sending the body gets the last one.
        let expects = fields.expects && minor > 0;
        let leaves_body = !body.is_over() && (method == Method::Other || expects);
        if method != Method::Other && body.is_longer_than(max_body) {
            return Err(Status::ContentTooLarge);
        }
        // The target is a part of the head, and so is its path.
        let at = target.as_ptr().addr() - head.as_ptr().addr();
        Ok(RequestHead {
            method,
            path: (at + path.start, at + path.end),
            body: if leaves_body { Body::NONE } else { body },
            leaves_body,
            connection: match (minor, fields.close || leaves_body, fields.keep_alive) {
                (_, true, _) | (0, false, false) => Persistence::Closes,
                (0, false, true) => Persistence::StaysForOnce,
                _ => Persistence::Stays,
            },
            conditions: fields.conditions,
            range: fields.range.filter(|_| method == Method::Get).flatten(),
        })
    }

    /// Decodes the path that is asked for, and says what kind of place it names. Nothing that is not one plain name
    /// after the other names any.
    pub(super) fn place(&self, head: &[u8], names: &mut Vec<u8>) -> RequestPath {
        names.clear();
        let path = &head[self.path.0..self.path.1];
        let mut segments = path
            .strip_prefix(b"/")
            .unwrap_or(path)
            .split(|byte| *byte == b'/');
        match segments.next() {
            None | Some(b"") if segments.next().is_none() => return RequestPath::Directory,
            Some(first) if percent_decode(first).eq(b"files".iter().copied()) => {}
            _ => return RequestPath::Nowhere,
        }
        let mut place = RequestPath::Directory;
        while let Some(segment) = segments.next() {
            place = RequestPath::Anything;
            if segment.is_empty() {
                // Only behind the last name.
                return match segments.next() {
                    None => RequestPath::Directory,
                    Some(_) => RequestPath::Nowhere,
                };
            }
            if !names.is_empty() {
                names.push(b'/');
            }
            let at = names.len();
            names.extend(percent_decode(segment));
            let name = &names[at..];
            if name == b"." || name == b".." || memchr::memchr2(b'/', 0, name).is_some() {
                return RequestPath::Nowhere;
            }
        }
        place
    }
}

/// What a path can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestPath {
    /// A file or a directory.
    Anything,
    /// A directory only: it ends with a slash.
    Directory,
    Nowhere,
}

/// The fields that matter.
#[derive(Default)]
struct Fields<'h> {
    host: Option<&'h [u8]>,
    length: Option<u64>,
    /// Transfer codings: how many, how many of them are `chunked`, and whether the last is.
    codings: Option<(usize, usize, bool)>,
    close: bool,
    keep_alive: bool,
    expects: bool,
    conditions: Conditions,
    /// Range is there; and what it says, if that can be given.
    range: Option<Option<ByteRange>>,
}

impl<'h> Fields<'h> {
    fn collect(headers: &[Header<'h>]) -> Result<Fields<'h>, Status> {
        let mut fields = Fields::default();
        for Header { name, value } in headers {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            if is("host") {
                // More than one, or an invalid one, could make two servers see two different hosts (3.2).
                if fields.host.replace(value).is_some() || !is_host(value) {
                    return Err(Status::BadRequest);
                }
            } else if is("content-length") {
                // Also of two equal ones a proxy may have looked at another than we do (6.3, 5).
                if fields.length.replace(length(value)?).is_some() {
                    return Err(Status::BadRequest);
                }
            } else if is("transfer-encoding") {
                let (count, chunked, last) = fields.codings.get_or_insert_default();
                for coding in tokens(value) {
                    *last = coding.eq_ignore_ascii_case(b"chunked");
                    *count += 1;
                    *chunked += usize::from(*last);
                }
            } else if is("connection") {
                for token in tokens(value) {
                    fields.close |= token.eq_ignore_ascii_case(b"close");
                    fields.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if is("expect") {
                fields.expects |= value.eq_ignore_ascii_case(b"100-continue");
            } else if is("range") {
                fields.range = match fields.range {
                    None => Some(byte_range(value)),
                    Some(_) => Some(None),
                };
            } else if is("if-none-match") {
                fields.conditions.none_match = Some(*value == b"*");
            } else if is("if-modified-since") {
                fields.conditions.modified_since = date(value);
            } else if is("if-range") {
                fields.conditions.range_if = Some(date(value));
            }
        }
        Ok(fields)
    }

    /// How long the body is (6.3). Whatever two servers could understand in two ways is refused: behind a proxy, one
    /// peer's body would be another's request.
    fn body(&self, minor: u8) -> Result<Body, Status> {
        match (self.codings, self.length) {
            (None, length) => Ok(Body::Length(length.unwrap_or(0))),
            (Some(_), Some(_)) => Err(Status::BadRequest),
            (Some(_), None) if minor == 0 => Err(Status::BadRequest),
            (Some((1, 1, true)), None) => Ok(Body::CHUNKED),
            (Some((_, 1, true)), None) => Err(Status::NotImplemented),
            (Some(_), None) => Err(Status::BadRequest),
        }
    }
}

/// Whether a head that httparse refuses for its version names one that exists in form.
fn is_other_version(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or(head);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or(line);
    // Method and target are right, or httparse had not come to the version; so what follows the second space is it.
    line.iter().filter(|byte| **byte == b' ').count() == 2
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// Where the path of a target is, which is to be an absolute path or a whole address (3.2.1, 3.2.2).
fn path(target: &str) -> Result<Range<usize>, Status> {
    let mut start = 0;
    if !target.starts_with('/') {
        let (scheme, rest) = target.split_once("://").ok_or(Status::BadRequest)?;
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        let is_http = scheme.eq_ignore_ascii_case("http");
        if !is_http || authority.is_empty() || !is_host(authority.as_bytes()) {
            return Err(Status::BadRequest);
        }
        start = scheme.len() + "://".len() + authority.len();
    }
    let end = target.find('?').unwrap_or(target.len());
    let mut rest = &target.as_bytes()[start..end];
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [a, b, after @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => after,
            (b'%', _) => return Err(Status::BadRequest),
            _ if plain(byte) => after,
            _ => return Err(Status::BadRequest),
        };
    }
    match target[end..].bytes().all(plain) {
        true => Ok(start..end),
        false => Err(Status::BadRequest),
    }
}

/// Whether that can be the value of Host: a name or an address, perhaps a port; or nothing (RFC 9110, 7.2).
fn is_host(value: &[u8]) -> bool {
    let name = match value.iter().rposition(|byte| *byte == b':') {
        // A colon inside of brackets is a part of the address.
        Some(colon) if !value.ends_with(b"]") => {
            if !value[colon + 1..].iter().all(u8::is_ascii_digit) {
                return false;
            }
            &value[..colon]
        }
        _ => value,
    };
    if let Some(address) = name
        .strip_prefix(b"[")
        .and_then(|rest| rest.strip_suffix(b"]"))
    {
        return str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
    }
    name.iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(byte))
}

/// The value of Content-Length: digits, and nothing else.
fn length(value: &[u8]) -> Result<u64, Status> {
    match digits(value) {
        Some(length) => Ok(length),
        None => Err(Status::BadRequest),
    }
}

/// A number; one that is too large for us is as large as can be.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = str::from_utf8(text).ok()?.parse();
    Some(number.unwrap_or(u64::MAX))
}

/// The members of a list (RFC 9110, 5.6.1).
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let members = value.split(|byte| *byte == b',');
    members
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

fn date(value: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(str::from_utf8(value).ok()?).ok()
}

/// The value of Range, if it is one range of bytes. (Whatever else it is may be ignored, RFC 9110, 14.2.)
fn byte_range(value: &[u8]) -> Option<ByteRange> {
    let equals = memchr::memchr(b'=', value)?;
    let (unit, range) = (&value[..equals], value[equals + 1..].trim_ascii());
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let dash = memchr::memchr(b'-', range)?;
    match (&range[..dash], &range[dash + 1..]) {
        (b"", count) => Some(ByteRange::Last(digits(count)?)),
        (first, b"") => Some(ByteRange::Between(digits(first)?, u64::MAX)),
        (first, last) => {
            let (first, last) = (digits(first)?, digits(last)?);
            (first <= last).then_some(ByteRange::Between(first, last))
        }
    }
}

impl ByteRange {
    /// Which bytes that are of so many. None of them: it can't be satisfied.
    pub(super) fn of(self, length: u64) -> Option<Range<u64>> {
        match self {
            ByteRange::Between(first, last) if first < length => {
                Some(first..last.saturating_add(1).min(length))
            }
            ByteRange::Last(count) if count > 0 => Some(length.saturating_sub(count)..length),
            _ => None,
        }
    }
}
