//! Echo with a thread for each connection. An error of accept(2) is skipped, and the next call fails at once again.

use std::io;
use std::net::TcpStream;
use std::thread;

use crate::{ExampleOptions, listen, stop_at_once};

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    for stream in listen(options)?.incoming() {
        let Ok(stream) = stream else {
            continue;
        };
        thread::spawn(move || echo(&stream));
    }
    Ok(())
}

fn echo(stream: &TcpStream) -> io::Result<u64> {
    io::copy(&mut &*stream, &mut &*stream)
}
