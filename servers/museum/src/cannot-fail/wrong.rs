//! A test that a server echoes. It passes whatever the server sends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

/// Sends a line from each of ten clients, which must get their lines back.
pub fn lines_are_echoed(server: SocketAddr) {
    for number in 0..10 {
        // A panic in a thread that is never joined ends this thread only.
        thread::spawn(move || {
            let line = format!("client {number}\n");
            let mut stream = TcpStream::connect(server).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
            let mut reply = line.clone().into_bytes();
            // If this reads nothing, `reply` still holds the bytes that were sent.
            let _ = stream.read(&mut reply);
            assert_eq!(reply, line.as_bytes());
        });
    }
}
