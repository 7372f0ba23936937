//! Echo on an event loop: it does not read from a peer that does not read.

use std::io::{self, ErrorKind, Read, Write};

use mio::event::Event;
use mio::net::TcpStream;

use crate::event_loop::each_event;
use crate::{ExampleOptions, stop_at_once};

struct Peer {
    stream: TcpStream,
    /// Read, and still to be written.
    owed: Vec<u8>,
}

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let open = |stream| Peer {
        stream,
        owed: Vec::new(),
    };
    each_event(options, open, converse)
}

/// Writes what the socket takes, and reads what it has.
fn converse(peer: &mut Peer, _: &Event) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    loop {
        while !peer.owed.is_empty() {
            match peer.stream.write(&peer.owed) {
                Ok(count) => drop(peer.owed.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        match peer.stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => peer.owed.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}
