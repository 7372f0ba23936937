//! `pool`: a bounded pool of threads.
//!
//! ```text
//!                        ┌──► worker: converse ──► close ──► take the next
//!   accept ──► queue ────┼──► worker: converse ──► …
//!            (bounded)   └──► worker: converse ──► …
//! ```
//!
//! `threads`, with an end to it: the threads are there from the beginning, and no load makes more of them. The price is
//! that a worker is held by its peer, also by one that says nothing. When all are held, and the queue is full, nobody is
//! accepted any more: whoever comes waits in the backlog until somebody leaves.

use std::io;
use std::net::TcpListener;
use std::thread;

use contract::blocking::{self, Acceptor, Connection};
use contract::{
    Capacity, Deviation, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally,
    always_available,
};
use crossbeam_channel::bounded;

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "pool",
    summary: "--workers threads, each held by one peer at a time",
    lineage: "Stevens' UNP, servers 7 and 8; Apache's worker, Java's Executors, the Rust Book",
    source: "servers/pool/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Workers,
    needs: Needs::NOTHING,
    offload: Offload::Needless("each peer that is served has a thread of its own"),
    deviations: &[
        Deviation {
            guarantee: Guarantee::Limit,
            reason: "whatever --max-connections says, no more than --workers peers are served at a time: each has a worker to itself until it leaves, also when it is idle, and all others wait without an answer",
        },
        Deviation {
            guarantee: Guarantee::Memory,
            reason: "peers that never read delay all others, if there are as many of them as --workers: each has a worker that waits for it",
        },
        Deviation {
            guarantee: Guarantee::Isolation,
            reason: "peers that stay without asking, such as 250 that begin a request and never go on, keep all workers, and whoever comes later waits",
        },
    ],
}];

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let (workers, stack) = (limits.workers.get(), limits.stack);
    let mut acceptor = Acceptor::new(listener, service, limits, stop)?;
    // The scope joins every worker, so none outlives the server.
    thread::scope(|scope| -> io::Result<()> {
        // One place for each worker: whoever becomes free finds the next peer at once. More would only be a second
        // backlog, of peers who were accepted and are not served.
        let (queue, connections) = bounded::<Connection>(workers);
        for number in 0..workers {
            let connections = connections.clone();
            let thread = blocking::thread(format!("worker {number}"), stack);
            let started = thread.spawn_scoped(scope, || {
                // Until the acceptor has left the queue, and the queue is empty.
                for connection in connections {
                    connection.converse();
                }
            });
            match started {
                Ok(_) => {}
                Err(error) if number > 0 => {
                    tracing::warn!("only {number} of {workers} workers: {error}");
                    break;
                }
                Err(error) => return Err(io::Error::other(format!("no thread: {error}"))),
            }
        }
        while let Some(connection) = acceptor.accept()? {
            // (Somebody takes it: the workers are there as long as the queue.)
            let _ = queue.send(connection);
        }
        Ok(())
    })?;
    Ok(acceptor.finish())
}
