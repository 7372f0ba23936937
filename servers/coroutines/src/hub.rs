//! The hub: it waits for all sockets, and switches to the coroutines that can go on. It runs on the thread's own stack.

use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use contract::nonblocking::TURN;
use contract::{Deadlines, Ending, Limits, Stop, Tally};
use corosensei::stack::DefaultStack;
use corosensei::{CoroutineResult, Yielder};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use slab::Slab;

/// Condition under which a coroutine that lets others run is resumed.
enum ResumeWhen {
    /// Its descriptor has an event, another coroutine wakes it, or this time has come.
    Woken(Option<Instant>),
    /// All other coroutines that were ready have run.
    NextTurn,
}

/// A coroutine. When it is resumed it gets the events of its descriptor since it ran last: none, if it was woken for
/// another reason.
type Coroutine = corosensei::Coroutine<EventFlags, ResumeWhen, io::Result<()>>;

/// Size of a stack in bytes, without `--stack`. A page that is never touched costs address space only. But below the
/// stack is a page that must not be touched, and a coroutine that touches it ends the whole process (SIGSEGV).
const STACK: usize = 128 * 1024;

/// Most stacks of ended coroutines that are kept for new ones. To map a stack and touch its first pages costs more than
/// to accept a peer. To keep all stacks would keep the memory of the busiest minute for good.
const SPARE_STACKS: usize = 256;

/// Key of the coroutine that accepts peers: it is spawned first.
const ACCEPTOR: usize = 0;

/// Key of the stop's descriptor among the events.
const STOP: u64 = u64::MAX;

/// State that the coroutines and the hub share. One thread runs all of them, one at a time, and switches only where a
/// coroutine waits: so cells are enough, where threads need locks.
pub(crate) struct Hub {
    epoll: OwnedFd,
    coroutines: RefCell<Slab<Slot>>,
    /// Keys of the coroutines that can go on, in the order in which they became ready.
    ready: RefCell<Vec<usize>>,
    deadlines: RefCell<Deadlines>,
    /// Stacks of coroutines that have ended.
    stacks: RefCell<Vec<DefaultStack>>,
    stack_size: usize,
    max_connections: usize,
    /// Time at which the hub woke up last.
    now: Cell<Instant>,
    /// Time at which the hub ends at the latest; `None` before the stop.
    drained_by: Cell<Option<Instant>>,
    tally: RefCell<Tally>,
}

struct Slot {
    /// `None` while the coroutine runs.
    coroutine: Option<Coroutine>,
    /// Events of the coroutine's descriptor since it ran last.
    edge: EventFlags,
    /// True if the coroutine's key is in [`Hub::ready`].
    ready: bool,
    /// Time until which the coroutine waits; `None`: without a limit.
    until: Option<Instant>,
}

impl Hub {
    pub(crate) fn new(limits: &Limits) -> io::Result<Rc<Hub>> {
        Ok(Rc::new(Hub {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            coroutines: RefCell::default(),
            ready: RefCell::default(),
            deadlines: RefCell::default(),
            stacks: RefCell::default(),
            stack_size: limits.stack.unwrap_or(STACK),
            max_connections: limits.max_connections,
            now: Cell::new(Instant::now()),
            drained_by: Cell::default(),
            tally: RefCell::default(),
        }))
    }

    /// Returns the time at which the hub woke up last.
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.drained_by.get().is_some()
    }

    pub(crate) fn is_full(&self) -> bool {
        let tally = self.tally.borrow();
        tally.accepted - tally.ended() >= self.max_connections as u64
    }

    pub(crate) fn tally(&self) -> RefMut<'_, Tally> {
        self.tally.borrow_mut()
    }

    /// Counts the end of a connection.
    pub(crate) fn leave(&self, ending: Ending) {
        if self.is_full() {
            self.wake(ACCEPTOR, EventFlags::empty());
        }
        self.tally.borrow_mut().count(ending);
    }

    /// Creates a coroutine, which will run in the next turn.
    ///
    /// # Errors
    ///
    /// No stack can be allocated.
    pub(crate) fn spawn(
        self: &Rc<Self>,
        body: impl FnOnce(&Green<'_>) -> io::Result<()> + 'static,
    ) -> io::Result<()> {
        let stack = self.stacks.borrow_mut().pop();
        let stack = match stack {
            Some(stack) => stack,
            None => DefaultStack::new(self.stack_size)?,
        };
        let mut coroutines = self.coroutines.borrow_mut();
        let entry = coroutines.vacant_entry();
        let (key, hub) = (entry.key(), Rc::clone(self));
        let coroutine = Coroutine::with_stack(stack, move |yielder, _| {
            body(&Green {
                hub,
                key,
                yielder,
                steps: Cell::new(0),
            })
        });
        entry.insert(Slot {
            coroutine: Some(coroutine),
            edge: EventFlags::empty(),
            ready: false,
            until: None,
        });
        drop(coroutines);
        self.wake(key, EventFlags::empty());
        Ok(())
    }

    /// Wakes a coroutine: it runs when its turn comes.
    fn wake(&self, key: usize, edge: EventFlags) {
        if let Some(slot) = self.coroutines.borrow_mut().get_mut(key) {
            slot.edge |= edge;
            if !mem::replace(&mut slot.ready, true) {
                self.ready.borrow_mut().push(key);
            }
        }
    }

    /// Begins the stop: wakes all coroutines, and each of them then checks for the stop.
    fn stop(&self, drain: Duration) {
        if self.is_stopping() {
            return;
        }
        self.drained_by.set(Some(self.now() + drain));
        let coroutines = self.coroutines.borrow();
        let keys: Vec<_> = coroutines.iter().map(|(key, _)| key).collect();
        drop(coroutines);
        for key in keys {
            self.wake(key, EventFlags::empty());
        }
    }

    /// Runs the coroutines until the stop, and then until all peers have left or the drain is over.
    ///
    /// # Errors
    ///
    /// The accepting coroutine ended with an error, or epoll_wait(2) failed.
    pub(crate) fn run(&self, stop: &Stop, drain: Duration) -> io::Result<Tally> {
        let ended = self.switch(stop, drain);
        // A coroutine that is left is dropped in the middle of a wait. That unwinds its stack, as a panic would: the
        // values on it are dropped, and its socket is closed.
        drop(self.coroutines.take());
        let mut tally = self.tally.take();
        tally.cut_the_rest();
        ended.map(|()| tally)
    }

    /// Waits for events and switches to the coroutines that are ready, until the server ends.
    fn switch(&self, stop: &Stop, drain: Duration) -> io::Result<()> {
        // Edge-triggered, because no code reads from the stop: its level would be reported again and again in the
        // drain.
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, stop, EventData::new_u64(STOP), edge)?;
        let mut events = Vec::with_capacity(1024);
        let mut batch = Vec::new();
        // Error of the accepting coroutine. The connections are drained all the same.
        let mut broken: Option<io::Error> = None;
        loop {
            let limit = if self.ready.borrow().is_empty() {
                let due = [self.deadlines.borrow().next(), self.drained_by.get()];
                let due = due.into_iter().flatten().min();
                // `now` is too old for this: the coroutines that have run since may have taken a while.
                due.map(|at| at.saturating_duration_since(Instant::now()))
            } else {
                Some(Duration::ZERO)
            };
            let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => self.now.set(Instant::now()),
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    STOP => self.stop(drain),
                    key => self.wake(key as usize, event.flags),
                }
            }
            self.expire();

            batch.clear();
            mem::swap(&mut batch, &mut *self.ready.borrow_mut());
            for &key in &batch {
                // Each coroutine may occupy the thread for a while, so the deadline is checked before each.
                let late = |end: Instant| end <= Instant::now();
                if self.drained_by.get().is_some_and(late) {
                    break;
                }
                if let Err(error) = self.resume(key) {
                    broken = Some(error);
                    self.stop(drain);
                }
            }
            let all_left = self.tally.borrow().adds_up();
            if let Some(end) = self.drained_by.get()
                && (all_left || end <= self.now())
            {
                return broken.map_or(Ok(()), Err);
            }
        }
    }

    /// Wakes the coroutines whose wait has come to its time limit.
    fn expire(&self) {
        loop {
            let due = self.deadlines.borrow_mut().pop_due(self.now());
            let Some(key) = due else { return };
            let coroutines = self.coroutines.borrow();
            let until = coroutines.get(key).and_then(|slot| slot.until);
            drop(coroutines);
            match until {
                Some(at) if at > self.now() => self.deadlines.borrow_mut().arm(key, at),
                Some(_) => self.wake(key, EventFlags::empty()),
                None => {}
            }
        }
    }

    /// Switches to a coroutine, and returns when it waits or has ended.
    ///
    /// # Errors
    ///
    /// The coroutine has ended with an error.
    fn resume(&self, key: usize) -> io::Result<()> {
        let mut coroutines = self.coroutines.borrow_mut();
        let Some(slot) = coroutines.get_mut(key) else {
            return Ok(());
        };
        let Some(mut coroutine) = slot.coroutine.take() else {
            return Ok(());
        };
        slot.ready = false;
        let edge = mem::replace(&mut slot.edge, EventFlags::empty());
        // The coroutine may spawn others, and then borrows the slab.
        drop(coroutines);

        match coroutine.resume(edge) {
            CoroutineResult::Yield(when) => {
                let mut coroutines = self.coroutines.borrow_mut();
                let slot = &mut coroutines[key];
                slot.coroutine = Some(coroutine);
                match when {
                    ResumeWhen::Woken(until) => {
                        slot.until = until;
                        if let Some(at) = until {
                            self.deadlines.borrow_mut().arm(key, at);
                        }
                    }
                    ResumeWhen::NextTurn => {
                        slot.ready = true;
                        self.ready.borrow_mut().push(key);
                    }
                }
                Ok(())
            }
            CoroutineResult::Return(ended) => {
                self.coroutines.borrow_mut().remove(key);
                let mut stacks = self.stacks.borrow_mut();
                if stacks.len() < SPARE_STACKS {
                    stacks.push(coroutine.into_stack());
                }
                ended
            }
        }
    }
}

/// A coroutine's view of the hub.
pub(crate) struct Green<'c> {
    hub: Rc<Hub>,
    key: usize,
    yielder: &'c Yielder<EventFlags, ResumeWhen>,
    /// Number of steps since the coroutine let others run.
    steps: Cell<usize>,
}

impl Green<'_> {
    pub(crate) fn hub(&self) -> &Rc<Hub> {
        &self.hub
    }

    /// Registers the coroutine's descriptor with the hub, once, for all events from now on, edge-triggered.
    ///
    /// # Errors
    ///
    /// epoll_ctl(2) failed.
    pub(crate) fn register(&self, descriptor: impl AsFd) -> io::Result<()> {
        let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::PRI;
        let key = EventData::new_u64(self.key as u64);
        epoll::add(&self.hub.epoll, descriptor, key, all | EventFlags::ET)?;
        Ok(())
    }

    /// Lets other coroutines run until the descriptor has an event, the coroutine is woken, or the time `until` has
    /// come. Returns the events.
    pub(crate) fn wait(&self, until: Option<Instant>) -> EventFlags {
        self.steps.set(0);
        self.yielder.suspend(ResumeWhen::Woken(until))
    }

    /// Makes the next step let other coroutines run first.
    pub(crate) fn give_way(&self) {
        self.steps.set(TURN);
    }

    /// Counts a step that does not wait, and after every [`TURN`] steps lets other coroutines run first. Returns the
    /// events that came meanwhile.
    pub(crate) fn step(&self) -> EventFlags {
        if self.steps.get() == TURN {
            self.steps.set(0);
            return self.yielder.suspend(ResumeWhen::NextTurn);
        }
        self.steps.set(self.steps.get() + 1);
        EventFlags::empty()
    }
}
