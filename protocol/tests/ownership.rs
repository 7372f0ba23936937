//! What the shape of [`Session`] leaves room for, proved with drivers and a session that this crate does not have:
//! replies that are never copied into a queue, and drivers that own the session for as long as the kernel does.

mod common;

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{Said, converse, find, generic, open, oracle};
use protocol::{
    CloseReason, FileSlice, Protocol, Session, SessionOptions, Step, Work, WorkKind, WorkPlan,
};

const BODY: usize = 3 * 1024 * 1024;

/// Answers each line with a short head of its own and a body that all sessions share.
struct Shared {
    body: Arc<[u8]>,
    head: Vec<u8>,
    /// Lines that are still to be answered; the bytes of a line do not matter here.
    lines: usize,
    /// How much of the head and the body the socket has taken.
    taken: usize,
    ended: bool,
}

impl Shared {
    fn open(body: &Arc<[u8]>) -> Box<dyn Session> {
        Box::new(Shared {
            body: Arc::clone(body),
            head: format!("{}\n", body.len()).into_bytes(),
            lines: 0,
            taken: 0,
            ended: false,
        })
    }
}

impl Session for Shared {
    fn receive(&mut self, input: &[u8]) {
        self.lines += input.iter().filter(|byte| **byte == b'\n').count();
    }

    fn end_of_input(&mut self) {
        self.ended = true;
    }

    fn step(&mut self) -> Step<'_> {
        if self.lines > 0 {
            Step::Write(match self.taken.checked_sub(self.head.len()) {
                None => &self.head[self.taken..],
                Some(taken) => &self.body[taken..],
            })
        } else if self.ended {
            Step::Close(CloseReason::Done)
        } else {
            Step::Read
        }
    }

    fn sent(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.head.len() + self.body.len() {
            self.taken = 0;
            self.lines -= 1;
        }
    }

    fn mid_request(&self) -> bool {
        self.lines > 0
    }
}

fn body() -> Arc<[u8]> {
    (0..BODY).map(|index| (index % 251) as u8).collect()
}

/// Every slice of the body that a driver is offered lies in the shared memory itself, at the right place.
#[test]
fn a_large_reply_is_sent_from_where_it_lies() {
    let body = body();
    let memory = body.as_ptr_range();
    let mut sessions: Vec<_> = (0..10).map(|_| Shared::open(&body)).collect();
    assert_eq!(Arc::strong_count(&body), 11);

    for session in &mut sessions {
        session.receive(b"please\n");
        let Step::Write(head) = session.step() else {
            panic!("the head comes first");
        };
        assert_eq!(head, b"3145728\n");
        let head = head.len();
        session.sent(head);

        let mut sent = 0;
        // What a socket buffer takes at a time, roughly; it does not divide the body.
        while let Step::Write(rest) = session.step() {
            assert!(rest.as_ptr() == body[sent..].as_ptr(), "at {sent}: a copy");
            assert!(rest.as_ptr_range().end == memory.end, "at {sent}: in parts");
            let count = rest.len().min(212_992);
            sent += count;
            session.sent(count);
        }
        assert_eq!(sent, BODY);
        assert_eq!(session.step(), Step::Read);
    }
}

/// The bytes are right, too, with the steps asked for again and the box moved in between.
#[test]
fn a_large_reply_arrives_whole() {
    let body = body();
    let said = converse(Shared::open(&body), [&b"one\nmore\n"[..]], |offered| {
        offered.min(1_000_000)
    });
    let reply = [b"3145728\n", &body[..]].concat();
    assert!(said.output == reply.repeat(2), "not what was shared");
    assert_eq!(said.farewell, CloseReason::Done);
}

/// What a completion model gives to the kernel: everything that the operation needs, owned until it is given back.
enum Operation {
    /// A receive into an owned buffer.
    Receive {
        session: Box<dyn Session>,
        buffer: Vec<u8>,
    },
    /// A send of what the session offered; it lies inside the session.
    Send { session: Box<dyn Session> },
    /// The same, of a file; the range lies inside the session, too.
    SendFile { session: Box<dyn Session> },
    /// A timer, or work that another thread does. Nobody else has the session meanwhile.
    Work { session: Box<dyn Session> },
}

/// What the kernel gives back.
enum Completion {
    Received {
        session: Box<dyn Session>,
        buffer: Vec<u8>,
        count: usize,
    },
    Sent {
        session: Box<dyn Session>,
        count: usize,
    },
    Worked {
        session: Box<dyn Session>,
    },
}

/// One connection as the simulated kernel sees it.
struct Wire {
    to_server: VecDeque<u8>,
    from_server: Vec<u8>,
    /// Whether the server has been told that no more will come.
    fin: bool,
    /// Where the bytes of the send in flight lay when it was submitted.
    submitted: usize,
    /// How often something was done for this connection.
    worked: usize,
}

impl Wire {
    /// Carries out an operation, by value, as far as the dice say.
    fn complete(&mut self, operation: Operation, random: &mut fastrand::Rng) -> Completion {
        match operation {
            Operation::Receive {
                session,
                mut buffer,
            } => {
                let most = self.to_server.len().min(buffer.len());
                assert!(!self.fin, "a receive after FIN never completes");
                self.fin = most == 0;
                let count = if self.fin { 0 } else { random.usize(1..=most) };
                for (slot, byte) in buffer.iter_mut().zip(self.to_server.drain(..count)) {
                    *slot = byte;
                }
                Completion::Received {
                    session,
                    buffer,
                    count,
                }
            }
            Operation::Send { mut session } => {
                let Step::Write(bytes) = session.step() else {
                    panic!("a send in flight has nothing to send");
                };
                let address = bytes.as_ptr().addr();
                assert_eq!(address, self.submitted, "the bytes moved in flight");
                let count = random.usize(1..=bytes.len());
                self.from_server.extend_from_slice(&bytes[..count]);
                assert!(self.from_server.len() < 10_000, "the sends do not end");
                Completion::Sent { session, count }
            }
            Operation::SendFile { mut session } => {
                let Step::SendFile(slice) = session.step() else {
                    panic!("a send in flight has nothing to send");
                };
                let address = std::ptr::from_ref(slice).addr();
                assert_eq!(address, self.submitted, "the range moved in flight");
                let count = random.usize(1..=slice.len() as usize);
                let start = self.from_server.len();
                self.from_server.resize(start + count, 0);
                let read = slice
                    .file()
                    .read_exact_at(&mut self.from_server[start..], slice.offset());
                read.expect("the file is as long as it is said to be");
                Completion::Sent { session, count }
            }
            Operation::Work { mut session } => {
                assert!(matches!(session.step(), Step::Work(_)), "changed in flight");
                self.worked += 1;
                Completion::Worked { session }
            }
        }
    }
}

/// The driver's half: what to submit next, or how it ended. Nothing of the session stays behind with the driver.
fn submit(
    mut session: Box<dyn Session>,
    spare: &mut Option<Vec<u8>>,
    wire: &mut Wire,
) -> Result<Operation, CloseReason> {
    match session.step() {
        Step::Read => {
            let buffer = spare.take().unwrap_or_else(|| vec![0; 64]);
            Ok(Operation::Receive { session, buffer })
        }
        Step::Write(bytes) => {
            wire.submitted = bytes.as_ptr().addr();
            Ok(Operation::Send { session })
        }
        Step::SendFile(slice) => {
            wire.submitted = std::ptr::from_ref(slice).addr();
            Ok(Operation::SendFile { session })
        }
        Step::Work(_) => Ok(Operation::Work { session }),
        Step::Close(farewell) => Err(farewell),
    }
}

/// Drives many connections, completed in any order: what was said to each, and how often something was done for it.
fn hold_all(
    inputs: &[Vec<u8>],
    open: impl Fn() -> Box<dyn Session>,
    random: &mut fastrand::Rng,
) -> Vec<(Said, usize)> {
    let mut wires = Vec::new();
    let mut spares = vec![None; inputs.len()];
    let mut in_flight = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let mut wire = Wire {
            to_server: input.iter().copied().collect(),
            from_server: Vec::new(),
            fin: false,
            submitted: 0,
            worked: 0,
        };
        let operation = submit(open(), &mut spares[number], &mut wire);
        in_flight.push((number, operation.expect("a session begins with a read")));
        wires.push(wire);
    }

    let mut said: Vec<_> = inputs.iter().map(|_| None).collect();
    while !in_flight.is_empty() {
        let (number, operation) = in_flight.swap_remove(random.usize(..in_flight.len()));
        let wire = &mut wires[number];
        let session = match wire.complete(operation, random) {
            Completion::Received {
                mut session,
                buffer,
                count,
            } => {
                match count {
                    0 => session.end_of_input(),
                    count => session.receive(&buffer[..count]),
                }
                spares[number] = Some(buffer);
                session
            }
            Completion::Sent { mut session, count } => {
                session.sent(count);
                session
            }
            Completion::Worked { mut session } => {
                session.worked();
                session
            }
        };
        match submit(session, &mut spares[number], wire) {
            Ok(operation) => in_flight.push((number, operation)),
            Err(farewell) => {
                let output = std::mem::take(&mut wire.from_server);
                said[number] = Some((Said { output, farewell }, wire.worked));
            }
        }
    }
    let said = said.into_iter();
    said.map(|said| said.expect("all came to their end"))
        .collect()
}

/// What so many clients say: the first nothing.
fn inputs() -> Vec<Vec<u8>> {
    (0..20)
        .map(|number| {
            format!("Client {number}\nsays\n")
                .repeat(number)
                .into_bytes()
        })
        .collect()
}

/// Many connections: their sessions travel from hand to hand and every reply is right.
#[test]
fn a_session_can_be_owned_by_the_operation_in_flight() {
    let mut random = fastrand::Rng::with_seed(12);
    for protocol in generic() {
        let inputs = inputs();
        let held = hold_all(&inputs, || open(protocol, 100), &mut random);
        for ((said, worked), input) in held.into_iter().zip(&inputs) {
            assert_eq!(worked, 0);
            assert_eq!(said, oracle(protocol.name, input, 100), "{}", protocol.name);
        }
    }
}

fn open_with_work(protocol: &Protocol) -> Box<dyn Session> {
    let time = Duration::from_secs(1);
    (protocol.open)(&SessionOptions {
        work: Some(WorkPlan::new(WorkKind::Block, time..=time, 100, 0)),
        ..SessionOptions::default()
    })
}

/// A timer or another thread has the session, and gives it back.
#[test]
fn a_session_can_be_owned_by_the_work_that_is_done() {
    let mut random = fastrand::Rng::with_seed(13);
    for name in ["pair", "echo"] {
        let inputs = inputs();
        let held = hold_all(&inputs, || open_with_work(find(name)), &mut random);
        for ((said, worked), input) in held.into_iter().zip(&inputs) {
            assert_eq!(said, oracle(name, input, 100), "{name}");
            let lines = input.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(worked, lines, "{name}");
        }
    }
    let mut session = open_with_work(find("echo"));
    session.receive(b"one\n");
    let there = thread::spawn(move || {
        let work = Work::Block(Duration::from_secs(1));
        assert_eq!(session.step(), Step::Work(work));
        session.worked();
        session
    });
    let mut session = there.join().expect("the other thread ended well");
    assert_eq!(session.step(), Step::Write(b"one\n"));
}

/// Answers each line with a range of a file.
struct FromFile {
    all: FileSlice,
    left: FileSlice,
    lines: usize,
    ended: bool,
}

impl FromFile {
    fn open(all: &FileSlice) -> Box<dyn Session> {
        Box::new(FromFile {
            all: all.clone(),
            left: all.clone(),
            lines: 0,
            ended: false,
        })
    }
}

impl Session for FromFile {
    fn receive(&mut self, input: &[u8]) {
        self.lines += input.iter().filter(|byte| **byte == b'\n').count();
    }

    fn end_of_input(&mut self) {
        self.ended = true;
    }

    fn step(&mut self) -> Step<'_> {
        if self.lines > 0 {
            Step::SendFile(&self.left)
        } else if self.ended {
            Step::Close(CloseReason::Done)
        } else {
            Step::Read
        }
    }

    fn sent(&mut self, count: usize) {
        self.left.advance(count as u64);
        if self.left.is_empty() {
            self.left = self.all.clone();
            self.lines -= 1;
        }
    }

    fn mid_request(&self) -> bool {
        self.lines > 0
    }
}

/// A session that names a range of a file may be anywhere while the range is sent: it holds none of the bytes, and the
/// file stays open for as long as anybody needs it.
#[test]
fn a_file_is_sent_by_the_operation_that_owns_the_session() {
    let path = std::env::temp_dir().join(format!("ownership-{}", std::process::id()));
    std::fs::write(&path, "not this, but 0123456789 and no more").expect("a file");
    let file = Arc::new(File::open(&path).expect("is there"));
    std::fs::remove_file(&path).expect("is ours");
    let slice = FileSlice::new(file, 14, 10);
    let inputs = inputs();
    let mut random = fastrand::Rng::with_seed(14);
    let held = hold_all(&inputs, || FromFile::open(&slice), &mut random);
    for (number, (said, _)) in held.into_iter().enumerate() {
        let expected = Said {
            output: b"0123456789".repeat(2 * number),
            farewell: CloseReason::Done,
        };
        assert_eq!(said, expected);
    }
    assert_eq!(Arc::strong_count(slice.file()), 1, "all have let go of it");
}

/// A pool of threads may pick up a session in the middle of a write and find the same bytes at the same place.
#[test]
fn a_session_can_change_threads_in_the_middle_of_a_write() {
    let mut session = open(find("pair"), 100);
    session.receive(b"one\ntwo\n");
    let here = common::Seen::from(session.step());
    let there = thread::spawn(move || {
        let common::Seen::Write(address, bytes) = common::Seen::from(session.step()) else {
            panic!("the write is gone");
        };
        session.sent(bytes.len());
        (address.addr(), bytes, session)
    });
    let (address, bytes, mut session) = there.join().expect("the other thread ended well");
    let common::Seen::Write(first, expected) = here else {
        panic!("there is something to write");
    };
    assert_eq!((address, bytes), (first.addr(), expected));
    assert_eq!(session.step(), Step::Read);
}
