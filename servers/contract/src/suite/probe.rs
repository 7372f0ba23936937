//! A session for cases that no protocol has: replies larger than any buffer, files, work and panics.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::net::UdpSocket;
use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::Duration;

use protocol::{CloseReason, FileSlice, Session, Step, Work};
use rustix::fs::{MemfdFlags, memfd_create};

/// Request for [`body`].
pub(super) const BODY: &[u8] = b"B";

/// Request for the same bytes from a file.
pub(super) const FILE: &[u8] = b"I";

/// Request for a range beyond the end of a file: its last [`LEFT`] bytes, and as many again.
pub(super) const SHORTER: &[u8] = b"X";

/// Number of bytes of a [`SHORTER`] range that the file has.
pub(super) const LEFT: usize = 1000;

/// Request that is sent back after a wait of [`WAITED`].
pub(super) const WAIT: &[u8] = b"W";

/// Duration of the wait before the reply to [`WAIT`].
pub(super) const WAITED: Duration = Duration::from_millis(200);

/// Request that would be sent back after a wait of an hour, which no test waits for.
pub(super) const LONG_WAIT: &[u8] = b"L";

/// Request that is sent back after it has blocked a thread for [`BLOCKED`].
pub(super) const BLOCK: &[u8] = b"K";

/// Time for which [`BLOCK`] blocks a thread.
pub(super) const BLOCKED: Duration = Duration::from_secs(2);

/// Request that is sent back after it has used [`COMPUTED`] of CPU time.
pub(super) const COMPUTE: &[u8] = b"C";

/// CPU time that [`COMPUTE`] uses.
pub(super) const COMPUTED: Duration = Duration::from_millis(20);

/// Half a request. The end of input completes it, and then it is sent back.
pub(super) const HALF: &[u8] = b"H";

/// Input that is discarded slowly, so that a peer sends it faster than the server can read it.
pub(super) const FLOOD: &[u8] = b"F";

/// Request that makes the session panic while it receives it.
pub(super) const PANIC_IN_RECEIVE: &[u8] = b"R";

/// Request that makes the session panic when it is about to reply.
pub(super) const PANIC_IN_STEP: &[u8] = b"S";

/// Request that makes the session panic when its reply has been sent.
pub(super) const PANIC_IN_SENT: &[u8] = b"T";

/// Request that makes the session panic at the end of its input.
pub(super) const PANIC_IN_END: &[u8] = b"E";

/// Returns a body that is larger than the buffers of both sockets can hold: 8 MiB, where the kernel's default limits
/// are 4 MiB for sending and 6 MiB for a receiver that reads. Its pattern shows every shift.
pub(super) fn body() -> &'static Arc<[u8]> {
    static BODY: OnceLock<Arc<[u8]>> = OnceLock::new();
    BODY.get_or_init(|| (0..8_u32 << 20).map(|at| (at % 251) as u8).collect())
}

/// Returns a file that contains [`body`].
fn body_file() -> Arc<File> {
    static FILE: OnceLock<Arc<File>> = OnceLock::new();
    let make = || {
        let file = memfd_create("body", MemfdFlags::CLOEXEC).expect("no memory");
        let mut file = File::from(file);
        file.write_all(body()).expect("no memory");
        Arc::new(file)
    };
    Arc::clone(FILE.get_or_init(make))
}

/// Returns the file range that a request asks for, or `None` if it asks for no file.
fn slice(request: u8) -> Option<FileSlice> {
    // The body is created only where it is needed: otherwise each process that is forked for a peer would create it
    // again.
    let file_length = || body().len() as u64;
    let left = LEFT as u64;
    match [request].as_slice() {
        FILE => Some(FileSlice::new(body_file(), 0, file_length())),
        SHORTER => Some(FileSlice::new(body_file(), file_length() - left, 2 * left)),
        _ => None,
    }
}

/// Returns the work before the reply to a request, or `None` if there is none.
fn work(request: u8) -> Option<Work> {
    match [request].as_slice() {
        WAIT => Some(Work::Wait(WAITED)),
        LONG_WAIT => Some(Work::Wait(Duration::from_secs(60 * 60))),
        BLOCK => Some(Work::Block(BLOCKED)),
        COMPUTE => Some(Work::Compute(COMPUTED)),
        _ => None,
    }
}

/// Session in which every byte is a request. The constants above have a meaning; any other byte is sent back.
#[derive(Debug)]
struct Probe {
    /// Requests that are not answered yet.
    requests: VecDeque<u8>,
    /// Number of bytes sent of the first reply.
    sent: usize,
    /// File range that is still to be sent for the first request.
    slice: Option<FileSlice>,
    /// True if the work for the first request is done.
    worked: bool,
    ended: bool,
    panic_in_end: bool,
    /// Sends its notice when the session is dropped.
    _notice: Option<DropNotice>,
}

/// Sends a datagram when it is dropped.
#[derive(Debug)]
struct DropNotice(Arc<UdpSocket>);

impl Drop for DropNotice {
    fn drop(&mut self) {
        // The error is ignored: the test may have ended before its last connection.
        let _ = self.0.send(&[0]);
    }
}

/// Opens a session that sends a datagram to `notice` when it is dropped.
pub(super) fn open(notice: Option<Arc<UdpSocket>>) -> Box<dyn Session> {
    Box::new(Probe {
        requests: VecDeque::new(),
        sent: 0,
        slice: None,
        worked: false,
        ended: false,
        panic_in_end: false,
        _notice: notice.map(DropNotice),
    })
}

/// Panics without a message: the panic hook is not called, so it stays in place for real panics.
fn panic() -> ! {
    resume_unwind(Box::new("on purpose"))
}

impl Session for Probe {
    fn receive(&mut self, input: &[u8]) {
        if input.contains(&PANIC_IN_RECEIVE[0]) {
            panic();
        }
        if input.first() == Some(&FLOOD[0]) {
            sleep(Duration::from_millis(1));
            return;
        }
        self.panic_in_end |= input.contains(&PANIC_IN_END[0]);
        self.requests.extend(input);
    }

    fn end_of_input(&mut self) {
        if self.panic_in_end {
            panic();
        }
        self.ended = true;
    }

    fn step(&mut self) -> Step<'_> {
        if let Some(&request) = self.requests.front() {
            if self.slice.is_none() {
                self.slice = slice(request);
            }
            if let Some(slice) = &self.slice {
                return Step::SendFile(slice);
            }
            if let Some(work) = work(request)
                && !self.worked
            {
                return Step::Work(work);
            }
        }
        match self.requests.front() {
            Some(&request) if request == PANIC_IN_STEP[0] => panic(),
            Some(&request) if request == HALF[0] && !self.ended => Step::Read,
            Some(&request) if request == BODY[0] => Step::Write(&body()[self.sent..]),
            Some(request) => Step::Write(std::slice::from_ref(request)),
            None if self.ended => Step::Close(CloseReason::Done),
            None => Step::Read,
        }
    }

    fn sent(&mut self, count: usize) {
        if let Some(slice) = &mut self.slice {
            slice.advance(count as u64);
            if slice.is_empty() {
                self.slice = None;
                self.requests.pop_front();
            }
            return;
        }
        self.sent += count;
        let Some(&request) = self.requests.front() else {
            return;
        };
        if request == PANIC_IN_SENT[0] {
            panic();
        }
        let length = if request == BODY[0] { body().len() } else { 1 };
        if self.sent == length {
            self.requests.pop_front();
            self.sent = 0;
            self.worked = false;
        }
    }

    fn worked(&mut self) {
        self.worked = true;
    }

    fn mid_request(&self) -> bool {
        !self.requests.is_empty()
    }
}
