//! Bare references: the smallest echo server that each library allows, and the smallest client. No contract, no
//! checks, no limits, no account; they answer whatever a read returns. They are what our servers are measured
//! against, and nothing to start from: most of the mistakes that the contract rules out are in here on purpose.

pub(crate) mod client;
mod mio;
mod smol;
mod threads;
mod tokio;

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;

/// Serves for ever.
pub(crate) type Bare = fn(TcpListener) -> io::Result<Infallible>;

/// Each bare server under the name of the model that it is the reference for.
pub(crate) const SERVERS: &[(&str, Bare)] = &[
    ("mio", mio::serve),
    ("threads", threads::serve),
    ("tokio-local", tokio::serve),
    ("smol-local", smol::serve),
];

/// One read takes a whole request and more; the same size as in the servers.
const BUFFER: usize = contract::READ_BUFFER;
