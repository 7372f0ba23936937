//! How a server is told to end.

use std::io;
use std::mem;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// Tells a server to stop: a descriptor that becomes readable and stays so.
///
/// A flag would be simpler, and useless to a thread that sleeps in the kernel. A descriptor can be waited for by
/// everything that can wait for a socket: poll(2), epoll, a ring, any runtime. Nobody ever reads from it, so one
/// stop reaches all who wait.
#[derive(Debug, Clone)]
pub struct Stop {
    told: Arc<UnixStream>,
}

/// The other end of a [`Stop`]: dropping it says stop.
#[derive(Debug)]
pub struct Stopper {
    tell: UnixStream,
}

impl Drop for Stopper {
    fn drop(&mut self) {
        // Closing would not do: processes that were forked have this end too, and only the last to close is heard.
        let _ = self.tell.shutdown(Shutdown::Write);
    }
}

impl Stop {
    /// A stop and who says it. For servers that run inside another program, such as a test.
    ///
    /// # Errors
    ///
    /// No descriptor was to be had.
    pub fn channel() -> io::Result<(Stopper, Stop)> {
        let (tell, told) = UnixStream::pair()?;
        // Runtimes take it over, and all of them demand non-blocking descriptors.
        told.set_nonblocking(true)?;
        let told = Arc::new(told);
        Ok((Stopper { tell }, Stop { told }))
    }

    /// A stop that SIGINT (Ctrl-C) and SIGTERM say. The first asks; the second ends the process at once, for those
    /// who do not want to wait for the drain.
    ///
    /// # Errors
    ///
    /// The handlers could not be set.
    pub fn on_signals() -> io::Result<Stop> {
        let (stopper, stop) = Stop::channel()?;
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset, and sets it for the second.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked))?;
            flag::register(signal, Arc::clone(&asked))?;
            pipe::register(signal, stopper.tell.try_clone()?)?;
        }
        // The handlers say it from now on.
        mem::forget(stopper);
        Ok(stop)
    }

    /// Waits for the stop, for at most `limit` (or for ever); says whether it came.
    ///
    /// # Errors
    ///
    /// poll(2) failed, which only a lack of memory can cause.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<bool> {
        let mut wanted = [PollFd::new(self, PollFlags::IN)];
        poll(&mut wanted, limit)?;
        Ok(!wanted[0].revents().is_empty())
    }

    /// The same stop as a stream of its own, non-blocking, for a runtime that takes ownership. It becomes readable
    /// (with bytes or with the end of input); do not read from it.
    ///
    /// # Errors
    ///
    /// No descriptor was to be had.
    pub fn stream(&self) -> io::Result<UnixStream> {
        self.told.try_clone()
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }
}

/// poll(2), through signals and for at most `limit`. Without this, a signal that somebody handles would look like
/// the end of the wait.
pub(crate) fn poll(wanted: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let deadline = limit.map(|limit| std::time::Instant::now() + limit);
    loop {
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            rustix::event::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()) as _,
            }
        });
        match rustix::event::poll(wanted, left.as_ref()) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stop_reaches_all_who_wait_and_stays() {
        let (stopper, stop) = Stop::channel().unwrap();
        let other = stop.clone();
        assert!(!stop.wait(Some(Duration::ZERO)).unwrap());
        let waiting = std::thread::spawn(move || other.wait(None).unwrap());
        drop(stopper);
        assert!(waiting.join().unwrap());
        assert!(stop.wait(None).unwrap());
        assert!(stop.wait(None).unwrap());
    }
}
