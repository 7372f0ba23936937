//! Echo with a thread for each connection. After an error of accept(2), the server waits and tries again.

use std::io;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use crate::{ExampleOptions, listen, stop_at_once};

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let listener = listen(options)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => drop(thread::spawn(move || echo(&stream))),
            Err(error) => {
                eprintln!("accept: {error}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn echo(stream: &TcpStream) -> io::Result<u64> {
    io::copy(&mut &*stream, &mut &*stream)
}
