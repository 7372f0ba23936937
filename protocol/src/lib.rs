//! Protocol logic without I/O ("sans-I/O").
//!
//! A conversation here is a state machine: it takes the bytes that arrived and returns what to do next. It contains no
//! networking code, reads no clock and starts no thread. A driver owns the socket: it carries out each step and reports
//! the result to the state machine.
//!
//! Read two types first:
//!
//! * [`Session`] is the server's side of one conversation: bytes in, [`Step`]s out.
//! * [`Script`] is the client's side of one conversation: it produces the requests and checks every byte of the
//!   replies.
//!
//! So a server consists of its concurrency model and nothing else, and two servers with the same protocol send the same
//! bytes. This crate depends on no async runtime and opens no file. A session can refer to a file that its server has
//! opened: see [`FileSlice`].
//!
//! To add a protocol, write one file with a `PROTOCOL` constant and add the constant to [`PROTOCOLS`].

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

/// Description of a protocol: its name, its traits and the constructors of both sides.
///
/// Every server can serve every protocol, and the client can send the requests of every protocol.
#[derive(Debug)]
pub struct Protocol {
    /// Name on the command line, such as `pair`.
    pub name: &'static str,
    /// Summary for `samewire list`, in one line: the input and the output.
    pub summary: &'static str,
    /// Function that opens the server's side of one conversation.
    pub open: fn(&SessionOptions) -> Box<dyn Session>,
    /// Function that opens the client's side of one conversation.
    pub ask: fn(&ScriptOptions) -> Box<dyn Script>,
    /// Maximum number of requests in one conversation; `None`: the client decides.
    pub requests_per_connection: Option<u64>,
    /// Whether the requests of a client differ in their bytes. If all requests are equal, their bytes can't select a
    /// share of them: see [`WorkPlan::chooses`].
    pub requests_differ: bool,
    /// Load that the published original of this protocol used (docs/src/originals.md).
    pub default_load: DefaultLoad,
}

/// Load of a protocol if the command line sets no other load.
#[derive(Debug, Clone, Copy)]
pub struct DefaultLoad {
    /// Number of clients at the same time.
    pub connections: usize,
    /// Number of requests of each client.
    pub messages: u64,
}

impl DefaultLoad {
    /// Default load of the protocols with small messages.
    const SMALL_MESSAGES: DefaultLoad = DefaultLoad {
        connections: 100,
        messages: 10,
    };
}

/// List of all protocols. The first is the default.
pub static PROTOCOLS: &[Protocol] = &[
    pair::PROTOCOL,
    echo::PROTOCOL,
    upper::PROTOCOL,
    hello::PROTOCOL,
    bulk::PROTOCOL,
    http::PROTOCOL,
];

impl Protocol {
    /// Returns the protocol with this name, or `None` if there is no such protocol.
    pub fn find(name: &str) -> Option<&'static Protocol> {
        PROTOCOLS.iter().find(|protocol| protocol.name == name)
    }
}
