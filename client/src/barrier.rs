//! What the threads of one drive share: a place to wait for each other, and a few numbers.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use mio::Waker;

use crate::Snapshot;
use crate::timers::Clock;

/// Shared by all event loops and the thread that called [`drive`](crate::drive).
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    caller: Thread,
    wakers: Vec<Waker>,
    barrier: Mutex<BarrierState>,
    /// How many meetings are over, and when the last one was: what waiting loops look at without the lock.
    passed: AtomicU64,
    passed_at: AtomicU64,
    window_begin: AtomicU64,
    /// Clients that have not given up.
    active_clients: AtomicUsize,
    ended: AtomicBool,
    members: AtomicUsize,
    progress: Vec<Progress>,
}

/// A barrier for threads that must not block: they go on serving their sockets while they wait, and are woken.
struct BarrierState {
    members: usize,
    arrived: usize,
    number: u64,
}

/// What one loop tells while it runs. A cache line of its own, so that the loops do not slow each other down.
#[derive(Default)]
#[repr(align(128))]
struct Progress {
    replies: AtomicU64,
    errors: AtomicU64,
    open: AtomicU64,
}

impl Shared {
    /// For one loop per waker. The caller of this is the one that is unparked.
    pub(crate) fn new(clock: Clock, wakers: Vec<Waker>, clients: usize) -> Self {
        let members = wakers.len();
        Shared {
            clock,
            caller: thread::current(),
            barrier: Mutex::new(BarrierState {
                members,
                arrived: 0,
                number: 0,
            }),
            passed: AtomicU64::new(0),
            passed_at: AtomicU64::new(0),
            window_begin: AtomicU64::new(u64::MAX),
            active_clients: AtomicUsize::new(clients),
            ended: AtomicBool::new(false),
            members: AtomicUsize::new(members),
            progress: (0..members).map(|_| Progress::default()).collect(),
            wakers,
        }
    }

    /// How many loops there are.
    pub(crate) fn threads(&self) -> usize {
        self.wakers.len()
    }

    /// One loop comes to the barrier; gives the barrier's number, to ask [`passed`](Shared::passed) for.
    pub(crate) fn arrive(&self) -> u64 {
        let mut barrier = self.lock();
        let number = barrier.number;
        barrier.arrived += 1;
        self.release_if_complete(&mut barrier);
        number
    }

    /// When this barrier was: the moment at which the last one came, the same for all.
    pub(crate) fn passed(&self, number: u64) -> Option<u64> {
        (self.passed.load(Ordering::Acquire) > number)
            .then(|| self.passed_at.load(Ordering::Relaxed))
    }

    fn release_if_complete(&self, barrier: &mut BarrierState) {
        if barrier.arrived > 0 && barrier.arrived >= barrier.members {
            barrier.arrived = 0;
            barrier.number += 1;
            self.passed_at.store(self.clock.now(), Ordering::Relaxed);
            self.passed.store(barrier.number, Ordering::Release);
            self.wake_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BarrierState> {
        self.barrier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        for waker in &self.wakers {
            // An eventfd that cannot be written is full, and then the loop is already being woken.
            let _ = waker.wake();
        }
        self.caller.unpark();
    }

    /// Ends the drive when dropped: a watcher that panics must not leave the loops running.
    pub(crate) fn end_on_drop(&self) -> impl Drop {
        struct End<'s>(&'s Shared);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.end();
            }
        }
        End(self)
    }

    /// A loop runs for as long as it holds this.
    pub(crate) fn member(&self) -> Member<'_> {
        Member(self)
    }

    pub(crate) fn all_left(&self) -> bool {
        self.members.load(Ordering::Acquire) == 0
    }

    /// Ends the drive for all.
    pub(crate) fn end(&self) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.wake_all();
        }
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// One client gave up; the drive ends with the last one.
    pub(crate) fn gave_up(&self) {
        if self.active_clients.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.end();
        }
    }

    /// All loops say the same here.
    pub(crate) fn set_window_begin(&self, time: u64) {
        self.window_begin.store(time, Ordering::Relaxed);
        self.caller.unpark();
    }

    pub(crate) fn window_begin(&self) -> Option<u64> {
        Some(self.window_begin.load(Ordering::Relaxed)).filter(|time| *time != u64::MAX)
    }

    pub(crate) fn publish(&self, thread: usize, replies: u64, errors: u64, open: u64) {
        let progress = &self.progress[thread];
        progress.replies.store(replies, Ordering::Relaxed);
        progress.errors.store(errors, Ordering::Relaxed);
        progress.open.store(open, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let sum = |field: fn(&Progress) -> &AtomicU64| {
            self.progress
                .iter()
                .map(|progress| field(progress).load(Ordering::Relaxed))
                .sum()
        };
        Snapshot {
            elapsed: Duration::from_nanos(self.clock.now()),
            replies: sum(|progress| &progress.replies),
            errors: sum(|progress| &progress.errors),
            open: sum(|progress| &progress.open),
        }
    }
}

/// Membership of a running loop; ends with it, also when it panics.
pub(crate) struct Member<'s>(&'s Shared);

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut barrier = self.0.lock();
        barrier.members -= 1;
        // Who waits for this one only must not wait for ever.
        self.0.release_if_complete(&mut barrier);
        drop(barrier);
        self.0.members.fetch_sub(1, Ordering::Release);
        self.0.caller.unpark();
    }
}
