//! Input of the server side of the protocols in lines (`pair`, `echo`) and of those without framing (`upper`, `hello`).
#![no_main]

mod common;

use common::{assert_cuts_change_nothing, split_cut_size};
use libfuzzer_sys::fuzz_target;
use protocol::{Protocol, SessionOptions};

fuzz_target!(|data: &[u8]| {
    let Some((input, size)) = split_cut_size(data) else {
        return;
    };
    for name in ["pair", "echo", "upper", "hello"] {
        let protocol = Protocol::find(name).expect("the protocol exists");
        let options = SessionOptions {
            max_line: 40,
            ..SessionOptions::default()
        };
        assert_cuts_change_nothing(|| (protocol.open)(&options), input, size);
    }
});
