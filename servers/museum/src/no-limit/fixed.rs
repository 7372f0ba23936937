//! Echo with a thread for each connection, up to a limit. More connections wait in the backlog.

use std::io;
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;

use crate::{ExampleOptions, listen, stop_at_once};

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let listener = listen(options)?;
    let (release, slots) = mpsc::channel();
    for _ in 0..options.max_connections {
        release.send(()).map_err(io::Error::other)?;
    }
    while slots.recv().is_ok() {
        let (stream, _) = listener.accept()?;
        let release = release.clone();
        thread::spawn(move || {
            let _ = echo(&stream);
            drop(stream);
            release.send(())
        });
    }
    Ok(())
}

fn echo(stream: &TcpStream) -> io::Result<u64> {
    io::copy(&mut &*stream, &mut &*stream)
}
