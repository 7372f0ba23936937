//! A session for what no protocol does: replies larger than any buffer, and panics.

use std::collections::VecDeque;
use std::net::UdpSocket;
use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::Duration;

use protocol::{Farewell, Session, Step};

/// Asks for [`body`].
pub(super) const BODY: &[u8] = b"B";

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

/// Every byte is a request: those above do what they say, any other is sent back.
#[derive(Debug)]
struct Probe {
    asked: VecDeque<u8>,
    taken: usize,
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
        match self.asked.front() {
            Some(&asked) if asked == PANIC_IN_STEP[0] => panic(),
            Some(&asked) if asked == HALF[0] && !self.ended => Step::Read,
            Some(&asked) if asked == BODY[0] => Step::Write(&body()[self.taken..]),
            Some(asked) => Step::Write(std::slice::from_ref(asked)),
            None if self.ended => Step::Close(Farewell::Done),
            None => Step::Read,
        }
    }

    fn sent(&mut self, count: usize) {
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
        }
    }

    fn mid_request(&self) -> bool {
        !self.asked.is_empty()
    }
}
