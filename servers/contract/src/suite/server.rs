//! A server that runs in a thread of the test or, if its model forks, in a process of its own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use super::client::TestClient;
use super::process::ServerProcess;
use super::serving::Serving;
use super::{GUARD, ModelUnderTest};
use crate::{Limits, Stop, Stopper, Tally, listen};

/// Length of the listen queue. It is enough for every check, so that no peer waits for its handshake.
pub(super) const BACKLOG: u32 = 1024;

#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    running: Running,
}

#[derive(Debug)]
enum Running {
    InThread {
        /// `None` after the stop was requested.
        stopper: Option<Stopper>,
        tally: Receiver<io::Result<Tally>>,
        thread: JoinHandle<()>,
    },
    InProcess(ServerProcess),
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

    /// Starts the server on a listener. If `stopped` is true, the stop is requested before the server starts.
    pub(super) fn start_on(
        listener: TcpListener,
        target: &ModelUnderTest,
        serving: Serving,
        limits: Limits,
        stopped: bool,
    ) -> Server {
        let address = listener.local_addr().expect("no address");
        let running = if target.model.needs.own_process {
            Running::InProcess(ServerProcess::start_on(
                listener, target, serving, limits, stopped,
            ))
        } else {
            let (stopper, stop) = Stop::channel().expect("no stop");
            let stopper = (!stopped).then_some(stopper);
            let (sender, tally) = mpsc::channel();
            let (serve, service) = (target.model.serve, serving.service());
            let run = move || drop(sender.send(serve(listener, service, limits, stop)));
            Running::InThread {
                stopper,
                tally,
                thread: thread::spawn(run),
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

    /// Requests the stop of the server and returns at once.
    pub(super) fn request_stop(&mut self) {
        match &mut self.running {
            Running::InThread { stopper, .. } => *stopper = None,
            Running::InProcess(process) => process.request_stop(),
        }
    }

    /// Waits until the server ends, by a stop or by an error.
    ///
    /// # Errors
    ///
    /// Returns the error of the server, if it failed.
    #[track_caller]
    pub(super) fn wait_for_end(self) -> io::Result<Tally> {
        match self.running {
            Running::InThread {
                tally,
                thread,
                stopper: _stopper,
            } => {
                let ended = tally.recv_timeout(GUARD);
                let ended = ended.expect("the server did not end in time, or it panicked");
                thread
                    .join()
                    .expect("the server thread panicked after it had sent its tally");
                ended
            }
            Running::InProcess(process) => process.wait_for_end().map(|report| report.tally),
        }
    }

    /// Stops the server and returns its tally. Fails if the server failed or the tally does not add up.
    #[track_caller]
    pub(super) fn stop(mut self) -> Tally {
        self.request_stop();
        let tally = self.wait_for_end().expect("the server failed");
        assert!(tally.adds_up(), "{tally}");
        tally
    }
}

/// Returns the tally of `count` peers that were all served.
pub(super) fn all_served(count: u64) -> Tally {
    Tally {
        accepted: count,
        served: count,
        ..Tally::default()
    }
}
