//! State that the threads of one drive share: a barrier, and a few numbers.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use mio::Waker;

use crate::Snapshot;
use crate::timers::Clock;

/// State shared by all event loops and the thread that called [`drive`](crate::drive).
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    caller: Thread,
    wakers: Vec<Waker>,
    barrier: Mutex<BarrierState>,
    /// Number of barriers that are complete, which waiting loops read without the lock.
    released: AtomicU64,
    /// Time at which the latest barrier was complete.
    released_at: AtomicU64,
    window_begin: AtomicU64,
    /// Number of clients that have not given up.
    active_clients: AtomicUsize,
    ended: AtomicBool,
    running_loops: AtomicUsize,
    progress: Vec<Progress>,
}

/// State of a barrier for threads that must not block: they go on serving their sockets while they wait, and are woken.
struct BarrierState {
    running_loops: usize,
    arrived: usize,
    number: u64,
}

/// Progress that one loop publishes while it runs. Each value has a cache line of its own, so that the loops do not
/// slow each other down.
#[derive(Default)]
#[repr(align(128))]
struct Progress {
    replies: AtomicU64,
    errors: AtomicU64,
    open: AtomicU64,
}

impl Shared {
    /// Creates the state for one loop per waker. The calling thread is the one that is unparked.
    pub(crate) fn new(clock: Clock, wakers: Vec<Waker>, clients: usize) -> Self {
        let running_loops = wakers.len();
        Shared {
            clock,
            caller: thread::current(),
            barrier: Mutex::new(BarrierState {
                running_loops,
                arrived: 0,
                number: 0,
            }),
            released: AtomicU64::new(0),
            released_at: AtomicU64::new(0),
            window_begin: AtomicU64::new(u64::MAX),
            active_clients: AtomicUsize::new(clients),
            ended: AtomicBool::new(false),
            running_loops: AtomicUsize::new(running_loops),
            progress: (0..running_loops).map(|_| Progress::default()).collect(),
            wakers,
        }
    }

    /// Returns the number of loops.
    pub(crate) fn threads(&self) -> usize {
        self.wakers.len()
    }

    /// Registers that one loop has arrived at the barrier. Returns the barrier's number, for
    /// [`release_time`](Shared::release_time).
    pub(crate) fn arrive(&self) -> u64 {
        let mut barrier = self.lock();
        let number = barrier.number;
        barrier.arrived += 1;
        self.release_if_complete(&mut barrier);
        number
    }

    /// Returns the time at which the barrier with this number was complete: the moment at which the last loop arrived,
    /// the same for all loops. `None`: it is not complete yet.
    pub(crate) fn release_time(&self, number: u64) -> Option<u64> {
        (self.released.load(Ordering::Acquire) > number)
            .then(|| self.released_at.load(Ordering::Relaxed))
    }

    fn release_if_complete(&self, barrier: &mut BarrierState) {
        if barrier.arrived > 0 && barrier.arrived >= barrier.running_loops {
            barrier.arrived = 0;
            barrier.number += 1;
            self.released_at.store(self.clock.now(), Ordering::Relaxed);
            self.released.store(barrier.number, Ordering::Release);
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

    /// Returns a guard that ends the drive when it is dropped: a watcher that panics must not leave the loops running.
    pub(crate) fn end_on_drop(&self) -> impl Drop {
        struct End<'s>(&'s Shared);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.end();
            }
        }
        End(self)
    }

    /// Returns the membership of one loop, which holds it for as long as it runs.
    pub(crate) fn member(&self) -> Member<'_> {
        Member(self)
    }

    /// Returns whether all loops have ended.
    pub(crate) fn all_loops_ended(&self) -> bool {
        self.running_loops.load(Ordering::Acquire) == 0
    }

    /// Ends the drive for all threads.
    pub(crate) fn end(&self) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.wake_all();
        }
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Counts one client that gave up; the drive ends with the last one.
    pub(crate) fn client_gave_up(&self) {
        if self.active_clients.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.end();
        }
    }

    /// Sets the beginning of the measured window. All loops set the same time.
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

/// Membership of a running loop. It ends with the loop, also when the loop panics.
pub(crate) struct Member<'s>(&'s Shared);

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut barrier = self.0.lock();
        barrier.running_loops -= 1;
        // Loops that wait for this one only must not wait for ever.
        self.0.release_if_complete(&mut barrier);
        drop(barrier);
        self.0.running_loops.fetch_sub(1, Ordering::Release);
        self.0.caller.unpark();
    }
}
