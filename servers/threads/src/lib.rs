//! `threads`: a thread per connection.
//!
//! ```text
//!   accept ──┬──► thread: converse ──► close
//!            ├──► thread: converse ──► …
//!            └──► thread: converse ──► …
//! ```
//!
//! The conversation is the same function as in `serial`; here a thread of its own runs it, and waits in read(2) for its
//! peer. The kernel does what the other models do by hand: it keeps the position of every conversation in the code (on
//! a stack), and decides which thread runs.

use std::io;
use std::net::TcpListener;
use std::thread;

use contract::blocking::{self, Acceptor};
use contract::{Capacity, Limits, Model, Needs, Offload, Service, Stop, Tally, always_available};

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "threads",
    summary: "a thread per connection",
    lineage: "Stevens, UNIX Network Programming, server 6 (a thread per client); Tomcat's classic connector, MySQL",
    source: "servers/threads/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::Needless("each peer has a thread of its own"),
    deviations: &[],
}];

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let stack = limits.stack;
    let mut acceptor = Acceptor::new(listener, service, limits, stop)?;
    // The scope joins every thread, so none outlives the server.
    thread::scope(|scope| -> io::Result<()> {
        while let Some(connection) = acceptor.accept()? {
            let thread = blocking::thread("connection".to_string(), stack);
            if let Err(error) = thread.spawn_scoped(scope, || connection.converse()) {
                // The closure was dropped, and with it the connection, which is thereby counted as refused.
                acceptor.pause(&format!(
                    "cannot start a thread for a peer: {error}; the peer is refused"
                ))?;
            }
        }
        Ok(())
    })?;
    Ok(acceptor.finish())
}
