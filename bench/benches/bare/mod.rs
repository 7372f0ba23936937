//! Bare references: the smallest echo server that each library allows, and the smallest client. No contract, no
//! checks, no limits, no account; they answer whatever a read returns. They are what our servers are measured
//! against, and nothing to start from: most of the mistakes that the contract rules out are in here on purpose.

pub(crate) mod client;
#[cfg(target_os = "linux")]
mod compio;
mod coroutines;
mod fork;
mod mio;
mod mio_pool;
mod poll;
mod pool;
mod prefork;
mod select;
mod smol;
mod spin;
mod threads;
mod tokio;

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;

/// Serves for ever.
pub(crate) type Bare = fn(TcpListener) -> io::Result<Infallible>;

/// Each bare server under the name of the model that it is the reference for.
pub(crate) const SERVERS: &[(&str, Bare)] = &[
    ("fork", fork::serve),
    ("prefork", prefork::serve),
    ("threads", threads::serve),
    ("pool", pool::serve),
    ("spin", spin::serve),
    ("select", select::serve),
    ("poll", poll::serve),
    ("mio", mio::serve),
    ("mio-pool", mio_pool::serve),
    // With one worker, as it has on one CPU, it is mio with a thread and a stop more.
    ("sharded", mio::serve),
    ("coroutines", coroutines::serve),
    ("tokio-local", tokio::serve),
    ("smol-local", smol::serve),
    #[cfg(target_os = "linux")]
    ("compio", compio::serve),
];

/// One read takes a whole request and more; the same size as in the servers.
const BUFFER: usize = contract::READ_BUFFER;
