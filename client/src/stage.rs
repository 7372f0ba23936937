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

use crate::acts::Role;
use crate::peer::{Outcome, Peer, Progress};
use crate::timers::{Clock, Due, Timers, nanos};

const WAKER: Token = Token(usize::MAX);
const ALARM: Token = Token(usize::MAX - 1);

/// How often it looks whether it was interrupted, if nothing else happens.
const LOOK: Duration = Duration::from_millis(100);

/// How the stage is set.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// How long an act may wait for what must come. Never a measure of anything.
    pub patience: Duration,
    /// Whether others are measured meanwhile: then the stage gives way to them.
    pub in_the_background: bool,
    /// All leave soon after this has become true.
    pub interrupted: Option<Arc<AtomicBool>>,
}

impl Default for StageOptions {
    fn default() -> Self {
        StageOptions {
            patience: Duration::from_secs(10),
            in_the_background: false,
            interrupted: None,
        }
    }
}

/// Where peers act. Dropped, it closes the connections of all that are still there, and joins its thread.
#[derive(Debug)]
pub struct Stage {
    orders: Sender<Order>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    opened: Instant,
}

enum Order {
    Enter(Arc<House>, Vec<Role>),
    /// Those of this cast that wait for a cue go on: so many of them, the first that came first.
    Cue(Arc<House>, usize),
    /// Those of this cast that are still there leave now.
    Leave(Arc<House>),
    Close,
}

/// What the stage and whoever looks at a cast share.
#[derive(Debug, Default)]
struct House {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    seen: Seen,
    outcomes: Vec<Outcome>,
}

impl House {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far the peers of a cast have come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Who entered.
    pub peers: usize,
    /// Whose connects came to their end, repeated ones included.
    pub connects: u64,
    /// Who waits for a cue now.
    pub waiting: usize,
    /// Who is done with all acts, or failed.
    pub ended: usize,
    /// Who failed.
    pub failed: usize,
    /// Times that somebody came to the end of the acts.
    pub times_done: u64,
    /// Bytes that came from the server.
    pub heard: u64,
    /// Bytes that the kernel took for the server.
    pub sent: u64,
}

/// Peers that entered together.
#[derive(Debug)]
pub struct Cast {
    house: Arc<House>,
    orders: Sender<Order>,
    waker: Arc<Waker>,
}

impl Stage {
    /// Opens a stage in front of a server.
    ///
    /// # Errors
    ///
    /// The system gave no poll, no timer or no thread.
    pub fn open(address: SocketAddr, options: StageOptions) -> io::Result<Stage> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let timers = Timers::new(poll.registry(), ALARM)?;
        let (orders, inbox) = mpsc::channel();
        let clock = Clock::start();
        let opened = Instant::now();
        let play = Play {
            address,
            options,
            poll,
            timers,
            clock,
            inbox,
            peers: Slab::new(),
            casts: HashMap::new(),
        };
        let thread = thread::Builder::new()
            .name("stage".to_string())
            .spawn(move || play.run())?;
        Ok(Stage {
            orders,
            waker,
            thread: Some(thread),
            opened,
        })
    }

    /// Lets peers enter. They begin at once, all of them.
    pub fn enter(&self, roles: Vec<Role>) -> Cast {
        let house = Arc::new(House::default());
        house.state().seen.peers = roles.len();
        let cast = Cast {
            house: Arc::clone(&house),
            orders: self.orders.clone(),
            waker: Arc::clone(&self.waker),
        };
        cast.order(Order::Enter(house, roles));
        cast
    }

    /// When it was opened: from then on all times of outcomes and transcripts count.
    pub fn opened(&self) -> Instant {
        self.opened
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Close);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Cast {
    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            // The stage has closed: whoever was there has left, and nobody else will come.
            let mut state = self.house.state();
            state.seen.ended = state.seen.peers;
            self.house.changed.notify_all();
        }
        let _ = self.waker.wake();
    }

    /// How far they are.
    pub fn seen(&self) -> Seen {
        self.house.state().seen
    }

    /// Waits until they are so far, for `limit` at most; says whether they came so far.
    pub fn wait(&self, limit: Duration, mut until: impl FnMut(&Seen) -> bool) -> bool {
        let state = self.house.state();
        let (state, _) = self
            .house
            .changed
            .wait_timeout_while(state, limit, |state| !until(&state.seen))
            .unwrap_or_else(PoisonError::into_inner);
        until(&state.seen)
    }

    /// Lets so many of those that wait for a cue go on, the first that came first.
    pub fn cue(&self, peers: usize) {
        self.order(Order::Cue(Arc::clone(&self.house), peers));
    }

    /// Lets all that wait for a cue go on.
    pub fn cue_all(&self) {
        self.cue(usize::MAX);
    }

    /// Waits for the end of all acts, until nothing has happened for `limit`, or six times that in all; then those that
    /// are still acting leave. Who is slow is not who has stopped. Gives what came of each, in the order of their roles.
    pub fn finish(self, limit: Duration) -> Vec<Outcome> {
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

    /// Those that are still acting close their connections now. Gives what came of each, in the order of their roles.
    pub fn leave(self) -> Vec<Outcome> {
        self.order(Order::Leave(Arc::clone(&self.house)));
        // The stage does this at once, unless it has closed.
        let _ = self.wait(Duration::from_secs(30), |seen| seen.ended == seen.peers);
        let mut outcomes = std::mem::take(&mut self.house.state().outcomes);
        outcomes.sort_by_key(|outcome| outcome.number);
        outcomes
    }
}

impl Drop for Cast {
    fn drop(&mut self) {
        self.order(Order::Leave(Arc::clone(&self.house)));
    }
}

/// The stage's own thread.
struct Play {
    address: SocketAddr,
    options: StageOptions,
    poll: Poll,
    timers: Timers,
    clock: Clock,
    inbox: Receiver<Order>,
    peers: Slab<(Arc<House>, Peer)>,
    /// By the address of its house: who of a cast came to wait for a cue, in that order. Who left meanwhile is still in
    /// it: to look for each of them would take a crowd that leaves the square of its size.
    casts: HashMap<usize, VecDeque<usize>>,
}

fn key(house: &Arc<House>) -> usize {
    Arc::as_ptr(house).addr()
}

impl Play {
    fn run(mut self) {
        if self.options.in_the_background {
            give_way();
        }
        self.play();
        // Whoever waits for somebody who was there waits no longer, whatever ended this.
        let all: Vec<usize> = self.peers.iter().map(|(index, _)| index).collect();
        for index in all {
            self.gone(index);
        }
    }

    fn play(&mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            if !self.obey() || self.interrupted() {
                return;
            }
            // What becomes due meanwhile has its turn after the events and the orders.
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
            let look = self.options.interrupted.is_some().then_some(LOOK);
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

    /// Carries out the orders that have come; false after the last.
    fn obey(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Order::Enter(house, roles)) => {
                    for (number, role) in roles.into_iter().enumerate() {
                        let peer = Peer::new(number, role);
                        let index = self.peers.insert((Arc::clone(&house), peer));
                        self.go_on(index);
                    }
                }
                Ok(Order::Cue(house, count)) => {
                    let called = self.call(&house, count);
                    for index in called {
                        self.go_on(index);
                    }
                }
                Ok(Order::Leave(house)) => {
                    let theirs = self.peers.iter();
                    let theirs = theirs.filter(|(_, (other, _))| Arc::ptr_eq(other, &house));
                    let theirs: Vec<usize> = theirs.map(|(index, _)| index).collect();
                    for index in theirs {
                        self.gone(index);
                    }
                    self.casts.remove(&key(&house));
                    house.changed.notify_all();
                }
                Err(TryRecvError::Empty) => return true,
                Ok(Order::Close) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Gives so many of a cast their cue, if so many wait for it.
    fn call(&mut self, house: &Arc<House>, count: usize) -> Vec<usize> {
        let mut called = Vec::new();
        let waiting = self.casts.entry(key(house)).or_default();
        while called.len() < count
            && let Some(index) = waiting.pop_front()
        {
            // Somebody of another cast may have the place of one who left.
            if let Some((other, peer)) = self.peers.get_mut(index)
                && Arc::ptr_eq(other, house)
                && peer.awaits_cue
            {
                peer.cue();
                called.push(index);
            }
        }
        house.state().seen.waiting -= called.len();
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
        let Some((house, peer)) = self.peers.get_mut(index) else {
            // Of somebody who left; or of somebody else who has that place now, whom it does not harm.
            return;
        };
        let house = Arc::clone(house);
        let (sent, heard, connects) = (peer.sent(), peer.heard(), peer.connects());
        let now = self.clock.now();
        let progress = peer.act(
            now,
            self.address,
            self.poll.registry(),
            Token(index),
            nanos(self.options.patience),
        );
        let mut state = house.state();
        state.seen.sent += peer.sent() - sent;
        state.seen.heard += peer.heard() - heard;
        state.seen.connects += peer.connects() - connects;
        match progress {
            Progress::Waits(until) => {
                // One that comes too early does no harm: then it waits again.
                if let Some(until) = until
                    && peer.guarded_at.is_none()
                {
                    peer.guarded_at = Some(until);
                    self.timers.push(until, Due::Guard(index));
                }
            }
            Progress::Until(then) => wake(&mut self.timers, peer, index, then),
            Progress::ForItsTurn => wake(&mut self.timers, peer, index, self.clock.now()),
            Progress::ForCue => {
                if !peer.awaits_cue {
                    peer.awaits_cue = true;
                    let waiting = self.casts.entry(key(&house)).or_default();
                    waiting.push_back(index);
                    state.seen.waiting += 1;
                }
            }
            Progress::Again => {
                state.seen.times_done += 1;
                // Not at once: the others have their turn first.
                wake(&mut self.timers, peer, index, self.clock.now());
            }
            Progress::Done => {
                state.seen.times_done += 1;
                drop(state);
                self.gone(index);
            }
            Progress::Failed => {
                state.seen.failed += 1;
                drop(state);
                self.gone(index);
            }
        }
        house.changed.notify_all();
    }

    fn gone(&mut self, index: usize) {
        let (house, peer) = self.peers.remove(index);
        let mut state = house.state();
        state.seen.waiting -= usize::from(peer.awaits_cue);
        state.seen.ended += 1;
        state.outcomes.push(peer.leave(self.clock.now()));
        house.changed.notify_all();
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
