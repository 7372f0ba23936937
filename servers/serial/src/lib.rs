//! `serial`: one thread, one connection at a time. The failure that starts the story.
//!
//! ```text
//!   accept ──► converse ──► converse ──► … ──► close ──► accept ──► …
//!              (everybody else waits in the backlog)
//! ```
//!
//! Nothing is wrong with any line of it, and for peers that come one after the other nothing here is quicker. But a
//! peer that thinks for a second holds all the others up for a second.

use std::io;
use std::net::TcpListener;

use contract::blocking::Acceptor;
use contract::{
    Capacity, Deviation, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally,
    always_available,
};

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "serial",
    summary: "one thread, one connection at a time",
    lineage: "Stevens' UNP, server 0; every first socket tutorial",
    source: "servers/serial/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::One,
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("one thread does everything"),
    deviations: &[
        Deviation {
            guarantee: Guarantee::Memory,
            reason: "a peer that never reads delays all who come after it, because the only thread waits for it",
        },
        Deviation {
            guarantee: Guarantee::Limit,
            reason: "--max-connections has no effect: one is served at a time, and all others wait in the backlog",
        },
        Deviation {
            guarantee: Guarantee::Isolation,
            reason: "one is served at a time, so whoever misbehaves and stays keeps all others waiting, and so does whoever behaves",
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
