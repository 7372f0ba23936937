//! A server that runs inside the test; or, if its model forks, in a process of its own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use super::client::TestClient;
use super::process::ServerProcess;
use super::serving::Serving;
use super::{GUARD, ModelUnderTest};
use crate::{Limits, Stop, Stopper, Tally, listen};

/// Enough for every check: no peer waits for its handshake.
pub(super) const BACKLOG: u32 = 1024;

#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Here {
        /// None: told to stop.
        stopper: Option<Stopper>,
        tally: Receiver<io::Result<Tally>>,
        thread: JoinHandle<()>,
    },
    Elsewhere(ServerProcess),
}

impl Server {
    #[track_caller]
    pub(super) fn start(target: &ModelUnderTest, serving: Serving, limits: Limits) -> Server {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Server::start_at(anywhere, target, serving, limits)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    pub(super) fn start_at(
        address: SocketAddr,
        target: &ModelUnderTest,
        serving: Serving,
        limits: Limits,
    ) -> Result<Server, crate::ListenError> {
        let listener = listen(address, BACKLOG, target.model.needs)?;
        Ok(Server::start_on(listener, target, serving, limits, false))
    }

    /// Starts it on a listener; `stopped`: told to stop before that.
    pub(super) fn start_on(
        listener: TcpListener,
        target: &ModelUnderTest,
        serving: Serving,
        limits: Limits,
        stopped: bool,
    ) -> Server {
        let address = listener.local_addr().expect("no address");
        let running = if target.model.needs.own_process {
            Running::Elsewhere(ServerProcess::start_on(
                listener, target, serving, limits, stopped,
            ))
        } else {
            let (stopper, stop) = Stop::channel().expect("no stop");
            let stopper = (!stopped).then_some(stopper);
            let (tell, tally) = mpsc::channel();
            let (serve, service) = (target.model.serve, serving.service());
            let life = move || drop(tell.send(serve(listener, service, limits, stop)));
            Running::Here {
                stopper,
                tally,
                thread: thread::spawn(life),
            }
        };
        Server { address, running }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    #[track_caller]
    pub(super) fn connect(&self) -> TestClient {
        TestClient::connect(self.address)
    }

    /// Tells it to stop, and goes on at once.
    pub(super) fn tell_to_stop(&mut self) {
        match &mut self.running {
            Running::Here { stopper, .. } => *stopper = None,
            Running::Elsewhere(process) => process.tell_to_stop(),
        }
    }

    /// Waits until it ends, told or of its own accord.
    #[track_caller]
    pub(super) fn ended(self) -> io::Result<Tally> {
        match self.running {
            Running::Here {
                tally,
                thread,
                stopper: _stopper,
            } => {
                let ended = tally.recv_timeout(GUARD);
                let ended = ended.expect("the server does not end, or it panicked");
                thread.join().expect("it has told its tally");
                ended
            }
            Running::Elsewhere(process) => process.ended().map(|account| account.tally),
        }
    }

    /// Tells it to stop, and gives its account: which adds up, whatever happened.
    #[track_caller]
    pub(super) fn stop(mut self) -> Tally {
        self.tell_to_stop();
        let tally = self.ended().expect("the server failed");
        assert!(tally.adds_up(), "{tally}");
        tally
    }
}

/// Peers that came and had all their answers, and nothing else.
pub(super) fn all_served(count: u64) -> Tally {
    Tally {
        accepted: count,
        served: count,
        ..Tally::default()
    }
}
