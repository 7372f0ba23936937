//! The request to stop, as a descriptor that any server can wait for.

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

/// The receiving end of a request to stop: a descriptor that becomes readable and stays readable.
///
/// A flag would be simpler, but useless to a thread that sleeps in the kernel. Everything that can wait for a socket
/// can wait for a descriptor: poll(2), epoll, a ring, any runtime. No server reads from this descriptor, so one stop
/// reaches every thread, task and process that waits for it.
#[derive(Debug, Clone)]
pub struct Stop {
    receiver: Arc<UnixStream>,
}

/// The sending end of a [`Stop`]: dropping it requests the stop.
#[derive(Debug)]
pub struct Stopper {
    sender: UnixStream,
}

impl Drop for Stopper {
    fn drop(&mut self) {
        // Closing would not be enough: forked processes have a copy of this end, and the receiver becomes readable only
        // when the last copy is closed.
        let _ = self.sender.shutdown(Shutdown::Write);
    }
}

impl Stop {
    /// Creates a stop and its sending end. For servers that run inside another program, such as a test.
    ///
    /// # Errors
    ///
    /// No descriptor is available.
    pub fn channel() -> io::Result<(Stopper, Stop)> {
        let (sender, receiver) = UnixStream::pair()?;
        Ok((Stopper { sender }, Stop::from_stream(receiver)?))
    }

    /// Creates a stop that the other end of this stream requests, by a shutdown.
    ///
    /// # Errors
    ///
    /// The stream cannot be made non-blocking.
    pub(crate) fn from_stream(receiver: UnixStream) -> io::Result<Stop> {
        // Runtimes take ownership of a copy, and all of them require non-blocking descriptors.
        receiver.set_nonblocking(true)?;
        let receiver = Arc::new(receiver);
        Ok(Stop { receiver })
    }

    /// Creates a stop that SIGINT (Ctrl-C) and SIGTERM request. The first signal requests the stop. The second signal
    /// ends the process at once, for users that do not want to wait for the drain.
    ///
    /// # Errors
    ///
    /// The signal handlers could not be set.
    pub fn on_signals() -> io::Result<Stop> {
        let (stopper, stop) = Stop::channel()?;
        let requested = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the first signal finds the flag unset, and then sets it for the second.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&requested))?;
            flag::register(signal, Arc::clone(&requested))?;
            pipe::register(signal, stopper.sender.try_clone()?)?;
        }
        // From now on the signal handlers request the stop; dropping the sending end would request it here.
        mem::forget(stopper);
        Ok(stop)
    }

    /// Waits until the stop, for at most `limit` (`None`: without a limit). Returns true if the stop was requested.
    ///
    /// # Errors
    ///
    /// poll(2) failed, which only a lack of memory can cause.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<bool> {
        let mut wanted = [PollFd::new(self, PollFlags::IN)];
        poll(&mut wanted, limit)?;
        Ok(!wanted[0].revents().is_empty())
    }

    /// Returns the same stop as a separate non-blocking stream, for a runtime that takes ownership. The stream becomes
    /// readable (with bytes or with the end of input). Do not read from it.
    ///
    /// # Errors
    ///
    /// No descriptor is available.
    pub fn stream(&self) -> io::Result<UnixStream> {
        self.receiver.try_clone()
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// Calls poll(2) for at most `limit`, and again after each EINTR. Without this, a signal that has a handler would look
/// like the end of the wait.
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
    fn stop_reaches_every_waiting_thread_and_stays_readable() {
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
