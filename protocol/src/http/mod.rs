//! `http`: the part of HTTP/1.1 that serving files needs: GET and HEAD, keep-alive and pipelining, one byte range.
//!
//! `/` lists the files, and `/files/NAME` is a file. This module parses requests and writes responses. The server
//! supplies the files and the time by a [`FileStore`].

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
    summary: "HTTP/1.1: `/` lists the files, `/files/NAME` returns one (without --root: 13b, 13k, 13m)",
    open: |options| Box::new(session::HttpSession::new(options)),
    ask: |options| Box::new(script::HttpScript::new(options)),
    requests_per_connection: None,
    requests_differ: false,
    default_load: DefaultLoad::SMALL_MESSAGES,
};
