//! What servers may reply to the client, `bulk`'s and `http`'s: right or wrong, and the same however it is cut.
#![no_main]

mod common;

use common::{cut, pieces};
use libfuzzer_sys::fuzz_target;
use protocol::{Bulk, Protocol, ReplyStatus, ScriptOptions};

/// What is heard in the end, and what the client said in between.
fn receive(protocol: &Protocol, input: &[u8], size: usize) -> (Result<ReplyStatus, ()>, Vec<u8>) {
    let options = ScriptOptions {
        bulk: Bulk { size: 8, count: 2 },
        ..ScriptOptions::default()
    };
    let mut script = (protocol.ask)(&options);
    let mut said = Vec::new();
    script.ask(&mut said);
    let mut heard = Ok(ReplyStatus::Partial);
    for piece in pieces(input, size) {
        if matches!(heard, Ok(ReplyStatus::Complete | ReplyStatus::Last)) {
            // Whatever comes now came unasked.
            return (Err(()), Vec::new());
        }
        match script.receive(piece) {
            Ok(now) => heard = Ok(now),
            Err(wrong) => {
                assert!(!wrong.to_string().is_empty());
                return (Err(()), Vec::new());
            }
        }
        script.interject(&mut said);
    }
    (heard, said)
}

fuzz_target!(|data: &[u8]| {
    let Some((input, size)) = cut(data) else {
        return;
    };
    for name in ["bulk", "http"] {
        let protocol = Protocol::find(name).expect("it is there");
        assert_eq!(
            receive(protocol, input, 0),
            receive(protocol, input, size),
            "{name}"
        );
    }
});
