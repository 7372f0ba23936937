//! One thread, select(2). A socket that is reported can be read without blocking, so the sockets may block.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::select::{FdSet, select};

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut ended = Vec::new();
    let mut buffer = [0; super::BUFFER];
    loop {
        let mut readable = FdSet::new();
        readable.insert(listener.as_fd());
        let mut highest = listener.as_raw_fd();
        for stream in &streams {
            readable.insert(stream.as_fd());
            highest = highest.max(stream.as_raw_fd());
        }
        select(highest + 1, &mut readable, None, None, None)?;
        for (number, mut stream) in streams.iter().enumerate() {
            if readable.contains(stream.as_fd()) {
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => stream.write_all(&buffer[..count])?,
                    _ => ended.push(number),
                }
            }
        }
        let new_connections = readable.contains(listener.as_fd());
        while let Some(number) = ended.pop() {
            streams.swap_remove(number);
        }
        if new_connections {
            while let Ok((stream, _)) = listener.accept() {
                streams.push(stream);
            }
        }
    }
}
