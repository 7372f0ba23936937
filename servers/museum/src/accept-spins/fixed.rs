//! Echo with a thread for each connection. After an error of accept(2), the server waits and tries again.

use std::io;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use crate::{ExampleOptions, listen, stop_at_once};

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    for stream in listen(options)?.incoming() {
        let Ok(stream) = stream else {
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        thread::spawn(move || echo(&stream));
    }
    Ok(())
}

fn echo(stream: &TcpStream) -> io::Result<u64> {
    io::copy(&mut &*stream, &mut &*stream)
}
