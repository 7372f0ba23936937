//! The server's side of a conversation.

use std::sync::Arc;

use crate::bulk::Bulk;
use crate::file::FileSlice;
use crate::http::{EmptyFileStore, FileStore};
use crate::work::{Work, WorkPlan};

/// One connection's side of a conversation: bytes in, steps out.
///
/// Whoever drives it, on whatever model, repeats one sentence: *take the next [`Step`], carry it out, report what
/// came of it.*
///
/// ```
/// # use protocol::{CloseReason, Protocol, SessionOptions, Step};
/// let pair = Protocol::find("pair").unwrap();
/// let mut session = (pair.open)(&SessionOptions::default());
/// session.receive(b"one\ntw"); // bytes arrive cut anywhere
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
/// What a driver may rely on:
///
/// * **Nothing happens unasked.** `receive` only takes bytes in; requests are answered one by one as `step` comes to
///   them. So a driver that reads only on [`Step::Read`] has backpressure, and a connection's memory is bounded.
/// * **`step` is idempotent.** Called again with nothing reported in between, it gives the same step with the same
///   bytes at the same address. A completion model may therefore move the whole session into the operation
///   (a `Box<dyn Session>` does not move its bytes) and call `step` again when the kernel gives the buffer back.
/// * **Every step makes progress**: after finitely many reports `step` comes to `Read` or to `Close`.
/// * **`Close` is final.** Input that comes afterwards changes nothing.
pub trait Session: Send {
    /// Bytes arrived, cut anywhere. They are taken whole.
    fn receive(&mut self, input: &[u8]);

    /// The peer has finished sending (FIN). What it is owed is still sent, then the session closes.
    fn end_of_input(&mut self);

    /// What to do next.
    fn step(&mut self) -> Step<'_>;

    /// The socket took the first `count` bytes of the last [`Step::Write`] or [`Step::SendFile`]; fewer than offered is
    /// normal.
    fn sent(&mut self, count: usize);

    /// The last [`Step::Work`] is done. (Sessions that never ask for any need not know.)
    fn worked(&mut self) {}

    /// Whether the peer has begun a request and not finished it. A server that is told to stop closes a peer between
    /// two requests with a clear conscience, and counts one in the middle of a request as cut.
    fn mid_request(&self) -> bool;
}

/// What a [`Session`] asks of its driver.
///
/// The list is closed on purpose: a new kind of step makes the compiler name every server that must learn it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Step<'s> {
    /// Nothing to do until more input arrives.
    Read,
    /// Send these bytes (never none). The socket may take fewer; report how many by [`Session::sent`].
    Write(&'s [u8]),
    /// Send this range of a file (never none), in whatever way the model has. The socket may take less; report how many
    /// bytes by [`Session::sent`].
    SendFile(&'s FileSlice),
    /// Do this, and report it by [`Session::worked`]. Nothing is read or sent meanwhile.
    Work(Work),
    /// Everything is sent: say goodbye.
    Close(CloseReason),
}

/// How a conversation ends from the session's point of view.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum CloseReason {
    /// All was said. The connection can be closed at once.
    Done,
    /// The peer broke a limit and was told so. It may still be sending: closing on unread input would make the kernel
    /// send RST, which can overtake the explanation, so the driver lingers (it ends its own side, then reads and
    /// throws away for a short while).
    Refused,
    /// The session itself broke down (a bug, a panic): there is nothing left to say. Sessions never ask for this of
    /// their own accord; whoever guards them against panics does.
    Failed,
}

/// What every session must be told when it is opened.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The longest line, in bytes and with its end, that is answered; a longer one is refused. Of `bulk` the longest
    /// message, of `http` the longest head.
    pub max_line: usize,
    /// What is to be done before replies.
    pub work: Option<WorkPlan>,
    /// What `bulk` sends.
    pub bulk: Bulk,
    /// What `http` serves.
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
