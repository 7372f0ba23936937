//! Input of the client side of `bulk` and `http`: any reply is right or wrong, and the same for any cuts.
#![no_main]

mod common;

use common::{pieces, split_cut_size};
use libfuzzer_sys::fuzz_target;
use protocol::{Bulk, Protocol, ReplyStatus, ScriptOptions};

/// Returns the last result of the script, and the bytes that the client sent.
fn receive(protocol: &Protocol, input: &[u8], size: usize) -> (Result<ReplyStatus, ()>, Vec<u8>) {
    let options = ScriptOptions {
        bulk: Bulk { size: 8, count: 2 },
        ..ScriptOptions::default()
    };
    let mut script = (protocol.ask)(&options);
    let mut sent = Vec::new();
    script.ask(&mut sent);
    let mut status = Ok(ReplyStatus::Partial);
    for piece in pieces(input, size) {
        if matches!(status, Ok(ReplyStatus::Complete | ReplyStatus::Last)) {
            // All bytes after a complete reply belong to no request.
            return (Err(()), Vec::new());
        }
        match script.receive(piece) {
            Ok(now) => status = Ok(now),
            Err(wrong) => {
                assert!(!wrong.to_string().is_empty());
                return (Err(()), Vec::new());
            }
        }
        script.interject(&mut sent);
    }
    (status, sent)
}

fuzz_target!(|data: &[u8]| {
    let Some((input, size)) = split_cut_size(data) else {
        return;
    };
    for name in ["bulk", "http"] {
        let protocol = Protocol::find(name).expect("the protocol exists");
        assert_eq!(
            receive(protocol, input, 0),
            receive(protocol, input, size),
            "{name}"
        );
    }
});
