//! One thread, poll(2). A socket that is reported can be read without blocking, so the sockets may block.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::event::{PollFd, PollFlags, poll};

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut ended = Vec::new();
    let mut buffer = [0; super::BUFFER];
    loop {
        let mut wanted = Vec::with_capacity(streams.len() + 1);
        wanted.push(PollFd::new(&listener, PollFlags::IN));
        wanted.extend(
            streams
                .iter()
                .map(|stream| PollFd::new(stream, PollFlags::IN)),
        );
        poll(&mut wanted, None)?;
        let mut reports = wanted.iter().map(|wanted| !wanted.revents().is_empty());
        let new_connections = reports.next() == Some(true);
        for (number, (mut stream, ready)) in streams.iter().zip(reports).enumerate() {
            if ready {
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => stream.write_all(&buffer[..count])?,
                    _ => ended.push(number),
                }
            }
        }
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
