//! Echo, line by line. The protocol is written once, for all servers. It gets the bytes that were read and returns the
//! bytes to write. It knows nothing of sockets, threads and events.

use std::io::{self, Read, Write};

/// The protocol, without input or output.
#[derive(Debug, Default)]
struct Lines {
    input: Vec<u8>,
}

impl Lines {
    /// Returns the reply to the bytes `read`, which are empty if the peer has ended its side. The last line needs no
    /// line end.
    fn receive(&mut self, read: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(read);
        let last = self.input.iter().rposition(|byte| *byte == b'\n');
        let complete = last.map_or(0, |end| end + 1);
        let answered = if read.is_empty() {
            self.input.len()
        } else {
            complete
        };
        self.input.drain(..answered).collect()
    }
}

/// Runs a complete conversation, for a server with a thread for each connection.
///
/// # Errors
///
/// Reading or writing fails, for example because the peer has reset the connection.
pub fn converse(mut stream: impl Read + Write) -> io::Result<()> {
    let mut lines = Lines::default();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        stream.write_all(&lines.receive(&buffer[..count]))?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// The server's side of one conversation on an event loop: bytes that were read go in, bytes to write come out.
#[derive(Debug, Default)]
pub struct Peer {
    lines: Lines,
}

impl Peer {
    /// Returns the bytes to write after a read. `read` is empty if the peer has ended its side.
    pub fn readable(&mut self, read: &[u8]) -> Vec<u8> {
        self.lines.receive(read)
    }
}
