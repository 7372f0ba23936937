//! Driver of peers that do exactly what their scripts say, action by action: for behaviour that a well-behaved client
//! never shows, and for checks that need the time of each action and every byte that was sent and received.
//!
//! One thread with one event loop runs all peers. The loop is of the same kind as the load generator's, but separate
//! from it: latency is measured beside misbehaving peers, and what they cost on this side must not be measured with it.
//! For the same reason the thread can be the last to get a CPU.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};
use slab::Slab;

use crate::actions::PeerScript;
use crate::peer::{Peer, PeerOutcome, PeerProgress};
use crate::timers::{Clock, Due, Timers, nanos};

const WAKER: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

/// Interval at which the loop checks whether it was interrupted, if nothing else happens.
const INTERRUPT_CHECK: Duration = Duration::from_millis(100);

/// Options of a peer driver.
#[derive(Debug, Clone)]
pub struct PeerDriverOptions {
    /// Time for which an action may wait at most for what it expects. It is a bound and never a measurement.
    pub patience: Duration,
    /// Whether the driver's thread yields the CPU to other threads, for measurements beside the peers.
    pub low_priority: bool,
    /// Flag after which all peers leave: soon after it has become true. `None`: no such flag.
    pub interrupted: Option<Arc<AtomicBool>>,
}

impl Default for PeerDriverOptions {
    fn default() -> Self {
        PeerDriverOptions {
            patience: Duration::from_secs(10),
            low_priority: false,
            interrupted: None,
        }
    }
}

/// Event loop that runs scripted peers on a thread of its own. When it is dropped, it closes the connections of all
/// peers that are still there, and joins its thread.
#[derive(Debug)]
pub struct PeerDriver {
    commands: Sender<DriverCommand>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    opened: Instant,
}

enum DriverCommand {
    Enter(Arc<SharedGroup>, Vec<PeerScript>),
    /// Peers of this group that wait for a signal go on: at most this number of them, in the order in which they began
    /// to wait.
    Signal(Arc<SharedGroup>, usize),
    /// Peers of this group that are still there leave now.
    Leave(Arc<SharedGroup>),
    Close,
}

/// State of a group that the driver shares with the [`PeerGroup`].
#[derive(Debug, Default)]
struct SharedGroup {
    state: Mutex<GroupState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GroupState {
    progress: GroupProgress,
    outcomes: Vec<PeerOutcome>,
}

impl SharedGroup {
    fn state(&self) -> MutexGuard<'_, GroupState> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Progress of the peers of a group.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GroupProgress {
    /// Number of peers that entered.
    pub peers: usize,
    /// Number of connects that ended, with or without success, repeated ones included.
    pub connects: u64,
    /// Number of peers that wait for a signal now.
    pub waiting: usize,
    /// Number of peers that have completed all actions, have failed or have left.
    pub ended: usize,
    /// Number of peers that failed.
    pub failed: usize,
    /// Number of times that a peer completed its actions.
    pub completed_runs: u64,
    /// Number of bytes received from the server.
    pub received: u64,
    /// Number of bytes that the kernel accepted for the server.
    pub sent: u64,
}

/// Peers that entered together.
#[derive(Debug)]
pub struct PeerGroup {
    shared: Arc<SharedGroup>,
    commands: Sender<DriverCommand>,
    waker: Arc<Waker>,
}

impl PeerDriver {
    /// Opens a driver whose peers connect to `address`.
    ///
    /// # Errors
    ///
    /// Returns an error if the system refuses a poll, a timer or a thread.
    pub fn open(address: SocketAddr, options: PeerDriverOptions) -> io::Result<PeerDriver> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let timers = Timers::new(poll.registry(), TIMER)?;
        let (commands, inbox) = mpsc::channel();
        let clock = Clock::start();
        let opened = Instant::now();
        let event_loop = DriverLoop {
            address,
            options,
            poll,
            timers,
            clock,
            inbox,
            peers: Slab::new(),
            signal_queues: HashMap::new(),
        };
        let thread = thread::Builder::new()
            .name("peer-driver".to_string())
            .spawn(move || event_loop.run())?;
        Ok(PeerDriver {
            commands,
            waker,
            thread: Some(thread),
            opened,
        })
    }

    /// Starts peers with these scripts, all of them at once. Returns their group.
    pub fn enter(&self, peer_scripts: Vec<PeerScript>) -> PeerGroup {
        let shared = Arc::new(SharedGroup::default());
        shared.state().progress.peers = peer_scripts.len();
        let group = PeerGroup {
            shared: Arc::clone(&shared),
            commands: self.commands.clone(),
            waker: Arc::clone(&self.waker),
        };
        group.command(DriverCommand::Enter(shared, peer_scripts));
        group
    }

    /// Returns the time at which the driver was opened. All times of outcomes and transcripts count from it.
    pub fn opened(&self) -> Instant {
        self.opened
    }
}

impl Drop for PeerDriver {
    fn drop(&mut self) {
        let _ = self.commands.send(DriverCommand::Close);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl PeerGroup {
    fn command(&self, command: DriverCommand) {
        if self.commands.send(command).is_err() {
            // The driver has closed: its peers have left, and no other peer will enter.
            let mut state = self.shared.state();
            state.progress.ended = state.progress.peers;
            self.shared.changed.notify_all();
        }
        let _ = self.waker.wake();
    }

    /// Returns the progress of the group.
    pub fn progress(&self) -> GroupProgress {
        self.shared.state().progress
    }

    /// Waits until `until` is true of the progress, for `limit` at most. Returns whether it is true.
    pub fn wait(&self, limit: Duration, mut until: impl FnMut(&GroupProgress) -> bool) -> bool {
        let state = self.shared.state();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| !until(&state.progress))
            .unwrap_or_else(PoisonError::into_inner);
        until(&state.progress)
    }

    /// Signals peers that wait for a signal: at most this number of them, in the order in which they began to wait.
    pub fn signal(&self, peers: usize) {
        self.command(DriverCommand::Signal(Arc::clone(&self.shared), peers));
    }

    /// Signals all peers that wait for a signal.
    pub fn signal_all(&self) {
        self.signal(usize::MAX);
    }

    /// Waits until all peers have ended, until nothing has happened for `limit`, or until six times `limit` has passed;
    /// then the peers that are still acting leave. A slow peer is not taken for one that has stopped. Returns the
    /// outcome of each peer, in the order of their scripts.
    pub fn finish(self, limit: Duration) -> Vec<PeerOutcome> {
        let end = Instant::now() + 6 * limit;
        let mut before = self.progress();
        while Instant::now() < end {
            if self.wait(limit, |seen| seen.ended == seen.peers || *seen != before) {
                let seen = self.progress();
                if seen.ended == seen.peers {
                    break;
                }
                before = seen;
                // The pause keeps this loop from a check after each byte.
                thread::sleep(Duration::from_millis(1));
            } else {
                break;
            }
        }
        self.leave()
    }

    /// Closes the connections of the peers that are still acting. Returns the outcome of each peer, in the order of
    /// their scripts.
    pub fn leave(self) -> Vec<PeerOutcome> {
        self.command(DriverCommand::Leave(Arc::clone(&self.shared)));
        // The driver does this at once, unless it has closed.
        let _ = self.wait(Duration::from_secs(30), |seen| seen.ended == seen.peers);
        let mut outcomes = std::mem::take(&mut self.shared.state().outcomes);
        outcomes.sort_by_key(|outcome| outcome.number);
        outcomes
    }
}

impl Drop for PeerGroup {
    fn drop(&mut self) {
        self.command(DriverCommand::Leave(Arc::clone(&self.shared)));
    }
}

/// State of the driver's own thread.
struct DriverLoop {
    address: SocketAddr,
    options: PeerDriverOptions,
    poll: Poll,
    timers: Timers,
    clock: Clock,
    inbox: Receiver<DriverCommand>,
    peers: Slab<(Arc<SharedGroup>, Peer)>,
    /// Peers that wait for a signal, in the order in which they began to wait; the key is the address of the group's
    /// shared state. Peers that left meanwhile are still in the queue: searching for each of them would take quadratic
    /// time when a crowd leaves.
    signal_queues: HashMap<usize, VecDeque<usize>>,
}

fn group_key(shared: &Arc<SharedGroup>) -> usize {
    Arc::as_ptr(shared).addr()
}

impl DriverLoop {
    fn run(mut self) {
        if self.options.low_priority {
            lower_priority();
        }
        self.event_loop();
        // Whatever ended the loop, callers that wait for these peers must not wait any longer.
        let all: Vec<usize> = self.peers.iter().map(|(index, _)| index).collect();
        for index in all {
            self.remove(index);
        }
    }

    fn event_loop(&mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            if !self.run_commands() || self.interrupted() {
                return;
            }
            // Events that become due meanwhile are handled after the socket events and the commands.
            let now = self.clock.now();
            while let Some(due) = self.timers.pop(now) {
                if let Due::Wake(index) | Due::TimeoutCheck(index) = due
                    && self.is_current(index, due, now)
                {
                    self.advance(index);
                }
            }
            let Ok(timeout) = self.timers.arm(self.clock) else {
                return;
            };
            // No event wakes the loop for an interrupt.
            let interrupt_check = self
                .options
                .interrupted
                .is_some()
                .then_some(INTERRUPT_CHECK);
            let timeout = [timeout, interrupt_check].into_iter().flatten().min();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            for event in &events {
                if event.token() != WAKER && event.token() != TIMER {
                    self.advance(event.token().0);
                }
            }
        }
    }

    fn interrupted(&self) -> bool {
        let interrupted = self.options.interrupted.as_ref();
        interrupted.is_some_and(|interrupted| interrupted.load(Ordering::Relaxed))
    }

    /// Carries out the commands that have arrived. Returns false after the last.
    fn run_commands(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(DriverCommand::Enter(shared, peer_scripts)) => {
                    for (number, peer_script) in peer_scripts.into_iter().enumerate() {
                        let peer = Peer::new(number, peer_script);
                        let index = self.peers.insert((Arc::clone(&shared), peer));
                        self.advance(index);
                    }
                }
                Ok(DriverCommand::Signal(shared, count)) => {
                    let signalled = self.signal_waiting(&shared, count);
                    for index in signalled {
                        self.advance(index);
                    }
                }
                Ok(DriverCommand::Leave(shared)) => {
                    let members = self.peers.iter();
                    let members = members.filter(|(_, (other, _))| Arc::ptr_eq(other, &shared));
                    let members: Vec<usize> = members.map(|(index, _)| index).collect();
                    for index in members {
                        self.remove(index);
                    }
                    self.signal_queues.remove(&group_key(&shared));
                    shared.changed.notify_all();
                }
                Err(TryRecvError::Empty) => return true,
                Ok(DriverCommand::Close) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Signals at most `count` peers of a group that wait for a signal. Returns their indices.
    fn signal_waiting(&mut self, shared: &Arc<SharedGroup>, count: usize) -> Vec<usize> {
        let mut signalled = Vec::new();
        let waiting = self.signal_queues.entry(group_key(shared)).or_default();
        while signalled.len() < count
            && let Some(index) = waiting.pop_front()
        {
            // A peer of another group may have the index of a peer that left.
            if let Some((other, peer)) = self.peers.get_mut(index)
                && Arc::ptr_eq(other, shared)
                && peer.waits_for_signal
            {
                peer.signal();
                signalled.push(index);
            }
        }
        shared.state().progress.waiting -= signalled.len();
        signalled
    }

    /// Returns whether the event is meant for the peer that has this index now. An event of a peer that was woken
    /// earlier, or has left, must not be scheduled anew each time, or the loop would never come to an end.
    fn is_current(&mut self, index: usize, due: Due, now: u64) -> bool {
        let Some((_, peer)) = self.peers.get_mut(index) else {
            return false;
        };
        let planned = match due {
            Due::Wake(_) => &mut peer.wakes_at,
            _ => &mut peer.times_out_at,
        };
        planned.take_if(|at| *at <= now).is_some()
    }

    /// Runs a peer until it has to wait.
    fn advance(&mut self, index: usize) {
        let Some((shared, peer)) = self.peers.get_mut(index) else {
            // The event belongs to a peer that left. If another peer has the index now, the call does it no harm.
            return;
        };
        let shared = Arc::clone(shared);
        let (sent, received, connects) = (peer.sent(), peer.received(), peer.connects());
        let now = self.clock.now();
        let progress = peer.run(
            now,
            self.address,
            self.poll.registry(),
            Token(index),
            nanos(self.options.patience),
        );
        let mut state = shared.state();
        state.progress.sent += peer.sent() - sent;
        state.progress.received += peer.received() - received;
        state.progress.connects += peer.connects() - connects;
        match progress {
            PeerProgress::WaitsForSocket(until) => {
                // An event that comes too early does no harm: the peer then waits again.
                if let Some(until) = until
                    && peer.times_out_at.is_none()
                {
                    peer.times_out_at = Some(until);
                    self.timers.push(until, Due::TimeoutCheck(index));
                }
            }
            PeerProgress::Until(then) => wake(&mut self.timers, peer, index, then),
            PeerProgress::YieldsTurn => wake(&mut self.timers, peer, index, self.clock.now()),
            PeerProgress::WaitsForSignal => {
                if !peer.waits_for_signal {
                    peer.waits_for_signal = true;
                    let waiting = self.signal_queues.entry(group_key(&shared)).or_default();
                    waiting.push_back(index);
                    state.progress.waiting += 1;
                }
            }
            PeerProgress::Again => {
                state.progress.completed_runs += 1;
                // Not at once: the other peers have their turn first.
                wake(&mut self.timers, peer, index, self.clock.now());
            }
            PeerProgress::Done => {
                state.progress.completed_runs += 1;
                drop(state);
                self.remove(index);
            }
            PeerProgress::Failed => {
                state.progress.failed += 1;
                drop(state);
                self.remove(index);
            }
        }
        shared.changed.notify_all();
    }

    fn remove(&mut self, index: usize) {
        let (shared, peer) = self.peers.remove(index);
        let mut state = shared.state();
        state.progress.waiting -= usize::from(peer.waits_for_signal);
        state.progress.ended += 1;
        state.outcomes.push(peer.into_outcome(self.clock.now()));
        shared.changed.notify_all();
    }
}

/// Schedules the time at which a peer goes on.
fn wake(timers: &mut Timers, peer: &mut Peer, index: usize, then: u64) {
    if peer.wakes_at.is_none_or(|planned| then < planned) {
        peer.wakes_at = Some(then);
        timers.push(then, Due::Wake(index));
    }
}

/// Lowers the priority of this thread, so that other threads get the CPU first.
fn lower_priority() {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // On Linux the priority belongs to the thread. If the system refuses the change, only some accuracy is lost.
        let thread = rustix::thread::gettid();
        let _ = rustix::process::setpriority_process(Some(thread), 19);
    }
}
