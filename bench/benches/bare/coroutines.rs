//! A coroutine per connection, on an epoll hub. The peers here wait for each reply, so one read per event empties the
//! socket.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use corosensei::{Coroutine, CoroutineResult, Yielder};
use rustix::event::epoll;

const LISTENER: u64 = u64::MAX;

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
    let key = epoll::EventData::new_u64(LISTENER);
    epoll::add(&epoll, &listener, key, edge)?;
    let mut events = Vec::with_capacity(1024);
    let mut peers: Vec<Option<Coroutine<(), (), io::Result<()>>>> = Vec::new();
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            if event.data.u64() == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    let key = epoll::EventData::new_u64(peers.len() as u64);
                    epoll::add(&epoll, &stream, key, edge)?;
                    peers.push(Some(Coroutine::new(|hub, ()| echo(hub, stream))));
                }
            } else {
                let slot = &mut peers[event.data.u64() as usize];
                let Some(peer) = slot else { continue };
                if let CoroutineResult::Return(_) = peer.resume(()) {
                    *slot = None;
                }
            }
        }
    }
}

fn echo(hub: &Yielder<(), ()>, mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; super::BUFFER];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => stream.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        hub.suspend(());
    }
}
