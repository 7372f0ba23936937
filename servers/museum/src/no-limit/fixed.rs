//! Echo with a thread for each connection, for as many as there are places: the others wait.

use std::io;
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;

use crate::{ExampleOptions, listen, stop_at_once};

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let listener = listen(options)?;
    let (leave, places) = mpsc::channel();
    for _ in 0..options.max_connections {
        leave.send(()).map_err(io::Error::other)?;
    }
    while places.recv().is_ok() {
        let (stream, _) = listener.accept()?;
        let leave = leave.clone();
        thread::spawn(move || {
            let _ = echo(&stream);
            drop(stream);
            leave.send(())
        });
    }
    Ok(())
}

fn echo(stream: &TcpStream) -> io::Result<u64> {
    io::copy(&mut &*stream, &mut &*stream)
}
