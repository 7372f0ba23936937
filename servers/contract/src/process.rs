//! Processes that are forked, for the models that serve each peer, or some of them, by a process.
//!
//! All that is unsafe about it is here, for three reasons. fork(2) copies one thread and every lock, so a process that
//! forks must have no other thread that could hold one ([`Children::new`] looks). A child must end by `_exit(2)`: what
//! exit(3) would run and flush belongs to its parent. And a process that sleeps in read(2) can be told something only
//! by a signal, whose handler may do next to nothing; but it may call shutdown(2), and that ends the wait.

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

/// What tells a child to [end its input](Conversation).
const END_INPUT: Signal = Signal::SIGUSR1;

/// The children of this process: it must have no others, since it reaps whatever ends.
#[derive(Debug)]
pub struct Children {
    present: HashSet<Pid>,
    /// Readable when one has ended (SIGCHLD).
    ended: UnixStream,
    signal: SigId,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildExit {
    /// With what its life gave.
    Exited(u8),
    /// By a signal: somebody killed it, or it broke a rule of the machine.
    Killed(Signal),
}

impl Children {
    /// None yet.
    ///
    /// # Errors
    ///
    /// This process has other threads, or no descriptor was to be had.
    pub fn new() -> io::Result<Children> {
        // The tests' harness keeps two threads beside the one that serves; both sleep, and hold nothing.
        let most = if cfg!(feature = "suite") { 3 } else { 1 };
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads > most {
            return Err(io::Error::other(format!(
                "a process that forks must have one thread, and this one has {threads}: run this model in a process of its own"
            )));
        }
        let (tell, ended) = UnixStream::pair()?;
        ended.set_nonblocking(true)?;
        let signal = pipe::register(libc::SIGCHLD, tell)?;
        let heed = SigAction::new(
            SigHandler::Handler(end_input),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        // SAFETY: the handler calls nothing but poll(2), shutdown(2) and the clock, all of which POSIX allows there, and
        // leaves errno as it was.
        unsafe { sigaction(END_INPUT, &heed) }?;
        Ok(Children {
            present: HashSet::new(),
            ended,
            signal,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Starts a child that lives this life, and ends with what it gives. It dies with its parent. SIGINT and SIGTERM,
    /// which a terminal or a service manager may tell them all, it leaves to its parent, who lets it finish.
    ///
    /// # Errors
    ///
    /// There are too many processes, or there is too little memory.
    pub fn fork(&mut self, life: impl FnOnce() -> u8) -> io::Result<Pid> {
        let parent = getpid();
        // Until the child has settled, the parent's handlers are also its own: they would say stop to everybody.
        let held = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        let before = held.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        // SAFETY: nobody else could hold a lock that the child needs, as `new` has seen to.
        let forked = unsafe { fork() };
        if let Ok(ForkResult::Child) = forked {
            // A child that went on with its parent's code, by a panic, would be a second server.
            let status = catch_unwind(AssertUnwindSafe(|| {
                init_child(parent);
                let _ = before.thread_set_mask();
                life()
            }));
            // SAFETY: it takes a number and does not return.
            unsafe { libc::_exit(status.unwrap_or(u8::MAX).into()) }
        }
        before.thread_set_mask()?;
        match forked? {
            ForkResult::Parent { child } => {
                self.present.insert(child);
                Ok(child)
            }
            ForkResult::Child => unreachable!("it has ended above"),
        }
    }

    /// One that has ended since, and how. To be asked until there is none: signals of one kind are not queued.
    pub fn reap(&mut self) -> Option<(Pid, ChildExit)> {
        loop {
            let (child, end) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(child, status)) => (child, ChildExit::Exited(status as u8)),
                Ok(WaitStatus::Signaled(child, signal, _)) => (child, ChildExit::Killed(signal)),
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(_) => continue,
            };
            if self.present.remove(&child) {
                return Some((child, end));
            }
        }
    }

    /// Tells all of them.
    pub fn tell(&self, signal: Signal) {
        for &child in &self.present {
            // One that has ended meanwhile is a zombie until it is reaped, and hears nothing.
            let _ = kill(child, signal);
        }
    }

    /// Tells all of them to end their [conversation's](Conversation) input.
    pub fn tell_to_end_input(&self) {
        self.tell(END_INPUT);
    }

    /// Waits until a child has ended, or one of these is readable, for at most `limit`. Says which are. Whoever waits
    /// [reaps](Self::reap) first: an end is told once.
    ///
    /// # Errors
    ///
    /// poll(2) failed, which only a lack of memory can cause.
    pub fn wait<const N: usize>(
        &self,
        others: [Option<BorrowedFd<'_>>; N],
        limit: Option<Duration>,
    ) -> io::Result<[bool; N]> {
        // Nothing is wanted of the child's end where there is none, and nothing is then reported.
        let mut wanted = vec![PollFd::new(&self.ended, PollFlags::IN)];
        wanted.extend(others.iter().map(|other| match other {
            Some(other) => PollFd::from_borrowed_fd(*other, PollFlags::IN),
            None => PollFd::new(&self.ended, PollFlags::empty()),
        }));
        poll(&mut wanted, limit)?;
        if !wanted[0].revents().is_empty() {
            // However many have ended, they are all reaped now.
            while matches!((&self.ended).read(&mut [0; 64]), Ok(64)) {}
        }
        Ok(std::array::from_fn(|other| {
            !wanted[1 + other].revents().is_empty()
        }))
    }
}

impl Drop for Children {
    /// Ends and reaps whoever is left.
    fn drop(&mut self) {
        unregister(self.signal);
        self.tell(Signal::SIGKILL);
        for &child in &self.present {
            while waitpid(child, None) == Err(Errno::EINTR) {}
        }
    }
}

/// A new child's first steps.
fn init_child(parent: Pid) {
    #[cfg(target_os = "linux")]
    {
        let _ =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    }
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: to ignore a signal runs no code of ours.
        let _ = unsafe { sigaction(signal, &ignore) };
    }
    if getppid() != parent {
        // It died before the kernel knew whom to tell.
        // SAFETY: as in `fork`.
        unsafe { libc::_exit(u8::MAX.into()) }
    }
}

/// The connection whose input a signal ends; -1: none.
static CONNECTION: AtomicI32 = AtomicI32::new(-1);

/// The signal has ended it.
static ENDED: AtomicBool = AtomicBool::new(false);

/// While this exists, [`Children::tell_to_end_input`] makes this process see the end of a connection's input, after all
/// that has already arrived.
///
/// To be made *before* the fork, and dropped after it by the parent alone: so the child has it from its first moment on,
/// and there is no signal that comes too early.
#[derive(Debug)]
pub struct Conversation<'s> {
    _stream: &'s TcpStream,
}

impl<'s> Conversation<'s> {
    /// The signal now means this connection. There is one at a time.
    pub fn over(stream: &'s TcpStream) -> Conversation<'s> {
        ENDED.store(false, Ordering::SeqCst);
        CONNECTION.store(stream.as_fd().as_raw_fd(), Ordering::SeqCst);
        Conversation { _stream: stream }
    }

    /// Whether its end of input is our doing, not the peer's.
    pub fn told_to_end(&self) -> bool {
        ENDED.load(Ordering::SeqCst)
    }
}

impl Drop for Conversation<'_> {
    fn drop(&mut self) {
        CONNECTION.store(-1, Ordering::SeqCst);
    }
}

/// The signal handler.
extern "C" fn end_input(_: libc::c_int) {
    let errno = Errno::last_raw();
    let connection = CONNECTION.load(Ordering::SeqCst);
    if connection >= 0 {
        // SAFETY: it is open: a `Conversation` borrows the stream, and takes the number away before that ends.
        let stream = unsafe { BorrowedFd::borrow_raw(connection) };
        if shut_input(stream) {
            ENDED.store(true, Ordering::SeqCst);
        }
    }
    Errno::set_raw(errno);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_more_threads_may_not_fork() {
        // More than the tests' harness may have.
        let all_there = std::sync::Barrier::new(5);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    all_there.wait();
                    all_there.wait();
                });
            }
            all_there.wait();
            let error = Children::new().unwrap_err().to_string();
            all_there.wait();
            assert!(error.contains("one thread"), "{error}");
        });
    }
}
