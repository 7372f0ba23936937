//! `select`: one thread that waits for everybody, by select(2).
//!
//! ```text
//!   ┌─► mark everybody in two sets ──► wait ──► ask the sets for everybody ──► advance each that is ready ──┐
//!   └── accept who waits in the backlog ◄── close who is overdue ◄──────────────────────────────────────────┘
//! ```
//!
//! The loop is that of `poll`; what is handed to the kernel is a bit for each descriptor, up to the highest, and there
//! is an end to them: FD_SETSIZE, 1,024 nearly everywhere. In C, FD_SET of a higher number writes past the end of the
//! set; here it would panic. Neither may happen, so who comes with such a number is sent away. Few do: the limit on
//! connections is lowered to what fits.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use contract::nonblocking::{Connections, Interest};
use contract::{
    Capacity, Deviation, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally, accept,
    always_available,
};
use nix::errno::Errno;
use nix::sys::select::{FD_SETSIZE, FdSet, pselect};
use nix::sys::time::TimeSpec;

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "select",
    summary: "one thread waits for all, by select(2)",
    lineage: "4.2BSD; Stevens' UNP, chapter 6; the X server",
    source: "servers/select/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Descriptors(FD_SETSIZE),
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("one thread does everything"),
    deviations: &[Deviation {
        guarantee: Guarantee::Limit,
        reason: "about 1,000 are served at a time, whatever --max-connections says: select(2) takes no descriptor from FD_SETSIZE (1,024) on",
    }],
}];

/// Peers accepted in one go, before those who are connected have their turn again.
const ACCEPT_TURN: usize = 64;

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    if !fits(&listener) || !fits(&stop) {
        return Err(io::Error::other(format!(
            "select(2) takes no descriptor from {FD_SETSIZE} on; start it with fewer open files"
        )));
    }
    let places = FD_SETSIZE.saturating_sub(open_descriptors()).max(1);
    if limits.max_connections > places {
        tracing::info!(
            "--max-connections {} is more than select(2) has numbers for; peers beyond {places} wait in the backlog",
            limits.max_connections
        );
    }
    let limits = Limits {
        max_connections: limits.max_connections.min(places),
        ..limits
    };
    let mut listener = Some(listener);

    let drain = limits.drain;
    // How it ended: by a stop, or because the listener is broken. Either way those who are here are served to the end.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    // Descriptors or memory are lacking: nobody is accepted before then.
    let mut paused: Option<Instant> = None;
    let mut connections: Connections<TcpStream> = Connections::new(limits);
    let mut turns: Vec<usize> = Vec::new();
    let mut warned = false;

    loop {
        // Made anew for every wait, since the kernel leaves only those in them that are ready.
        let (mut readable, mut writable) = (FdSet::new(), FdSet::new());
        let mut highest = 0;
        let mut more_to_do = false;
        for (_, stream, waits) in connections.waiting() {
            let set = match waits {
                Interest::Read => &mut readable,
                Interest::Write => &mut writable,
                // It has more to do, whatever its socket says.
                Interest::Turn => {
                    more_to_do = true;
                    continue;
                }
                Interest::Time => continue,
            };
            set.insert(stream.as_fd());
            highest = highest.max(stream.as_raw_fd());
        }
        if let Some(open) = &listener {
            readable.insert(stop.as_fd());
            highest = highest.max(stop.as_fd().as_raw_fd());
            if paused.is_none() && !connections.is_full() {
                readable.insert(open.as_fd());
                highest = highest.max(open.as_raw_fd());
            }
        }
        let limit = if more_to_do {
            Some(Duration::ZERO)
        } else {
            let due = [connections.next_deadline(), drained_by, paused];
            let due = due.into_iter().flatten().min();
            // (Not by `now`: what was done since may have taken a while.)
            due.map(|at| at.saturating_duration_since(Instant::now()))
        };
        // (The one with nanoseconds, so that no deadline is looked for before it is there.)
        let limit = limit.map(TimeSpec::from);
        match pselect(
            highest + 1,
            &mut readable,
            &mut writable,
            None,
            &limit,
            None,
        ) {
            // The sets are as they were: nobody is known to be ready.
            Err(Errno::EINTR) => {
                readable.clear();
                writable.clear();
            }
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let now = Instant::now();

        turns.clear();
        for (key, stream, waits) in connections.waiting() {
            let ready = match waits {
                Interest::Read => readable.contains(stream.as_fd()),
                Interest::Write => writable.contains(stream.as_fd()),
                Interest::Turn => true,
                Interest::Time => false,
            };
            if ready {
                turns.push(key);
            }
        }
        let mut backlog = false;
        if let Some(open) = &listener {
            backlog = readable.contains(open.as_fd());
            if readable.contains(stop.as_fd()) {
                ended.get_or_insert(Ok(()));
            }
        }
        for &key in &turns {
            connections.advance(key, now);
        }
        // (Who wants a turn says so in `waiting`.)
        connections.expire(now);

        if paused.is_some_and(|until| until <= now) {
            paused = None;
        }
        for _ in 0..ACCEPT_TURN {
            let Some(open) = &listener else { break };
            if !backlog || paused.is_some() || connections.is_full() || ended.is_some() {
                break;
            }
            match open.accept() {
                Ok((stream, _)) => match stream.set_nonblocking(true) {
                    Ok(()) if fits(&stream) => {
                        connections.insert(stream, service.open(), now);
                    }
                    Ok(()) => {
                        connections.refuse();
                        if !warned {
                            warned = true;
                            tracing::warn!(
                                "select(2) takes no descriptor from {FD_SETSIZE} on; peers who get one are refused"
                            );
                        }
                    }
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

/// Whether a descriptor has a place in the sets.
fn fits(file: &impl AsFd) -> bool {
    let number = file.as_fd().as_raw_fd();
    usize::try_from(number).is_ok_and(|number| number < FD_SETSIZE)
}

/// How many descriptors the process has open.
fn open_descriptors() -> usize {
    const FEW: usize = 16;
    // (What looks at them is one itself.)
    fs::read_dir("/dev/fd").map_or(FEW, Iterator::count)
}
