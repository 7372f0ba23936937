//! The server waits for its peers without a time limit.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread;

use crate::{ExampleOptions, listen, stop_at_once};

/// Serves each peer in a thread of its own.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    for stream in listen(options)?.incoming() {
        let stream = stream?;
        thread::spawn(move || converse(&stream));
    }
    Ok(())
}

/// Sends each line back. The last line needs no line end.
fn converse(mut stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        stream.write_all(&line)?;
        line.clear();
    }
    Ok(())
}
