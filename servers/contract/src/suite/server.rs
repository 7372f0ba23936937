//! A server that runs inside the test.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use super::client::Client;
use super::{GUARD, Subject};
use crate::{Limits, Service, Stop, Stopper, Tally, listen};

/// Enough for every check: no peer waits for its handshake.
pub(super) const BACKLOG: u32 = 1024;

#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    /// None: told to stop.
    stopper: Option<Stopper>,
    tally: Receiver<io::Result<Tally>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    #[track_caller]
    pub(super) fn start(subject: &Subject, service: Service, limits: Limits) -> Server {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Server::start_at(anywhere, subject, service, limits)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    pub(super) fn start_at(
        address: SocketAddr,
        subject: &Subject,
        service: Service,
        limits: Limits,
    ) -> Result<Server, crate::ListenError> {
        Ok(Server::start_on(
            listen(address, BACKLOG)?,
            subject,
            service,
            limits,
        ))
    }

    pub(super) fn start_on(
        listener: TcpListener,
        subject: &Subject,
        service: Service,
        limits: Limits,
    ) -> Server {
        let (stopper, stop) = Stop::channel().expect("no stop");
        let address = listener.local_addr().expect("no address");
        let (tell, tally) = mpsc::channel();
        let serve = subject.model.serve;
        let thread = thread::spawn(move || drop(tell.send(serve(listener, service, limits, stop))));
        Server {
            address,
            stopper: Some(stopper),
            tally,
            thread: Some(thread),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    #[track_caller]
    pub(super) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Tells it to stop, and goes on at once.
    pub(super) fn tell_to_stop(&mut self) {
        self.stopper = None;
    }

    /// Waits until it ends of its own accord.
    #[track_caller]
    pub(super) fn ended(&self) -> io::Result<Tally> {
        let ended = self.tally.recv_timeout(GUARD);
        ended.expect("the server does not end, or it panicked")
    }

    /// Tells it to stop, and gives its account: which adds up, whatever happened.
    #[track_caller]
    pub(super) fn stop(mut self) -> Tally {
        self.tell_to_stop();
        let tally = self.ended().expect("the server failed");
        let thread = self.thread.take().expect("joined once");
        thread.join().expect("it has told its tally");
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
