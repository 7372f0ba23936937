//! A thread watches each peer until all senders of its channel are dropped.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use crate::{ExampleOptions, listen, stop_at_once};

/// Starts two threads for each peer: one serves it, one watches it.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let idle_timeout = options.idle_timeout;
    for stream in listen(options)?.incoming() {
        let stream = Arc::new(stream?);
        let (beat, beats) = mpsc::channel();
        let watched = Arc::clone(&stream);
        thread::spawn(move || watch(&watched, &beats, idle_timeout));
        thread::spawn(move || {
            let _ = converse(&stream, &beat);
            // The watcher holds the socket too. After this call the peer need not wait for the watcher.
            let _ = stream.shutdown(Shutdown::Both);
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
