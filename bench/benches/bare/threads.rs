//! A thread per connection.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::thread;

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    listener.set_nonblocking(false)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        thread::spawn(move || -> io::Result<()> {
            let mut buffer = [0; super::BUFFER];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    count => stream.write_all(&buffer[..count])?,
                }
            }
        });
    }
}
