//! One thread and epoll(7) itself, level-triggered, without any library but the system calls: the reference of all other
//! event loops.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

const LISTENER: u64 = u64::MAX;

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    listener.set_nonblocking(true)?;
    epoll::add(
        &poll,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut events = Vec::with_capacity(1024);
    let mut buffer = [0; super::BUFFER];
    loop {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let number = event.data.u64();
            if number == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    let data = EventData::new_u64(streams.len() as u64);
                    epoll::add(&poll, &stream, data, EventFlags::IN)?;
                    streams.push(Some(stream));
                }
            } else {
                let slot = &mut streams[number as usize];
                let Some(stream) = slot else { continue };
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => stream.write_all(&buffer[..count])?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => *slot = None,
                }
            }
        }
    }
}
