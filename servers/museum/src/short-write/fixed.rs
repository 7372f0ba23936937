//! Echo on an event loop. When the socket takes only a part of a write, the rest is written later.

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

/// Writes and reads until the socket would block. Returns whether the conversation goes on.
fn converse(peer: &mut Peer, _: &Event) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    loop {
        while !peer.output.is_empty() {
            match peer.stream.write(&peer.output) {
                Ok(count) => drop(peer.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
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
