//! Test of a multishot accept during a shortage of descriptors: the accept ends, and the server submits another one
//! after a pause. The test is alone in its process, because the limit applies to the process.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use contract::{Limits, Needs, Service, Stop, listen};
use protocol::{Protocol, SessionOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptor limit while the accept is submitted.
const FEW: i32 = 64;

/// Connects a peer and sends a line.
fn connect_and_send(address: SocketAddr) -> TcpStream {
    let mut peer = TcpStream::connect(address).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    peer.write_all(b"x\n").unwrap();
    peer
}

#[test]
fn peers_in_a_descriptor_shortage_are_served_after_it() {
    let model = &server_uring::MODELS[0];
    if let Err(reason) = (model.available)() {
        eprintln!("{reason}; not checked");
        return;
    }
    let listener = listen("127.0.0.1:0".parse().unwrap(), 256, Needs::NOTHING).unwrap();
    let address = listener.local_addr().unwrap();
    let (stopper, stop) = Stop::channel().unwrap();
    let service = Service::of(Protocol::find("echo").unwrap(), SessionOptions::default());
    let many = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(FEW as u64),
        ..many
    };
    setrlimit(Resource::Nofile, few).unwrap();
    let limits = Limits::default();
    let server = thread::spawn(move || (model.serve)(listener, service, limits, stop));
    // A reply shows that the accept was submitted. The accept keeps the limit of the moment when it was submitted.
    let mut first = connect_and_send(address);
    first.read_exact(&mut [0; 2]).unwrap();
    setrlimit(Resource::Nofile, many).unwrap();
    let mut taken = Vec::new();
    while taken
        .last()
        .is_none_or(|file: &File| file.as_raw_fd() < FEW)
    {
        taken.push(File::open("/dev/null").unwrap());
    }
    for _ in 0..3 {
        connect_and_send(address).read_exact(&mut [0; 2]).unwrap();
    }
    drop(stopper);
    let tally = server.join().unwrap().unwrap();
    assert_eq!((tally.accepted, tally.accept_errors), (4, 1));
}
