//! What servers may reply to the client, `bulk`'s and `http`'s: right or wrong, and the same however it is cut.
#![no_main]

mod common;

use common::{cut, pieces};
use libfuzzer_sys::fuzz_target;
use protocol::{AskOptions, Bulk, Heard, Protocol};

/// What is heard in the end, and what the client said in between.
fn hear(protocol: &Protocol, input: &[u8], size: usize) -> (Result<Heard, ()>, Vec<u8>) {
    let options = AskOptions {
        bulk: Bulk { size: 8, count: 2 },
        ..AskOptions::default()
    };
    let mut script = (protocol.ask)(&options);
    let mut said = Vec::new();
    script.ask(&mut said);
    let mut heard = Ok(Heard::Partial);
    for piece in pieces(input, size) {
        if matches!(heard, Ok(Heard::Complete | Heard::Over)) {
            // Whatever comes now came unasked.
            return (Err(()), Vec::new());
        }
        match script.hear(piece) {
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
            hear(protocol, input, 0),
            hear(protocol, input, size),
            "{name}"
        );
    }
});
