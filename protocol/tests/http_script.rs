//! Client side of `http`, checked against replies that are written out here.

use std::sync::{Arc, OnceLock};

use protocol::http::{Content, Hashing, Page};
use protocol::{Protocol, ReplyStatus, Script, ScriptOptions, WrongReply};

const BODY: &[u8] = b"Hello, world!";

const REPLY: &[u8] =
    b"HTTP/1.1 200 OK\r\nDate: today\r\nContent-Length: 13\r\nServer: x\r\n\r\nHello, world!";

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n\
    5\r\nHello\r\n007;why=not\r\n, world\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\n";

fn page(content: Option<Content>) -> Arc<Page> {
    Arc::new(Page {
        path: "/files/13b".to_string(),
        host: "example:7000".to_string(),
        content: content.map_or_else(OnceLock::new, OnceLock::from),
    })
}

/// Opens a script that has sent its request.
fn script_after_request(page: &Arc<Page>) -> Box<dyn Script> {
    let http = Protocol::find("http").unwrap();
    let mut script = (http.ask)(&ScriptOptions {
        page: Arc::clone(page),
        ..ScriptOptions::default()
    });
    script.ask(&mut Vec::new());
    script
}

/// Returns the result of a script that receives this reply, if [`BODY`] is expected.
fn receive(reply: &[u8]) -> Result<ReplyStatus, WrongReply> {
    script_after_request(&page(Some(Content::of(BODY)))).receive(reply)
}

/// Asserts that the reply is wrong and that the error contains these words.
#[track_caller]
fn assert_wrong(reply: &[u8], words: &[&str]) {
    let wrong = receive(reply).expect_err("the reply is wrong").to_string();
    assert!(wrong.starts_with("wrong reply at byte "), "{wrong}");
    assert!(!wrong.contains(char::is_control), "{wrong:?}");
    for word in words {
        assert!(wrong.contains(word), "no {word:?} in: {wrong}");
    }
}

/// Returns a reply with this head and [`BODY`].
fn with_head(head: &str) -> Vec<u8> {
    [head.as_bytes(), b"\r\n\r\n", BODY].concat()
}

#[test]
fn script_requests_the_page_and_keeps_the_connection() {
    let http = Protocol::find("http").unwrap();
    let options = ScriptOptions {
        page: page(None),
        ..ScriptOptions::default()
    };
    let mut script = (http.ask)(&options);
    for _ in 0..3 {
        let mut request = b"before".to_vec();
        script.ask(&mut request);
        assert_eq!(
            request,
            b"beforeGET /files/13b HTTP/1.1\r\nHost: example:7000\r\nUser-Agent: samewire\r\n\r\n"
        );
        assert_eq!(script.receive(REPLY), Ok(ReplyStatus::Complete));
        assert_eq!(script.receive(b""), Ok(ReplyStatus::Complete));
        assert!(script.receive(b"x").is_err(), "no request was sent");
        script = (http.ask)(&options);
    }
}

#[test]
fn script_accepts_both_framings_on_one_connection() {
    let page = page(None);
    let mut script = script_after_request(&page);
    for reply in [REPLY, CHUNKED, REPLY, CHUNKED] {
        assert_eq!(script.receive(reply), Ok(ReplyStatus::Complete));
        script.ask(&mut Vec::new());
    }
    assert_eq!(page.content.get(), Some(&Content::of(BODY)));
}

/// The reply is cut at every two places, and byte by byte.
#[test]
fn reply_cut_anywhere_is_accepted() {
    let interim = [&b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"[..], REPLY].concat();
    for reply in [REPLY, CHUNKED, &interim] {
        for second in 0..=reply.len() {
            for first in 0..=second {
                let mut script = script_after_request(&page(Some(Content::of(BODY))));
                let mut status = ReplyStatus::Partial;
                for piece in [&reply[..first], &reply[first..second], &reply[second..]] {
                    if !piece.is_empty() {
                        assert_eq!(status, ReplyStatus::Partial);
                        status = script.receive(piece).unwrap();
                    }
                }
                assert_eq!(status, ReplyStatus::Complete, "cut at {first} and {second}");
            }
        }
        let mut script = script_after_request(&page(None));
        let (last, all_but_last) = reply.split_last().unwrap();
        for byte in all_but_last {
            assert_eq!(script.receive(&[*byte]), Ok(ReplyStatus::Partial));
        }
        assert_eq!(script.receive(&[*last]), Ok(ReplyStatus::Complete));
    }
}

#[test]
fn flipped_byte_of_a_body_is_detected() {
    for reply in [REPLY, CHUNKED] {
        let at = |part: &[u8]| reply.windows(part.len()).position(|one| one == part);
        let start = at(b"Hello").unwrap();
        for offset in 0..5 {
            for flip in 1..=255 {
                let mut wrong = reply.to_vec();
                wrong[start + offset] ^= flip;
                assert_wrong(&wrong, &["expected a body of 13 bytes with XXH3 "]);
            }
        }
    }
}

#[test]
fn first_body_becomes_the_expected_body() {
    let page = page(None);
    let (mut first, mut second, mut third) = (
        script_after_request(&page),
        script_after_request(&page),
        script_after_request(&page),
    );
    assert_eq!(first.receive(REPLY), Ok(ReplyStatus::Complete));
    assert_eq!(page.content.get(), Some(&Content::of(BODY)));
    let other = String::from_utf8_lossy(REPLY).replace("world", "World");
    let wrong = second.receive(other.as_bytes()).unwrap_err();
    assert!(wrong.to_string().contains("13 bytes with XXH3"), "{wrong}");
    let shorter = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n";
    let wrong = third.receive(shorter).unwrap_err();
    assert!(
        wrong
            .to_string()
            .contains("expected a body of 13 bytes, got Content-Length: 12"),
        "{wrong}"
    );
}

#[test]
fn reply_with_connection_close_is_the_last() {
    for (head, status) in [
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13",
            ReplyStatus::Last,
        ),
        (
            "HTTP/1.1 200 OK\r\nconnection: x, CLOSE\r\nContent-Length: 13",
            ReplyStatus::Last,
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 13",
            ReplyStatus::Complete,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 13", ReplyStatus::Last),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 13",
            ReplyStatus::Complete,
        ),
        // Two equal lengths are no contradiction.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nContent-Length: 13",
            ReplyStatus::Complete,
        ),
    ] {
        assert_eq!(receive(&with_head(head)), Ok(status), "{head}");
    }
}

#[test]
fn empty_body_is_a_complete_reply() {
    for reply in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let page = page(None);
        assert_eq!(
            script_after_request(&page).receive(reply),
            Ok(ReplyStatus::Complete)
        );
        assert_eq!(page.content.get(), Some(&Content::of(b"")));
    }
}

#[test]
fn wrong_reply_is_described_in_words() {
    assert_wrong(
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        &["expected status 200, got 404 Not Found"],
    );
    assert_wrong(
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        &["expected status 200, got 101"],
    );
    assert_wrong(
        b"220 smtp.example ESMTP\r\n",
        &["expected the head of an HTTP reply", "got \"220 smtp"],
    );
    assert_wrong(
        &with_head("HTTP/1.1 200 OK\r\nServer: x"),
        &["got neither", "not supported"],
    );
    assert_wrong(
        &with_head("HTTP/1.1 200 OK\r\nContent-Length: 13\r\nTransfer-Encoding: chunked"),
        &["got both"],
    );
    assert_wrong(
        &with_head("HTTP/1.1 200 OK\r\nContent-Length: 13, 14"),
        &["one Content-Length", "13", "14"],
    );
    for length in ["", "+13", "-1", "0x0d", "13 bytes", "99999999999999999999"] {
        assert_wrong(
            &with_head(&format!("HTTP/1.1 200 OK\r\nContent-Length: {length}")),
            &["a number of bytes"],
        );
    }
    assert_wrong(
        &with_head("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked"),
        &["no Transfer-Encoding but chunked", "gzip"],
    );
    assert_wrong(
        &with_head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"),
        &["the size of a chunk"],
    );
    assert_wrong(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nHelloX",
        &["the end of a chunk", "got \"X\""],
    );
    assert_wrong(
        &[REPLY, b"x"].concat(),
        &["expected nothing more, got \"x\""],
    );
    assert_wrong(&REPLY.repeat(2), &["nothing more", "HTTP/1.1 200 OK"]);
    assert_wrong(&CHUNKED.repeat(2), &["nothing more", "HTTP/1.1 200 OK"]);
}

#[test]
fn head_without_an_end_is_refused_at_64_kib() {
    let mut script = script_after_request(&page(None));
    let mut status = script.receive(b"HTTP/1.1 200 OK\r\nX: ");
    let mut count = 0;
    while status == Ok(ReplyStatus::Partial) {
        assert!(count < 100, "the head has no limit");
        count += 1;
        status = script.receive(&[b'x'; 1024]);
    }
    assert_eq!(count, 64);
    let wrong = status.unwrap_err().to_string();
    assert!(wrong.contains("less than 65536 bytes"), "{wrong}");
    // The limit holds for a head in one piece, too.
    let head = [&b"HTTP/1.1 200 OK\r\nX: "[..], &[b'x'; 100_000]].concat();
    assert_wrong(&head, &["less than 65536 bytes"]);
}

/// The hash is that of the reference implementation, so that other programs can compute the expected hash of a page.
#[test]
fn content_of_pieces_equals_content_of_the_whole() {
    let mut hashing = Hashing::default();
    for piece in BODY.chunks(5) {
        hashing.add(piece);
    }
    assert_eq!(hashing.content(), Content::of(BODY));
    assert_eq!(hashing.content().length, 13);
    // XXH3_64bits of nothing, seed 0.
    assert_eq!(Content::of(b"").hash, 0x2d06_8005_38d3_94c2);
    assert_eq!(
        Content::of(b"").to_string(),
        "0 bytes with XXH3 2d06800538d394c2"
    );
}
