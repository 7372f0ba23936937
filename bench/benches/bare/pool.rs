//! Threads that take the connections from a queue, as many as the server has workers.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use contract::Capacity;
use crossbeam_channel::bounded;

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    listener.set_nonblocking(false)?;
    let (queue, streams) = bounded::<TcpStream>(1);
    for _ in 0..Capacity::Workers.workers().get() {
        let streams = streams.clone();
        thread::spawn(move || {
            let mut buffer = [0; super::BUFFER];
            for mut stream in streams {
                while let Ok(count) = stream.read(&mut buffer)
                    && count > 0
                    && stream.write_all(&buffer[..count]).is_ok()
                {}
            }
        });
    }
    loop {
        let (stream, _) = listener.accept()?;
        let _ = queue.send(stream);
    }
}
