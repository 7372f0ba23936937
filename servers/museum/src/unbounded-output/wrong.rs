//! Echo on an event loop. The server goes on reading while the peer does not read.

use std::io::{self, ErrorKind, Read, Write};

use mio::event::Event;
use mio::net::TcpStream;

use crate::event_loop::each_event;
use crate::{ExampleOptions, stop_at_once};

struct Peer {
    stream: TcpStream,
    /// Bytes that were read and are still to be written.
    output: Vec<u8>,
}

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let open = |stream| Peer {
        stream,
        output: Vec::new(),
    };
    each_event(options, open, converse)
}

/// Writes what the socket takes and reads what it has. Returns whether the conversation goes on.
fn converse(peer: &mut Peer, _: &Event) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    loop {
        while !peer.output.is_empty() {
            match peer.stream.write(&peer.output) {
                Ok(count) => drop(peer.output.drain(..count)),
                // There may still be something to read.
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        match peer.stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => peer.output.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}
