//! Echo, line by line, with a thread for each connection. The length of a line is limited.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::threads::each_connection;
use crate::{ExampleOptions, stop_at_once};

const MAX_LINE: u64 = 64 * 1024;

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    each_connection(options, converse)
}

fn converse(mut stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = Vec::new();
        let mut next = reader.by_ref().take(MAX_LINE + 1);
        next.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        if line.len() as u64 > MAX_LINE {
            writeln!(stream, "error: a line may have at most {MAX_LINE} bytes")?;
            stream.shutdown(Shutdown::Write)?;
            // Input that is unread at the close makes the kernel send RST, which can overtake the error.
            let deadline = Instant::now() + Duration::from_secs(1);
            while Instant::now() < deadline && reader.read(&mut [0; 16 * 1024])? > 0 {}
            return Ok(());
        }
        stream.write_all(&line)?;
    }
}
