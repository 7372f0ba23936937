//! A thread that watches over each peer, until there is nobody left who could tell it of one: but it keeps him itself.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use crate::{ExampleOptions, listen, stop_at_once};

struct Peer {
    stream: TcpStream,
    /// Tells the watcher that something came.
    beat: Sender<()>,
}

/// Two threads for each peer.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let idle_timeout = options.idle_timeout;
    for stream in listen(options)?.incoming() {
        let stream = stream?;
        let (beat, beats) = mpsc::channel();
        let peer = Arc::new(Peer { stream, beat });
        let watched = Arc::clone(&peer);
        thread::spawn(move || watch(&watched.stream, &beats, idle_timeout));
        thread::spawn(move || {
            let _ = converse(&peer.stream, &peer.beat);
            // The watcher has the socket too: the peer need not wait for it.
            let _ = peer.stream.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

/// Closes a connection on which nothing has come for so long.
fn watch(stream: &TcpStream, beats: &Receiver<()>, idle_timeout: Duration) {
    loop {
        match beats.recv_timeout(idle_timeout) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => drop(stream.shutdown(Shutdown::Both)),
            // The conversation is over.
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A line in, the same line out. The last one needs no end.
fn converse(mut stream: &TcpStream, beat: &Sender<()>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let _ = beat.send(());
        stream.write_all(&line)?;
        line.clear();
    }
    Ok(())
}
