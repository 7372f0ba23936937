//! Bare references: the smallest echo server that each library allows, and the smallest client. They have no contract, no
//! checks, no limits and no tally, and answer whatever a read returns. The servers of this project are measured against
//! them. Do not use them as a starting point: they contain on purpose most of the mistakes that the contract rules out.

pub(crate) mod client;
#[cfg(target_os = "linux")]
mod compio;
mod coroutines;
#[cfg(target_os = "linux")]
mod epoll;
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

/// Serves until the process is ended.
pub(crate) type Bare = fn(TcpListener) -> io::Result<Infallible>;

/// The bare servers, each under the name of the model that it is the reference for.
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
    // On one CPU `sharded` has one worker: it is `mio` with one more thread and one more stop.
    ("sharded", mio::serve),
    ("coroutines", coroutines::serve),
    ("tokio-local", tokio::serve),
    ("smol-local", smol::serve),
    #[cfg(target_os = "linux")]
    ("compio", compio::serve),
];

/// Reference of the event loops themselves: no library at all.
#[cfg(target_os = "linux")]
pub(crate) const EPOLL: (&str, Bare) = ("epoll", epoll::serve);

/// Size of the read buffer, in bytes: as in the servers, and more than a whole request.
const BUFFER: usize = contract::READ_BUFFER;
