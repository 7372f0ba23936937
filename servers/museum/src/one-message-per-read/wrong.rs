//! Pair with a thread for each connection. The bytes of one read are taken for one line.

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
    let mut buffer = [0; 64 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        let line = buffer[..count].to_vec();
        if line.is_empty() {
            return Ok(());
        }
        stream.write_all(&[&previous[..], &line].concat())?;
        previous = line;
    }
}
