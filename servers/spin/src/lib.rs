//! `spin`: one thread that tries every socket again and again, and never waits. A mistake that is worth measuring.
//!
//! ```text
//!   ┌─► advance each connection: "would block", "would block", … ──► close each that is overdue ──┐
//!   └── accept peers that wait in the backlog ◄── at once, for ever ◄─────────────────────────────┘
//! ```
//!
//! An engineer writes this after learning how to make a socket non-blocking, and before learning how to wait for
//! several sockets. The server answers all peers, and quickly. But each attempt is a system call, nearly all of them
//! return "would block", and the server uses a whole CPU, whether there are a thousand requests or none. A sleep
//! between two rounds would only trade CPU time for latency; the missing part is one call that waits for all sockets:
//! see `select`.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use contract::nonblocking::Connections;
use contract::{
    Capacity, Deviation, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally, accept,
    always_available,
};

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "spin",
    summary: "one thread that tries every socket again and again, and never waits",
    lineage: "first programs with non-blocking sockets; on purpose: DPDK and trading systems, which spend a CPU to save microseconds",
    source: "servers/spin/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("one thread does everything"),
    deviations: &[Deviation {
        guarantee: Guarantee::Accept,
        reason: "the server never sleeps: it uses a whole CPU even with no peer to serve, at the connection limit, without free descriptors and during the drain, because it tries every socket again and again",
    }],
}];

/// Most peers that are accepted in one round of the loop, so that the connected peers need not wait for long.
const ACCEPT_BATCH: usize = 64;

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let mut listener = Some(listener);

    let drain = limits.drain;
    // Reason for the end: a stop, or a broken listener. In both cases the connections are drained.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    // Set while descriptors or memory are lacking: no peer is accepted before this time.
    let mut paused_until: Option<Instant> = None;
    let mut connections: Connections<TcpStream> = Connections::new(limits);
    let mut ready: Vec<usize> = Vec::new();

    loop {
        if ended.is_none() && stop.wait(Some(Duration::ZERO))? {
            ended = Some(Ok(()));
        }
        let now = Instant::now();

        ready.clear();
        ready.extend(connections.waiting().map(|(key, ..)| key));
        for &key in &ready {
            connections.advance(key, now);
        }
        // The result is not needed: every connection is advanced in every round.
        connections.expire(now);

        if paused_until.is_some_and(|until| until <= now) {
            paused_until = None;
        }
        let mut backlog = true;
        for _ in 0..ACCEPT_BATCH {
            let Some(open) = &listener else { break };
            if !backlog || paused_until.is_some() || connections.is_full() || ended.is_some() {
                break;
            }
            match open.accept() {
                Ok((stream, _)) => match stream.set_nonblocking(true) {
                    Ok(()) => _ = connections.insert(stream, service.open(), now),
                    Err(_) => connections.refuse(),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => backlog = false,
                Err(error) => match accept::on_error(error, connections.tally_mut()) {
                    Ok(None) => {}
                    Ok(Some(pause)) => paused_until = Some(now + pause),
                    Err(broken) => ended = Some(Err(broken)),
                },
            }
        }

        if ended.is_some() && listener.is_some() {
            listener = None;
            drained_by = Some(now + drain);
            connections.stop(now + drain);
        }
        if drained_by.is_some_and(|end| end <= now || connections.is_empty()) {
            return ended.unwrap_or(Ok(())).map(|()| connections.finish());
        }
    }
}
