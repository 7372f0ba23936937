//! Test that the threads have the stack size of `--stack`.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use contract::{Limits, Needs, Service, Stop, listen};
use protocol::{CloseReason, Session, Step};

/// Session that answers every input with one byte, after it has used more stack than a thread has by default.
struct Deep {
    owed: bool,
    ended: bool,
}

/// Number of bytes of the stack that the session uses.
const DEPTH: usize = 8 << 20;

/// Uses slightly more than `bytes` bytes of the stack.
fn use_stack(bytes: usize) -> usize {
    let mut frame = [1_u8; 1024];
    black_box(&mut frame);
    match bytes.checked_sub(frame.len()) {
        Some(left) => use_stack(left) + usize::from(frame[7]),
        None => 0,
    }
}

impl Session for Deep {
    fn receive(&mut self, _: &[u8]) {
        black_box(use_stack(DEPTH));
        self.owed = true;
    }

    fn end_of_input(&mut self) {
        self.ended = true;
    }

    fn step(&mut self) -> Step<'_> {
        if self.owed {
            Step::Write(b"x")
        } else if self.ended {
            Step::Close(CloseReason::Done)
        } else {
            Step::Read
        }
    }

    fn sent(&mut self, _: usize) {
        self.owed = false;
    }

    fn mid_request(&self) -> bool {
        false
    }
}

#[test]
fn stack_is_as_large_as_the_limit() {
    let listener = listen("127.0.0.1:0".parse().unwrap(), 1, Needs::NOTHING).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let (stopper, stop) = Stop::channel().unwrap();
    let limits = Limits {
        stack: Some(2 * DEPTH),
        ..Limits::default()
    };
    let service = Service::new(|| {
        Box::new(Deep {
            owed: false,
            ended: false,
        })
    });
    let model = &server_threads::MODELS[0];
    let server = thread::spawn(move || (model.serve)(listener, service, limits, stop));
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    drop(client);
    drop(stopper);
    assert_eq!(server.join().unwrap().unwrap().served, 1);
}
