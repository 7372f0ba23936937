//! Server side of a conversation: [`Session`], and the [`Step`]s that it requests from its driver.

use std::sync::Arc;

use crate::bulk::Bulk;
use crate::file::FileSlice;
use crate::http::{EmptyFileStore, FileStore};
use crate::work::{Work, WorkPlan};

/// Server side of one conversation, as a state machine without I/O: bytes in, steps out.
///
/// A driver on any concurrency model is the same loop: *take the next [`Step`], carry it out, report the result.*
///
/// ```
/// # use protocol::{CloseReason, Protocol, SessionOptions, Step};
/// let pair = Protocol::find("pair").unwrap();
/// let mut session = (pair.open)(&SessionOptions::default());
/// session.receive(b"one\ntw"); // one line and a part of the next
/// assert_eq!(session.step(), Step::Write(b"one\n"));
/// session.sent(4);
/// assert_eq!(session.step(), Step::Read);
/// session.receive(b"o\n");
/// assert_eq!(session.step(), Step::Write(b"one\ntwo\n"));
/// session.sent(8);
/// session.end_of_input();
/// assert_eq!(session.step(), Step::Close(CloseReason::Done));
/// ```
///
/// A session gives its driver these guarantees:
///
/// * **Requests are processed on demand.** `receive` only accepts bytes. `step` answers the requests one by one, when
///   it reaches them. So a driver that reads only on [`Step::Read`] has backpressure, and the memory of a connection is
///   bounded.
/// * **`step` is idempotent.** If `step` is called again and nothing was reported in between, it returns the same step
///   with the same bytes at the same address. A completion model may therefore move the whole session into the
///   operation (moving a `Box<dyn Session>` does not move the bytes of the session) and call `step` again when the
///   kernel returns the buffer.
/// * **Every step makes progress.** After a finite number of reports, `step` returns `Read` or `Close`.
/// * **`Close` is final.** Input that is reported afterwards changes nothing.
pub trait Session: Send {
    /// Accepts bytes that arrived. TCP may cut a request anywhere. The session takes all of `input`.
    fn receive(&mut self, input: &[u8]);

    /// Notes that the peer has finished sending (FIN). The session still sends the replies that it owes, then it
    /// closes.
    fn end_of_input(&mut self);

    /// Returns what the driver must do next.
    fn step(&mut self) -> Step<'_>;

    /// Notes that the socket took the first `count` bytes of the last [`Step::Write`] or [`Step::SendFile`]. The socket
    /// often takes fewer bytes than the step offered.
    fn sent(&mut self, count: usize);

    /// Notes that the last [`Step::Work`] is done. The default does nothing, for sessions that never return this step.
    fn worked(&mut self) {}

    /// Returns whether the peer is in the middle of a request: it has begun a request, and the reply is not completely
    /// sent. A server that stops may close a peer that is between two requests; it counts a peer in the middle of a
    /// request as cut.
    fn mid_request(&self) -> bool;
}

/// Next operation that a [`Session`] requests from its driver.
///
/// The enum is exhaustive on purpose: after a new kind of step is added, the compiler lists every server that must
/// handle it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Step<'s> {
    /// Wait until more input arrives, and report it by [`Session::receive`] or [`Session::end_of_input`].
    Read,
    /// Send these bytes (at least one). The socket may take fewer; report the number by [`Session::sent`].
    Write(&'s [u8]),
    /// Send this range of a file (at least one byte) in the way of the model, such as sendfile(2). The socket may take
    /// fewer bytes; report the number by [`Session::sent`].
    SendFile(&'s FileSlice),
    /// Do this work, and report its end by [`Session::worked`]. Nothing is read or sent on this connection meanwhile.
    Work(Work),
    /// Close the connection: everything is sent.
    Close(CloseReason),
}

/// Reason for which a session closes its connection.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum CloseReason {
    /// The conversation is complete. The driver may close the connection at once.
    Done,
    /// The peer broke a limit and was sent an error reply. It may still be sending. If the driver closed the connection
    /// with unread input, the kernel would send RST, and RST can overtake the error reply. So the driver lingers: it
    /// ends its own side, then reads and discards input for a short time.
    Refused,
    /// The session failed (a bug, a panic), and nothing is left to send. No session returns this reason itself; the
    /// wrapper that catches panics of a session returns it.
    Failed,
}

/// Options of a session, given when it is opened.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Maximum length of a line, in bytes and with its end. A longer line is refused. In `bulk` it is the maximum
    /// length of a message (without its terminator), in `http` of a head and of the body after it.
    pub max_line: usize,
    /// Work before replies; `None`: no work.
    pub work: Option<WorkPlan>,
    /// Size and number of the messages that `bulk` sends.
    pub bulk: Bulk,
    /// Files that `http` serves.
    pub file_store: Arc<dyn FileStore>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            max_line: 64 * 1024,
            work: None,
            bulk: Bulk::default(),
            file_store: Arc::new(EmptyFileStore),
        }
    }
}
