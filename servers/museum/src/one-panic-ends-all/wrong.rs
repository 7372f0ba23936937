//! All conversations run on one thread. A panic in one of them ends all of them.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::{ExampleOptions, listen, stop_at_once};

const LISTENER: Token = Token(0);

struct Peer {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Serves all peers on one event loop.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let listener = listen(options)?;
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    let both = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(&mut listener, LISTENER, both)?;
    let mut peers = HashMap::new();
    let mut accepted = 0;
    let mut events = Events::with_capacity(1024);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    accepted += 1;
                    poll.registry()
                        .register(&mut stream, Token(accepted), both)?;
                    let (input, output) = Default::default();
                    peers.insert(
                        Token(accepted),
                        Peer {
                            stream,
                            input,
                            output,
                        },
                    );
                }
            } else if let Some(peer) = peers.get_mut(&event.token()) {
                let gone = converse(peer, options.panic.as_deref());
                if gone.unwrap_or(true) {
                    peers.remove(&event.token());
                }
            }
        }
    }
}

/// Echoes lines until the socket would block. The last line needs no line end. Returns whether the peer is gone.
fn converse(peer: &mut Peer, panic: Option<&str>) -> io::Result<bool> {
    let mut ended = false;
    loop {
        while !peer.output.is_empty() {
            match peer.stream.write(&peer.output) {
                Ok(count) => drop(peer.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let line = peer.input.iter().position(|byte| *byte == b'\n');
        if line.is_none() && !ended {
            let mut buffer = [0; 4096];
            match peer.stream.read(&mut buffer) {
                Ok(0) => ended = true,
                Ok(count) => peer.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            continue;
        }
        let length = line.map_or(peer.input.len(), |end| end + 1);
        peer.output.extend(peer.input.drain(..length));
        if peer.output.is_empty() {
            return Ok(true);
        }
        let text = String::from_utf8_lossy(&peer.output);
        assert!(panic.is_none_or(|panic| !text.contains(panic)));
    }
}
