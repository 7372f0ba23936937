//! `pool`: a bounded pool of threads.
//!
//! ```text
//!                        ┌──► worker: converse ──► close ──► take the next
//!   accept ──► queue ────┼──► worker: converse ──► …
//!            (bounded)   └──► worker: converse ──► …
//! ```
//!
//! The conversation is the same function as in `serial`; here one of a fixed number of threads runs it. All threads
//! exist from the beginning, and no load makes more of them. The price is that a peer occupies a worker until it
//! leaves, even if it is idle. When all workers are occupied and the queue is full, no more peers are accepted: new
//! peers wait in the backlog until a peer leaves.

use std::io;
use std::net::TcpListener;
use std::thread;

use contract::blocking::{self, Acceptor, Connection};
use contract::{
    Capacity, Deviation, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally,
    always_available,
};
use crossbeam_channel::bounded;

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "pool",
    summary: "--workers threads, each with one connection at a time",
    lineage: "Stevens, UNIX Network Programming, servers 7 and 8 (prethreaded); Apache's worker, Java's Executors, the Rust Book",
    source: "servers/pool/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Workers,
    needs: Needs::NOTHING,
    offload: Offload::Needless("each peer that is served has a thread of its own"),
    deviations: &[
        Deviation {
            guarantee: Guarantee::Limit,
            reason: "at most --workers peers are served at a time, even if --max-connections is larger: a peer occupies a worker until it leaves, also while it is idle, and all other peers wait without a reply",
        },
        Deviation {
            guarantee: Guarantee::Memory,
            reason: "a peer that never reads occupies the worker that waits for it: as many such peers as --workers delay all other peers",
        },
        Deviation {
            guarantee: Guarantee::Isolation,
            reason: "peers that stay connected and complete no request, such as 250 that begin one and never finish it, occupy all workers, and peers that come later wait",
        },
    ],
}];

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let (workers, stack) = (limits.workers.get(), limits.stack);
    let mut acceptor = Acceptor::new(listener, service, limits, stop)?;
    // The scope joins every worker, so none outlives the server.
    thread::scope(|scope| -> io::Result<()> {
        // One entry for each worker, so that a worker that becomes free finds the next peer at once. More entries would
        // only be a second backlog, of peers that were accepted and are not served.
        let (queue, connections) = bounded::<Connection>(workers);
        for number in 0..workers {
            let connections = connections.clone();
            let thread = blocking::thread(format!("worker {number}"), stack);
            let started = thread.spawn_scoped(scope, || {
                // Ends when the acceptor has dropped its end of the queue, and the queue is empty.
                for connection in connections {
                    connection.converse();
                }
            });
            match started {
                Ok(_) => {}
                Err(error) if number > 0 => {
                    tracing::warn!(
                        "only {number} of {workers} workers could be started: {error}; use fewer --workers"
                    );
                    break;
                }
                Err(error) => {
                    return Err(io::Error::other(format!(
                        "cannot start a thread for worker {number}: {error}"
                    )));
                }
            }
        }
        while let Some(connection) = acceptor.accept()? {
            // This can't fail: the workers take from the queue for as long as it exists.
            let _ = queue.send(connection);
        }
        Ok(())
    })?;
    Ok(acceptor.finish())
}
