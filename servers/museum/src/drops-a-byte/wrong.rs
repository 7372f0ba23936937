//! Pair with a thread for each connection; lines are cut by hand. A line that comes in two reads loses its first byte.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::threads::each_connection;
use crate::{ExampleOptions, stop_at_once};

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    each_connection(options, converse)
}

/// Answers each line with the previous line and this line.
fn converse(mut stream: TcpStream) -> io::Result<()> {
    let mut previous = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        filled += count;
        let (mut start, mut end) = (0, 0);
        for at in 0..filled {
            // The last line needs no line end.
            if buffer[at] == b'\n' || (count == 0 && at + 1 == filled) {
                let line = &buffer[start..=at];
                stream.write_all(&[&previous, line].concat())?;
                previous = line.to_vec();
                end = at;
                start = at + 1;
            }
        }
        if count == 0 {
            return Ok(());
        }
        // Bytes after the end of the last line begin the next line.
        buffer.copy_within(end + 1..filled, 0);
        filled -= end + 1;
    }
}
