//! One thread, edge-triggered. The peers here wait for each reply, so one read per event empties the socket.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::TcpListener;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut listener = mio::net::TcpListener::from_std(listener);
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut buffer = [0; super::BUFFER];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    let token = Token(streams.len());
                    poll.registry()
                        .register(&mut stream, token, Interest::READABLE)?;
                    streams.push(Some(stream));
                }
            } else {
                let slot = &mut streams[event.token().0];
                let Some(stream) = slot else { continue };
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => stream.write_all(&buffer[..count])?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => *slot = None,
                }
            }
        }
    }
}
