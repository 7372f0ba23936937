//! The hub: it waits for everybody, and switches to whoever can go on. It runs on the thread's own stack.

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

/// What a coroutine asks for when it lets others run.
enum Wish {
    /// To go on when something has happened at its descriptor, when it is called, or at that time.
    Wait(Option<Instant>),
    /// To go on when everybody else has had their turn.
    Turn,
}

/// It is given what has happened at its descriptor since it ran last: nothing, if it goes on for another reason.
type Coroutine = corosensei::Coroutine<EventFlags, Wish, io::Result<()>>;

/// How large a stack is, if nobody says. A page that is never touched costs address space only; but below the stack is
/// a page that must not be touched, and a coroutine that gets there ends the whole process (SIGSEGV).
const STACK: usize = 128 * 1024;

/// How many stacks of coroutines that have ended are kept for others. To map one and touch its first pages costs more
/// than to accept a peer. To keep all would keep the memory of the busiest minute for good.
const SPARE_STACKS: usize = 256;

/// The first to be spawned is the one that accepts.
const ACCEPTOR: usize = 0;

/// The stop's descriptor among the events.
const STOP: u64 = u64::MAX;

/// All that the coroutines and the hub share. One thread runs them all, one at a time, and gives way only where a
/// coroutine waits: so cells will do, where threads need locks.
pub(crate) struct Hub {
    epoll: OwnedFd,
    coroutines: RefCell<Slab<Slot>>,
    /// Who can go on, in the order in which they could.
    ready: RefCell<Vec<usize>>,
    deadlines: RefCell<Deadlines>,
    /// Those of coroutines that have ended.
    stacks: RefCell<Vec<DefaultStack>>,
    stack_size: usize,
    max_connections: usize,
    /// When it woke up last.
    now: Cell<Instant>,
    /// Told to stop, it ends then at the latest.
    drained_by: Cell<Option<Instant>>,
    tally: RefCell<Tally>,
}

struct Slot {
    /// Away while it runs.
    coroutine: Option<Coroutine>,
    /// What happened at its descriptor since it ran last.
    edge: EventFlags,
    /// It is among the ready.
    ready: bool,
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

    /// When the hub woke up last.
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

    /// Counts a peer's end.
    pub(crate) fn leave(&self, ending: Ending) {
        if self.is_full() {
            self.call(ACCEPTOR, EventFlags::empty());
        }
        self.tally.borrow_mut().count(ending);
    }

    /// Makes a coroutine, which will have its first turn soon.
    ///
    /// # Errors
    ///
    /// There is no stack for it.
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
        self.call(key, EventFlags::empty());
        Ok(())
    }

    /// Lets a coroutine go on, when its turn comes.
    fn call(&self, key: usize, edge: EventFlags) {
        if let Some(place) = self.coroutines.borrow_mut().get_mut(key) {
            place.edge |= edge;
            if !mem::replace(&mut place.ready, true) {
                self.ready.borrow_mut().push(key);
            }
        }
    }

    /// Begins the stop: everybody goes on, and finds out.
    fn stop(&self, drain: Duration) {
        if self.is_stopping() {
            return;
        }
        self.drained_by.set(Some(self.now() + drain));
        let coroutines = self.coroutines.borrow();
        let keys: Vec<_> = coroutines.iter().map(|(key, _)| key).collect();
        drop(coroutines);
        for key in keys {
            self.call(key, EventFlags::empty());
        }
    }

    /// Lets the coroutines run until the stop, and until all peers have left or the drain is over.
    ///
    /// # Errors
    ///
    /// What the acceptor ended with, or epoll_wait(2) failed.
    pub(crate) fn run(&self, stop: &Stop, drain: Duration) -> io::Result<Tally> {
        let ended = self.switch(stop, drain);
        // Who is left is dropped in the middle of a wait. That unwinds its stack, as a panic would: what lies there is
        // dropped, and the socket closed.
        drop(self.coroutines.take());
        let mut tally = self.tally.take();
        tally.cut_the_rest();
        ended.map(|()| tally)
    }

    fn switch(&self, stop: &Stop, drain: Duration) -> io::Result<()> {
        // An edge, because nobody reads it: its level would be reported for as long as the drain takes.
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, stop, EventData::new_u64(STOP), edge)?;
        let mut events = Vec::with_capacity(1024);
        let mut turns = Vec::new();
        // Those who are here are served to the end all the same.
        let mut broken: Option<io::Error> = None;
        loop {
            let limit = if self.ready.borrow().is_empty() {
                let due = [self.deadlines.borrow().next(), self.drained_by.get()];
                let due = due.into_iter().flatten().min();
                // (Not by `now`: the coroutines that have run since may have taken a while.)
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
                    key => self.call(key as usize, event.flags),
                }
            }
            self.expire();

            turns.clear();
            mem::swap(&mut turns, &mut *self.ready.borrow_mut());
            for &key in &turns {
                // (Each may keep the thread for a while.)
                let late = |end: Instant| end <= Instant::now();
                if self.drained_by.get().is_some_and(late) {
                    break;
                }
                if let Err(error) = self.resume(key) {
                    broken = Some(error);
                    self.stop(drain);
                }
            }
            let nobody = self.tally.borrow().adds_up();
            if let Some(end) = self.drained_by.get()
                && (nobody || end <= self.now())
            {
                return broken.map_or(Ok(()), Err);
            }
        }
    }

    /// Lets those go on whose time is over.
    fn expire(&self) {
        loop {
            let due = self.deadlines.borrow_mut().pop_due(self.now());
            let Some(key) = due else { return };
            let coroutines = self.coroutines.borrow();
            let until = coroutines.get(key).and_then(|place| place.until);
            drop(coroutines);
            match until {
                Some(at) if at > self.now() => self.deadlines.borrow_mut().arm(key, at),
                Some(_) => self.call(key, EventFlags::empty()),
                None => {}
            }
        }
    }

    /// Switches to a coroutine, until it waits or ends.
    fn resume(&self, key: usize) -> io::Result<()> {
        let mut coroutines = self.coroutines.borrow_mut();
        let Some(place) = coroutines.get_mut(key) else {
            return Ok(());
        };
        let Some(mut coroutine) = place.coroutine.take() else {
            return Ok(());
        };
        place.ready = false;
        let edge = mem::replace(&mut place.edge, EventFlags::empty());
        // It may spawn others.
        drop(coroutines);

        match coroutine.resume(edge) {
            CoroutineResult::Yield(wish) => {
                let mut coroutines = self.coroutines.borrow_mut();
                let place = &mut coroutines[key];
                place.coroutine = Some(coroutine);
                match wish {
                    Wish::Wait(until) => {
                        place.until = until;
                        if let Some(at) = until {
                            self.deadlines.borrow_mut().arm(key, at);
                        }
                    }
                    Wish::Turn => {
                        place.ready = true;
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

/// What a coroutine sees of the hub.
pub(crate) struct Green<'c> {
    hub: Rc<Hub>,
    key: usize,
    yielder: &'c Yielder<EventFlags, Wish>,
    /// Since it let others run.
    steps: Cell<usize>,
}

impl Green<'_> {
    pub(crate) fn hub(&self) -> &Rc<Hub> {
        &self.hub
    }

    /// Tells the hub what to listen to, once: all that happens there, from now on and as edges.
    pub(crate) fn register(&self, descriptor: impl AsFd) -> io::Result<()> {
        let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::PRI;
        let key = EventData::new_u64(self.key as u64);
        epoll::add(&self.hub.epoll, descriptor, key, all | EventFlags::ET)?;
        Ok(())
    }

    /// Lets others run until something has happened at the descriptor, somebody calls, or that time has come. Gives
    /// what has happened.
    pub(crate) fn wait(&self, until: Option<Instant>) -> EventFlags {
        self.steps.set(0);
        self.yielder.suspend(Wish::Wait(until))
    }

    /// Lets others run before the next step.
    pub(crate) fn give_way(&self) {
        self.steps.set(TURN);
    }

    /// Counts a step that does not wait, and now and then lets others run first. Gives what has happened meanwhile.
    pub(crate) fn step(&self) -> EventFlags {
        if self.steps.get() == TURN {
            self.steps.set(0);
            return self.yielder.suspend(Wish::Turn);
        }
        self.steps.set(self.steps.get() + 1);
        EventFlags::empty()
    }
}
