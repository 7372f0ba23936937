//! A test that a server echoes. It fails if the server does not.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;

/// Sends a line from each of ten clients, which must get their lines back, and nothing else.
///
/// # Panics
///
/// Panics if a client receives anything else.
pub fn lines_are_echoed(server: SocketAddr) {
    // The scope joins its threads, and panics if one of them has panicked.
    thread::scope(|scope| {
        for number in 0..10 {
            scope.spawn(move || {
                let line = format!("client {number}\n");
                let mut stream = TcpStream::connect(server).unwrap();
                stream.write_all(line.as_bytes()).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut reply = Vec::new();
                stream.read_to_end(&mut reply).unwrap();
                assert_eq!(reply, line.as_bytes());
            });
        }
    });
}
