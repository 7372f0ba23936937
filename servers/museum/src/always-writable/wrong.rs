//! Echo on poll(2). The server always asks whether it can write, even when it has nothing to write.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use rustix::event::{PollFd, PollFlags, poll};

use crate::{ExampleOptions, listen, stop_at_once};

struct Peer {
    stream: TcpStream,
    /// Bytes that were read and are still to be written.
    output: Vec<u8>,
}

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let listener = listen(options)?;
    let mut peers: Vec<Peer> = Vec::new();
    loop {
        let mut fds: Vec<_> = peers.iter().map(watched).collect();
        if peers.len() < options.max_connections {
            fds.push(PollFd::new(&listener, PollFlags::IN));
        }
        poll(&mut fds, None)?;
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let waiting = ready.len() > peers.len() && ready[peers.len()];
        let mut ready = ready.into_iter();
        peers.retain_mut(|peer| {
            let ready = ready.next().unwrap_or(false);
            !ready || converse(peer).is_ok_and(|goes_on| goes_on)
        });
        if waiting && let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            let output = Vec::new();
            peers.push(Peer { stream, output });
        }
    }
}

fn watched(peer: &Peer) -> PollFd<'_> {
    let wants = PollFlags::IN | PollFlags::OUT;
    PollFd::new(&peer.stream, wants)
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
