//! Messages with a terminator of several bytes.
#![no_main]

mod common;

use common::{cut, cuts_change_nothing};
use libfuzzer_sys::fuzz_target;
use protocol::{Bulk, Protocol, SessionOptions};

fuzz_target!(|data: &[u8]| {
    let Some((input, size)) = cut(data) else {
        return;
    };
    let bulk = Protocol::find("bulk").expect("it is there");
    let options = SessionOptions {
        max_line: 40,
        bulk: Bulk { size: 20, count: 2 },
        ..SessionOptions::default()
    };
    let said = cuts_change_nothing(|| (bulk.open)(&options), input, size);
    // Found in another way: at each place, without state.
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
    let heads = said.windows(4).filter(|window| window == b"head").count();
    assert_eq!(heads, 2 * starts, "another number of messages");
});
