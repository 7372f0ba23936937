//! Echo on an event loop: when the socket does not take all of a write, the rest is lost.

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

/// Goes on until the socket has nothing more, or takes nothing more.
fn converse(peer: &mut Peer, _: &Event) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    loop {
        while !peer.owed.is_empty() {
            match peer.stream.write(&peer.owed) {
                Ok(_) => peer.owed.clear(),
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
