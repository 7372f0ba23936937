//! Queue of the times at which something is due, and the system's timer that wakes the poll.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::time::{Duration, Instant};

use mio::{Registry, Token};

/// Clock that counts nanoseconds from its start. All threads of a drive share one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    pub(crate) fn now(self) -> u64 {
        nanos(self.0.elapsed())
    }
}

/// Returns a duration in nanoseconds, as the clock counts. A duration of more than 146 years is shortened to that, so
/// that a few of them can be added without overflow.
pub(crate) fn nanos(duration: Duration) -> u64 {
    const LONGEST: u64 = u64::MAX / 4;
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()))
        .min(LONGEST)
}

/// Event that is due at a time. Of two events with the same time the earlier variant comes first: a request planned for
/// the first moment of the window belongs to the window, and everything planned before the window's end is done before
/// its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// The measured window begins.
    WindowBegins,
    /// The client with this index goes on: it connects, sends a request, or leaves.
    Wake(usize),
    /// The time-out of what the client with this index has under way may have expired.
    TimeoutCheck(usize),
    /// The step of the time line with this index ends.
    StepEnds(usize),
    /// The measured window ends.
    WindowEnds,
    /// All requests that still have no reply are given up.
    End,
}

/// Queue of due events, earliest first, and the system's timer that wakes the poll for them.
///
/// epoll_wait(2) counts milliseconds, and most replies take less than one, so on Linux a timerfd with nanoseconds is
/// registered in the poll. It is set only when the earliest time changes.
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(u64, Due)>>,
    timer: timer::SystemTimer,
}

impl Timers {
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        Ok(Timers {
            heap: BinaryHeap::new(),
            timer: timer::SystemTimer::new(registry, token)?,
        })
    }

    pub(crate) fn push(&mut self, time: u64, due: Due) {
        self.heap.push(Reverse((time, due)));
    }

    /// Removes and returns the next event that is due at `now`; `None` if none is due yet.
    pub(crate) fn pop(&mut self, now: u64) -> Option<Due> {
        let Reverse((time, _)) = self.heap.peek()?;
        if *time > now {
            return None;
        }
        self.timer.expired(now);
        self.heap.pop().map(|Reverse((_, due))| due)
    }

    /// Removes all events.
    pub(crate) fn clear(&mut self) {
        self.heap.clear();
    }

    /// Makes sure that the poll wakes for the next event. Returns the time-out that the poll needs for that; `None`: it
    /// needs none.
    pub(crate) fn arm(&mut self, clock: Clock) -> io::Result<Option<Duration>> {
        match self.heap.peek() {
            None => Ok(None),
            Some(Reverse((time, _))) => self.timer.set(*time, clock),
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod timer {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

    use mio::unix::SourceFd;
    use mio::{Interest, Registry, Token};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };

    use super::Clock;

    pub(super) struct SystemTimer {
        timer: OwnedFd,
        set_to: u64,
    }

    impl SystemTimer {
        pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            // Edge-triggered: each expiry is reported once, so the timer need not be read to clear it.
            registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
            Ok(SystemTimer {
                timer,
                set_to: u64::MAX,
            })
        }

        pub(super) fn set(&mut self, time: u64, clock: Clock) -> io::Result<Option<Duration>> {
            if time == self.set_to {
                return Ok(None);
            }
            let Some(left) = time.checked_sub(clock.now()).filter(|left| *left > 0) else {
                return Ok(Some(Duration::ZERO));
            };
            let spec = |nanos: u64| Timespec {
                tv_sec: (nanos / 1_000_000_000) as _,
                tv_nsec: (nanos % 1_000_000_000) as _,
            };
            let once = Itimerspec {
                it_interval: spec(0),
                it_value: spec(left),
            };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
            self.set_to = time;
            Ok(None)
        }

        /// Forgets the time that is set if it has passed: the timer expires once, and must be set anew if the same time
        /// comes up again.
        pub(super) fn expired(&mut self, now: u64) {
            if self.set_to <= now {
                self.set_to = u64::MAX;
            }
        }
    }
}

/// Timer for other systems: the poll's own time-out is used.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod timer {
    use std::io;
    use std::time::Duration;

    use mio::{Registry, Token};

    use super::Clock;

    pub(super) struct SystemTimer;

    impl SystemTimer {
        pub(super) fn new(_: &Registry, _: Token) -> io::Result<Self> {
            Ok(SystemTimer)
        }

        pub(super) fn set(&mut self, time: u64, clock: Clock) -> io::Result<Option<Duration>> {
            let left = time.saturating_sub(clock.now());
            Ok(Some(Duration::from_nanos(left)))
        }

        pub(super) fn expired(&mut self, _: u64) {}
    }
}
