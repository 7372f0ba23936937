//! Echo, line by line, with a thread for each connection. A line may have any length.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;

use crate::threads::each_connection;
use crate::{ExampleOptions, stop_at_once};

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    each_connection(options, converse)
}

fn converse(mut stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        stream.write_all(&line)?;
    }
}
