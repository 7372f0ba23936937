//! `spin`: one thread that asks everybody, again and again, and never waits. The mistake worth measuring.
//!
//! ```text
//!   ┌─► has anybody come? ──► have you said something? ──► and you? ──► and you? ──┐
//!   └──────────────────────────────── at once, for ever ───────────────────────────┘
//! ```
//!
//! Whoever has found out how to make a socket non-blocking, and not yet how to wait for several of them, writes this.
//! It answers everybody, and quickly. But each question is a system call, nearly all are answered "would block", and
//! whether there is a thousand requests or none it uses a whole CPU. A sleep between two turns would only exchange that
//! for latency; what is missing is one question about everybody: see `select`.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use contract::nonblocking::Connections;
use contract::{
    Capacity, Deviation, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally, accept,
    always_available,
};

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "spin",
    summary: "one thread asks all, without end and without waiting",
    lineage: "every first non-blocking socket; on purpose: DPDK, and traders who pay for the CPU",
    source: "servers/spin/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("one thread does everything"),
    deviations: &[Deviation {
        guarantee: Guarantee::Accept,
        reason: "it never sleeps: it uses a whole CPU also with nobody to serve, at the connection limit, without descriptors and during the drain, because asking again is all it does",
    }],
}];

/// Peers accepted in one go, before those who are connected have their turn again.
const ACCEPT_TURN: usize = 64;

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let mut listener = Some(listener);

    let drain = limits.drain;
    // How it ended: by a stop, or because the listener is broken. Either way those who are here are served to the end.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    // Descriptors or memory are lacking: nobody is accepted before then.
    let mut paused: Option<Instant> = None;
    let mut connections: Connections<TcpStream> = Connections::new(limits);
    let mut turns: Vec<usize> = Vec::new();

    loop {
        if ended.is_none() && stop.wait(Some(Duration::ZERO))? {
            ended = Some(Ok(()));
        }
        let now = Instant::now();

        turns.clear();
        turns.extend(connections.waiting().map(|(key, ..)| key));
        for &key in &turns {
            connections.advance(key, now);
        }
        // (All have a turn in any case.)
        connections.expire(now);

        if paused.is_some_and(|until| until <= now) {
            paused = None;
        }
        let mut backlog = true;
        for _ in 0..ACCEPT_TURN {
            let Some(open) = &listener else { break };
            if !backlog || paused.is_some() || connections.is_full() || ended.is_some() {
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
                    Ok(Some(pause)) => paused = Some(now + pause),
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
