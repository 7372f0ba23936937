//! A process per connection. It forks with the contract crate, because fork(2) is unsafe code and benches have none.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use contract::process::Children;

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    listener.set_nonblocking(false)?;
    let mut children = Children::new()?;
    loop {
        let (stream, _) = listener.accept()?;
        children.fork(|| echo(stream).map_or(1, |()| 0))?;
        while children.reap().is_some() {}
    }
}

pub(super) fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; super::BUFFER];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}
