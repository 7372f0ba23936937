//! Lines in, the same lines out: written once, for whoever reads and writes. It is told what was read, and says what is
//! to be written; sockets, threads and events are not its business.

use std::io::{self, Read, Write};

/// The protocol.
#[derive(Debug, Default)]
struct Lines {
    input: Vec<u8>,
}

impl Lines {
    /// What is to be said to this; nothing was read, if the peer has ended its side. The last line needs no end.
    fn receive(&mut self, read: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(read);
        let last = self.input.iter().rposition(|byte| *byte == b'\n');
        let whole = last.map_or(0, |end| end + 1);
        let answered = if read.is_empty() {
            self.input.len()
        } else {
            whole
        };
        self.input.drain(..answered).collect()
    }
}

/// A whole conversation, with a thread of its own.
///
/// # Errors
///
/// The peer broke off.
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

/// The same, as an event loop has it: told what was read, it says what is to be written.
#[derive(Debug, Default)]
pub struct Peer {
    lines: Lines,
}

impl Peer {
    /// After a read; of nothing, if the peer has ended its side.
    pub fn readable(&mut self, read: &[u8]) -> Vec<u8> {
        self.lines.receive(read)
    }
}
