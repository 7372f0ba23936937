//! Peers that do exactly what they are told, act by act: for what a well-behaved client never does, and for checks that
//! need to know when what happened, and byte by byte what was said.
//!
//! One thread with one event loop plays them all, of the same kind as the load generator's but apart from it: latency is
//! measured beside misbehaving peers, and what they cost this side must not be measured with it. (For the same reason
//! the thread is the last to get a CPU.)

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
const ALARM: Token = Token(usize::MAX - 1);

/// How often it looks whether it was interrupted, if nothing else happens.
const INTERRUPT_CHECK: Duration = Duration::from_millis(100);

/// How the driver is set.
#[derive(Debug, Clone)]
pub struct PeerDriverOptions {
    /// How long an act may wait for what must come. Never a measure of anything.
    pub patience: Duration,
    /// Whether others are measured meanwhile: then the driver gives way to them.
    pub low_priority: bool,
    /// All leave soon after this has become true.
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

/// Where peers act. Dropped, it closes the connections of all that are still there, and joins its thread.
#[derive(Debug)]
pub struct PeerDriver {
    commands: Sender<DriverCommand>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    opened: Instant,
}

enum DriverCommand {
    Enter(Arc<SharedGroup>, Vec<PeerScript>),
    /// Those of this group that wait for a signal go on: so many of them, the first that came first.
    Signal(Arc<SharedGroup>, usize),
    /// Those of this group that are still there leave now.
    Leave(Arc<SharedGroup>),
    Close,
}

/// What the driver and whoever looks at a group share.
#[derive(Debug, Default)]
struct SharedGroup {
    state: Mutex<GroupState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GroupState {
    seen: GroupProgress,
    outcomes: Vec<PeerOutcome>,
}

impl SharedGroup {
    fn state(&self) -> MutexGuard<'_, GroupState> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far the peers of a group have come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GroupProgress {
    /// Who entered.
    pub peers: usize,
    /// Whose connects came to their end, repeated ones included.
    pub connects: u64,
    /// Who waits for a signal now.
    pub waiting: usize,
    /// Who is done with all actions, or failed.
    pub ended: usize,
    /// Who failed.
    pub failed: usize,
    /// Times that somebody came to the end of the actions.
    pub completed_runs: u64,
    /// Bytes that came from the server.
    pub heard: u64,
    /// Bytes that the kernel took for the server.
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
    /// ScriptFactory a driver in front of a server.
    ///
    /// # Errors
    ///
    /// The system gave no poll, no timer or no thread.
    pub fn open(address: SocketAddr, options: PeerDriverOptions) -> io::Result<PeerDriver> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let timers = Timers::new(poll.registry(), ALARM)?;
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
            groups: HashMap::new(),
        };
        let thread = thread::Builder::new()
            .name("driver".to_string())
            .spawn(move || event_loop.run())?;
        Ok(PeerDriver {
            commands,
            waker,
            thread: Some(thread),
            opened,
        })
    }

    /// Lets peers enter. They begin at once, all of them.
    pub fn enter(&self, peer_scripts: Vec<PeerScript>) -> PeerGroup {
        let shared = Arc::new(SharedGroup::default());
        shared.state().seen.peers = peer_scripts.len();
        let group = PeerGroup {
            shared: Arc::clone(&shared),
            commands: self.commands.clone(),
            waker: Arc::clone(&self.waker),
        };
        group.command(DriverCommand::Enter(shared, peer_scripts));
        group
    }

    /// When it was opened: from then on all times of outcomes and transcripts count.
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
            // The driver has closed: whoever was there has left, and nobody else will come.
            let mut state = self.shared.state();
            state.seen.ended = state.seen.peers;
            self.shared.changed.notify_all();
        }
        let _ = self.waker.wake();
    }

    /// How far they are.
    pub fn seen(&self) -> GroupProgress {
        self.shared.state().seen
    }

    /// Waits until they are so far, for `limit` at most; says whether they came so far.
    pub fn wait(&self, limit: Duration, mut until: impl FnMut(&GroupProgress) -> bool) -> bool {
        let state = self.shared.state();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| !until(&state.seen))
            .unwrap_or_else(PoisonError::into_inner);
        until(&state.seen)
    }

    /// Lets so many of those that wait for a signal go on, the first that came first.
    pub fn signal(&self, peers: usize) {
        self.command(DriverCommand::Signal(Arc::clone(&self.shared), peers));
    }

    /// Lets all that wait for a signal go on.
    pub fn signal_all(&self) {
        self.signal(usize::MAX);
    }

    /// Waits for the end of all actions, until nothing has happened for `limit`, or six times that in all; then those that
    /// are still acting leave. Who is slow is not who has stopped. Gives what came of each, in the command of their peer_scripts.
    pub fn finish(self, limit: Duration) -> Vec<PeerOutcome> {
        let end = Instant::now() + 6 * limit;
        let mut before = self.seen();
        while Instant::now() < end {
            if self.wait(limit, |seen| seen.ended == seen.peers || *seen != before) {
                let seen = self.seen();
                if seen.ended == seen.peers {
                    break;
                }
                before = seen;
                // Not once for each byte.
                thread::sleep(Duration::from_millis(1));
            } else {
                break;
            }
        }
        self.leave()
    }

    /// Those that are still acting close their connections now. Gives what came of each, in the command of their peer_scripts.
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

/// The driver's own thread.
struct DriverLoop {
    address: SocketAddr,
    options: PeerDriverOptions,
    poll: Poll,
    timers: Timers,
    clock: Clock,
    inbox: Receiver<DriverCommand>,
    peers: Slab<(Arc<SharedGroup>, Peer)>,
    /// By the address of its shared: who of a group came to wait for a signal, in that command. Who left meanwhile is still in
    /// it: to look for each of them would take a crowd that leaves the square of its size.
    groups: HashMap<usize, VecDeque<usize>>,
}

fn key(shared: &Arc<SharedGroup>) -> usize {
    Arc::as_ptr(shared).addr()
}

impl DriverLoop {
    fn run(mut self) {
        if self.options.low_priority {
            give_way();
        }
        self.event_loop();
        // Whoever waits for somebody who was there waits no longer, whatever ended this.
        let all: Vec<usize> = self.peers.iter().map(|(index, _)| index).collect();
        for index in all {
            self.remove(index);
        }
    }

    fn event_loop(&mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            if !self.obey() || self.interrupted() {
                return;
            }
            // What becomes due meanwhile has its turn after the events and the commands.
            let now = self.clock.now();
            while let Some(due) = self.timers.pop(now) {
                if let Due::Wake(index) | Due::Guard(index) = due
                    && self.is_meant(index, due, now)
                {
                    self.go_on(index);
                }
            }
            let Ok(timeout) = self.timers.arm(self.clock) else {
                return;
            };
            // Nobody wakes it for that.
            let look = self
                .options
                .interrupted
                .is_some()
                .then_some(INTERRUPT_CHECK);
            let timeout = [timeout, look].into_iter().flatten().min();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            for event in &events {
                if event.token() != WAKER && event.token() != ALARM {
                    self.go_on(event.token().0);
                }
            }
        }
    }

    fn interrupted(&self) -> bool {
        let interrupted = self.options.interrupted.as_ref();
        interrupted.is_some_and(|interrupted| interrupted.load(Ordering::Relaxed))
    }

    /// Carries out the commands that have come; false after the last.
    fn obey(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(DriverCommand::Enter(shared, peer_scripts)) => {
                    for (number, peer_script) in peer_scripts.into_iter().enumerate() {
                        let peer = Peer::new(number, peer_script);
                        let index = self.peers.insert((Arc::clone(&shared), peer));
                        self.go_on(index);
                    }
                }
                Ok(DriverCommand::Signal(shared, count)) => {
                    let called = self.waiting_for_signal(&shared, count);
                    for index in called {
                        self.go_on(index);
                    }
                }
                Ok(DriverCommand::Leave(shared)) => {
                    let theirs = self.peers.iter();
                    let theirs = theirs.filter(|(_, (other, _))| Arc::ptr_eq(other, &shared));
                    let theirs: Vec<usize> = theirs.map(|(index, _)| index).collect();
                    for index in theirs {
                        self.remove(index);
                    }
                    self.groups.remove(&key(&shared));
                    shared.changed.notify_all();
                }
                Err(TryRecvError::Empty) => return true,
                Ok(DriverCommand::Close) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Gives so many of a group their signal, if so many wait for it.
    fn waiting_for_signal(&mut self, shared: &Arc<SharedGroup>, count: usize) -> Vec<usize> {
        let mut called = Vec::new();
        let waiting = self.groups.entry(key(shared)).or_default();
        while called.len() < count
            && let Some(index) = waiting.pop_front()
        {
            // Somebody of another group may have the place of one who left.
            if let Some((other, peer)) = self.peers.get_mut(index)
                && Arc::ptr_eq(other, shared)
                && peer.awaits_signal
            {
                peer.signal();
                called.push(index);
            }
        }
        shared.state().seen.waiting -= called.len();
        called
    }

    /// Whether that is due for whoever has this place now. What is due for somebody who was called earlier, or has left,
    /// must not be planned anew each time, or it would never come to an end.
    fn is_meant(&mut self, index: usize, due: Due, now: u64) -> bool {
        let Some((_, peer)) = self.peers.get_mut(index) else {
            return false;
        };
        let planned = match due {
            Due::Wake(_) => &mut peer.wakes_at,
            _ => &mut peer.guarded_at,
        };
        planned.take_if(|at| *at <= now).is_some()
    }

    /// Lets a peer act until it has to wait.
    fn go_on(&mut self, index: usize) {
        let Some((shared, peer)) = self.peers.get_mut(index) else {
            // Of somebody who left; or of somebody else who has that place now, whom it does not harm.
            return;
        };
        let shared = Arc::clone(shared);
        let (sent, heard, connects) = (peer.sent(), peer.heard(), peer.connects());
        let now = self.clock.now();
        let progress = peer.act(
            now,
            self.address,
            self.poll.registry(),
            Token(index),
            nanos(self.options.patience),
        );
        let mut state = shared.state();
        state.seen.sent += peer.sent() - sent;
        state.seen.heard += peer.heard() - heard;
        state.seen.connects += peer.connects() - connects;
        match progress {
            PeerProgress::Waits(until) => {
                // One that comes too early does no harm: then it waits again.
                if let Some(until) = until
                    && peer.guarded_at.is_none()
                {
                    peer.guarded_at = Some(until);
                    self.timers.push(until, Due::Guard(index));
                }
            }
            PeerProgress::Until(then) => wake(&mut self.timers, peer, index, then),
            PeerProgress::ForItsTurn => wake(&mut self.timers, peer, index, self.clock.now()),
            PeerProgress::ForSignal => {
                if !peer.awaits_signal {
                    peer.awaits_signal = true;
                    let waiting = self.groups.entry(key(&shared)).or_default();
                    waiting.push_back(index);
                    state.seen.waiting += 1;
                }
            }
            PeerProgress::Again => {
                state.seen.completed_runs += 1;
                // Not at once: the others have their turn first.
                wake(&mut self.timers, peer, index, self.clock.now());
            }
            PeerProgress::Done => {
                state.seen.completed_runs += 1;
                drop(state);
                self.remove(index);
            }
            PeerProgress::Failed => {
                state.seen.failed += 1;
                drop(state);
                self.remove(index);
            }
        }
        shared.changed.notify_all();
    }

    fn remove(&mut self, index: usize) {
        let (shared, peer) = self.peers.remove(index);
        let mut state = shared.state();
        state.seen.waiting -= usize::from(peer.awaits_signal);
        state.seen.ended += 1;
        state.outcomes.push(peer.leave(self.clock.now()));
        shared.changed.notify_all();
    }
}

/// Plans when a peer goes on.
fn wake(timers: &mut Timers, peer: &mut Peer, index: usize, then: u64) {
    if peer.wakes_at.is_none_or(|planned| then < planned) {
        peer.wakes_at = Some(then);
        timers.push(then, Due::Wake(index));
    }
}

/// Others have the CPU first.
fn give_way() {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // On Linux this is a thread's own; and where it is refused, nothing is lost but some accuracy.
        let thread = rustix::thread::gettid();
        let _ = rustix::process::setpriority_process(Some(thread), 19);
    }
}
