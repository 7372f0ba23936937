//! Echo on an event loop. An error of one connection ends the server.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::{ExampleOptions, listen, stop_at_once};

struct Peer {
    stream: TcpStream,
    /// Bytes that were read and are still to be written.
    output: Vec<u8>,
}

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let listener = listen(options)?;
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    let both = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(&mut listener, Token(0), both)?;
    let mut peers = HashMap::new();
    let mut next = 1;
    let mut events = Events::with_capacity(1024);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if let Some(peer) = peers.get_mut(&event.token()) {
                if !converse(peer)? {
                    peers.remove(&event.token());
                }
                continue;
            }
            while let Ok((mut stream, _)) = listener.accept() {
                poll.registry().register(&mut stream, Token(next), both)?;
                let output = Vec::new();
                peers.insert(Token(next), Peer { stream, output });
                next += 1;
            }
        }
    }
}

/// Advances the conversation until the socket would block. Returns whether the conversation goes on.
fn converse(peer: &mut Peer) -> io::Result<bool> {
    match echo(peer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        other => other.map(|()| false),
    }
}

/// Echoes until the peer has ended its side. Fails with `WouldBlock` where the socket would block.
fn echo(peer: &mut Peer) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        while !peer.output.is_empty() {
            let count = peer.stream.write(&peer.output)?;
            peer.output.drain(..count);
        }
        match peer.stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => peer.output.extend_from_slice(&buffer[..count]),
        }
    }
}
