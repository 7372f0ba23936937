//! The service of a test's server as data, so that it can be sent to a server in a process of its own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use protocol::{PROTOCOLS, Protocol, SessionOptions};
use serde::{Deserialize, Serialize};

use super::oracle::session_options;
use super::{GUARD, probe};
use crate::Service;

/// Service of a test's server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Serving {
    /// The protocol with this name.
    Protocol(String),
    /// Sessions of [`probe`].
    Probes,
    /// Probes that send a datagram to this address when they are dropped.
    ProbesWithDropNotice(SocketAddr),
    /// The first of [`PROTOCOLS`], but every second session, beginning with the first, panics while it is opened.
    PanicsInOpening,
    /// Three sessions of the first of [`PROTOCOLS`], which has a limit, and then probes that send a datagram to this
    /// address when they are dropped.
    LinesThenProbes(SocketAddr),
}

impl Serving {
    pub(super) fn protocol(protocol: &Protocol) -> Serving {
        Serving::Protocol(protocol.name.to_string())
    }

    pub(super) fn service(&self) -> Service {
        let lines = || (PROTOCOLS[0].open)(&SessionOptions::default());
        match self {
            Serving::Protocol(name) => {
                let protocol = Protocol::find(name).expect("no such protocol");
                Service::of(protocol, session_options())
            }
            Serving::Probes => Service::new(|| probe::open(None)),
            Serving::ProbesWithDropNotice(to) => {
                let to = notices_to(*to);
                Service::new(move || probe::open(Some(Arc::clone(&to))))
            }
            Serving::PanicsInOpening => {
                let sequence = SharedSequence::new([true, false].repeat(50));
                Service::new(move || {
                    if sequence.next() {
                        std::panic::resume_unwind(Box::new("on purpose"));
                    }
                    lines()
                })
            }
            Serving::LinesThenProbes(to) => {
                let to = notices_to(*to);
                let sequence = SharedSequence::new(vec![true; 3]);
                Service::new(move || {
                    if sequence.next() {
                        lines()
                    } else {
                        probe::open(Some(Arc::clone(&to)))
                    }
                })
            }
        }
    }
}

/// Sequence of booleans that all processes of a server share; after its end every value is false. A counter would be
/// enough for threads, but each forked process has its own copy of a counter.
#[derive(Debug)]
struct SharedSequence {
    next: UnixDatagram,
    /// Sending end. It stays open, so that recv(2) reports the end of the sequence (EAGAIN).
    _sender: UnixDatagram,
}

impl SharedSequence {
    fn new(sequence: Vec<bool>) -> SharedSequence {
        let (sender, next) = UnixDatagram::pair().expect("no descriptor");
        next.set_nonblocking(true).expect("not non-blocking");
        sender.set_nonblocking(true).expect("not non-blocking");
        for value in sequence {
            // The socket takes as many values as it has room for; the checks need few.
            let _ = sender.send(&[u8::from(value)]);
        }
        SharedSequence {
            next,
            _sender: sender,
        }
    }

    fn next(&self) -> bool {
        let mut value = [0];
        self.next.recv(&mut value).is_ok() && value[0] == 1
    }
}

/// Receives a datagram for every session that is dropped, in any process.
#[derive(Debug)]
pub(super) struct DropNotices {
    socket: UdpSocket,
}

fn notices_to(address: SocketAddr) -> Arc<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("no port");
    socket
        .connect(address)
        .expect("cannot connect to the socket for notices");
    Arc::new(socket)
}

impl DropNotices {
    pub(super) fn new() -> DropNotices {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("no port");
        socket.set_read_timeout(Some(GUARD)).expect("no time-out");
        DropNotices { socket }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("no address")
    }

    /// Waits until a session is dropped.
    #[track_caller]
    pub(super) fn wait_for_one(&self) {
        self.socket
            .recv(&mut [0])
            .expect("no session was dropped in time");
    }

    /// Returns the number of sessions that were dropped since the last call.
    pub(super) fn count(&self) -> u64 {
        self.socket.set_nonblocking(true).expect("not non-blocking");
        let mut count = 0;
        while self.socket.recv(&mut [0]).is_ok() {
            count += 1;
        }
        self.socket.set_nonblocking(false).expect("not blocking");
        count
    }
}

/// Settings of a server process, as data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) serving: Serving,
    pub(super) idle_timeout: Duration,
    pub(super) max_connections: usize,
    pub(super) drain: Duration,
    pub(super) workers: std::num::NonZero<usize>,
    pub(super) backlog: u32,
    pub(super) offload: bool,
}
