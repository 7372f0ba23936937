//! Serves all connections on one event loop with mio, for examples whose mistake is in the handling of an event.

use std::collections::HashMap;
use std::io::{self, ErrorKind};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::{ExampleOptions, listen};

const LISTENER: Token = Token(0);

/// Opens a conversation with `open` for each connection, and advances it with `converse` at each of its events. mio is
/// edge-triggered: it reports a socket once, when it *becomes* readable or writable. Here it is always asked for both.
///
/// `converse` returns whether the conversation goes on. An error ends the conversation.
pub(crate) fn each_event<P>(
    options: &ExampleOptions,
    open: fn(TcpStream) -> P,
    converse: fn(&mut P, &Event) -> io::Result<bool>,
) -> io::Result<()> {
    let listener = listen(options)?;
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    let both = Interest::READABLE | Interest::WRITABLE;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut peers = HashMap::new();
    let mut next = LISTENER.0 + 1;
    let mut events = Events::with_capacity(1024);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            let token = event.token();
            if token == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    poll.registry().register(&mut stream, Token(next), both)?;
                    peers.insert(Token(next), open(stream));
                    next += 1;
                }
            } else if let Some(peer) = peers.get_mut(&token)
                && !converse(peer, event).unwrap_or(false)
            {
                peers.remove(&token);
            }
        }
    }
}
