//! Lines (`pair`, `echo`), and the two that have no framing.
#![no_main]

mod common;

use common::{cut, cuts_change_nothing};
use libfuzzer_sys::fuzz_target;
use protocol::{Protocol, SessionOptions};

fuzz_target!(|data: &[u8]| {
    let Some((input, size)) = cut(data) else {
        return;
    };
    for name in ["pair", "echo", "upper", "hello"] {
        let protocol = Protocol::find(name).expect("it is there");
        let options = SessionOptions {
            max_line: 40,
            ..SessionOptions::default()
        };
        cuts_change_nothing(|| (protocol.open)(&options), input, size);
    }
});
