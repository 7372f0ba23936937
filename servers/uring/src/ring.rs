//! A ring whose misuse does not compile: the only module with `unsafe` code.
//!
//! io_uring can't do without it. An operation is a record of addresses and numbers that the kernel acts upon long after
//! the call that submitted it has returned. Nothing that the operation names may be freed, changed, moved or closed
//! before its completion, and no borrow can express "until then". Ownership can:
//!
//! * Everything that an operation uses *moves into it*, and comes back with the completion: the listener, the socket,
//!   the session whose bytes are sent, the file and the buffer that it is read into. While a value is away no code can
//!   drop it, close it, or submit it a second time.
//! * Input comes in buffers that belong to the ring. The kernel takes a buffer when it has input to put into it, so
//!   idle connections need none; the kernel gets the buffer back when the [`Input`] is dropped.
//! * A completion must name its operation by index *and* generation. A completion with an unknown ticket is ignored.
//! * A ring that is dropped takes everything back first. A ring that is leaked leaks everything that is away.
//!
//! So each `unsafe` block needs one fact that types can't express: everything that an entry names is owned by its
//! operation, a buffer belongs to the kernel or to the server, lent bytes live as long as their session, a descriptor
//! in a completion is a new one.
#![allow(unsafe_code)]

use std::cell::{Cell, UnsafeCell};
use std::collections::VecDeque;
use std::mem;
use std::net::{TcpListener, TcpStream};
use std::ops::{Deref, Range};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;
use std::{io, slice};

use contract::READ_BUFFER;
use contract::files::FILE_BUFFER;
use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use protocol::{CloseReason, FileSlice, Session, Step, Work};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use slab::Slab;

#[cfg(test)]
mod tests;

/// Number of operations that fit into the submission queue, and go to the kernel in one call.
const ENTRIES: u32 = 1024;

/// Number of completions that fit into the completion queue. The kernel keeps further completions until there is room.
const COMPLETIONS: u32 = 4096;

/// Number of completions that a kernel may hold besides: up to Linux 6.9 it gathers 16 before it checks whether there
/// is room, and it keeps the completion that ends a multishot accept if there is none.
const HELD_BY_KERNEL: u32 = 17;

/// IORING_RECVSEND_POLL_FIRST: the kernel first waits for input, without an attempt to receive.
const POLL_FIRST: u16 = 1;

/// The ring of one thread, and everything that is away with its operations.
pub(crate) struct Ring {
    kernel: IoUring,
    buffers: Option<Rc<Buffers>>,
    operations: Slab<(Ticket, Operation)>,
    generation: u32,
    burst: usize,
    /// Entries for which the submission queue had no room.
    overflow: VecDeque<squeue::Entry>,
}

/// Name of an operation. The ticket of an operation that has completed names nothing, and using it has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// An operation, with everything that it uses.
enum Operation {
    Accept {
        listener: TcpListener,
        multishot: bool,
    },
    Watch(UnixStream),
    Receive {
        key: usize,
        connection: RingConnection,
        may_wait: bool,
        /// Buffer for a kernel that can't choose one of the ring's buffers; otherwise `None`.
        buffer: Option<Box<[u8]>>,
    },
    Send {
        key: usize,
        lent: Lent,
    },
    ReadFile {
        key: usize,
        reading: Reading,
    },
    Sleep {
        key: usize,
        connection: RingConnection,
        /// In a box, because the kernel reads the time when it takes the operation, and the operation may be moved
        /// before.
        time: Box<Timespec>,
    },
}

/// The result of an operation, with everything that the operation used.
pub(crate) enum Completion {
    /// Result of an accept. The listener is `None` if the accept continues, and still has it.
    Accepted(Option<TcpListener>, Result<TcpStream, Errno>),
    /// The watched stream has become readable.
    Readable,
    /// Result of a receive: the input, which is empty at the end of input.
    Received(usize, RingConnection, Result<Input, Errno>),
    /// Result of a send: the number of lent bytes that the socket has taken.
    Sent(usize, RingConnection, Result<usize, Errno>),
    /// Result of the read of a file: the number of bytes that were read and will be lent next; 0 at the end of the
    /// file.
    FileRead(usize, RingConnection, Result<usize, Errno>),
    /// Result of a sleep: `Ok` if its time is over.
    Slept(usize, RingConnection, Result<(), Errno>),
}

impl Ring {
    /// Creates a ring with the best settings that the kernel has. Only the thread that created the ring can use it.
    ///
    /// # Errors
    ///
    /// The kernel has no io_uring or forbids it, or a descriptor or memory is lacking.
    pub(crate) fn new() -> io::Result<Ring> {
        Ring::with(ENTRIES, COMPLETIONS)
    }

    /// Creates a ring as [`new`](Self::new) does, with queues of these lengths.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`new`](Self::new).
    pub(crate) fn with(entries: u32, completions: u32) -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(completions);
        let plain = builder.clone();
        // One thread submits, and the kernel works while that thread waits: no interruptions, no locks (Linux 6.1).
        builder.setup_single_issuer().setup_defer_taskrun();
        let (kernel, burst) = match builder.build(entries) {
            Ok(kernel) => {
                let most = kernel.params().cq_entries() + HELD_BY_KERNEL;
                (kernel, most as usize)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                (plain.build(entries)?, usize::MAX)
            }
            Err(error) => return Err(error),
        };
        if !kernel.params().is_feature_ext_arg() {
            // The wait with a time limit is the newest feature that the server needs (Linux 5.11).
            return Err(Errno::NOSYS.into());
        }
        Ok(Ring {
            buffers: Buffers::register(&kernel)?,
            kernel,
            operations: Slab::new(),
            generation: 0,
            burst,
            overflow: VecDeque::new(),
        })
    }

    /// Returns the largest number of peers that a multishot accept can have taken without a report when
    /// [`next`](Ring::next) returns `None`, or `usize::MAX` if the kernel sets no bound.
    ///
    /// A multishot accept ends when its completion finds no room in the queue, and only `next` makes room. It accepts
    /// only within [`wait`](Ring::wait), and there after the submitted entries: a cancellation comes before every peer
    /// that the accept would have taken. Both need a kernel that works only while the thread waits (Linux 6.1); on
    /// other kernels a multishot accept may accept at any moment, and continue when the queue is full.
    pub(crate) fn burst(&self) -> usize {
        self.burst
    }

    /// Submits an accept of one peer; if `multishot`, of one peer after the other until it is cancelled or fails.
    pub(crate) fn accept(&mut self, listener: TcpListener, multishot: bool) -> Ticket {
        self.submit(Operation::Accept {
            listener,
            multishot,
        })
    }

    /// Submits a wait until the stream is readable.
    pub(crate) fn watch(&mut self, stream: UnixStream) -> Ticket {
        self.submit(Operation::Watch(stream))
    }

    /// Submits a receive of the next input. Without `may_wait` it receives only input that is there already, and its
    /// result is EAGAIN if there is none.
    pub(crate) fn receive(
        &mut self,
        key: usize,
        connection: RingConnection,
        may_wait: bool,
    ) -> Ticket {
        let buffer = match self.buffers {
            Some(_) => None,
            None => Some(vec![0; READ_BUFFER].into_boxed_slice()),
        };
        self.submit(Operation::Receive {
            key,
            connection,
            may_wait,
            buffer,
        })
    }

    /// Submits a send of as many of the lent bytes as the socket takes.
    pub(crate) fn send(&mut self, key: usize, lent: Lent) -> Ticket {
        self.submit(Operation::Send { key, lent })
    }

    /// Submits a read of the beginning of a range of a file. The kernel copies pages that are in the page cache at
    /// once; for all other pages the kernel waits, and not this thread. Readiness can't do that: a file is always
    /// ready.
    pub(crate) fn read_file(&mut self, key: usize, reading: Reading) -> Ticket {
        self.submit(Operation::ReadFile { key, reading })
    }

    /// Submits a sleep of `time` for this connection.
    pub(crate) fn sleep(
        &mut self,
        key: usize,
        connection: RingConnection,
        time: Duration,
    ) -> Ticket {
        let time = Box::new(timespec(time));
        self.submit(Operation::Sleep {
            key,
            connection,
            time,
        })
    }

    /// Submits the cancellation of an operation. The operation completes in any case: with ECANCELED, or with the
    /// result that it has without a cancellation.
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        let entry = opcode::AsyncCancel::new(ticket.0).build();
        self.push(entry.user_data(Ticket::NONE.0));
    }

    /// Submits all entries and waits for a completion, for at most `limit` (`None`: without a limit). May return
    /// early.
    ///
    /// # Errors
    ///
    /// The kernel takes no more operations.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Result<(), Errno> {
        let limit = limit.map(timespec);
        let args = limit
            .as_ref()
            .map_or(SubmitArgs::new(), |limit| SubmitArgs::new().timespec(limit));
        loop {
            while let Some(entry) = self.overflow.front() {
                if !try_push(&mut self.kernel, entry) {
                    break;
                }
                self.overflow.pop_front();
            }
            // While there are more entries to submit, the ring does not wait yet.
            let want = usize::from(self.overflow.is_empty());
            let done = self.kernel.submitter().submit_with_args(want, &args);
            match done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
                Ok(_) if want == 0 => {}
                Ok(_) | Err(Errno::TIME | Errno::INTR) => return Ok(()),
                // Completions must be taken first, or memory is lacking.
                Err(Errno::BUSY | Errno::AGAIN) => {
                    if self.kernel.completion().is_empty() {
                        thread::sleep(Duration::from_millis(1));
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the next completion. `None`: there is none before the next [`wait`](Self::wait).
    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            let entry = self.kernel.completion().next()?;
            let ticket = Ticket(entry.user_data());
            match self.operations.get(ticket.index()) {
                Some((known, operation)) if *known == ticket => {
                    if matches!(operation, Operation::Accept { .. }) && cqueue::more(entry.flags())
                    {
                        // SAFETY: the entry is the completion of an accept, and used once.
                        let accepted = unsafe { accepted(&entry) };
                        return Some(Completion::Accepted(None, accepted));
                    }
                }
                _ => continue,
            }
            let (_, operation) = self.operations.remove(ticket.index());
            let result = result(&entry);
            return Some(match operation {
                Operation::Accept { listener, .. } => {
                    // SAFETY: the entry is the completion of an accept, and used once.
                    let accepted = unsafe { accepted(&entry) };
                    Completion::Accepted(Some(listener), accepted)
                }
                Operation::Watch(_) => Completion::Readable,
                Operation::Receive {
                    key,
                    connection,
                    may_wait,
                    ..
                } if result == Err(Errno::NOBUFS) => {
                    // All buffers are in completions behind this one: the receive is submitted again, for the time when
                    // these have been handled. It keeps its ticket, whose index is vacant, because the holder of the
                    // ticket may want to cancel it.
                    let buffer = None;
                    let again = Operation::Receive {
                        key,
                        connection,
                        may_wait,
                        buffer,
                    };
                    self.submit_as(ticket, again);
                    continue;
                }
                Operation::Receive {
                    key,
                    mut connection,
                    buffer,
                    ..
                } => {
                    connection.more_input = cqueue::sock_nonempty(entry.flags());
                    let chosen = cqueue::buffer_select(entry.flags());
                    let memory = match (chosen, &self.buffers) {
                        (Some(number), Some(all)) => Memory::Ring(Rc::clone(all), number),
                        _ => Memory::Own(buffer.unwrap_or_default()),
                    };
                    let length = result.unwrap_or(0).min(READ_BUFFER);
                    let input = Input { memory, length };
                    Completion::Received(key, connection, result.map(|_| input))
                }
                Operation::Send { key, lent } => Completion::Sent(key, lent.connection, result),
                Operation::ReadFile { key, reading } => {
                    let (mut connection, buffer) = (reading.connection, reading.buffer);
                    let rest = 0..result.unwrap_or(0).min(buffer.len());
                    connection.chunk = Some(Chunk { buffer, rest });
                    Completion::FileRead(key, connection, result)
                }
                Operation::Sleep {
                    key, connection, ..
                } => {
                    let over = match result {
                        Ok(_) | Err(Errno::TIME) => Ok(()),
                        Err(error) => Err(error),
                    };
                    Completion::Slept(key, connection, over)
                }
            });
        }
    }

    fn submit(&mut self, operation: Operation) -> Ticket {
        self.generation = self.generation.wrapping_add(1);
        let ticket = Ticket::new(self.operations.vacant_key(), self.generation);
        self.submit_as(ticket, operation);
        ticket
    }

    fn submit_as(&mut self, ticket: Ticket, mut operation: Operation) {
        let entry = match &mut operation {
            Operation::Accept {
                listener,
                multishot,
            } => {
                let (fd, no_address) = (Fd(listener.as_raw_fd()), ptr::null_mut());
                let flags = SocketFlags::CLOEXEC.bits() as i32;
                match multishot {
                    true => opcode::AcceptMulti::new(fd).flags(flags).build(),
                    false => opcode::Accept::new(fd, no_address, ptr::null_mut())
                        .flags(flags)
                        .build(),
                }
            }
            Operation::Watch(stream) => {
                opcode::PollAdd::new(Fd(stream.as_raw_fd()), PollFlags::IN.bits().into()).build()
            }
            Operation::Receive {
                connection,
                may_wait,
                buffer,
                ..
            } => {
                let fd = Fd(connection.stream.as_raw_fd());
                let flags = match may_wait {
                    true => RecvFlags::empty(),
                    false => RecvFlags::DONTWAIT,
                };
                let flags = flags.bits() as i32;
                match buffer {
                    None => opcode::Recv::new(fd, ptr::null_mut(), READ_BUFFER as u32)
                        .flags(flags)
                        // The peer waits for the last reply first: an attempt now would mostly find no input.
                        .ioprio(if *may_wait && !connection.more_input {
                            POLL_FIRST
                        } else {
                            0
                        })
                        .buf_group(Buffers::GROUP)
                        .build()
                        .flags(squeue::Flags::BUFFER_SELECT),
                    Some(buffer) => opcode::Recv::new(fd, buffer.as_mut_ptr(), READ_BUFFER as u32)
                        .flags(flags)
                        .build(),
                }
            }
            Operation::Send { lent, .. } => {
                let fd = Fd(lent.connection.stream.as_raw_fd());
                let length = lent.bytes.len().min(1 << 30);
                opcode::Send::new(fd, lent.bytes.cast(), length as u32)
                    .flags(SendFlags::NOSIGNAL.bits() as i32)
                    .build()
            }
            Operation::ReadFile { reading, .. } => {
                let Reading { slice, buffer, .. } = reading;
                let fd = Fd(slice.file().as_raw_fd());
                let length = slice.len().min(buffer.len() as u64);
                opcode::Read::new(fd, buffer.as_mut_ptr(), length as u32)
                    .offset(slice.offset())
                    .build()
            }
            Operation::Sleep { time, .. } => opcode::Timeout::new(&raw const **time).build(),
        };
        // The slab fills the index that was vacated last. With another index the completion would not be recognised.
        let index = self.operations.insert((ticket, operation));
        assert_eq!(index, ticket.index(), "the slab used another index");
        self.push(entry.user_data(ticket.0));
    }

    /// Queues an entry: a cancellation, which uses nothing, or an operation that was just put into
    /// [`Ring::operations`].
    fn push(&mut self, entry: squeue::Entry) {
        if !self.overflow.is_empty() || !try_push(&mut self.kernel, &entry) {
            self.overflow.push_back(entry);
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec::new()
        .sec(time.as_secs())
        .nsec(time.subsec_nanos())
}

/// Returns the result of an operation in the form of a system call's result.
fn result(entry: &cqueue::Entry) -> Result<usize, Errno> {
    usize::try_from(entry.result()).map_err(|_| Errno::from_raw_os_error(-entry.result()))
}

/// Returns the connection in the completion of an accept.
///
/// # Safety
///
/// The entry must be the completion of an accept, and its connection must not have been taken before.
unsafe fn accepted(entry: &cqueue::Entry) -> Result<TcpStream, Errno> {
    result(entry).map(|_| {
        // SAFETY: accept returns a new descriptor, which has no other owner.
        TcpStream::from(unsafe { OwnedFd::from_raw_fd(entry.result()) })
    })
}

fn try_push(kernel: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: everything that the entry names is owned by its operation (see `push`), and the operation stays in
    // `Ring::operations` until it is completed: `next` removes only completed ones, `drop` waits for all others or
    // leaks them.
    unsafe { kernel.submission().push(entry) }.is_ok()
}

impl Drop for Ring {
    fn drop(&mut self) {
        while !self.operations.is_empty() {
            let all: Vec<Ticket> = self.operations.iter().map(|(_, (one, _))| *one).collect();
            for ticket in all {
                self.cancel(ticket);
            }
            if self.wait(None).is_err() {
                // The kernel may use them without a time limit, so they must never be freed.
                mem::forget(mem::take(&mut self.operations));
                mem::forget(self.buffers.take());
                return;
            }
            while self.next().is_some() {}
        }
    }
}

impl Ticket {
    /// A ticket that names no operation.
    pub(crate) const NONE: Ticket = Ticket(u64::MAX);

    fn new(index: usize, generation: u32) -> Ticket {
        Ticket(u64::from(generation) << 32 | index as u64)
    }

    fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

/// A socket and its session, which together move into an operation and back.
pub(crate) struct RingConnection {
    stream: TcpStream,
    session: OwnedSession,
    /// True if there was more input than the last receive took.
    more_input: bool,
    /// Part of the file that is being sent; `None` if no file is.
    chunk: Option<Chunk>,
}

/// A part of a file in memory, and the range of it that is still to be sent.
struct Chunk {
    /// A buffer of [`FILE_BUFFER`] bytes. It is no box, for the reason given at [`OwnedSession`].
    buffer: Vec<u8>,
    rest: Range<usize>,
}

/// A `Box<dyn Session>` as a pointer: moving a box would tell the compiler that no other pointer to its bytes is in
/// use.
struct OwnedSession(NonNull<dyn Session>);

impl Drop for OwnedSession {
    fn drop(&mut self) {
        // SAFETY: the pointer comes from a box, and this value is its only owner.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A session's next step, with the connection.
pub(crate) enum Next {
    /// Receive input.
    Read(RingConnection),
    /// Send these bytes.
    Write(Lent),
    /// Read this range of a file, to send it afterwards.
    ReadFile(Reading),
    /// Do this work.
    Work(RingConnection, Work),
    /// Close the connection.
    Close(RingConnection, CloseReason),
}

/// Bytes to be sent from their place in memory: in the session, or in the part of a file that was read. No code can
/// reach either of these meanwhile, so the bytes are as good as borrowed: they are not changed and not freed.
pub(crate) struct Lent {
    connection: RingConnection,
    bytes: *const [u8],
}

/// A range of a file to be read, and the buffer to read it into.
pub(crate) struct Reading {
    connection: RingConnection,
    /// The range, which shares ownership of the file: the file stays open until the completion.
    slice: FileSlice,
    buffer: Vec<u8>,
}

impl RingConnection {
    pub(crate) fn new(stream: TcpStream, session: Box<dyn Session>) -> RingConnection {
        RingConnection {
            stream,
            session: OwnedSession(NonNull::from(Box::leak(session))),
            more_input: false,
            chunk: None,
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn session(&mut self) -> &mut dyn Session {
        // SAFETY: the pointer's only owner is borrowed for as long as the result.
        unsafe { self.session.0.as_mut() }
    }

    pub(crate) fn step(mut self) -> Next {
        if let Some(chunk) = &self.chunk
            && !chunk.rest.is_empty()
        {
            // These bytes are the beginning of the range that the session would return as its step.
            let bytes = ptr::from_ref(&chunk.buffer[chunk.rest.clone()]);
            let connection = self;
            return Next::Write(Lent { connection, bytes });
        }
        // The whole chunk is sent. Its memory is used for the next part of the file, if there is one.
        let chunk = self.chunk.take();
        match self.session().step() {
            Step::Read => Next::Read(self),
            Step::Write(bytes) => {
                let bytes = ptr::from_ref(bytes);
                let connection = self;
                Next::Write(Lent { connection, bytes })
            }
            Step::SendFile(slice) => Next::ReadFile(Reading {
                slice: slice.clone(),
                buffer: chunk.map_or_else(|| vec![0; FILE_BUFFER], |chunk| chunk.buffer),
                connection: self,
            }),
            Step::Work(work) => Next::Work(self, work),
            Step::Close(reason) => Next::Close(self, reason),
        }
    }

    /// Reports that `count` of the bytes that were lent last have been sent.
    pub(crate) fn sent(&mut self, count: usize) {
        if let Some(chunk) = &mut self.chunk {
            chunk.rest.start += count;
        }
        self.session().sent(count);
    }
}

/// Received input. It occupies one of the ring's buffers until it is dropped.
pub(crate) struct Input {
    memory: Memory,
    length: usize,
}

enum Memory {
    Ring(Rc<Buffers>, u16),
    Own(Box<[u8]>),
}

impl Deref for Input {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: the kernel has handed the buffer over, and does not write to it until `drop` gives it back.
            Memory::Ring(all, number) => unsafe {
                slice::from_raw_parts(all.start(*number), self.length)
            },
            Memory::Own(buffer) => &buffer[..self.length],
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Memory::Ring(all, number) = &self.memory {
            all.provide(*number);
        }
    }
}

/// Buffers from which the kernel chooses (IORING_REGISTER_PBUF_RING), and the queue in which it gets them.
struct Buffers {
    queue: Box<Queue>,
    memory: Box<[UnsafeCell<[u8; READ_BUFFER]>]>,
    tail: Cell<u16>,
}

/// The queue of the buffers. The kernel requires it to begin at the start of a page, and no page is larger than this
/// alignment.
#[repr(C, align(65536))]
struct Queue([UnsafeCell<BufRingEntry>; Buffers::COUNT as usize]);

impl Buffers {
    /// Number of buffers; a power of two. A buffer is in use only while its input is being handled.
    const COUNT: u16 = 128;
    const GROUP: u16 = 0;

    /// Registers buffers with the kernel. Returns `None` if the kernel can't choose a buffer (before Linux 5.19).
    fn register(kernel: &IoUring) -> io::Result<Option<Rc<Buffers>>> {
        let buffers = Rc::new(Buffers {
            // SAFETY: the queue consists of numbers only, and zero is a valid number.
            queue: unsafe { Box::new_zeroed().assume_init() },
            // SAFETY: the buffers consist of numbers only, and zero is a valid number. The system provides zeroed
            // memory when it is first used, so buffers that are never used cost nothing.
            memory: unsafe { Box::new_zeroed_slice(Self::COUNT.into()).assume_init() },
            tail: Cell::new(0),
        });
        let queue = buffers.queue.0[0].get().expose_provenance() as u64;
        let submitter = kernel.submitter();
        // SAFETY: the queue has that number of entries, and they stay until no operation is left that could choose a
        // buffer: see `Ring`'s `drop`.
        let done =
            unsafe { submitter.register_buf_ring_with_flags(queue, Self::COUNT, Self::GROUP, 0) };
        match done {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            done => done?,
        }
        (0..Self::COUNT).for_each(|number| buffers.provide(number));
        Ok(Some(buffers))
    }

    fn start(&self, number: u16) -> *mut u8 {
        self.memory[usize::from(number)].get().cast()
    }

    /// Gives a buffer to the kernel. Only the owner of the buffer may do so: `register`, and each [`Input`] when it is
    /// dropped.
    fn provide(&self, number: u16) {
        let tail = self.tail.get();
        let entry = self.queue.0[usize::from(tail % Self::COUNT)].get();
        // SAFETY: the kernel reads up to the tail, and this is the entry behind it. The entry is free, because there
        // are as many entries as buffers, and the kernel does not have this buffer.
        unsafe {
            (*entry).set_addr(self.start(number).expose_provenance() as u64);
            (*entry).set_len(READ_BUFFER as u32);
            (*entry).set_bid(number);
        }
        self.tail.set(tail.wrapping_add(1));
        let first = self.queue.0[0].get();
        // SAFETY: the tail is in an unused part of the first entry; this code writes it and the kernel reads it,
        // atomically.
        unsafe {
            let shared = BufRingEntry::tail(first).cast_mut();
            AtomicU16::from_ptr(shared).store(self.tail.get(), Ordering::Release);
        }
    }
}
