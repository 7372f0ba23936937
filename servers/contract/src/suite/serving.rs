//! What a test's server serves, as data: so that it can be told to a server in a process of its own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use protocol::{PROTOCOLS, Protocol, SessionOptions};
use serde::{Deserialize, Serialize};

use super::oracle::session_options;
use super::{GUARD, probe};
use crate::Service;

/// What is served.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Serving {
    /// A protocol, by name.
    Protocol(String),
    /// [Probes](probe).
    Probes,
    /// Probes that say goodbye there when they are dropped.
    ProbesThatSayGoodbye(SocketAddr),
    /// The first of [`PROTOCOLS`], but every second session, from the first, panics while it is opened.
    PanicsInOpening,
    /// Three sessions of the first of [`PROTOCOLS`], which has a limit, and then probes that say goodbye there.
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
            Serving::ProbesThatSayGoodbye(to) => {
                let to = goodbyes_to(*to);
                Service::new(move || probe::open(Some(Arc::clone(&to))))
            }
            Serving::PanicsInOpening => {
                let turns = Turns::new([true, false].repeat(50));
                Service::new(move || {
                    if turns.next() {
                        std::panic::resume_unwind(Box::new("on purpose"));
                    }
                    lines()
                })
            }
            Serving::LinesThenProbes(to) => {
                let to = goodbyes_to(*to);
                let turns = Turns::new(vec![true; 3]);
                Service::new(move || {
                    if turns.next() {
                        lines()
                    } else {
                        probe::open(Some(Arc::clone(&to)))
                    }
                })
            }
        }
    }
}

/// Whose turn it is, one after the other; then nobody's. A counter would do for threads: but of a counter every process
/// that is forked has a copy, and counts alone.
#[derive(Debug)]
struct Turns {
    next: UnixDatagram,
    /// Open, or there would be no "nothing more".
    _filled: UnixDatagram,
}

impl Turns {
    fn new(turns: Vec<bool>) -> Turns {
        let (filled, next) = UnixDatagram::pair().expect("no descriptor");
        next.set_nonblocking(true).expect("not non-blocking");
        filled.set_nonblocking(true).expect("not non-blocking");
        for turn in turns {
            // As many as there is room for; the checks need few.
            let _ = filled.send(&[u8::from(turn)]);
        }
        Turns {
            next,
            _filled: filled,
        }
    }

    fn next(&self) -> bool {
        let mut turn = [0];
        self.next.recv(&mut turn).is_ok() && turn[0] == 1
    }
}

/// Hears of every session that is dropped, in whichever process.
#[derive(Debug)]
pub(super) struct Goodbyes {
    socket: UdpSocket,
}

fn goodbyes_to(address: SocketAddr) -> Arc<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("no port");
    socket.connect(address).expect("no way there");
    Arc::new(socket)
}

impl Goodbyes {
    pub(super) fn new() -> Goodbyes {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("no port");
        socket.set_read_timeout(Some(GUARD)).expect("no time-out");
        Goodbyes { socket }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("no address")
    }

    /// Waits for one.
    #[track_caller]
    pub(super) fn one(&self) {
        self.socket.recv(&mut [0]).expect("still there");
    }

    /// How many came since the last look.
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

/// A server's orders, as data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) serving: Serving,
    pub(super) idle_timeout: Duration,
    pub(super) max_connections: usize,
    pub(super) drain: Duration,
    pub(super) workers: std::num::NonZero<usize>,
    pub(super) backlog: u32,
    pub(super) offload: bool,
    /// The stop comes before the server does.
    pub(super) stopped: bool,
}
