//! Echo on an event loop. A write that had to wait continues where it stopped.

use std::io::{self, ErrorKind, Read, Write};

use mio::event::Event;
use mio::net::TcpStream;

use crate::event_loop::each_event;
use crate::{ExampleOptions, stop_at_once};

struct Peer {
    stream: TcpStream,
    /// Bytes that were read and are to be written.
    output: Vec<u8>,
    /// Number of bytes of `output` that are written already.
    sent: usize,
}

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let open = |stream| Peer {
        stream,
        output: Vec::new(),
        sent: 0,
    };
    each_event(options, open, converse)
}

/// Writes and reads until the socket would block. Returns whether the conversation goes on.
fn converse(peer: &mut Peer, _: &Event) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    loop {
        while peer.sent < peer.output.len() {
            match peer.stream.write(&peer.output[peer.sent..]) {
                Ok(count) => peer.sent += count,
                // The write is tried again when the socket is writable.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        peer.output.clear();
        peer.sent = 0;
        match peer.stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => peer.output.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}
