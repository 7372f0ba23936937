//! One thread that reads from all sockets in turn, and never waits.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut buffer = [0; super::BUFFER];
    loop {
        streams.retain_mut(|stream| match stream.read(&mut buffer) {
            Ok(count) if count > 0 => stream.write_all(&buffer[..count]).is_ok(),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            Ok(_) => false,
        });
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            streams.push(stream);
        }
    }
}
