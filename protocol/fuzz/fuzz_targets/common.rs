//! What the targets share: a driver without sockets, and cuts that the fuzzer chooses.

use std::os::unix::fs::FileExt;

use protocol::{CloseReason, Session, Step};

/// The first byte says how the rest is cut: into pieces of so many bytes, or not at all.
pub fn cut(data: &[u8]) -> Option<(&[u8], usize)> {
    let (&size, input) = data.split_first()?;
    Some((input, usize::from(size)))
}

/// The pieces; all of it in one for a size of 0.
#[allow(dead_code, reason = "each target uses a part of this")]
pub fn pieces(input: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    input.chunks(if size == 0 { input.len().max(1) } else { size })
}

/// A conversation from its beginning to its end: what was said, and how it closed.
///
/// It panics if a conversation does not end: each step uses up a piece of input, a byte of output or work that is due.
#[allow(dead_code, reason = "each target uses a part of this")]
pub fn converse(
    mut session: Box<dyn Session>,
    input: &[u8],
    size: usize,
) -> (Vec<u8>, CloseReason) {
    let mut pieces = pieces(input, size);
    let mut output = Vec::new();
    let mut fin = false;
    // An answer may be long, but not without end: a listing or a refusal for each byte that came.
    let most = 4096 * (input.len() + 4);
    loop {
        assert!(output.len() <= most, "says more and more");
        match session.step() {
            Step::Read => match pieces.next() {
                Some(piece) => session.receive(piece),
                None => {
                    assert!(!fin, "reads after the end");
                    fin = true;
                    session.end_of_input();
                }
            },
            Step::Write(bytes) => {
                assert!(!bytes.is_empty(), "writes nothing");
                // As a socket does that has little room.
                let count = if size % 2 == 1 {
                    bytes.len().div_ceil(2)
                } else {
                    bytes.len()
                };
                output.extend_from_slice(&bytes[..count]);
                session.sent(count);
            }
            Step::SendFile(slice) => {
                let mut bytes = vec![0; slice.len().min(100) as usize];
                slice
                    .file()
                    .read_exact_at(&mut bytes, slice.offset())
                    .expect("a range of the file");
                output.extend_from_slice(&bytes);
                session.sent(bytes.len());
            }
            Step::Work(_) => session.worked(),
            Step::Close(farewell) => {
                assert!(!session.mid_request(), "closes in mid-request");
                session.receive(b"GET / HTTP/1.1\r\n\r\n");
                assert_eq!(
                    session.step(),
                    Step::Close(farewell),
                    "goes on after its end"
                );
                return (output, farewell);
            }
        }
    }
}

/// However it is cut, the answer is the same.
#[allow(dead_code, reason = "each target uses a part of this")]
pub fn cuts_change_nothing(
    open: impl Fn() -> Box<dyn Session>,
    input: &[u8],
    size: usize,
) -> Vec<u8> {
    let whole = converse(open(), input, 0);
    let cut = converse(open(), input, size);
    assert_eq!(whole.1, cut.1, "another end");
    assert_eq!(
        whole.0.escape_ascii().to_string(),
        cut.0.escape_ascii().to_string(),
        "another answer"
    );
    whole.0
}
