//! Four workers, whatever the connection limit is. Four idle peers hold all of them, and no other peer is served.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use crate::{ExampleOptions, listen, stop_at_once};

const WORKERS: usize = 4;

/// Serves peers with a pool of threads. Each thread serves one peer to its end and then takes the next.
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
        // A send fails only if the receiver was dropped.
        let _ = queue.send(stream?);
    }
    Ok(())
}

/// Sends each line back. The last line needs no line end.
fn converse(mut stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        stream.write_all(&line)?;
        line.clear();
    }
    Ok(())
}
