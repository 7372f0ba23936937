//! `select`: one thread that waits for all connections by select(2).
//!
//! ```text
//!   ┌─► mark all sockets in two sets ──► wait ──► look up every socket ──► advance each that is ready ──┐
//!   └── accept peers that wait in the backlog ◄── close each that is overdue ◄──────────────────────────┘
//! ```
//!
//! The loop is that of `poll`. The difference is what the kernel gets: a bit for each descriptor, up to the highest, in
//! sets of a fixed size, FD_SETSIZE, which is 1,024 nearly everywhere. In C, FD_SET of a higher number writes past the
//! end of the set; here it would panic. Neither may happen, so a connection with such a number is refused. Few
//! connections get one, because the limit on connections is lowered to the number that fits.

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

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "select",
    summary: "one thread that waits for all connections by select(2)",
    lineage: "4.2BSD; Stevens, UNIX Network Programming, chapter 6; the X server",
    source: "servers/select/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Descriptors(FD_SETSIZE),
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("one thread does everything"),
    deviations: &[Deviation {
        guarantee: Guarantee::Limit,
        reason: "about 1,000 peers are served at a time, even if --max-connections is larger: select(2) takes only descriptors below FD_SETSIZE (1,024)",
    }],
}];

/// Most peers that are accepted in one round of the loop, so that the connected peers need not wait for long.
const ACCEPT_BATCH: usize = 64;

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    if !fits(&listener) || !fits(&stop) {
        return Err(io::Error::other(format!(
            "select(2) takes only descriptors below {FD_SETSIZE}; start the server with fewer open files"
        )));
    }
    let most = FD_SETSIZE.saturating_sub(open_descriptors()).max(1);
    if limits.max_connections > most {
        tracing::info!(
            "--max-connections is {}, but select(2) takes only descriptors below {FD_SETSIZE}: {most} peers are served at \
             a time, and all other peers wait in the backlog",
            limits.max_connections
        );
    }
    let limits = Limits {
        max_connections: limits.max_connections.min(most),
        ..limits
    };
    let mut listener = Some(listener);

    let drain = limits.drain;
    // Reason for the end: a stop, or a broken listener. In both cases the connections are drained.
    let mut ended: Option<io::Result<()>> = None;
    let mut drained_by: Option<Instant> = None;
    // Set while descriptors or memory are lacking: no peer is accepted before this time.
    let mut paused_until: Option<Instant> = None;
    let mut connections: Connections<TcpStream> = Connections::new(limits);
    let mut ready: Vec<usize> = Vec::new();
    let mut warned = false;

    loop {
        // Built anew for every wait, because the kernel leaves only the sockets that are ready in the sets.
        let (mut readable, mut writable) = (FdSet::new(), FdSet::new());
        let mut highest = 0;
        let mut again = false;
        for (_, stream, interest) in connections.waiting() {
            let set = match interest {
                Interest::Read => &mut readable,
                Interest::Write => &mut writable,
                // This connection has more to do, even if its socket is not ready.
                Interest::Turn => {
                    again = true;
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
            if paused_until.is_none() && !connections.is_full() {
                readable.insert(open.as_fd());
                highest = highest.max(open.as_raw_fd());
            }
        }
        let limit = if again {
            Some(Duration::ZERO)
        } else {
            let due = [connections.next_deadline(), drained_by, paused_until];
            let due = due.into_iter().flatten().min();
            // `now` is too old for this: the work that was done since may have taken a while.
            due.map(|at| at.saturating_duration_since(Instant::now()))
        };
        // pselect(2), because its time-out has nanoseconds: the loop does not look for a deadline before it has come.
        let limit = limit.map(TimeSpec::from);
        match pselect(
            highest + 1,
            &mut readable,
            &mut writable,
            None,
            &limit,
            None,
        ) {
            // The kernel has not changed the sets, so no socket is known to be ready.
            Err(Errno::EINTR) => {
                readable.clear();
                writable.clear();
            }
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let now = Instant::now();

        ready.clear();
        for (key, stream, interest) in connections.waiting() {
            let is_ready = match interest {
                Interest::Read => readable.contains(stream.as_fd()),
                Interest::Write => writable.contains(stream.as_fd()),
                Interest::Turn => true,
                Interest::Time => false,
            };
            if is_ready {
                ready.push(key);
            }
        }
        let mut backlog = false;
        if let Some(open) = &listener {
            backlog = readable.contains(open.as_fd());
            if readable.contains(stop.as_fd()) {
                ended.get_or_insert(Ok(()));
            }
        }
        for &key in &ready {
            connections.advance(key, now);
        }
        // The result is not needed: `waiting` reports which of these connections have more to do.
        connections.expire(now);

        if paused_until.is_some_and(|until| until <= now) {
            paused_until = None;
        }
        for _ in 0..ACCEPT_BATCH {
            let Some(open) = &listener else { break };
            if !backlog || paused_until.is_some() || connections.is_full() || ended.is_some() {
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
                                "select(2) takes only descriptors below {FD_SETSIZE}; a peer whose connection gets a \
                                 higher one is refused"
                            );
                        }
                    }
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

/// Returns true if the sets have a bit for the descriptor.
fn fits(file: &impl AsFd) -> bool {
    let number = file.as_fd().as_raw_fd();
    usize::try_from(number).is_ok_and(|number| number < FD_SETSIZE)
}

/// Returns the number of descriptors that the process has open, or a guess if the system does not report it.
fn open_descriptors() -> usize {
    const FEW: usize = 16;
    // The directory that is read here is itself one of the open descriptors.
    fs::read_dir("/dev/fd").map_or(FEW, Iterator::count)
}
