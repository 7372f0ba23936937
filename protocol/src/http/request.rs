//! Parsing of request heads. Section numbers refer to RFC 9112, or to RFC 9110 where a comment names it.

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::time::SystemTime;

use httparse::{Error, Header, Request};
use percent_encoding::percent_decode;

use super::body::Body;
use super::response::Status;

/// Maximum number of fields in a head.
const FIELDS: usize = 100;

/// Parsed head of a request: the parts on which the response depends. It holds no bytes of the head, only their
/// position.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    /// Start and end of the target's path in the head. The path begins with `/`, or is empty.
    path: (usize, usize),
    /// Body that must be skipped before the response.
    pub(super) body: Body,
    /// Whether the request has a body that is not read. The bytes after the head may then be that body and not a
    /// request, so nothing is parsed after the response.
    pub(super) unread_body: bool,
    pub(super) persistence: Persistence,
    pub(super) conditions: Conditions,
    pub(super) range: Option<ByteRange>,
}

/// Method of a request. Methods other than GET and HEAD are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Other,
}

/// Whether the connection stays open after the response (9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// The connection stays open. This is the default of HTTP/1.1, so the response does not announce it.
    KeepAlive,
    /// The connection stays open, and the response announces it, because this is not the default of HTTP/1.0.
    KeepAliveAnnounced,
    /// The connection is closed after the response.
    Close,
}

/// Conditions of a request, by which the client states which version it has (RFC 9110, 13.1). The server has no entity
/// tags, so no entity tag in a condition ever matches.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Conditions {
    /// Whether If-None-Match is `*`, which every existing file matches; `None`: the field is absent.
    pub(super) none_match: Option<bool>,
    /// Date of If-Modified-Since; `None`: the field is absent or its value is no date.
    pub(super) modified_since: Option<SystemTime>,
    /// Date of If-Range; `None`: the field is absent, `Some(None)`: its value is no date.
    pub(super) if_range: Option<Option<SystemTime>>,
}

/// Range of bytes (RFC 9110, 14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteRange {
    /// Bytes from the first to the last offset, both included.
    Between(u64, u64),
    /// This number of bytes at the end.
    Last(u64),
}

impl RequestHead {
    /// Parses a complete head, from the request line to the empty line.
    ///
    /// # Errors
    ///
    /// The head is malformed, ambiguous or not supported, or it announces a body of more than `max_body` bytes. The
    /// status is that of the response.
    pub(super) fn parse(head: &[u8], max_body: usize) -> Result<RequestHead, Status> {
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
            // Targets of other methods may have other forms (3.2). They are not parsed.
            Method::Other => 0..0,
            Method::Get | Method::Head => path(target)?,
        };
        // The body is not read if the method is refused. It is not read either if the client waits for 100 (Continue)
        // before it sends the body: such a client gets the final response instead.
        let expects_continue = fields.expects_continue && minor > 0;
        let unread_body = !body.is_over() && (method == Method::Other || expects_continue);
        if method != Method::Other && body.is_longer_than(max_body) {
            return Err(Status::ContentTooLarge);
        }
        // The target is a part of the head, so the position of its path in the head is known.
        let target_start = target.as_ptr().addr() - head.as_ptr().addr();
        Ok(RequestHead {
            method,
            path: (target_start + path.start, target_start + path.end),
            body: if unread_body { Body::NONE } else { body },
            unread_body,
            persistence: match (minor, fields.close || unread_body, fields.keep_alive) {
                (_, true, _) | (0, false, false) => Persistence::Close,
                (0, false, true) => Persistence::KeepAliveAnnounced,
                _ => Persistence::KeepAlive,
            },
            conditions: fields.conditions,
            range: fields.range.filter(|_| method == Method::Get).flatten(),
        })
    }

    /// Decodes the requested path into `names`, relative to `/files`, and returns what the path can name. A path is
    /// served only if each segment is a plain name: not empty, not `.` or `..`, and without `/` and NUL. Only the last
    /// segment may be empty.
    pub(super) fn decode_path(&self, head: &[u8], names: &mut Vec<u8>) -> RequestPath {
        names.clear();
        let path = &head[self.path.0..self.path.1];
        let mut segments = path
            .strip_prefix(b"/")
            .unwrap_or(path)
            .split(|byte| *byte == b'/');
        match segments.next() {
            None | Some(b"") if segments.next().is_none() => return RequestPath::Directory,
            Some(first) if percent_decode(first).eq(b"files".iter().copied()) => {}
            _ => return RequestPath::NotServed,
        }
        let mut kind = RequestPath::Directory;
        while let Some(segment) = segments.next() {
            kind = RequestPath::FileOrDirectory;
            if segment.is_empty() {
                // An empty segment is allowed only after the last name.
                return match segments.next() {
                    None => RequestPath::Directory,
                    Some(_) => RequestPath::NotServed,
                };
            }
            if !names.is_empty() {
                names.push(b'/');
            }
            let name_start = names.len();
            names.extend(percent_decode(segment));
            let name = &names[name_start..];
            if name == b"." || name == b".." || memchr::memchr2(b'/', 0, name).is_some() {
                return RequestPath::NotServed;
            }
        }
        kind
    }
}

/// Kind of thing that a requested path can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestPath {
    /// A file or a directory.
    FileOrDirectory,
    /// Only a directory: the path is empty or `/files`, or it ends with a slash.
    Directory,
    /// Nothing that is served.
    NotServed,
}

/// Fields of a head that the server uses.
#[derive(Default)]
struct Fields<'h> {
    host: Option<&'h [u8]>,
    length: Option<u64>,
    /// Transfer codings: their number, the number of `chunked` among them, and whether the last is `chunked`.
    codings: Option<(usize, usize, bool)>,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    conditions: Conditions,
    /// Range; `None`: the field is absent, `Some(None)`: it can't be served and is ignored.
    range: Option<Option<ByteRange>>,
}

impl<'h> Fields<'h> {
    /// Collects the fields.
    ///
    /// # Errors
    ///
    /// A field is invalid, or is there twice where that is ambiguous.
    fn collect(headers: &[Header<'h>]) -> Result<Fields<'h>, Status> {
        let mut fields = Fields::default();
        for Header { name, value } in headers {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            if is("host") {
                // With two Host fields, or an invalid one, two servers could see different hosts (3.2).
                if fields.host.replace(value).is_some() || !is_host(value) {
                    return Err(Status::BadRequest);
                }
            } else if is("content-length") {
                // Two equal fields are refused too: a proxy may have used the other one (6.3, 5).
                if fields.length.replace(content_length(value)?).is_some() {
                    return Err(Status::BadRequest);
                }
            } else if is("transfer-encoding") {
                let (count, chunked, last) = fields.codings.get_or_insert_default();
                for coding in list_members(value) {
                    *last = coding.eq_ignore_ascii_case(b"chunked");
                    *count += 1;
                    *chunked += usize::from(*last);
                }
            } else if is("connection") {
                for option in list_members(value) {
                    fields.close |= option.eq_ignore_ascii_case(b"close");
                    fields.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if is("expect") {
                fields.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
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
                fields.conditions.if_range = Some(date(value));
            }
        }
        Ok(fields)
    }

    /// Returns the body with its length or its coding (6.3).
    ///
    /// # Errors
    ///
    /// Two servers could determine different lengths: behind a proxy, the body of one client could then become the
    /// request of another.
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

/// Returns whether a head that httparse refuses for its version has a well-formed version.
fn is_other_version(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or(head);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or(line);
    // httparse parses the version after the method and the target, so these are valid here, and the version is what
    // follows the second space.
    line.iter().filter(|byte| **byte == b' ').count() == 2
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// Returns the position of the path in a target. The target must be in origin form or in absolute form (3.2.1, 3.2.2).
///
/// # Errors
///
/// The target has another form, or contains a byte or an escape that is not allowed.
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
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [a, b, after @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => after,
            (b'%', _) => return Err(Status::BadRequest),
            _ if allowed(byte) => after,
            _ => return Err(Status::BadRequest),
        };
    }
    match target[end..].bytes().all(allowed) {
        true => Ok(start..end),
        false => Err(Status::BadRequest),
    }
}

/// Returns whether the value is valid for Host: a name or an address, optionally with a port, or empty (RFC 9110, 7.2).
fn is_host(value: &[u8]) -> bool {
    let name = match value.iter().rposition(|byte| *byte == b':') {
        // A colon inside the brackets is a part of the address.
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

/// Parses the value of Content-Length, which is a sequence of digits.
///
/// # Errors
///
/// The value is anything else.
fn content_length(value: &[u8]) -> Result<u64, Status> {
    match parse_digits(value) {
        Some(length) => Ok(length),
        None => Err(Status::BadRequest),
    }
}

/// Parses a decimal number; a number that is too large becomes `u64::MAX`. Returns `None` if `text` is no number.
fn parse_digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = str::from_utf8(text).ok()?.parse();
    Some(number.unwrap_or(u64::MAX))
}

/// Returns the members of a list, without empty ones (RFC 9110, 5.6.1).
fn list_members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let members = value.split(|byte| *byte == b',');
    members
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// Parses an HTTP date, in any of its three forms. Returns `None` if the value is no date.
fn date(value: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(str::from_utf8(value).ok()?).ok()
}

/// Parses the value of Range. Returns `None` if it is not one range of bytes: such a field may be ignored (RFC 9110,
/// 14.2).
fn byte_range(value: &[u8]) -> Option<ByteRange> {
    let equals = memchr::memchr(b'=', value)?;
    let (unit, range) = (&value[..equals], value[equals + 1..].trim_ascii());
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let dash = memchr::memchr(b'-', range)?;
    match (&range[..dash], &range[dash + 1..]) {
        (b"", count) => Some(ByteRange::Last(parse_digits(count)?)),
        (first, b"") => Some(ByteRange::Between(parse_digits(first)?, u64::MAX)),
        (first, last) => {
            let (first, last) = (parse_digits(first)?, parse_digits(last)?);
            (first <= last).then_some(ByteRange::Between(first, last))
        }
    }
}

impl ByteRange {
    /// Returns the offsets of the range in a file of `length` bytes; `None`: the range can't be satisfied.
    pub(super) fn within(self, length: u64) -> Option<Range<u64>> {
        match self {
            ByteRange::Between(first, last) if first < length => {
                Some(first..last.saturating_add(1).min(length))
            }
            ByteRange::Last(count) if count > 0 => Some(length.saturating_sub(count)..length),
            _ => None,
        }
    }
}
