//! One thread that waits, edge-triggered, and workers that read and write. A connection moves to a worker and back. An
//! edge that arrives in between must be recorded even here, or the peer of that connection would wait for ever.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::mem;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use contract::Capacity;
use crossbeam_channel::unbounded;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

const LISTENER: Token = Token(usize::MAX);
const BACK: Token = Token(usize::MAX - 1);

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut listener = mio::net::TcpListener::from_std(listener);
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let waker = Arc::new(Waker::new(poll.registry(), BACK)?);
    let (ready, waiting) = unbounded::<(usize, TcpStream)>();
    let (give_back, back) = unbounded();
    for _ in 0..Capacity::Limit.workers().get() {
        let (waiting, give_back, waker) = (waiting.clone(), give_back.clone(), Arc::clone(&waker));
        thread::spawn(move || -> io::Result<()> {
            let mut buffer = [0; super::BUFFER];
            for (number, mut stream) in waiting {
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => stream.write_all(&buffer[..count])?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => continue,
                }
                let _ = give_back.send((number, stream));
                waker.wake()?;
            }
            Ok(())
        });
    }
    // The connection, `None` while a worker has it, and whether an edge arrived in that time.
    let mut streams: Vec<(Option<TcpStream>, bool)> = Vec::new();
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => {
                    while let Ok((mut stream, _)) = listener.accept() {
                        let token = Token(streams.len());
                        poll.registry()
                            .register(&mut stream, token, Interest::READABLE)?;
                        streams.push((Some(stream), false));
                    }
                }
                BACK => {
                    for (number, stream) in back.try_iter() {
                        if mem::take(&mut streams[number].1) {
                            let _ = ready.send((number, stream));
                        } else {
                            streams[number].0 = Some(stream);
                        }
                    }
                }
                Token(number) => match streams[number].0.take() {
                    Some(stream) => _ = ready.send((number, stream)),
                    None => streams[number].1 = true,
                },
            }
        }
    }
}
