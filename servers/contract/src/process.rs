//! Forked processes, for the models in which a process serves one peer or several.
//!
//! All unsafe code of these models is here, for three reasons. fork(2) copies one thread and every lock, so a process
//! that forks must have no other thread that could hold a lock ([`Children::new`] checks this). A child must end by
//! `_exit(2)`: the handlers that exit(3) would run and the buffers that it would flush belong to its parent. And only a
//! signal reaches a process that sleeps in read(2). A signal handler may do next to nothing, but it may call
//! shutdown(2), and that ends the wait.

#![allow(unsafe_code)]

use std::collections::HashSet;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use rustix::event::{PollFd, PollFlags};
use signal_hook::SigId;
use signal_hook::low_level::{pipe, unregister};

use crate::blocking::shut_input;
use crate::stop::poll;

/// Signal that makes a child [end its input](Conversation).
const END_INPUT: Signal = Signal::SIGUSR1;

/// The children of this process. The process must have no other children, since this reaps every child that ends.
#[derive(Debug)]
pub struct Children {
    pids: HashSet<Pid>,
    /// Readable when a child has ended (SIGCHLD).
    ended: UnixStream,
    signal: SigId,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildExit {
    /// The child exited with this status, which is the number that its function returned.
    Exited(u8),
    /// A signal ended the child: a process sent the signal, or the child did something forbidden, such as an invalid
    /// memory access.
    Killed(Signal),
}

impl Children {
    /// Creates an empty set of children, and sets the signal handlers.
    ///
    /// # Errors
    ///
    /// This process has other threads, or no descriptor is available.
    pub fn new() -> io::Result<Children> {
        // The test harness has one thread beside the one that serves. It sleeps until the test ends, and holds no lock.
        let max_threads = if cfg!(feature = "suite") { 2 } else { 1 };
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads > max_threads {
            return Err(io::Error::other(format!(
                "a process that forks must have one thread, and this one has {threads}: run this model in a process of its own"
            )));
        }
        let (sender, ended) = UnixStream::pair()?;
        ended.set_nonblocking(true)?;
        let signal = pipe::register(libc::SIGCHLD, sender)?;
        let action = SigAction::new(
            SigHandler::Handler(on_end_input),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        // SAFETY: the handler calls only poll(2), shutdown(2) and the clock, all of which POSIX allows in a handler,
        // and leaves errno as it was.
        unsafe { sigaction(END_INPUT, &action) }?;
        Ok(Children {
            pids: HashSet::new(),
            ended,
            signal,
        })
    }

    /// Returns the number of children.
    pub fn len(&self) -> usize {
        self.pids.len()
    }

    /// Returns true if there are no children.
    pub fn is_empty(&self) -> bool {
        self.pids.is_empty()
    }

    /// Starts a child that runs `child_main`, and exits with the number that it returns. The child dies with its
    /// parent. It ignores SIGINT and SIGTERM, which a terminal or a service manager may send to all processes of the
    /// group: its parent receives them too, and lets the child finish.
    ///
    /// # Errors
    ///
    /// There are too many processes, or there is too little memory.
    pub fn fork(&mut self, child_main: impl FnOnce() -> u8) -> io::Result<Pid> {
        let parent = getpid();
        // Until the child has initialized its signal handling, it has the parent's handlers, which would request the stop
        // of the parent and of all its children.
        let blocked = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        // SAFETY: no other thread could hold a lock that the child needs, as `new` has checked.
        let forked = unsafe { fork() };
        if let Ok(ForkResult::Child) = forked {
            // A child that continued with its parent's code after a panic would be a second server.
            let status = catch_unwind(AssertUnwindSafe(|| {
                init_child(parent);
                let _ = before.thread_set_mask();
                child_main()
            }));
            // SAFETY: _exit(2) takes a number and does not return.
            unsafe { libc::_exit(status.unwrap_or(u8::MAX).into()) }
        }
        before.thread_set_mask()?;
        match forked? {
            ForkResult::Parent { child } => {
                self.pids.insert(child);
                Ok(child)
            }
            ForkResult::Child => unreachable!("the child has exited above"),
        }
    }

    /// Reaps a child that has ended, and returns its process ID and its exit; `None` if no child has ended. Call it
    /// until it returns `None`: signals of one kind are not queued, so one SIGCHLD may stand for several children.
    pub fn reap(&mut self) -> Option<(Pid, ChildExit)> {
        loop {
            let (child, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(child, status)) => (child, ChildExit::Exited(status as u8)),
                Ok(WaitStatus::Signaled(child, signal, _)) => (child, ChildExit::Killed(signal)),
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(_) => continue,
            };
            if self.pids.remove(&child) {
                return Some((child, exit));
            }
        }
    }

    /// Sends a signal to all children.
    pub fn send_signal(&self, signal: Signal) {
        for &child in &self.pids {
            // A child that has ended meanwhile is a zombie until it is reaped, and the signal has no effect.
            let _ = kill(child, signal);
        }
    }

    /// Makes all children end the input of their [conversations](Conversation).
    pub fn end_input(&self) {
        self.send_signal(END_INPUT);
    }

    /// Waits until a child has ended or one of `others` is readable, for at most `limit` (`None`: without a limit).
    /// Returns which of `others` are readable. The end of a child is reported once, so call [`reap`](Self::reap) before
    /// each wait.
    ///
    /// # Errors
    ///
    /// poll(2) failed, which only a lack of memory can cause.
    pub fn wait<const N: usize>(
        &self,
        others: [Option<BorrowedFd<'_>>; N],
        limit: Option<Duration>,
    ) -> io::Result<[bool; N]> {
        // In the place of an absent descriptor stands `ended` with no events requested, for which nothing is reported.
        let mut wanted = vec![PollFd::new(&self.ended, PollFlags::IN)];
        wanted.extend(others.iter().map(|other| match other {
            Some(other) => PollFd::from_borrowed_fd(*other, PollFlags::IN),
            None => PollFd::new(&self.ended, PollFlags::empty()),
        }));
        poll(&mut wanted, limit)?;
        if !wanted[0].revents().is_empty() {
            // Empty the stream: the caller reaps all children that have ended, whatever their number.
            while matches!((&self.ended).read(&mut [0; 64]), Ok(64)) {}
        }
        Ok(std::array::from_fn(|other| {
            !wanted[1 + other].revents().is_empty()
        }))
    }
}

impl Drop for Children {
    /// Kills and reaps the remaining children.
    fn drop(&mut self) {
        unregister(self.signal);
        self.send_signal(Signal::SIGKILL);
        for &child in &self.pids {
            while waitpid(child, None) == Err(Errno::EINTR) {}
        }
    }
}

/// Initializes a new child: it gets its own signal handling, and dies with its parent.
fn init_child(parent: Pid) {
    #[cfg(target_os = "linux")]
    {
        let _ =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    }
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: an ignored signal runs no code of this program.
        let _ = unsafe { sigaction(signal, &ignore) };
    }
    if getppid() != parent {
        // The parent died before the kernel was asked to send the signal at its death.
        // SAFETY: as in `fork`, _exit(2) takes a number and does not return.
        unsafe { libc::_exit(u8::MAX.into()) }
    }
}

/// Descriptor of the connection whose input the signal ends; -1: none.
static CONNECTION: AtomicI32 = AtomicI32::new(-1);

/// True if the signal has ended the connection's input.
static INPUT_ENDED: AtomicBool = AtomicBool::new(false);

/// The conversation of a child. While this value exists, [`Children::end_input`] of the parent makes the child see the
/// end of the connection's input, after all input that has already arrived.
///
/// Create it *before* the fork, and let only the parent drop it after the fork. So the child has it from its first
/// instruction on, and no signal comes too early.
#[derive(Debug)]
pub struct Conversation<'s> {
    _stream: &'s TcpStream,
}

impl<'s> Conversation<'s> {
    /// Makes the signal apply to this connection. A process has one such connection at a time.
    pub fn over(stream: &'s TcpStream) -> Conversation<'s> {
        INPUT_ENDED.store(false, Ordering::SeqCst);
        CONNECTION.store(stream.as_fd().as_raw_fd(), Ordering::SeqCst);
        Conversation { _stream: stream }
    }

    /// Returns true if the server, and not the peer, has ended the connection's input.
    pub fn input_ended_by_server(&self) -> bool {
        INPUT_ENDED.load(Ordering::SeqCst)
    }
}

impl Drop for Conversation<'_> {
    fn drop(&mut self) {
        CONNECTION.store(-1, Ordering::SeqCst);
    }
}

/// Handles the signal: ends the input of the connection.
extern "C" fn on_end_input(_: libc::c_int) {
    let errno = Errno::last_raw();
    let connection = CONNECTION.load(Ordering::SeqCst);
    if connection >= 0 {
        // SAFETY: the descriptor is open: a `Conversation` borrows the stream, and resets CONNECTION before the borrow
        // ends.
        let stream = unsafe { BorrowedFd::borrow_raw(connection) };
        if shut_input(stream) {
            INPUT_ENDED.store(true, Ordering::SeqCst);
        }
    }
    Errno::set_raw(errno);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_in_a_process_with_more_threads_are_refused() {
        // More threads than the test harness has.
        let barrier = std::sync::Barrier::new(5);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    barrier.wait();
                });
            }
            barrier.wait();
            let error = Children::new().unwrap_err().to_string();
            barrier.wait();
            assert!(error.contains("one thread"), "{error}");
        });
    }
}
