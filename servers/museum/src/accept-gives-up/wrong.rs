//! Echo with a thread for each connection. The first error of accept(2) ends the server.

use std::io;
use std::net::TcpStream;
use std::thread;

use crate::{ExampleOptions, listen, stop_at_once};

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let listener = listen(options)?;
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(move || echo(&stream));
    }
}

fn echo(stream: &TcpStream) -> io::Result<u64> {
    io::copy(&mut &*stream, &mut &*stream)
}
