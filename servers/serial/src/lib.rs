//! `serial`: one thread, one connection at a time.
//!
//! ```text
//!   accept ──► converse ──► converse ──► … ──► close ──► accept ──► …
//!              (all other peers wait in the backlog)
//! ```
//!
//! The thread waits in accept(2) for a peer, holds the whole conversation with it, and then waits for the next peer. No
//! line of this is wrong, and for peers that come one after the other no model here is quicker. But a peer that pauses
//! for a second delays all other peers by a second: the other models exist because of this failure.

use std::io;
use std::net::TcpListener;

use contract::blocking::Acceptor;
use contract::{
    Capacity, Deviation, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally,
    always_available,
};

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "serial",
    summary: "one thread, one connection at a time",
    lineage: "Stevens, UNIX Network Programming, server 0 (iterative); the first server of every socket tutorial",
    source: "servers/serial/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::One,
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("one thread does everything"),
    deviations: &[
        Deviation {
            guarantee: Guarantee::Limit,
            reason: "--max-connections has no effect: one peer is served at a time, and all other peers wait in the backlog",
        },
        Deviation {
            guarantee: Guarantee::Memory,
            reason: "a peer that never reads delays all peers that come after it, because the only thread waits for it",
        },
        Deviation {
            guarantee: Guarantee::Isolation,
            reason: "one peer is served at a time, so a peer that stays connected keeps all other peers waiting, whether it misbehaves or not",
        },
    ],
}];

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let mut acceptor = Acceptor::new(listener, service, limits, stop)?;
    while let Some(connection) = acceptor.accept()? {
        connection.converse();
    }
    Ok(acceptor.finish())
}
