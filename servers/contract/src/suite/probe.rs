//! A session for what no protocol does: replies larger than any buffer, files, work, and panics.

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

/// Asks for [`body`].
pub(super) const BODY: &[u8] = b"B";

/// Asks for the same, from a file.
pub(super) const FILE: &[u8] = b"I";

/// Asks for more than a file has: its last [`LEFT`] bytes, and as many again.
pub(super) const SHORTER: &[u8] = b"X";
pub(super) const LEFT: usize = 1000;

/// Is sent back after a wait of [`WAITED`].
pub(super) const WAIT: &[u8] = b"W";
pub(super) const WAITED: Duration = Duration::from_millis(200);

/// Would be sent back after a wait that no test waits for.
pub(super) const LONG_WAIT: &[u8] = b"L";

/// Is sent back after it has kept a thread for [`BLOCKED`].
pub(super) const BLOCK: &[u8] = b"K";
pub(super) const BLOCKED: Duration = Duration::from_secs(2);

/// Is sent back after it has used [`COMPUTED`] of CPU time.
pub(super) const COMPUTE: &[u8] = b"C";
pub(super) const COMPUTED: Duration = Duration::from_millis(20);

/// Half a request: the end of input makes it whole, and then it is sent back.
pub(super) const HALF: &[u8] = b"H";

/// Is thrown away, in its own good time: whoever sends this sends faster than it can be taken.
pub(super) const FLOOD: &[u8] = b"F";

/// Makes the session panic while it takes this.
pub(super) const PANIC_IN_RECEIVE: &[u8] = b"R";

/// Makes the session panic when it comes to answer this.
pub(super) const PANIC_IN_STEP: &[u8] = b"S";

/// Makes the session panic when it has answered this.
pub(super) const PANIC_IN_SENT: &[u8] = b"T";

/// Makes the session panic at the end of its input.
pub(super) const PANIC_IN_END: &[u8] = b"E";

/// More than the buffers of both sockets can hold (8 MiB, where the kernel's default limits are 4 MiB for sending and
/// 6 MiB for a receiver that reads), in a pattern that shows every shift.
pub(super) fn body() -> &'static Arc<[u8]> {
    static BODY: OnceLock<Arc<[u8]>> = OnceLock::new();
    BODY.get_or_init(|| (0..8_u32 << 20).map(|at| (at % 251) as u8).collect())
}

/// A file that holds it.
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

/// What of a file is asked for.
fn slice(asked: u8) -> Option<FileSlice> {
    // (Made by whoever needs it, and by nobody else: a process that is forked for one peer would make it for that peer.)
    let whole = || body().len() as u64;
    let left = LEFT as u64;
    match [asked].as_slice() {
        FILE => Some(FileSlice::new(body_file(), 0, whole())),
        SHORTER => Some(FileSlice::new(body_file(), whole() - left, 2 * left)),
        _ => None,
    }
}

/// What is to be done before the answer.
fn work(asked: u8) -> Option<Work> {
    match [asked].as_slice() {
        WAIT => Some(Work::Wait(WAITED)),
        LONG_WAIT => Some(Work::Wait(Duration::from_secs(60 * 60))),
        BLOCK => Some(Work::Block(BLOCKED)),
        COMPUTE => Some(Work::Compute(COMPUTED)),
        _ => None,
    }
}

/// Every byte is a request: those above do what they say, any other is sent back.
#[derive(Debug)]
struct Probe {
    asked: VecDeque<u8>,
    taken: usize,
    /// What is left of the file.
    slice: Option<FileSlice>,
    /// The work for the first of those that are asked is done.
    worked: bool,
    ended: bool,
    panic_in_end: bool,
    /// Dropped with the session.
    _goodbye: Option<Goodbye>,
}

#[derive(Debug)]
struct Goodbye(Arc<UdpSocket>);

impl Drop for Goodbye {
    fn drop(&mut self) {
        // The test may have ended before its last connection.
        let _ = self.0.send(&[0]);
    }
}

/// A session, which says goodbye there when it is dropped.
pub(super) fn open(goodbye: Option<Arc<UdpSocket>>) -> Box<dyn Session> {
    Box::new(Probe {
        asked: VecDeque::new(),
        taken: 0,
        slice: None,
        worked: false,
        ended: false,
        panic_in_end: false,
        _goodbye: goodbye.map(Goodbye),
    })
}

/// A panic that says nothing: the hook is not called, and what it would print of real ones is not hidden.
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
        self.asked.extend(input);
    }

    fn end_of_input(&mut self) {
        if self.panic_in_end {
            panic();
        }
        self.ended = true;
    }

    fn step(&mut self) -> Step<'_> {
        if let Some(&asked) = self.asked.front() {
            if self.slice.is_none() {
                self.slice = slice(asked);
            }
            if let Some(slice) = &self.slice {
                return Step::SendFile(slice);
            }
            if let Some(work) = work(asked)
                && !self.worked
            {
                return Step::Work(work);
            }
        }
        match self.asked.front() {
            Some(&asked) if asked == PANIC_IN_STEP[0] => panic(),
            Some(&asked) if asked == HALF[0] && !self.ended => Step::Read,
            Some(&asked) if asked == BODY[0] => Step::Write(&body()[self.taken..]),
            Some(asked) => Step::Write(std::slice::from_ref(asked)),
            None if self.ended => Step::Close(CloseReason::Done),
            None => Step::Read,
        }
    }

    fn sent(&mut self, count: usize) {
        if let Some(slice) = &mut self.slice {
            slice.advance(count as u64);
            if slice.is_empty() {
                self.slice = None;
                self.asked.pop_front();
            }
            return;
        }
        self.taken += count;
        let Some(&asked) = self.asked.front() else {
            return;
        };
        if asked == PANIC_IN_SENT[0] {
            panic();
        }
        let owed = if asked == BODY[0] { body().len() } else { 1 };
        if self.taken == owed {
            self.asked.pop_front();
            self.taken = 0;
            self.worked = false;
        }
    }

    fn worked(&mut self) {
        self.worked = true;
    }

    fn mid_request(&self) -> bool {
        !self.asked.is_empty()
    }
}
