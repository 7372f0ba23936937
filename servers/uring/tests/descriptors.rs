//! A shortage of descriptors, met by an accept of many: it ends, and there is another after a pause. Alone in its
//! process, because the limit is the process's.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use contract::{Limits, Needs, Service, Stop, listen};
use protocol::{Protocol, SessionOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FEW: i32 = 64;

fn asks(address: SocketAddr) -> TcpStream {
    let mut peer = TcpStream::connect(address).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    peer.write_all(b"x\n").unwrap();
    peer
}

#[test]
fn who_meets_a_shortage_is_served_when_it_is_over() {
    let model = &server_uring::MODELS[0];
    if let Err(why) = (model.available)() {
        eprintln!("{why}; not checked");
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
    // Who is answered shows that the accept was submitted. That keeps to the limit of then.
    let mut first = asks(address);
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
        asks(address).read_exact(&mut [0; 2]).unwrap();
    }
    drop(stopper);
    let tally = server.join().unwrap().unwrap();
    assert_eq!((tally.accepted, tally.accept_errors), (4, 1));
}
