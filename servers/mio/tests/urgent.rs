//! Test of a mistake that only an edge-triggered loop can make which treats a short read as the end of input.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use contract::{Limits, Needs, Service, Stop, listen};
use protocol::{Protocol, SessionOptions};
use socket2::SockRef;

/// A read ends at the mark of urgent data (MSG_OOB), even if more data follows: the read is short, and the socket is
/// not empty. A server that treats the short read as the end of the input waits for an edge that has already passed.
#[test]
fn short_read_at_urgent_data_is_followed_by_another_read() {
    let listener = listen("127.0.0.1:0".parse().unwrap(), 1, Needs::NOTHING).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // All input has arrived before the server looks for the first time. The urgent byte itself is not in the stream.
    SockRef::from(&client).send_out_of_band(b"two\n!").unwrap();
    client.write_all(b"three\n").unwrap();

    let (stopper, stop) = Stop::channel().unwrap();
    let echo = Protocol::find("echo").unwrap();
    let service = Service::of(echo, SessionOptions::default());
    let model = &server_mio::MODELS[0];
    let server = thread::spawn(move || (model.serve)(listener, service, Limits::default(), stop));

    let mut replies = [0; 10];
    client.read_exact(&mut replies).unwrap();
    assert_eq!(&replies, b"two\nthree\n");
    drop(client);
    drop(stopper);
    assert_eq!(server.join().unwrap().unwrap().served, 1);
}
