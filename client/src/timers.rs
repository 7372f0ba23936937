//! What is due when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::time::{Duration, Instant};

use mio::{Registry, Token};

/// Counts nanoseconds from the beginning of the drive; the same for all threads.
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

/// A duration as the clock counts it. What is longer than 146 years is shortened to that, so that a few of them can
/// be added without a thought.
pub(crate) fn nanos(duration: Duration) -> u64 {
    const LONGEST: u64 = u64::MAX / 4;
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()))
        .min(LONGEST)
}

/// What is to be done at a time. Of two with the same time the earlier variant comes first: what is planned for the
/// first moment of the window belongs to it, and all that was planned before its end is done before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// The measured window begins.
    WindowBegins,
    /// The client with this index goes on: it connects, asks, or leaves.
    Wake(usize),
    /// The time-out of what this client has under way may have come.
    Guard(usize),
    /// The measured window ends.
    WindowEnds,
    /// All that is still owed is given up.
    End,
}

/// What is due, earliest first, and the system's timer that wakes the poll for it.
///
/// epoll_wait(2) counts milliseconds, which is longer than most replies take, so on Linux a timerfd with nanoseconds
/// stands in the poll. It is set only when the earliest time changes.
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(u64, Due)>>,
    alarm: alarm::Alarm,
}

impl Timers {
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        Ok(Timers {
            heap: BinaryHeap::new(),
            alarm: alarm::Alarm::new(registry, token)?,
        })
    }

    pub(crate) fn push(&mut self, time: u64, due: Due) {
        self.heap.push(Reverse((time, due)));
    }

    /// The next that is due at `now`.
    pub(crate) fn pop(&mut self, now: u64) -> Option<Due> {
        let Reverse((time, _)) = self.heap.peek()?;
        if *time > now {
            return None;
        }
        self.alarm.rang(now);
        self.heap.pop().map(|Reverse((_, due))| due)
    }

    /// Sees to it that the poll wakes for what is due next; gives the time-out that it needs for that.
    pub(crate) fn arm(&mut self, clock: Clock) -> io::Result<Option<Duration>> {
        match self.heap.peek() {
            None => Ok(None),
            Some(Reverse((time, _))) => self.alarm.set(*time, clock),
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod alarm {
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

    pub(super) struct Alarm {
        timer: OwnedFd,
        set_to: u64,
    }

    impl Alarm {
        pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            // Edge-triggered: each expiry is told once, so nobody has to read the timer to silence it.
            registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
            Ok(Alarm {
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

        /// A time that is past must be set anew if it comes up again: the alarm rings once.
        pub(super) fn rang(&mut self, now: u64) {
            if self.set_to <= now {
                self.set_to = u64::MAX;
            }
        }
    }
}

/// Elsewhere the poll's own time-out must do.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod alarm {
    use std::io;
    use std::time::Duration;

    use mio::{Registry, Token};

    use super::Clock;

    pub(super) struct Alarm;

    impl Alarm {
        pub(super) fn new(_: &Registry, _: Token) -> io::Result<Self> {
            Ok(Alarm)
        }

        pub(super) fn set(&mut self, time: u64, clock: Clock) -> io::Result<Option<Duration>> {
            let left = time.saturating_sub(clock.now());
            Ok(Some(Duration::from_nanos(left)))
        }

        pub(super) fn rang(&mut self, _: u64) {}
    }
}
