//! A peer that breaks off is not removed from the list of open connections, so its descriptor stays open.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{ExampleOptions, listen};

/// Connections that are open, by number. A signal closes all of them.
#[derive(Clone, Default)]
struct OpenConnections(Arc<Mutex<HashMap<usize, TcpStream>>>);

/// Serves each peer in a thread of its own.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    let connections = OpenConnections::default();
    connections.clone().close_all_at_signal()?;
    for (number, stream) in listen(options)?.incoming().enumerate() {
        let stream = stream?;
        connections.lock().insert(number, stream.try_clone()?);
        let connections = connections.clone();
        thread::spawn(move || handle(number, &stream, &connections));
    }
    Ok(())
}

fn handle(number: usize, stream: &TcpStream, connections: &OpenConnections) -> io::Result<()> {
    converse(stream)?;
    connections.lock().remove(&number);
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

impl OpenConnections {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_all_at_signal(self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        thread::spawn(move || {
            signals.forever().next();
            for stream in self.lock().values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            process::exit(0);
        });
        Ok(())
    }
}
