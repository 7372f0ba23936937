//! Echo on an event loop: one read for each event that says "readable".

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

fn converse(peer: &mut Peer, _: &Event) -> io::Result<bool> {
    match answer(peer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        other => other,
    }
}

/// Sends what is owed, reads once, and sends that. Says whether there is more to come.
fn answer(peer: &mut Peer) -> io::Result<bool> {
    let mut buffer = [0; 1024];
    send(peer)?;
    let count = peer.stream.read(&mut buffer)?;
    peer.owed.extend_from_slice(&buffer[..count]);
    send(peer)?;
    Ok(count > 0)
}

fn send(peer: &mut Peer) -> io::Result<()> {
    while !peer.owed.is_empty() {
        let count = peer.stream.write(&peer.owed)?;
        peer.owed.drain(..count);
    }
    Ok(())
}
