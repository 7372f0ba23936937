//! Four workers, whatever was promised: four peers who say nothing, and nobody else is served.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use crate::{ExampleOptions, listen, stop_at_once};

const WORKERS: usize = 4;

/// A pool of threads; each serves a peer to its end, and takes the next.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let (queue, peers) = mpsc::channel::<TcpStream>();
    let peers = Arc::new(Mutex::new(peers));
    for _ in 0..WORKERS {
        let peers = Arc::clone(&peers);
        thread::spawn(move || {
            loop {
                let next = peers.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(stream) = next else { return };
                let _ = converse(&stream);
            }
        });
    }
    for stream in listen(options)?.incoming() {
        // It fails only if there is nobody left who listens.
        let _ = queue.send(stream?);
    }
    Ok(())
}

/// A line in, the same line out. The last one needs no end.
fn converse(mut stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        stream.write_all(&line)?;
        line.clear();
    }
    Ok(())
}
