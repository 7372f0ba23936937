//! Designs that the interface of [`Session`] allows, shown with drivers and sessions that this crate does not have:
//! replies that are never copied into a queue, and drivers that give the session away for as long as the kernel needs
//! it.

mod common;

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{Outcome, converse, find, open, oracle, with_oracle};
use protocol::{
    CloseReason, FileSlice, Protocol, Session, SessionOptions, Step, Work, WorkKind, WorkPlan,
};

/// Size of the shared body in bytes.
const BODY: usize = 3 * 1024 * 1024;

/// Session that answers each line with a short head of its own and a body that all sessions share.
struct SharedBody {
    body: Arc<[u8]>,
    head: Vec<u8>,
    /// Number of lines that are still to be answered; the bytes of a line do not matter here.
    lines: usize,
    /// Number of bytes of the head and the body that the socket has taken.
    taken: usize,
    ended: bool,
}

impl SharedBody {
    fn open(body: &Arc<[u8]>) -> Box<dyn Session> {
        Box::new(SharedBody {
            body: Arc::clone(body),
            head: format!("{}\n", body.len()).into_bytes(),
            lines: 0,
            taken: 0,
            ended: false,
        })
    }
}

impl Session for SharedBody {
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

/// Every slice of the body that a session offers lies in the shared memory itself, at the right address.
#[test]
fn large_reply_is_sent_from_shared_memory_without_a_copy() {
    let body = body();
    let memory = body.as_ptr_range();
    let mut sessions: Vec<_> = (0..10).map(|_| SharedBody::open(&body)).collect();
    assert_eq!(Arc::strong_count(&body), 11);

    for session in &mut sessions {
        session.receive(b"please\n");
        let Step::Write(head) = session.step() else {
            panic!("the session does not send the head first");
        };
        assert_eq!(head, b"3145728\n");
        let head = head.len();
        session.sent(head);

        let mut sent = 0;
        // A socket buffer takes about this number of bytes at a time; it does not divide the size of the body.
        while let Step::Write(rest) = session.step() {
            assert!(
                rest.as_ptr() == body[sent..].as_ptr(),
                "offset {sent}: a copy"
            );
            assert!(
                rest.as_ptr_range().end == memory.end,
                "offset {sent}: not the whole rest"
            );
            let count = rest.len().min(212_992);
            sent += count;
            session.sent(count);
        }
        assert_eq!(sent, BODY);
        assert_eq!(session.step(), Step::Read);
    }
}

/// The bytes are also right if the driver repeats `step` and moves the box in between.
#[test]
fn large_reply_arrives_complete_with_repeated_steps() {
    let body = body();
    let outcome = converse(SharedBody::open(&body), [&b"one\nmore\n"[..]], |offered| {
        offered.min(1_000_000)
    });
    let reply = [b"3145728\n", &body[..]].concat();
    assert!(outcome.output == reply.repeat(2), "wrong bytes");
    assert_eq!(outcome.reason, CloseReason::Done);
}

/// Operation that a completion model gives to the kernel. It owns everything that it needs until it completes.
enum Operation {
    /// Receives into an owned buffer.
    Receive {
        session: Box<dyn Session>,
        buffer: Vec<u8>,
    },
    /// Sends the bytes that the session offered; they lie inside the session.
    Send { session: Box<dyn Session> },
    /// Sends the range of a file that the session offered; the range lies inside the session, too.
    SendFile { session: Box<dyn Session> },
    /// Waits for a timer, or for work on another thread. No other part has the session meanwhile.
    Work { session: Box<dyn Session> },
}

/// Result of an [`Operation`], returned by the kernel.
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

/// Connection in the simulated kernel.
struct KernelSocket {
    to_server: VecDeque<u8>,
    from_server: Vec<u8>,
    /// Whether the end of the input was reported to the server.
    fin: bool,
    /// Address of the bytes of the send in flight when it was submitted.
    submitted: usize,
    /// Number of times that work was done for this connection.
    worked: usize,
}

impl KernelSocket {
    /// Carries out an operation, by value. The number of bytes is random.
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
                    panic!("the session of a send in flight has no bytes to send");
                };
                let address = bytes.as_ptr().addr();
                assert_eq!(
                    address, self.submitted,
                    "the bytes moved during the operation"
                );
                let count = random.usize(1..=bytes.len());
                self.from_server.extend_from_slice(&bytes[..count]);
                assert!(
                    self.from_server.len() < 10_000,
                    "the session sends without end"
                );
                Completion::Sent { session, count }
            }
            Operation::SendFile { mut session } => {
                let Step::SendFile(slice) = session.step() else {
                    panic!("the session of a send in flight has no bytes to send");
                };
                let address = std::ptr::from_ref(slice).addr();
                assert_eq!(
                    address, self.submitted,
                    "the range moved during the operation"
                );
                let count = random.usize(1..=slice.len() as usize);
                let start = self.from_server.len();
                self.from_server.resize(start + count, 0);
                let read = slice
                    .file()
                    .read_exact_at(&mut self.from_server[start..], slice.offset());
                read.expect("the file has all bytes of the range");
                Completion::Sent { session, count }
            }
            Operation::Work { mut session } => {
                assert!(
                    matches!(session.step(), Step::Work(_)),
                    "the step changed during the operation"
                );
                self.worked += 1;
                Completion::Worked { session }
            }
        }
    }
}

/// Driver side: returns the next operation to submit, or the reason of the close. The driver keeps no part of the
/// session.
fn submit(
    mut session: Box<dyn Session>,
    free_buffer: &mut Option<Vec<u8>>,
    socket: &mut KernelSocket,
) -> Result<Operation, CloseReason> {
    match session.step() {
        Step::Read => {
            let buffer = free_buffer.take().unwrap_or_else(|| vec![0; 64]);
            Ok(Operation::Receive { session, buffer })
        }
        Step::Write(bytes) => {
            socket.submitted = bytes.as_ptr().addr();
            Ok(Operation::Send { session })
        }
        Step::SendFile(slice) => {
            socket.submitted = std::ptr::from_ref(slice).addr();
            Ok(Operation::SendFile { session })
        }
        Step::Work(_) => Ok(Operation::Work { session }),
        Step::Close(reason) => Err(reason),
    }
}

/// Drives one connection for each input; their operations complete in random order. Returns the outcome of each
/// connection and the number of times that work was done for it.
fn drive_all(
    inputs: &[Vec<u8>],
    open: impl Fn() -> Box<dyn Session>,
    random: &mut fastrand::Rng,
) -> Vec<(Outcome, usize)> {
    let mut sockets = Vec::new();
    let mut free_buffers = vec![None; inputs.len()];
    let mut in_flight = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let mut socket = KernelSocket {
            to_server: input.iter().copied().collect(),
            from_server: Vec::new(),
            fin: false,
            submitted: 0,
            worked: 0,
        };
        let operation = submit(open(), &mut free_buffers[number], &mut socket);
        in_flight.push((number, operation.expect("a session begins with a read")));
        sockets.push(socket);
    }

    let mut outcomes: Vec<_> = inputs.iter().map(|_| None).collect();
    while !in_flight.is_empty() {
        let (number, operation) = in_flight.swap_remove(random.usize(..in_flight.len()));
        let socket = &mut sockets[number];
        let session = match socket.complete(operation, random) {
            Completion::Received {
                mut session,
                buffer,
                count,
            } => {
                match count {
                    0 => session.end_of_input(),
                    count => session.receive(&buffer[..count]),
                }
                free_buffers[number] = Some(buffer);
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
        match submit(session, &mut free_buffers[number], socket) {
            Ok(operation) => in_flight.push((number, operation)),
            Err(reason) => {
                let output = std::mem::take(&mut socket.from_server);
                outcomes[number] = Some((Outcome { output, reason }, socket.worked));
            }
        }
    }
    let outcomes = outcomes.into_iter();
    outcomes
        .map(|outcome| outcome.expect("each conversation ended"))
        .collect()
}

/// Returns the inputs of 20 clients. The first client sends nothing.
fn inputs() -> Vec<Vec<u8>> {
    (0..20)
        .map(|number| {
            format!("Client {number}\nsays\n")
                .repeat(number)
                .into_bytes()
        })
        .collect()
}

/// Drives many connections: their sessions are moved into each operation and back, and every reply is right.
#[test]
fn session_owned_by_the_operation_in_flight_replies_correctly() {
    let mut random = fastrand::Rng::with_seed(12);
    for protocol in with_oracle() {
        let inputs = inputs();
        let outcomes = drive_all(&inputs, || open(protocol, 100), &mut random);
        for ((outcome, worked), input) in outcomes.into_iter().zip(&inputs) {
            assert_eq!(worked, 0);
            assert_eq!(
                outcome,
                oracle(protocol.name, input, 100),
                "{}",
                protocol.name
            );
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

/// A timer or another thread owns the session, and returns it.
#[test]
fn session_owned_by_the_work_in_progress_replies_correctly() {
    let mut random = fastrand::Rng::with_seed(13);
    for name in ["pair", "echo"] {
        let inputs = inputs();
        let outcomes = drive_all(&inputs, || open_with_work(find(name)), &mut random);
        for ((outcome, worked), input) in outcomes.into_iter().zip(&inputs) {
            assert_eq!(outcome, oracle(name, input, 100), "{name}");
            let lines = input.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(worked, lines, "{name}");
        }
    }
    let mut session = open_with_work(find("echo"));
    session.receive(b"one\n");
    let other_thread = thread::spawn(move || {
        let work = Work::Block(Duration::from_secs(1));
        assert_eq!(session.step(), Step::Work(work));
        session.worked();
        session
    });
    let mut session = other_thread.join().expect("the other thread did not panic");
    assert_eq!(session.step(), Step::Write(b"one\n"));
}

/// Session that answers each line with a range of a file.
struct FileSession {
    all: FileSlice,
    left: FileSlice,
    lines: usize,
    ended: bool,
}

impl FileSession {
    fn open(all: &FileSlice) -> Box<dyn Session> {
        Box::new(FileSession {
            all: all.clone(),
            left: all.clone(),
            lines: 0,
            ended: false,
        })
    }
}

impl Session for FileSession {
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

/// A session that offers a range of a file may be moved anywhere while the range is sent: it holds none of the bytes,
/// and the file stays open as long as a session needs it.
#[test]
fn file_range_is_sent_by_the_operation_that_owns_the_session() {
    let path = std::env::temp_dir().join(format!("ownership-{}", std::process::id()));
    std::fs::write(&path, "not this, but 0123456789 and no more").expect("the file can be written");
    let file = Arc::new(File::open(&path).expect("the file exists"));
    std::fs::remove_file(&path).expect("the file can be removed");
    let slice = FileSlice::new(file, 14, 10);
    let inputs = inputs();
    let mut random = fastrand::Rng::with_seed(14);
    let outcomes = drive_all(&inputs, || FileSession::open(&slice), &mut random);
    for (number, (outcome, _)) in outcomes.into_iter().enumerate() {
        let expected = Outcome {
            output: b"0123456789".repeat(2 * number),
            reason: CloseReason::Done,
        };
        assert_eq!(outcome, expected);
    }
    assert_eq!(
        Arc::strong_count(slice.file()),
        1,
        "every session has dropped the file"
    );
}

/// Another thread of a pool may continue a session in the middle of a write. It gets the same bytes at the same
/// address.
#[test]
fn session_moved_to_another_thread_during_a_write_offers_the_same_bytes() {
    let mut session = open(find("pair"), 100);
    session.receive(b"one\ntwo\n");
    let step_here = common::StepCopy::from(session.step());
    let other_thread = thread::spawn(move || {
        let common::StepCopy::Write(address, bytes) = common::StepCopy::from(session.step()) else {
            panic!("the session does not offer the write again");
        };
        session.sent(bytes.len());
        (address.addr(), bytes, session)
    });
    let (address, bytes, mut session) =
        other_thread.join().expect("the other thread did not panic");
    let common::StepCopy::Write(first, expected) = step_here else {
        panic!("the session has no reply to write");
    };
    assert_eq!((address, bytes), (first.addr(), expected));
    assert_eq!(session.step(), Step::Read);
}
