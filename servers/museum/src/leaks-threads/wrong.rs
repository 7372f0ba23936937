//! A thread watches each peer until all senders of its channel are dropped. But the watcher itself keeps one of them.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use crate::{ExampleOptions, listen, stop_at_once};

struct Peer {
    stream: TcpStream,
    /// Channel to the watcher, with one message for each line that arrives.
    beat: Sender<()>,
}

/// Starts two threads for each peer: one serves it, one watches it.
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
            // The watcher holds the socket too. After this call the peer need not wait for the watcher.
            let _ = peer.stream.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

/// Closes the connection if no line arrives for `idle_timeout`.
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

/// Sends each line back. The last line needs no line end.
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
