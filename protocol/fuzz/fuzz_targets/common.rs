//! Shared parts of the targets: a driver without sockets, and cuts that the fuzzer chooses.

use std::os::unix::fs::FileExt;

use protocol::{CloseReason, Session, Step};

/// Splits the data into the input and the size of its pieces. The first byte is the size in bytes; 0: the input is not
/// cut.
pub fn split_cut_size(data: &[u8]) -> Option<(&[u8], usize)> {
    let (&size, input) = data.split_first()?;
    Some((input, usize::from(size)))
}

/// Cuts the input into pieces of `size` bytes. A size of 0 gives one piece.
#[allow(dead_code, reason = "each target uses a part of this")]
pub fn pieces(input: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    input.chunks(if size == 0 { input.len().max(1) } else { size })
}

/// Drives a complete conversation. Returns the bytes that the session sent, and the reason of its close.
///
/// # Panics
///
/// The conversation does not end: each step must consume a piece of input, a byte of output or work that is due.
#[allow(dead_code, reason = "each target uses a part of this")]
pub fn converse(
    mut session: Box<dyn Session>,
    input: &[u8],
    size: usize,
) -> (Vec<u8>, CloseReason) {
    let mut pieces = pieces(input, size);
    let mut output = Vec::new();
    let mut fin = false;
    // A reply may be long, but not endless: at most a listing or a refusal for each byte of input.
    let max_output = 4096 * (input.len() + 4);
    loop {
        assert!(output.len() <= max_output, "sends without end");
        match session.step() {
            Step::Read => match pieces.next() {
                Some(piece) => session.receive(piece),
                None => {
                    assert!(!fin, "reads after FIN");
                    fin = true;
                    session.end_of_input();
                }
            },
            Step::Write(bytes) => {
                assert!(!bytes.is_empty(), "writes no bytes");
                // An odd size simulates a socket with little space, which takes half of the bytes.
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
                    .expect("the file has all bytes of the range");
                output.extend_from_slice(&bytes);
                session.sent(bytes.len());
            }
            Step::Work(_) => session.worked(),
            Step::Close(reason) => {
                assert!(!session.mid_request(), "closes in the middle of a request");
                session.receive(b"GET / HTTP/1.1\r\n\r\n");
                assert_eq!(
                    session.step(),
                    Step::Close(reason),
                    "continues after its close"
                );
                return (output, reason);
            }
        }
    }
}

/// Asserts that the outcome for the cut input is the same as for the input in one piece, and returns the output.
#[allow(dead_code, reason = "each target uses a part of this")]
pub fn assert_cuts_change_nothing(
    open: impl Fn() -> Box<dyn Session>,
    input: &[u8],
    size: usize,
) -> Vec<u8> {
    let uncut = converse(open(), input, 0);
    let cut = converse(open(), input, size);
    assert_eq!(uncut.1, cut.1, "another reason of the close");
    assert_eq!(
        uncut.0.escape_ascii().to_string(),
        cut.0.escape_ascii().to_string(),
        "another output"
    );
    uncut.0
}
