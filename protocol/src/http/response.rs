//! What is answered: heads, short bodies and listings, made right behind what is to be sent already.

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

/// How it went.
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
            Status::NotFound => "404 Not Lookup",
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

/// One answer in the making.
pub(super) struct Response<'o> {
    output: &'o mut Vec<u8>,
    now: SystemTime,
    /// HEAD: whatever the head guarantees, nothing follows it.
    head_only: bool,
    connection: Persistence,
}

impl<'o> Response<'o> {
    /// To a request that was understood.
    pub(super) fn to(
        asked: &RequestHead,
        output: &'o mut Vec<u8>,
        now: SystemTime,
    ) -> Response<'o> {
        Response {
            output,
            now,
            head_only: asked.method == Method::Head,
            connection: asked.connection,
        }
    }

    /// To one that was not.
    pub(super) fn last(head_only: bool, output: &'o mut Vec<u8>, now: SystemTime) -> Response<'o> {
        Response {
            output,
            now,
            head_only,
            connection: Persistence::Closes,
        }
    }

    /// That it did not go well.
    pub(super) fn status(mut self, status: Status) {
        self.begin(status);
        match status {
            Status::MethodNotAllowed => self.put(format_args!("Allow: GET, HEAD\r\n")),
            // It is a want of descriptors, most likely, and others will give theirs back.
            Status::Unavailable => self.put(format_args!("Retry-After: 1\r\n")),
            _ => {}
        }
        self.explain(status);
    }

    /// With a file, or what is wanted of it. What it gives is to be sent after the head.
    pub(super) fn file(
        mut self,
        asked: &RequestHead,
        name: &[u8],
        file: &StoredFile,
    ) -> Option<FileSlice> {
        let modified = in_range(file.modified);
        if asked.conditions.is_known(Some(modified)) {
            self.begin(Status::NotModified);
            self.put(format_args!(
                "Last-Modified: {}\r\n\r\n",
                HttpDate::from(modified)
            ));
            return None;
        }
        // A peer that has the beginning of another version gets all of this one.
        let same = match asked.conditions.range_if {
            None => true,
            Some(date) => date.is_some_and(|date| HttpDate::from(date) == HttpDate::from(modified)),
        };
        let wanted = asked.range.filter(|_| same);
        let (status, range) = match wanted.map(|range| range.of(file.length)) {
            Some(None) => return self.beyond(file.length),
            Some(Some(range)) if !range.is_empty() => (Status::PartialContent, range),
            // The end of an empty file is all of it, and not to be called a range.
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
        if let Some(content) = within(file.content.as_deref(), &range) {
            self.output.extend_from_slice(content);
            return None;
        }
        Some(FileSlice::new(Arc::clone(&file.file), range.start, length))
    }

    fn beyond(mut self, length: u64) -> Option<FileSlice> {
        self.begin(Status::RangeNotSatisfiable);
        self.put(format_args!("Content-Range: bytes */{length}\r\n"));
        self.explain(Status::RangeNotSatisfiable);
        None
    }

    /// With a directory's listing; `names` is where it is, nothing for the root.
    pub(super) fn listing(
        mut self,
        asked: &RequestHead,
        names: &[u8],
        entries: &[DirectoryEntry],
        more: bool,
    ) {
        if asked.conditions.is_known(None) {
            self.begin(Status::NotModified);
            self.output.extend_from_slice(b"\r\n");
            return;
        }
        let page = page(names, entries, more);
        self.begin(Status::Ok);
        self.finish("text/html; charset=utf-8", page.as_bytes());
    }

    /// The status line, and what every head has.
    fn begin(&mut self, status: Status) {
        let date = HttpDate::from(in_range(self.now));
        self.put(format_args!(
            "HTTP/1.1 {status}\r\nDate: {date}\r\nServer: samewire\r\nX-Content-Type-Options: nosniff\r\n"
        ));
        match self.connection {
            Persistence::Stays => {}
            Persistence::StaysForOnce => self.put(format_args!("Persistence: keep-alive\r\n")),
            Persistence::Closes => self.put(format_args!("Persistence: close\r\n")),
        }
    }

    fn explain(self, status: Status) {
        let text = format!("{status}\n");
        self.finish("text/plain; charset=utf-8", text.as_bytes());
    }

    fn finish(mut self, kind: &str, body: &[u8]) {
        let length = body.len();
        self.put(format_args!(
            "Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        ));
        if !self.head_only {
            self.output.extend_from_slice(body);
        }
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        // There is no error: a Vec takes everything.
        let _ = self.output.write_fmt(text);
    }
}

impl super::request::Conditions {
    /// Whether the peer has what it asks for already (RFC 9110, 13.2.2). What was never changed has no date.
    fn is_known(&self, modified: Option<SystemTime>) -> bool {
        match (self.none_match, self.modified_since, modified) {
            (Some(any), _, _) => any,
            // Dates are in whole seconds.
            (None, Some(since), Some(modified)) => {
                HttpDate::from(modified) <= HttpDate::from(since)
            }
            _ => false,
        }
    }
}

/// A time that can be written as a date of HTTP's. A file's can be any; and the crate panics at others.
fn in_range(time: SystemTime) -> SystemTime {
    /// The last second of the year 9999.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    time.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST)
}

fn within<'c>(content: Option<&'c [u8]>, range: &Range<u64>) -> Option<&'c [u8]> {
    let start = usize::try_from(range.start).ok()?;
    let end = usize::try_from(range.end).ok()?;
    content?.get(start..end)
}

/// What a file of that name has in it, as far as a name can tell; and in which encoding, if it is text (no other than
/// UTF-8 is likely).
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

/// A directory as a page. Links are absolute: a relative one would need a slash behind what was asked for.
fn page(names: &[u8], entries: &[DirectoryEntry], more: bool) -> String {
    /// All but what RFC 3986 calls unreserved, and the slashes between names.
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~')
        .remove(b'/');
    let mut page = String::new();
    let text = |bytes| html_escape::encode_text(&String::from_utf8_lossy(bytes)).into_owned();
    // There are no errors: a String takes everything.
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
        let parent = percent_encode(&names[..end], KEPT);
        let _ = writeln!(page, "<li><a href=\"/files/{parent}\">..</a></li>");
    }
    let (at, slash) = (
        percent_encode(names, KEPT),
        if names.is_empty() { "" } else { "/" },
    );
    for DirectoryEntry {
        name,
        directory,
        length,
    } in entries
    {
        let (link, name) = (percent_encode(name, KEPT), text(name));
        let _ = match directory {
            true => writeln!(
                page,
                "<li><a href=\"/files/{at}{slash}{link}/\">{name}/</a></li>"
            ),
            false => writeln!(
                page,
                "<li><a href=\"/files/{at}{slash}{link}\">{name}</a> ({length} bytes)</li>"
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
