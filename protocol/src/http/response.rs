//! Responses: heads, short bodies and listings. They are appended to the output buffer.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use httpdate::HttpDate;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::file_store::{DirectoryEntry, StoredFile};
use super::request::{Method, Persistence, RequestHead};
use crate::file::FileSlice;

/// Status of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    PartialContent,
    NotModified,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    ContentTooLarge,
    UriTooLong,
    RangeNotSatisfiable,
    FieldsTooLarge,
    NotImplemented,
    Unavailable,
    VersionNotSupported,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Ok => "200 OK",
            Status::PartialContent => "206 Partial Content",
            Status::NotModified => "304 Not Modified",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::ContentTooLarge => "413 Content Too Large",
            Status::UriTooLong => "414 URI Too Long",
            Status::RangeNotSatisfiable => "416 Range Not Satisfiable",
            Status::FieldsTooLarge => "431 Request Header Fields Too Large",
            Status::NotImplemented => "501 Not Implemented",
            Status::Unavailable => "503 Service Unavailable",
            Status::VersionNotSupported => "505 HTTP Version Not Supported",
        })
    }
}

/// Builder of one response.
pub(super) struct Response<'o> {
    output: &'o mut Vec<u8>,
    now: SystemTime,
    /// Whether the request was HEAD: the head is the same as for GET, and no body follows it.
    head_only: bool,
    persistence: Persistence,
}

impl<'o> Response<'o> {
    /// Begins the response to a parsed request.
    pub(super) fn to_request(
        request: &RequestHead,
        output: &'o mut Vec<u8>,
        now: SystemTime,
    ) -> Response<'o> {
        Response {
            output,
            now,
            head_only: request.method == Method::Head,
            persistence: request.persistence,
        }
    }

    /// Begins the response to a request that could not be parsed. The connection is closed after it.
    pub(super) fn to_invalid(
        head_only: bool,
        output: &'o mut Vec<u8>,
        now: SystemTime,
    ) -> Response<'o> {
        Response {
            output,
            now,
            head_only,
            persistence: Persistence::Close,
        }
    }

    /// Writes a response that reports an error.
    pub(super) fn status(mut self, status: Status) {
        self.begin(status);
        match status {
            Status::MethodNotAllowed => self.put(format_args!("Allow: GET, HEAD\r\n")),
            // Most likely no descriptor was free, and other connections will release theirs.
            Status::Unavailable => self.put(format_args!("Retry-After: 1\r\n")),
            _ => {}
        }
        self.finish_with_status(status);
    }

    /// Writes a response with a file, or with the requested range of it. Returns the slice of the file that must be
    /// sent after the output; `None`: the output is the complete response.
    pub(super) fn file(
        mut self,
        request: &RequestHead,
        name: &[u8],
        file: &StoredFile,
    ) -> Option<FileSlice> {
        let modified = in_range(file.modified);
        if request.conditions.not_modified(Some(modified)) {
            self.begin(Status::NotModified);
            self.put(format_args!(
                "Last-Modified: {}\r\n\r\n",
                HttpDate::from(modified)
            ));
            return None;
        }
        // A client that has the beginning of another version gets all of this version.
        let same_version = match request.conditions.if_range {
            None => true,
            Some(date) => date.is_some_and(|date| HttpDate::from(date) == HttpDate::from(modified)),
        };
        let requested = request.range.filter(|_| same_version);
        let (status, range) = match requested.map(|range| range.within(file.length)) {
            Some(None) => return self.range_not_satisfiable(file.length),
            Some(Some(range)) if !range.is_empty() => (Status::PartialContent, range),
            // The last bytes of an empty file are an empty range, which Content-Range can't express: send the whole
            // file.
            _ => (Status::Ok, 0..file.length),
        };
        self.begin(status);
        let (kind, charset) = content_type(name);
        let length = range.end - range.start;
        self.put(format_args!(
            "Content-Type: {kind}{charset}\r\nContent-Length: {length}\r\nLast-Modified: {}\r\n\
             Accept-Ranges: bytes\r\n",
            HttpDate::from(modified),
        ));
        if status == Status::PartialContent {
            let (start, last, all) = (range.start, range.end - 1, file.length);
            self.put(format_args!(
                "Content-Range: bytes {start}-{last}/{all}\r\n"
            ));
        }
        self.output.extend_from_slice(b"\r\n");
        if self.head_only || length == 0 {
            return None;
        }
        if let Some(content) = held_content(file.content.as_deref(), &range) {
            self.output.extend_from_slice(content);
            return None;
        }
        Some(FileSlice::new(Arc::clone(&file.file), range.start, length))
    }

    /// Writes a response to a range that can't be satisfied in a file of `length` bytes.
    fn range_not_satisfiable(mut self, length: u64) -> Option<FileSlice> {
        self.begin(Status::RangeNotSatisfiable);
        self.put(format_args!("Content-Range: bytes */{length}\r\n"));
        self.finish_with_status(Status::RangeNotSatisfiable);
        None
    }

    /// Writes a response with the listing of a directory. `names` is the path of the directory, empty for the root.
    pub(super) fn listing(
        mut self,
        request: &RequestHead,
        names: &[u8],
        entries: &[DirectoryEntry],
        more: bool,
    ) {
        if request.conditions.not_modified(None) {
            self.begin(Status::NotModified);
            self.output.extend_from_slice(b"\r\n");
            return;
        }
        let page = page(names, entries, more);
        self.begin(Status::Ok);
        self.finish("text/html; charset=utf-8", page.as_bytes());
    }

    /// Writes the status line and the fields that every head has.
    fn begin(&mut self, status: Status) {
        let date = HttpDate::from(in_range(self.now));
        self.put(format_args!(
            "HTTP/1.1 {status}\r\nDate: {date}\r\nServer: samewire\r\nX-Content-Type-Options: nosniff\r\n"
        ));
        match self.persistence {
            Persistence::KeepAlive => {}
            Persistence::KeepAliveAnnounced => self.put(format_args!("Connection: keep-alive\r\n")),
            Persistence::Close => self.put(format_args!("Connection: close\r\n")),
        }
    }

    /// Ends the response with the status as its body.
    fn finish_with_status(self, status: Status) {
        let text = format!("{status}\n");
        self.finish("text/plain; charset=utf-8", text.as_bytes());
    }

    /// Ends the response with a body of the media type `kind`.
    fn finish(mut self, kind: &str, body: &[u8]) {
        let length = body.len();
        self.put(format_args!(
            "Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        ));
        if !self.head_only {
            self.output.extend_from_slice(body);
        }
    }

    /// Appends text to the output.
    fn put(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a Vec does not fail.
        let _ = self.output.write_fmt(text);
    }
}

impl super::request::Conditions {
    /// Returns whether the client already has the current version (RFC 9110, 13.2.2). `modified` is `None` for a
    /// listing, which has no date.
    fn not_modified(&self, modified: Option<SystemTime>) -> bool {
        match (self.none_match, self.modified_since, modified) {
            (Some(any), _, _) => any,
            // HTTP dates are in whole seconds.
            (None, Some(since), Some(modified)) => {
                HttpDate::from(modified) <= HttpDate::from(since)
            }
            _ => false,
        }
    }
}

/// Returns the nearest time that can be written as an HTTP date. The time of a file can be any time, and httpdate
/// panics at times outside this range.
fn in_range(time: SystemTime) -> SystemTime {
    /// The last second of the year 9999.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    time.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST)
}

/// Returns the bytes of `range`, if the content is held in memory.
fn held_content<'c>(content: Option<&'c [u8]>, range: &Range<u64>) -> Option<&'c [u8]> {
    let start = usize::try_from(range.start).ok()?;
    let end = usize::try_from(range.end).ok()?;
    content?.get(start..end)
}

/// Guesses the media type of a file from its name. Returns the type and its charset parameter: UTF-8 for text, because
/// another encoding is unlikely.
fn content_type(names: &[u8]) -> (&'static str, &'static str) {
    let guessed = str::from_utf8(names)
        .ok()
        .and_then(|name| mime_guess::from_path(name).first_raw());
    let kind = guessed.unwrap_or("application/octet-stream");
    let charset = match kind.starts_with("text/") {
        true => "; charset=utf-8",
        false => "",
    };
    (kind, charset)
}

/// Makes the page that lists a directory. Its links are absolute: relative links work only if the requested path ends
/// with a slash.
fn page(names: &[u8], entries: &[DirectoryEntry], more: bool) -> String {
    /// Bytes that are escaped in links: all except the unreserved characters of RFC 3986 and the slashes between names.
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~')
        .remove(b'/');
    let mut page = String::new();
    let text = |bytes| html_escape::encode_text(&String::from_utf8_lossy(bytes)).into_owned();
    // Writing to a String does not fail.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n\
         <head><meta charset=\"utf-8\"><title>/{0}</title></head>\n\
         <body>\n<h1>/{0}</h1>\n<ul>\n",
        text(names),
    );
    if !names.is_empty() {
        let end = names
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        let parent = percent_encode(&names[..end], ESCAPED);
        let _ = writeln!(page, "<li><a href=\"/files/{parent}\">..</a></li>");
    }
    let (directory_path, slash) = (
        percent_encode(names, ESCAPED),
        if names.is_empty() { "" } else { "/" },
    );
    for DirectoryEntry {
        name,
        directory,
        length,
    } in entries
    {
        let (link, name) = (percent_encode(name, ESCAPED), text(name));
        let _ = match directory {
            true => writeln!(
                page,
                "<li><a href=\"/files/{directory_path}{slash}{link}/\">{name}/</a></li>"
            ),
            false => writeln!(
                page,
                "<li><a href=\"/files/{directory_path}{slash}{link}\">{name}</a> ({length} bytes)</li>"
            ),
        };
    }
    page.push_str("</ul>\n");
    if more {
        page.push_str("<p>There are more, which are not listed.</p>\n");
    }
    page.push_str("</body>\n</html>\n");
    page
}
