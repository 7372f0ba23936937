//! Echo on an event loop. Each "readable" event leads to one read.

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

fn converse(peer: &mut Peer, _: &Event) -> io::Result<bool> {
    match answer(peer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        other => other,
    }
}

/// Sends the pending output, reads once, and sends what was read. Returns whether more input may come.
fn answer(peer: &mut Peer) -> io::Result<bool> {
    let mut buffer = [0; 1024];
    send(peer)?;
    let count = peer.stream.read(&mut buffer)?;
    peer.output.extend_from_slice(&buffer[..count]);
    send(peer)?;
    Ok(count > 0)
}

fn send(peer: &mut Peer) -> io::Result<()> {
    while !peer.output.is_empty() {
        let count = peer.stream.write(&peer.output)?;
        peer.output.drain(..count);
    }
    Ok(())
}
