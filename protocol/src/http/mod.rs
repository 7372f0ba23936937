//! `http`: HTTP/1.1, as far as files need it: GET and HEAD, keep-alive and pipelining, one byte range.
//!
//! `/` lists the files, `/files/NAME` is one. The heads are made and understood here; where the files come from, and
//! what time it is, whoever serves them says by a [`FileStore`].

mod body;
mod file_store;
mod request;
mod response;
mod script;
mod session;

pub use file_store::{DirectoryEntry, EmptyFileStore, FileStore, Lookup, StoredFile};
pub use script::{Content, Hashing, Page};

use crate::{DefaultLoad, Protocol};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "http",
    summary: "HTTP/1.1: `/` lists files, `/files/NAME` is one (without --root: 13b, 13k and 13m)",
    open: |options| Box::new(session::Responder::new(options)),
    ask: |options| Box::new(script::Getter::new(options)),
    requests_per_connection: None,
    requests_differ: false,
    default_load: DefaultLoad::SMALL_MESSAGES,
};
