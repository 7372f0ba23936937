//! Server side of `http`: the responses to requests of all kinds, with the rules written out.

use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::collection::vec;
use proptest::prelude::*;
use protocol::http::{DirectoryEntry, FileStore, Lookup, StoredFile};
use protocol::{CloseReason, Protocol, Session, SessionOptions, Step, Work, WorkKind, WorkPlan};

/// Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples; the files were changed then.
const CHANGED: Duration = Duration::from_secs(784_111_777);
const CHANGED_DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const EARLIER_DATE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
const LATER_DATE: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
const NOW_DATE: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

/// Limit of heads and bodies in bytes: long heads fit, and a head over the limit is quick to write.
const MAX_LINE: usize = 600;

/// File store with one temporary file for each file. `big` is never held in memory, so it is sent from the file.
#[derive(Debug)]
struct TestStore {
    files: Vec<(&'static [u8], Arc<StoredFile>)>,
}

/// Returns the time of the last change of the file with this name.
fn changed(name: &[u8]) -> SystemTime {
    match name {
        b"before" => UNIX_EPOCH - CHANGED,
        b"after" => UNIX_EPOCH + 1_000 * CHANGED,
        _ => UNIX_EPOCH + CHANGED,
    }
}

impl TestStore {
    fn new() -> TestStore {
        let big: Vec<u8> = (0..40_000_u32).map(|n| (n % 251) as u8).collect();
        let medium = [b'm'; 10_000];
        let files = [
            (&b"hi.txt"[..], &b"Hello World!\n"[..], true),
            (b"page.html", b"<p>", true),
            (b"13b", b"Hello World!\n", true),
            (b"empty", b"", true),
            (b"empty-file", b"", false),
            (b"medium", &medium, true),
            (b"big", &big, false),
            (b"dir/a b&<\xc3\xa9.css", b"x", true),
            (b"dir/\xff", b"y", false),
            (b"300%", b"z", true),
            (b"before", b"", true),
            (b"after", b"", true),
        ];
        let files = files.map(|(name, content, in_memory)| {
            let mut file = tempfile::tempfile().unwrap();
            // After the write the file position is at the end: content must be sent by its offset, not by the position.
            file.write_all(content).unwrap();
            let file = StoredFile {
                file: Arc::new(file),
                length: content.len() as u64,
                modified: changed(name),
                content: in_memory.then(|| content.into()),
            };
            (name, Arc::new(file))
        });
        TestStore {
            files: files.into(),
        }
    }
}

impl FileStore for TestStore {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + CHANGED + Duration::from_secs(24 * 60 * 60)
    }

    fn look_up(&self, path: &[u8]) -> io::Result<Lookup> {
        let is_plain_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        let is_valid = path.is_empty() || path.split(|byte| *byte == b'/').all(is_plain_name);
        assert!(
            is_valid,
            "look-up of the invalid path {:?}",
            path.escape_ascii().to_string()
        );
        let entry = |name: &[u8], directory, length| DirectoryEntry {
            name: name.to_vec(),
            directory,
            length,
        };
        Ok(match path {
            b"" => Lookup::Directory {
                entries: vec![entry(b"dir", true, 0), entry(b"hi.txt", false, 13)],
                more: false,
            },
            b"dir" => Lookup::Directory {
                entries: vec![
                    entry(b"<sub>", true, 0),
                    entry(b"a b&<\xc3\xa9.css", false, 1),
                    entry(b"\xff", false, 1),
                ],
                more: true,
            },
            b"dir/<sub>" => Lookup::Directory {
                entries: Vec::new(),
                more: false,
            },
            b"trouble" => return Err(io::ErrorKind::Other.into()),
            _ => match self.files.iter().find(|(name, _)| *name == path) {
                Some((_, file)) => Lookup::File(Arc::clone(file)),
                None => Lookup::Nothing,
            },
        })
    }
}

fn options() -> SessionOptions {
    SessionOptions {
        max_line: MAX_LINE,
        file_store: Arc::new(TestStore::new()),
        ..SessionOptions::default()
    }
}

fn open(options: &SessionOptions) -> Box<dyn Session> {
    (Protocol::find("http").unwrap().open)(options)
}

/// Result of a complete conversation: all bytes that the session sent, and the reason of its close.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    output: Vec<u8>,
    reason: CloseReason,
}

/// Drives a complete conversation: pieces arrive when the session reads, then FIN. The socket takes at most `take`
/// bytes at a time. The driver calls `step` twice for each step, and each step must make progress.
fn converse<'i>(
    mut session: Box<dyn Session>,
    pieces: impl IntoIterator<Item = &'i [u8]>,
    take: usize,
) -> Outcome {
    let mut pieces = pieces.into_iter();
    let mut output = Vec::new();
    let mut fin = false;
    loop {
        let (first, has_output) = match session.step() {
            Step::Write(bytes) => (Some((bytes.as_ptr(), bytes.len())), true),
            Step::SendFile(_) | Step::Work(_) => (None, true),
            Step::Read | Step::Close(_) => (None, false),
        };
        // `mid_request` may also be true without output: a request has begun and has no response yet.
        assert!(!has_output || session.mid_request());
        match session.step() {
            Step::Read => match pieces.next() {
                Some(piece) => session.receive(piece),
                None => {
                    assert!(!fin, "the session reads after FIN");
                    fin = true;
                    session.end_of_input();
                }
            },
            Step::Write(bytes) => {
                assert_eq!(
                    first,
                    Some((bytes.as_ptr(), bytes.len())),
                    "the second call"
                );
                assert!(!bytes.is_empty(), "the session writes no bytes");
                let count = take.min(bytes.len());
                output.extend_from_slice(&bytes[..count]);
                session.sent(count);
            }
            Step::SendFile(slice) => {
                assert!(!slice.is_empty(), "the session sends an empty range");
                let count = (take as u64).min(slice.len()) as usize;
                let at = output.len();
                output.resize(at + count, 0);
                slice
                    .file()
                    .read_exact_at(&mut output[at..], slice.offset())
                    .unwrap();
                session.sent(count);
            }
            Step::Work(_) => session.worked(),
            Step::Close(reason) => {
                assert!(!session.mid_request());
                // `Close` is final: later reports change nothing.
                session.receive(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
                session.end_of_input();
                assert_eq!(session.step(), Step::Close(reason));
                assert!(!session.mid_request());
                return Outcome { output, reason };
            }
        }
    }
}

/// Returns the outcome of a conversation with this input.
fn respond(input: &[u8]) -> Outcome {
    converse(open(&options()), [input], usize::MAX)
}

/// Response as a client parses it.
#[derive(Debug)]
struct Response {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    /// Returns the value of a field; `None`: the field is absent.
    ///
    /// # Panics
    ///
    /// The field is there twice.
    fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(other, _)| other == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} is there twice");
        value
    }
}

/// Splits the output into responses, with a parser of another crate. `is_head` states for each response whether it
/// answers HEAD, and so has no body.
fn responses(mut output: &[u8], is_head: &[bool]) -> Vec<Response> {
    let mut responses = Vec::new();
    while !output.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 20];
        let mut parsed = httparse::Response::new(&mut fields);
        let head = parsed
            .parse(output)
            .expect("the head can be parsed")
            .unwrap();
        let mut response = Response {
            status: parsed.code.unwrap(),
            fields: parsed
                .headers
                .iter()
                .map(|field| {
                    let value = str::from_utf8(field.value).unwrap();
                    (field.name.to_string(), value.to_string())
                })
                .collect(),
            body: Vec::new(),
        };
        assert_eq!(parsed.version, Some(1));
        assert!(!parsed.reason.unwrap().is_empty());
        assert_eq!(response.field("Date"), Some(NOW_DATE));
        assert_eq!(response.field("Server"), Some("samewire"));
        assert_eq!(response.field("X-Content-Type-Options"), Some("nosniff"));
        output = &output[head..];
        let length = response
            .field("Content-Length")
            .map(|length| length.parse::<usize>().unwrap());
        let head_only = is_head.get(responses.len()).copied().unwrap_or(false);
        if response.status == 304 {
            assert_eq!(length, None);
        } else if !head_only {
            let (body, rest) = output.split_at(length.expect("the response has a Content-Length"));
            response.body = body.to_vec();
            output = rest;
        }
        responses.push(response);
    }
    responses
}

/// Returns the response to one request, and checks that the connection is still open after it.
fn ask(request: &str) -> Response {
    let outcome = respond(request.as_bytes());
    let with_second_request = respond(
        &[
            request.as_bytes(),
            b"GET /files/13b HTTP/1.1\r\nHost: x\r\n\r\n",
        ]
        .concat(),
    );
    assert_eq!(outcome.reason, CloseReason::Done, "{request:?}");
    assert!(
        with_second_request.output.len() > outcome.output.len(),
        "closed after {request:?}"
    );
    let mut found = responses(&outcome.output, &[request.starts_with("HEAD ")]);
    assert_eq!(found.len(), 1, "{request:?}");
    let response = found.remove(0);
    assert_eq!(response.field("Connection"), None, "{request:?}");
    response
}

/// Returns the response to GET.
fn get(target: &str) -> Response {
    ask(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

/// Returns the response to GET with more fields.
fn get_with(target: &str, fields: &str) -> Response {
    ask(&format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"
    ))
}

/// Returns the response that refuses a request, and checks that all later input is ignored.
fn refused(input: &[u8]) -> Response {
    let mut input = input.to_vec();
    let text = input.escape_ascii().to_string();
    let outcome = respond(&input);
    assert_eq!(outcome.reason, CloseReason::Refused, "{text}");
    let mut found = responses(&outcome.output, &[input.starts_with(b"HEAD ")]);
    assert_eq!(found.len(), 1, "{text}");
    let response = found.remove(0);
    assert_eq!(response.field("Connection"), Some("close"), "{text}");
    input.extend_from_slice(b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(respond(&input), outcome, "{text}");
    response
}

#[test]
fn file_response_has_all_fields() {
    let outcome = respond(b"GET /files/hi.txt HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let expected = format!(
        "HTTP/1.1 200 OK\r\nDate: {NOW_DATE}\r\nServer: samewire\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: 13\r\nLast-Modified: {CHANGED_DATE}\r\n\
         Accept-Ranges: bytes\r\n\r\nHello World!\n"
    );
    assert_eq!(str::from_utf8(&outcome.output), Ok(expected.as_str()));
    assert_eq!(outcome.reason, CloseReason::Done);
}

#[test]
fn content_type_is_guessed_from_the_name() {
    let kind = |target| get(target).field("Content-Type").map(str::to_string);
    assert_eq!(
        kind("/files/13b").as_deref(),
        Some("application/octet-stream")
    );
    assert_eq!(
        kind("/files/page.html").as_deref(),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(
        kind("/files/dir/a%20b&%3c%C3%a9.css").as_deref(),
        Some("text/css; charset=utf-8")
    );
    assert_eq!(
        kind("/files/dir/%ff").as_deref(),
        Some("application/octet-stream")
    );
}

#[test]
fn big_file_is_sent_from_the_file_and_an_empty_file_needs_no_step() {
    let response = get("/files/big");
    assert_eq!(response.body.len(), 40_000);
    assert!(
        response
            .body
            .iter()
            .zip(0..)
            .all(|(byte, n)| *byte == (n % 251) as u8)
    );
    for empty in ["/files/empty", "/files/empty-file"] {
        let response = get(empty);
        assert_eq!(
            (response.status, response.field("Content-Length")),
            (200, Some("0"))
        );
    }

    let mut session = open(&options());
    session.receive(
        b"GET /files/big HTTP/1.1\r\nHost: x\r\n\r\nGET /files/13b HTTP/1.1\r\nHost: x\r\n\r\n",
    );
    let Step::Write(head) = session.step() else {
        panic!("the session sends no head")
    };
    assert!(head.ends_with(b"\r\n\r\n"));
    let length = head.len();
    session.sent(length);
    let Step::SendFile(slice) = session.step() else {
        panic!("the session sends no file")
    };
    assert_eq!((slice.offset(), slice.len()), (0, 40_000));
    session.sent(39_999);
    let Step::SendFile(slice) = session.step() else {
        panic!("the session does not send the rest")
    };
    assert_eq!((slice.offset(), slice.len()), (39_999, 1));
    assert!(session.mid_request());
    session.sent(1);
    assert!(
        matches!(session.step(), Step::Write(_)),
        "the next response"
    );
}

#[test]
fn file_time_outside_http_dates_is_sent_as_the_nearest_date() {
    let modified = |name: &str| get(name).field("Last-Modified").map(str::to_string);
    assert_eq!(
        modified("/files/before").as_deref(),
        Some("Thu, 01 Jan 1970 00:00:00 GMT")
    );
    assert_eq!(
        modified("/files/after").as_deref(),
        Some("Fri, 31 Dec 9999 23:59:59 GMT")
    );
    let fields = format!("If-Modified-Since: {CHANGED_DATE}\r\n");
    assert_eq!(get_with("/files/before", &fields).status, 304);
    assert_eq!(get_with("/files/after", &fields).status, 200);
}

#[test]
fn head_response_is_the_get_response_without_body() {
    for target in [
        "/",
        "/files/hi.txt",
        "/files/big",
        "/files/none",
        "/files/trouble",
        "/files/dir",
    ] {
        let request = |method| format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let get = respond(request("GET").as_bytes()).output;
        let head = respond(request("HEAD").as_bytes()).output;
        assert!(
            head.ends_with(b"\r\n\r\n") && get.starts_with(&head),
            "{target}"
        );
    }
    let response = ask("HEAD /files/hi.txt HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n");
    assert_eq!(
        (response.status, response.field("Content-Length")),
        (200, Some("13"))
    );
    assert_eq!(refused(b"HEAD / HTTP/1.1\r\n\r\n").status, 400);
}

#[test]
fn path_names_one_file_or_directory_or_nothing() {
    for (target, status) in [
        ("/", 200),
        ("/?x", 200),
        ("/files/", 200),
        ("/files/?a=/../b%zz", 200),
        ("/files/dir", 200),
        ("/files/dir/", 200),
        ("/%66iles/hi%2etxt?query", 200),
        ("/files/300%25", 200),
        ("http://localhost/files/hi.txt", 200),
        ("HTTP://[::1]:80/files/hi.txt", 200),
        ("http://localhost", 200),
        ("http://localhost?/files/x", 200),
        ("/files", 200),
        ("/file", 404),
        ("//", 404),
        ("//files/hi.txt", 404),
        ("/files//hi.txt", 404),
        ("/files/dir//", 404),
        ("/files//", 404),
        ("/files/hi.txt/", 404),
        ("/files/hi.txt/x", 404),
        ("/files/none", 404),
        ("/files/.", 404),
        ("/files/..", 404),
        ("/files/../", 404),
        ("/files/../files/hi.txt", 404),
        ("/files/dir/../hi.txt", 404),
        ("/files/%2e%2e/hi.txt", 404),
        ("/files/.%2E/x", 404),
        ("/files/dir%2fx", 404),
        ("/files/hi.txt%00", 404),
        ("/files/%2Fetc%2Fpasswd", 404),
        ("/favicon.ico", 404),
    ] {
        assert_eq!(get(target).status, status, "{target}");
    }
    for target in [
        "/files/%",
        "/files/%2",
        "/files/%zz",
        "/%",
        "/a%2?x",
        "*",
        "files/13b",
        "ftp://localhost/",
        "http:///",
        "http://user@host/",
        "http://a:b/",
        "localhost:80",
        "/#x",
        "/?#",
        "/\u{e9}",
        "/?\u{e9}",
        "https://localhost/",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(refused(request.as_bytes()).status, 400, "{target}");
    }
}

#[test]
fn listing_is_escaped_and_its_links_work() {
    let response = get("/");
    assert_eq!(
        response.field("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    let page = String::from_utf8(response.body).unwrap();
    assert!(page.contains("<a href=\"/files/dir/\">dir/</a>"), "{page}");
    assert!(
        page.contains("<a href=\"/files/hi.txt\">hi.txt</a> (13 bytes)"),
        "{page}"
    );
    assert!(!page.contains("..") && !page.contains("more"), "{page}");

    for target in ["/files/dir", "/files/dir/"] {
        let page = String::from_utf8(get(target).body).unwrap();
        assert!(page.contains("<a href=\"/files/\">..</a>"), "{page}");
        assert!(
            page.contains("<a href=\"/files/dir/%3Csub%3E/\">&lt;sub&gt;/</a>"),
            "{page}"
        );
        assert!(
            page.contains("a b&amp;&lt;\u{e9}.css</a> (1 bytes)"),
            "{page}"
        );
        assert!(
            page.contains("<a href=\"/files/dir/%FF\">\u{fffd}</a>"),
            "{page}"
        );
        assert!(page.contains("more"), "{page}");
        for link in page.split("href=\"").skip(1) {
            let (link, _) = link.split_once('"').unwrap();
            assert_eq!(get(link).status, 200, "{link}");
        }
    }
    let page = String::from_utf8(get("/files/dir/%3Csub%3E").body).unwrap();
    assert!(page.contains("<h1>/dir/&lt;sub&gt;</h1>"), "{page}");
    assert!(page.contains("<a href=\"/files/dir/\">..</a>"), "{page}");
}

#[test]
fn failed_look_up_gets_503_and_keeps_the_connection() {
    let response = get("/files/trouble");
    assert_eq!(
        (response.status, response.field("Retry-After")),
        (503, Some("1"))
    );
}

#[test]
fn single_range_is_served() {
    let (all, text) = ("0123456789abc".len(), "Hello World!\n");
    for (range, from, to) in [
        ("bytes=0-4", 0, 5),
        ("BYTES=0-0", 0, 1),
        ("bytes=6-", 6, all),
        ("bytes=6-99999999999999999999999", 6, all),
        ("bytes=-1", 12, all),
        ("bytes=-99", 0, all),
        ("bytes=12-12", 12, all),
        ("bytes=0-12", 0, all),
    ] {
        let response = get_with("/files/hi.txt", &format!("Range: {range}\r\n"));
        assert_eq!(response.status, 206, "{range}");
        let expected = format!("bytes {from}-{}/13", to - 1);
        assert_eq!(
            response.field("Content-Range"),
            Some(expected.as_str()),
            "{range}"
        );
        assert_eq!(response.body, text.as_bytes()[from..to], "{range}");
    }
    let response = get_with("/files/big", "Range: bytes=39990-\r\n");
    let expected: Vec<u8> = (39_990..40_000).map(|n| (n % 251) as u8).collect();
    assert_eq!(response.body, expected);
}

#[test]
fn range_beyond_the_end_is_refused_and_unsupported_ranges_ignored() {
    for range in [
        "bytes=13-",
        "bytes=13-20",
        "bytes=-0",
        "bytes=99999999999999999999-",
    ] {
        let response = get_with("/files/hi.txt", &format!("Range: {range}\r\n"));
        assert_eq!(response.status, 416, "{range}");
        assert_eq!(
            response.field("Content-Range"),
            Some("bytes */13"),
            "{range}"
        );
    }
    for range in [
        "bytes=0-1,3-4",
        "bytes=5-4",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=1",
        "lines=0-1",
        "bytes",
        "",
        "=0-1",
        "bytes=+1-2",
        "bytes=0-1-2",
        "bytes=--1",
        "bytes=0 - 1",
        "bytes=0-1\r\nRange: bytes=0-1",
    ] {
        let response = get_with("/files/hi.txt", &format!("Range: {range}\r\n"));
        assert_eq!((response.status, response.body.len()), (200, 13), "{range}");
    }
    for name in ["empty", "empty-file"] {
        let status = |range: &str| {
            get_with(
                &format!("/files/{name}"),
                &format!("Range: bytes={range}\r\n"),
            )
            .status
        };
        assert_eq!(
            [status("0-"), status("0-0"), status("-0"), status("-5")],
            [416, 416, 416, 200]
        );
    }
    assert_eq!(get_with("/", "Range: bytes=0-1\r\n").status, 200);
    assert_eq!(get_with("/files/none", "Range: bytes=0-1\r\n").status, 404);
}

#[test]
fn unmodified_file_gets_304() {
    let status = |fields: &str| get_with("/files/hi.txt", fields).status;
    let since = |date: &str| status(&format!("If-Modified-Since: {date}\r\n"));
    assert_eq!(
        [since(EARLIER_DATE), since(CHANGED_DATE), since(LATER_DATE)],
        [200, 304, 304]
    );
    // The two obsolete forms of a date are accepted too; a value that is no date is ignored.
    assert_eq!(since("Sunday, 06-Nov-94 08:49:37 GMT"), 304);
    assert_eq!(since("Sun Nov  6 08:49:37 1994"), 304);
    assert_eq!(since("yesterday"), 200);
    assert_eq!(status("If-None-Match: *\r\n"), 304);
    assert_eq!(status("If-None-Match: \"x\"\r\n"), 200);
    // If-None-Match has precedence over If-Modified-Since.
    assert_eq!(
        status(&format!(
            "If-None-Match: \"x\"\r\nIf-Modified-Since: {LATER_DATE}\r\n"
        )),
        200
    );
    // The condition is evaluated before the range.
    assert_eq!(status("If-None-Match: *\r\nRange: bytes=0-0\r\n"), 304);

    let response = get_with("/files/hi.txt", "If-None-Match: *\r\n");
    assert_eq!(response.field("Last-Modified"), Some(CHANGED_DATE));
    assert_eq!(response.field("Content-Type"), None);
    assert_eq!(get_with("/", "If-None-Match: *\r\n").status, 304);
    assert_eq!(
        get_with("/", &format!("If-Modified-Since: {LATER_DATE}\r\n")).status,
        200
    );
    assert_eq!(get_with("/files/none", "If-None-Match: *\r\n").status, 404);
}

#[test]
fn range_of_another_version_gets_the_whole_file() {
    let status = |date: &str| {
        get_with(
            "/files/hi.txt",
            &format!("Range: bytes=0-1\r\nIf-Range: {date}\r\n"),
        )
        .status
    };
    assert_eq!(status(CHANGED_DATE), 206);
    for other in [EARLIER_DATE, LATER_DATE, "\"tag\"", "W/\"tag\"", "", "*"] {
        assert_eq!(status(other), 200, "{other}");
    }
    let beyond = format!("Range: bytes=99-\r\nIf-Range: {LATER_DATE}\r\n");
    assert_eq!(get_with("/files/hi.txt", &beyond).status, 200);
    assert_eq!(
        get_with("/files/hi.txt", &format!("If-Range: {CHANGED_DATE}\r\n")).status,
        200
    );
}

#[test]
fn connection_persists_or_closes_as_requested() {
    for (version, fields, announced, closes) in [
        ("1.1", "", None, false),
        ("1.1", "Connection: keep-alive\r\n", None, false),
        ("1.1", "Connection: close\r\n", Some("close"), true),
        ("1.1", "Connection: upgrade, Close\r\n", Some("close"), true),
        (
            "1.1",
            "Connection: x\r\nConnection: close\r\n",
            Some("close"),
            true,
        ),
        (
            "1.1",
            "Connection: keep-alive, close\r\n",
            Some("close"),
            true,
        ),
        ("1.1", "Connection: closed\r\n", None, false),
        ("1.0", "", Some("close"), true),
        (
            "1.0",
            "Connection: Keep-Alive\r\n",
            Some("keep-alive"),
            false,
        ),
        (
            "1.0",
            "Connection: keep-alive, close\r\n",
            Some("close"),
            true,
        ),
    ] {
        for target in ["/files/13b", "/files/big", "/", "/none"] {
            let request = format!("GET {target} HTTP/{version}\r\nHost: x\r\n{fields}\r\n");
            let outcome = respond(format!("{request}{request}").as_bytes());
            assert_eq!(outcome.reason, CloseReason::Done);
            let found = responses(&outcome.output, &[]);
            assert_eq!(found.len(), if closes { 1 } else { 2 }, "{request:?}");
            assert_eq!(found[0].field("Connection"), announced, "{request:?}");
        }
    }
    assert_eq!(
        respond(b"GET / HTTP/1.0\r\n\r\n").reason,
        CloseReason::Done,
        "HTTP/1.0 needs no Host"
    );
}

#[test]
fn other_methods_get_405_with_allow() {
    for method in [
        "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "GETS", "M-SEARCH", "!",
    ] {
        for target in ["/", "/files/hi.txt", "*"] {
            let response = ask(&format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert_eq!(
                (response.status, response.field("Allow")),
                (405, Some("GET, HEAD"))
            );
        }
        let request = |fields| format!("{method} /x HTTP/1.1\r\nHost: x\r\n{fields}\r\nbody");
        for fields in [
            "Content-Length: 4\r\n",
            "Content-Length: 999999\r\n",
            "Transfer-Encoding: chunked\r\n",
        ] {
            assert_eq!(refused(request(fields).as_bytes()).status, 405);
        }
    }
    assert_eq!(
        ask("CONNECT x:80 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").status,
        405
    );
}

#[test]
fn request_bodies_are_skipped() {
    for body in [
        "Content-Length: 0\r\n\r\n",
        "Content-Length: 5\r\n\r\nGET /",
        "content-length:\t 005 \r\n\r\nGET /",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: Chunked\r\n\r\n5\r\nGET /\r\n000\r\n\r\n",
        "Transfer-Encoding: ,chunked,\r\n\r\nA ; x=\"y\"\r\n0123456789\r\n1\r\n\n\r\n0;x\r\nA: b\r\nC: d\r\n\r\n",
    ] {
        let response = ask(&format!("GET /files/13b HTTP/1.1\r\nHost: x\r\n{body}"));
        assert_eq!(
            (response.status, response.body.len()),
            (200, 13),
            "{body:?}"
        );
    }
    // The session waits for the rest of an incomplete body.
    let complete = "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n";
    for end in 0..complete.len() {
        let outcome = respond(&complete.as_bytes()[..end]);
        assert_eq!(
            outcome,
            Outcome {
                output: Vec::new(),
                reason: CloseReason::Done
            },
            "{end} bytes"
        );
    }
}

#[test]
fn request_body_over_the_limit_is_refused() {
    let with = |fields: String| format!("GET /files/13b HTTP/1.1\r\nHost: x\r\n{fields}");
    let length = |length: usize| {
        with(format!(
            "Content-Length: {length}\r\n\r\n{}",
            "x".repeat(length)
        ))
    };
    assert_eq!(ask(&length(MAX_LINE)).status, 200);
    assert_eq!(refused(length(MAX_LINE + 1).as_bytes()).status, 413);
    for long in [
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999999999",
    ] {
        assert_eq!(
            refused(with(format!("Content-Length: {long}\r\n\r\n")).as_bytes()).status,
            413
        );
    }

    let chunks = |text: &str| with(format!("Transfer-Encoding: chunked\r\n\r\n{text}"));
    let singles = |count: usize| chunks(&format!("{}0\r\n\r\n", "1\r\nx\r\n".repeat(count)));
    assert_eq!(ask(&singles(MAX_LINE)).status, 200);
    assert_eq!(refused(singles(MAX_LINE + 1).as_bytes()).status, 413);
    assert_eq!(
        refused(chunks("ffffffffffffffff\r\n").as_bytes()).status,
        413
    );
    assert_eq!(
        refused(chunks("1\r\nx\r\nFFFFFFFFFFFFFFFF\r\n").as_bytes()).status,
        413
    );

    let extended = |count: usize| chunks(&format!("0;{}\r\n\r\n", "x".repeat(count)));
    assert_eq!(ask(&extended(252)).status, 200);
    assert_eq!(refused(extended(253).as_bytes()).status, 400);
    let trailers = |count: usize| chunks(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(count)));
    assert_eq!(ask(&trailers(682)).status, 200);
    assert_eq!(refused(trailers(683).as_bytes()).status, 431);
    assert_eq!(
        refused(chunks(&format!("0\r\n{}", "x".repeat(5_000))).as_bytes()).status,
        431
    );
}

#[test]
fn request_with_expect_100_continue_gets_the_final_response() {
    for body in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        let request =
            format!("GET /files/13b HTTP/1.1\r\nHost: x\r\n{body}Expect: 100-Continue\r\n\r\n");
        let response = refused(request.as_bytes());
        assert_eq!((response.status, response.body.len()), (200, 13));
    }
    // Without a body the client has nothing to wait for, and HTTP/1.0 has no 100 (Continue).
    assert_eq!(get_with("/", "Expect: 100-continue\r\n").status, 200);
    let old = b"GET / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
    assert!(
        respond(old).output.is_empty(),
        "the session waits for the body"
    );
}

/// Requests that are refused, each with its status. `|` stands for CR LF.
const REFUSED: &[(&str, u16)] = &[
    // Request lines
    ("GET|Host: x||", 400),
    ("GET /|Host: x||", 400),
    ("GET / |Host: x||", 400),
    ("GET  / HTTP/1.1|Host: x||", 400),
    ("GET /  HTTP/1.1|Host: x||", 400),
    ("GET / HTTP/1.1 |Host: x||", 400),
    ("GET /a b HTTP/1.1|Host: x||", 400),
    ("GET\t/ HTTP/1.1|Host: x||", 400),
    (" GET / HTTP/1.1|Host: x||", 400),
    ("|| GET / HTTP/1.1|Host: x||", 400),
    ("G(T / HTTP/1.1|Host: x||", 400),
    ("G\u{e9}T / HTTP/1.1|Host: x||", 400),
    ("GET / HTTP/1.1\rHost: x||", 400),
    ("GET / HTTP/1.1\r\rHost: x||", 400),
    ("GET /\0 HTTP/1.1|Host: x||", 400),
    ("\0", 400),
    ("\x16\x03\x01", 400),
    ("\r\r", 400),
    // Versions
    ("PRI * HTTP/2.0||", 505),
    ("GET / HTTP/2.0|Host: x||", 505),
    ("GET / HTTP/3.7|Host: x||", 505),
    ("GET / HTTP/1.2|Host: x||", 505),
    ("GET / HTTP/0.9|Host: x||", 505),
    ("GET / HTTP/2.0\nHost: x\n\n", 505),
    ("GET / HTTP/2|Host: x||", 400),
    ("GET / HTTP/1.10|Host: x||", 400),
    ("GET / HTTP/11.1|Host: x||", 400),
    ("GET / HTTP/1,1|Host: x||", 400),
    ("GET / http/1.1|Host: x||", 400),
    ("GET / HTTP/a.b|Host: x||", 400),
    ("GET / HTTPS/1.1|Host: x||", 400),
    ("GET / x HTTP/2.0|Host: x||", 400),
    ("GET / HTTP/ 2.0|Host: x||", 400),
    // Hosts
    ("GET / HTTP/1.1||", 400),
    ("GET http://x/ HTTP/1.1||", 400),
    ("OPTIONS * HTTP/1.1||", 400),
    ("GET / HTTP/1.1|Host: x|Host: x||", 400),
    ("GET / HTTP/1.1|Host: x|host: y||", 400),
    ("GET / HTTP/1.0|Host: x|Host: x||", 400),
    ("GET / HTTP/1.1|Host: x y||", 400),
    ("GET / HTTP/1.1|Host: x/y||", 400),
    ("GET / HTTP/1.1|Host: u@x||", 400),
    ("GET / HTTP/1.1|Host: x, y:1||", 400),
    ("GET / HTTP/1.1|Host: x:y||", 400),
    ("GET / HTTP/1.1|Host: ::1||", 400),
    ("GET / HTTP/1.1|Host: [::1||", 400),
    ("GET / HTTP/1.1|Host: [::g]||", 400),
    ("GET / HTTP/1.1|Host: \u{e9}||", 400),
    ("GET / HTTP/1.0|Host: x?||", 400),
    // Fields
    ("GET / HTTP/1.1|Host : x||", 400),
    ("GET / HTTP/1.1|Host: x|A : b||", 400),
    ("GET / HTTP/1.1|Host: x|A\t: b||", 400),
    ("GET / HTTP/1.1| A: b|Host: x||", 400),
    ("GET / HTTP/1.1|Host: x| folded||", 400),
    ("GET / HTTP/1.1|Host: x|\tfolded||", 400),
    ("GET / HTTP/1.1|Host: x| |A: b||", 400),
    ("GET / HTTP/1.1|Host: x|: b||", 400),
    ("GET / HTTP/1.1|Host: x|A||", 400),
    ("GET / HTTP/1.1|Host: x|A: b\rc||", 400),
    ("GET / HTTP/1.1|Host: x|A: b\r\r\n|", 400),
    ("GET / HTTP/1.1|Host: x|A: b\0c||", 400),
    ("GET / HTTP/1.1|Host: x|A: b\x01c||", 400),
    ("GET / HTTP/1.1|Host: x|A\0: b||", 400),
    ("GET / HTTP/1.1|Host: x|A\u{e9}: b||", 400),
    // Lengths
    ("GET / HTTP/1.1|Host: x|Content-Length: +5||", 400),
    ("GET / HTTP/1.1|Host: x|Content-Length: -5||", 400),
    ("GET / HTTP/1.1|Host: x|Content-Length:||", 400),
    ("GET / HTTP/1.1|Host: x|Content-Length: 5, 5||", 400),
    ("GET / HTTP/1.1|Host: x|Content-Length: 5,||", 400),
    ("GET / HTTP/1.1|Host: x|Content-Length: 5 5||", 400),
    ("GET / HTTP/1.1|Host: x|Content-Length: 0x5||", 400),
    ("GET / HTTP/1.1|Host: x|Content-Length: 5.0||", 400),
    ("GET / HTTP/1.1|Host: x|Content-Length: five||", 400),
    (
        "GET / HTTP/1.1|Host: x|Content-Length: 5|Content-Length: 5||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Content-Length: 5|content-length: 6||",
        400,
    ),
    (
        "POST / HTTP/1.1|Host: x|Content-Length: 0|Content-Length: 0||",
        400,
    ),
    ("GET / HTTP/1.0|Content-Length: x||", 400),
    // Transfer codings
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked|Content-Length: 5||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Content-Length: 0|Transfer-Encoding: chunked||",
        400,
    ),
    (
        "POST / HTTP/1.1|Host: x|Content-Length: 5|Transfer-Encoding: x||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked, chunked||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked|Transfer-Encoding: chunked||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked, gzip||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked|Transfer-Encoding: gzip||",
        400,
    ),
    ("GET / HTTP/1.1|Host: x|Transfer-Encoding: gzip||", 400),
    ("GET / HTTP/1.1|Host: x|Transfer-Encoding: identity||", 400),
    ("GET / HTTP/1.1|Host: x|Transfer-Encoding:||", 400),
    ("GET / HTTP/1.1|Host: x|Transfer-Encoding: xchunked||", 400),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: \x0bchunked||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked;q=1||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: gzip, chunked||",
        501,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: gzip|Transfer-Encoding: chunked||",
        501,
    ),
    ("GET / HTTP/1.0|Transfer-Encoding: chunked||", 400),
    ("GET / HTTP/1.0|Transfer-Encoding: gzip, chunked||", 400),
    // Chunks
    ("GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked|||", 400),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||;x|",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked|| 5|",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||-1|",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||0x5|",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||5g|",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||5\nhello|0||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||5;x\ny|hello|0||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||5\r\rhello",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||5|hello0||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||5|hello\n0||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||5|hello\r0||",
        400,
    ),
    (
        "GET / HTTP/1.1|Host: x|Transfer-Encoding: chunked||fffffffffffffffff|",
        400,
    ),
];

/// Replaces `|` by CR LF.
fn with_line_ends(text: &str) -> Vec<u8> {
    text.replace('|', "\r\n").into_bytes()
}

#[test]
fn ambiguous_or_malformed_request_is_refused() {
    for (text, status) in REFUSED {
        assert_eq!(refused(&with_line_ends(text)).status, *status, "{text:?}");
    }
}

#[test]
fn unusual_but_unambiguous_request_is_answered() {
    for text in [
        "|||\nGET / HTTP/1.1|Host: x||",
        "GET / HTTP/1.1\nHost: x\n\n",
        "GET / HTTP/1.1|Host: x\n|",
        "GET / HTTP/1.1|HOST:x||",
        "GET / HTTP/1.1|Host:||",
        "GET / HTTP/1.1|Host: \t x:80 \t||",
        "GET / HTTP/1.1|Host: x:||",
        "GET / HTTP/1.1|Host: 127.0.0.1:80||",
        "GET / HTTP/1.1|Host: [::1]:80||",
        "GET / HTTP/1.1|Host: [::1]||",
        "GET / HTTP/1.1|Host: a%20b||",
        "GET / HTTP/1.1|Host: x|A:||",
        "GET / HTTP/1.1|Host: x|A: \u{e9} \t b||",
        "GET / HTTP/1.1|Host: x|A: :b:||",
        "GET http://other/ HTTP/1.1|Host: x||",
    ] {
        let outcome = respond(&with_line_ends(text));
        assert_eq!(outcome.reason, CloseReason::Done, "{text:?}");
        assert_eq!(responses(&outcome.output, &[])[0].status, 200, "{text:?}");
    }
}

#[test]
fn head_over_one_of_three_limits_is_refused() {
    let with = |path: usize, value: usize| {
        let (path, value) = ("p".repeat(path), "v".repeat(value));
        format!("GET /{path} HTTP/1.1\r\nHost: x\r\nA: {value}\r\n\r\n")
    };
    let rest = with(0, 0).len();
    assert_eq!(ask(&with(0, MAX_LINE - rest)).status, 200);
    assert_eq!(refused(with(0, MAX_LINE - rest + 1).as_bytes()).status, 431);
    assert_eq!(refused(with(9, MAX_LINE - rest).as_bytes()).status, 431);
    // The request line, with its end, has the same limit as the head.
    let line = "GET / HTTP/1.1\r\n".len();
    assert_eq!(refused(with(MAX_LINE - line, 0).as_bytes()).status, 431);
    assert_eq!(refused(with(MAX_LINE - line + 1, 0).as_bytes()).status, 414);
    assert_eq!(refused(&[b'x'; 10 * MAX_LINE]).status, 414);
    assert_eq!(
        refused(&with_line_ends(&"GET / HTTP/1.1|A:".repeat(MAX_LINE))).status,
        431
    );
    // Empty lines before the head do not count.
    assert_eq!(
        ask(&format!(
            "{}{}",
            "\r\n".repeat(MAX_LINE),
            with(0, MAX_LINE - rest)
        ))
        .status,
        200
    );

    let fields = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost:\r\n{}\r\n",
            "A:\r\n".repeat(count - 1)
        )
    };
    assert_eq!(ask(&fields(100)).status, 200);
    assert_eq!(refused(fields(101).as_bytes()).status, 431);

    // A limit of zero is unusual, but it has a meaning.
    let none = SessionOptions {
        max_line: 0,
        ..options()
    };
    let outcome = converse(open(&none), [&b"GET / HTTP/1.1\r\n\r\n"[..]], usize::MAX);
    assert_eq!(
        (responses(&outcome.output, &[])[0].status, outcome.reason),
        (414, CloseReason::Refused)
    );
}

#[test]
fn incomplete_request_before_fin_gets_no_response() {
    let request = b"GET /files/13b HTTP/1.1\r\nHost: x\r\n\r\n";
    let one = respond(request);
    for end in 0..request.len() {
        let outcome = respond(&[&request[..], &request[..end]].concat());
        assert_eq!(outcome, one, "{end} bytes of the second");
    }
    assert_eq!(
        respond(b""),
        Outcome {
            output: Vec::new(),
            reason: CloseReason::Done
        }
    );
    assert_eq!(
        respond(b"\r\n\r\n\r"),
        Outcome {
            output: Vec::new(),
            reason: CloseReason::Done
        }
    );
}

#[test]
fn mid_request_is_true_from_the_first_byte_in_to_the_last_byte_out() {
    let mut session = open(&options());
    assert!(!session.mid_request());
    session.receive(b"\r\n\n\r");
    assert!(!session.mid_request(), "empty lines are no request");
    assert_eq!(session.step(), Step::Read);
    session.receive(b"\n");
    assert!(!session.mid_request());
    for byte in b"GET /files/13b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab" {
        session.receive(&[*byte]);
        assert!(session.mid_request());
        assert_eq!(session.step(), Step::Read);
        assert!(session.mid_request());
    }
    session.receive(b"c");
    assert!(session.mid_request());
    let mut sent = 0;
    while let Step::Write(_) = session.step() {
        assert!(session.mid_request(), "{sent} bytes sent");
        session.sent(1);
        sent += 1;
    }
    assert!(sent > 0);
    assert_eq!(session.step(), Step::Read);
    assert!(!session.mid_request());
}

#[test]
fn responses_to_a_pipeline_are_gathered() {
    let request = b"GET /files/13b HTTP/1.1\r\nHost: x\r\n\r\n";
    let one = respond(request).output.len();
    let mut session = open(&options());
    session.receive(&request.repeat(200));
    let mut sent = 0;
    while let Step::Write(bytes) = session.step() {
        let count = bytes.len();
        let rest = 200 * one - sent;
        assert!(
            count == rest || count >= 16 * 1024,
            "{count} bytes of {rest}"
        );
        assert!(count < 16 * 1024 + one, "{count} bytes are held");
        sent += count;
        session.sent(count);
    }
    assert_eq!(sent, 200 * one);
    assert_eq!(session.step(), Step::Read);
}

#[test]
fn work_is_done_before_its_response_and_after_earlier_responses() {
    let time = Duration::from_millis(3);
    let request = |name: &str| format!("GET /files/{name} HTTP/1.1\r\nHost: x\r\n\r\n");
    let plan = |percent| Some(WorkPlan::new(WorkKind::Wait, time..=time, percent, 7));
    let working = SessionOptions {
        work: plan(100),
        ..options()
    };
    let input = format!("{}{}{}", request("big"), request("13b"), request("none"));
    let mut session = open(&working);
    session.receive(input.as_bytes());
    let mut steps = String::new();
    loop {
        let letter = match session.step() {
            Step::Work(work) => {
                assert_eq!(work, Work::Wait(time));
                assert!(session.mid_request());
                session.worked();
                'w'
            }
            Step::Write(bytes) => {
                let count = bytes.len();
                session.sent(count);
                'o'
            }
            Step::SendFile(_) => {
                session.sent(40_000);
                'f'
            }
            Step::Read | Step::Close(_) => break,
        };
        steps.push(letter);
    }
    assert_eq!(steps, "wofwowo");

    // Work changes no response. The heads alone decide which requests cost work.
    let outcome = converse(open(&working), [input.as_bytes()], 1000);
    assert_eq!(outcome, respond(input.as_bytes()));
    let some = plan(50).unwrap();
    let some_options = SessionOptions {
        work: Some(some.clone()),
        ..options()
    };
    let mut chosen = 0;
    for n in 0..50 {
        let request = request(&n.to_string());
        let mut session = open(&some_options);
        session.receive(request.as_bytes());
        let works = matches!(session.step(), Step::Work(_));
        assert_eq!(works, some.chooses(request.as_bytes()));
        chosen += usize::from(works);
    }
    assert!((1..50).contains(&chosen));
}

#[test]
fn small_file_is_sent_in_one_write_with_its_head() {
    let mut session = open(&options());
    session.receive(b"GET /files/medium HTTP/1.1\r\nHost: x\r\n\r\n");
    let Step::Write(bytes) = session.step() else {
        panic!("the session sends no bytes")
    };
    assert!(bytes.ends_with(&[b'm'; 10_000]));
}

/// Returns requests of all kinds. Each is complete, so that any request can follow any other.
fn corpus() -> Vec<Vec<u8>> {
    let mut corpus: Vec<_> = [
        "GET / HTTP/1.1|Host: x||",
        "GET /files/13b HTTP/1.1|Host: localhost||",
        "||GET /files/13b HTTP/1.1|Host: localhost||",
        "GET /files/13b HTTP/1.1\nHost: localhost\n\n",
        "HEAD /files/big HTTP/1.1|Host: x||",
        "GET /files/big HTTP/1.1|Host: x|Range: bytes=3-30||",
        "GET /files/hi.txt HTTP/1.1|Host: x|Range: bytes=99-||",
        "GET /files/hi.txt HTTP/1.1|Host: x|If-None-Match: *||",
        "GET /files/empty-file HTTP/1.1|Host: x||",
        "GET /files/dir/ HTTP/1.1|Host: x||",
        "GET /none HTTP/1.1|Host: x||",
        "GET /files/trouble HTTP/1.1|Host: x||",
        "GET /files/13b HTTP/1.1|Host: x|Content-Length: 7||GET / H",
        "GET /files/13b HTTP/1.1|Host: x|Transfer-Encoding: chunked||3;x|GET|A|0123456789|0|A: b||",
        "GET /files/13b HTTP/1.0|Connection: keep-alive||",
        "GET /files/13b HTTP/1.0||",
        "GET /files/13b HTTP/1.1|Host: x|Connection: close||",
        "GET /files/13b HTTP/1.1|Host: x|Content-Length: 1|Expect: 100-continue||x",
        "POST / HTTP/1.1|Host: x||",
        "POST / HTTP/1.1|Host: x|Content-Length: 3||abc",
    ]
    .into_iter()
    .map(with_line_ends)
    .collect();
    let long = "x".repeat(MAX_LINE);
    corpus.push(with_line_ends(&format!("GET /{long} HTTP/1.1|Host: x||")));
    corpus.push(with_line_ends(&format!(
        "GET / HTTP/1.1|Host: x|A: {long}||"
    )));
    corpus.push(with_line_ends(&format!(
        "GET / HTTP/1.1|{}|",
        "A:|".repeat(101)
    )));
    corpus
}

#[test]
fn responses_do_not_depend_on_cuts() {
    let options = options();
    let check = |input: &[u8]| {
        let uncut = converse(open(&options), [input], usize::MAX);
        assert_eq!(
            converse(open(&options), input.chunks(1), 1_000),
            uncut,
            "{}",
            input.escape_ascii()
        );
        for at in 0..=input.len() {
            let (first, second) = input.split_at(at);
            let outcome = converse(open(&options), [first, second], usize::MAX);
            assert_eq!(outcome, uncut, "{} cut at {at}", input.escape_ascii());
        }
    };
    let corpus = corpus();
    corpus.iter().for_each(|request| check(request));
    for (text, _) in REFUSED {
        check(&with_line_ends(text));
    }
    // The socket takes one byte at a time.
    let all = corpus[..12].concat();
    assert_eq!(
        converse(open(&options), [&all[..]], 1),
        converse(open(&options), [&all[..]], usize::MAX)
    );
}

#[test]
fn pipelined_requests_are_answered_as_if_alone() {
    let options = options();
    let corpus = corpus();
    for first in &corpus {
        let alone = converse(open(&options), [&first[..]], usize::MAX);
        // A response that ends the conversation announces that.
        let closes = responses(&alone.output, &[first.starts_with(b"HEAD")])[0].field("Connection")
            == Some("close");
        for second in &corpus {
            let mut expected = converse(open(&options), [&second[..]], usize::MAX);
            let both = [&first[..], second].concat();
            let outcome = converse(open(&options), [&both[..]], usize::MAX);
            if closes {
                assert_eq!(outcome, alone, "{}", both.escape_ascii());
            } else {
                expected.output.splice(..0, alone.output.iter().copied());
                assert_eq!(outcome, expected, "{}", both.escape_ascii());
            }
        }
    }
}

/// Generates requests of the corpus with some bytes changed, removed or inserted, and garbage between them.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let corpus = corpus();
    let one = (0..corpus.len()).prop_map(move |index| corpus[index].clone());
    let byte = || {
        prop_oneof![
            any::<u8>(),
            proptest::sample::select(&b"\r\n\0 :,;/%.-=*0159fGH\t"[..])
        ]
    };
    let change = (any::<proptest::sample::Index>(), 0..3_u8, byte());
    let mutant = (one, vec(change, 0..4)).prop_map(|(mut request, changes)| {
        for (index, kind, byte) in changes {
            let at = index.index(request.len());
            match kind {
                0 => request[at] = byte,
                1 => request.insert(at, byte),
                _ if request.len() > 1 => drop(request.remove(at)),
                _ => {}
            }
        }
        request
    });
    let garbage = vec(byte(), 0..60);
    vec(prop_oneof![9 => mutant, 1 => garbage], 1..5).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Any input is answered or refused, the conversation ends, and the cuts of the input change no response.
    #[test]
    fn mutated_requests_are_answered_or_refused_and_the_conversation_ends(
        input in mutated(),
        sizes in vec(prop_oneof![1..4_usize, 1..200_usize], 1..10),
        take in prop_oneof![50..100_usize, Just(usize::MAX)],
    ) {
        let options = options();
        let mut rest = &input[..];
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at(rest.len().min(*size));
            pieces.push(piece);
            rest = after;
        }
        let uncut = converse(open(&options), [&input[..]], usize::MAX);
        prop_assert_eq!(&converse(open(&options), pieces, take), &uncut, "{}", input.escape_ascii());
        // A refusal announces the close.
        let closed = uncut.output.windows(19).any(|bytes| bytes == b"Connection: close\r\n");
        prop_assert!(uncut.reason == CloseReason::Done || closed);
    }

    /// Random bytes are answered or refused, and the conversation ends.
    #[test]
    fn garbage_is_answered_or_refused_and_the_conversation_ends(
        input in vec(any::<u8>(), 0..2_000),
        size in 1..300_usize,
    ) {
        let options = options();
        let uncut = converse(open(&options), [&input[..]], usize::MAX);
        prop_assert_eq!(converse(open(&options), input.chunks(size), usize::MAX), uncut);
    }
}
