//! Input of the server side of `bulk`: messages with a terminator of several bytes.
#![no_main]

mod common;

use common::{assert_cuts_change_nothing, split_cut_size};
use libfuzzer_sys::fuzz_target;
use protocol::{Bulk, Protocol, SessionOptions};

fuzz_target!(|data: &[u8]| {
    let Some((input, size)) = split_cut_size(data) else {
        return;
    };
    let bulk = Protocol::find("bulk").expect("the protocol exists");
    let options = SessionOptions {
        max_line: 40,
        bulk: Bulk { size: 20, count: 2 },
        ..SessionOptions::default()
    };
    let output = assert_cuts_change_nothing(|| (bulk.open)(&options), input, size);
    // Count the requests in a different way than the session: search at each offset, without state.
    let terminator = b"\r<--EOM-->\r";
    let mut rest = input;
    let mut starts = 0;
    while let Some(at) = rest
        .windows(terminator.len())
        .position(|window| window == terminator)
    {
        if at > options.max_line {
            break;
        }
        starts += usize::from(&rest[..at] == b"start");
        rest = &rest[at + terminator.len()..];
    }
    let heads = output.windows(4).filter(|window| window == b"head").count();
    assert_eq!(
        heads,
        2 * starts,
        "the session sends a wrong number of messages"
    );
});
