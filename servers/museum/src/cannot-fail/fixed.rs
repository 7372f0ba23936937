//! A test that a server echoes, which fails if it does not.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;

/// Ten clients, who must have their lines back, and nothing else.
///
/// # Panics
///
/// The server says something else.
pub fn lines_are_echoed(server: SocketAddr) {
    // The scope waits for its threads, and panics if one of them did.
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
