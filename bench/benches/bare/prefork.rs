//! Processes that share a listener, more than there are peers.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;

use contract::process::Children;

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    listener.set_nonblocking(false)?;
    let mut children = Children::new()?;
    for _ in 0..contract::Capacity::Workers.workers().get() {
        children.fork(|| {
            while let Ok((stream, _)) = listener.accept() {
                // A connection that the peer has reset is no error.
                let _ = super::fork::echo(stream);
            }
            1
        })?;
    }
    loop {
        children.wait([], None)?;
        while children.reap().is_some() {}
    }
}
