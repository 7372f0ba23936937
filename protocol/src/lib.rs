//! What is said.
//!
//! A protocol here is two state machines that never touch a socket, a clock or a thread:
//!
//! * a [`Session`] is the server's side of one conversation: bytes in, [`Step`]s out;
//! * a [`Script`] is the client's side: it says what to send next and checks every reply, byte by byte.
//!
//! So a server is nothing but its concurrency model, and two servers that are given the same protocol say the same
//! bytes. This crate knows no runtime and opens no file; whoever wants to do I/O with it brings the I/O. (Files that
//! others have opened it can name: [`FileSlice`].)
//!
//! To add a protocol, write one file with a `PROTOCOL` constant and name it in [`PROTOCOLS`].

mod bulk;
mod echo;
mod file;
mod hello;
pub mod http;
mod lines;
mod pair;
mod script;
mod session;
mod upper;
mod work;

pub use bulk::Bulk;
pub use file::FileSlice;
pub use script::{ReplyStatus, Script, ScriptOptions, WrongReply};
pub use session::{CloseReason, Session, SessionOptions, Step};
pub use work::{Work, WorkKind, WorkPlan};

/// A conversation that every server can hold and the client can ask for.
#[derive(Debug)]
pub struct Protocol {
    /// What the command line calls it.
    pub name: &'static str,
    /// One line for `samewire list`: what goes in and what comes out.
    pub summary: &'static str,
    /// Opens the server's side of one conversation.
    pub open: fn(&SessionOptions) -> Box<dyn Session>,
    /// Opens the client's side of one conversation.
    pub ask: fn(&ScriptOptions) -> Box<dyn Script>,
    /// How many requests one conversation holds at most; `None` where the client decides.
    pub requests_per_connection: Option<u64>,
    /// Whether each request of a client has bytes of its own. Where all are the same, no share of them can be told by
    /// their bytes: see [`WorkPlan::chooses`].
    pub requests_differ: bool,
    /// The original's load: so many clients, and so many requests of each.
    pub default_load: DefaultLoad,
}

/// How a protocol is asked if nobody says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct DefaultLoad {
    /// Clients that ask at the same time.
    pub connections: usize,
    /// Requests of each.
    pub messages: u64,
}

impl DefaultLoad {
    /// Of the protocols with small messages.
    const SMALL_MESSAGES: DefaultLoad = DefaultLoad {
        connections: 100,
        messages: 10,
    };
}

/// All protocols; the first is the default.
pub static PROTOCOLS: &[Protocol] = &[
    pair::PROTOCOL,
    echo::PROTOCOL,
    upper::PROTOCOL,
    hello::PROTOCOL,
    bulk::PROTOCOL,
    http::PROTOCOL,
];

impl Protocol {
    /// The protocol of that name.
    pub fn find(name: &str) -> Option<&'static Protocol> {
        PROTOCOLS.iter().find(|protocol| protocol.name == name)
    }
}
