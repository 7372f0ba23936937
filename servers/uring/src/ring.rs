//! A ring whose misuse does not compile: the only module with `unsafe` code.
//!
//! io_uring can't do without it. An operation is a record of addresses and numbers that the kernel acts upon long after
//! the call that submitted it has returned. Nothing that it names may be freed, changed, moved or closed before its
//! completion, and no borrow can say "until then". Ownership can:
//!
//! * What an operation uses *moves into it*, and comes back with the completion: the listener, the socket, the session
//!   whose bytes are sent, the file and the buffer that it is read into. While it is away nobody can drop it, close it,
//!   or submit it a second time.
//! * Input comes in buffers that belong to the ring. The kernel takes one when there is something to put into it, so
//!   silent connections need none; it has it back when the [`Input`] is dropped.
//! * A completion must name its operation by place *and* generation. What is not known is passed over.
//! * A ring that is dropped takes everything back first. One that is leaked leaks all that is away.
//!
//! So each `unsafe` block needs one fact that types can't tell: what an entry names is owned by its operation, a buffer
//! is the kernel's or ours, lent bytes live as long as their session, a descriptor in a completion is a new one.
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

/// Operations that fit into the submission queue, and go to the kernel in one call.
const ENTRIES: u32 = 1024;

/// Completions that fit into the completion queue. The kernel keeps those beyond until there is room.
const COMPLETIONS: u32 = 4096;

/// Completions that a kernel may have in hand besides: up to Linux 6.9 it gathers 16 before it looks whether there is
/// room, and the one that ends an accept of many is kept where there is none.
const IN_HAND: u32 = 17;

/// IORING_RECVSEND_POLL_FIRST: wait for input first, and do not try before.
const POLL_FIRST: u16 = 1;

/// One thread's ring, and everything that is away with its operations.
pub(crate) struct Ring {
    kernel: IoUring,
    buffers: Option<Rc<Buffers>>,
    operations: Slab<(Ticket, Operation)>,
    generation: u32,
    burst: usize,
    /// Entries for which the submission queue had no room.
    more: VecDeque<squeue::Entry>,
}

/// Names an operation. When that has been completed it names nothing, and does no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// All that an operation uses.
enum Operation {
    Accept {
        listener: TcpListener,
        many: bool,
    },
    Watch(UnixStream),
    Receive {
        key: usize,
        connection: RingConnection,
        patient: bool,
        /// Where the kernel can't choose one of the ring's.
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
        /// Boxed: the kernel looks at it when it takes the operation, and that may be moved until then.
        time: Box<Timespec>,
    },
}

/// What an operation came to, with all that it used.
pub(crate) enum Completion {
    /// A peer was accepted, or not. Without the listener: the accept goes on, and has it still.
    Accepted(Option<TcpListener>, Result<TcpStream, Errno>),
    /// What was watched has become readable.
    Readable,
    /// Input has come; none at its end.
    Received(usize, RingConnection, Result<Input, Errno>),
    /// So many of the lent bytes were taken.
    Sent(usize, RingConnection, Result<usize, Errno>),
    /// So many bytes of a file are there, and will be lent next; none at its end.
    FileRead(usize, RingConnection, Result<usize, Errno>),
    /// The time is over.
    Slept(usize, RingConnection, Result<(), Errno>),
}

impl Ring {
    /// A new ring, with the best that the kernel has. Only the thread that made it can use it.
    ///
    /// # Errors
    ///
    /// There is no io_uring here, or it may not be used, or a descriptor or memory is lacking.
    pub(crate) fn new() -> io::Result<Ring> {
        Ring::with(ENTRIES, COMPLETIONS)
    }

    /// Likewise, with queues of these lengths.
    pub(crate) fn with(entries: u32, completions: u32) -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(completions);
        let plain = builder.clone();
        // One thread submits, and the kernel works when that thread waits: no interruptions, no locks (Linux 6.1).
        builder.setup_single_issuer().setup_defer_taskrun();
        let (kernel, burst) = match builder.build(entries) {
            Ok(kernel) => {
                let most = kernel.params().cq_entries() + IN_HAND;
                (kernel, most as usize)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                (plain.build(entries)?, usize::MAX)
            }
            Err(error) => return Err(error),
        };
        if !kernel.params().is_feature_ext_arg() {
            // To wait for at most some time: the youngest of the things that are needed (Linux 5.11).
            return Err(Errno::NOSYS.into());
        }
        Ok(Ring {
            buffers: Buffers::register(&kernel)?,
            kernel,
            operations: Slab::new(),
            generation: 0,
            burst,
            more: VecDeque::new(),
        })
    }

    /// The most peers that an accept of many can have taken, but not told of, when [`next`](Ring::next) has no more; as
    /// many can't be where the kernel sets no bound.
    ///
    /// Such an accept ends when its completion finds no room in the queue, and room is made by `next` alone. It accepts
    /// within [`wait`](Ring::wait) alone, and there after what was submitted: a cancellation precedes whatever it would
    /// have taken. Both need a kernel that works only when it is waited for (Linux 6.1); elsewhere it may accept at any
    /// moment, and go on when the queue is full.
    pub(crate) fn burst(&self) -> usize {
        self.burst
    }

    /// Accepts one peer, or many until it is cancelled or fails.
    pub(crate) fn accept(&mut self, listener: TcpListener, many: bool) -> Ticket {
        self.submit(Operation::Accept { listener, many })
    }

    /// Waits until the stream is readable.
    pub(crate) fn watch(&mut self, stream: UnixStream) -> Ticket {
        self.submit(Operation::Watch(stream))
    }

    /// Receives what comes next; if not `patient`, only what is there already (EAGAIN: nothing).
    pub(crate) fn receive(
        &mut self,
        key: usize,
        connection: RingConnection,
        patient: bool,
    ) -> Ticket {
        let buffer = match self.buffers {
            Some(_) => None,
            None => Some(vec![0; READ_BUFFER].into_boxed_slice()),
        };
        self.submit(Operation::Receive {
            key,
            connection,
            patient,
            buffer,
        })
    }

    /// Sends as many of the lent bytes as the socket takes.
    pub(crate) fn send(&mut self, key: usize, lent: Lent) -> Ticket {
        self.submit(Operation::Send { key, lent })
    }

    /// Reads the beginning of a range of a file. What is in the page cache is copied there and then; for all else the
    /// kernel waits, and not this thread. (By readiness it could not be done: a file is always ready.)
    pub(crate) fn read_file(&mut self, key: usize, reading: Reading) -> Ticket {
        self.submit(Operation::ReadFile { key, reading })
    }

    /// Lets so much time pass, for this connection only.
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

    /// Asks for an operation to be ended. Its completion comes in any case: it says ECANCELED, or what it would have
    /// said if nobody had asked.
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        let entry = opcode::AsyncCancel::new(ticket.0).build();
        self.push(entry.user_data(Ticket::NONE.0));
    }

    /// Submits everything and waits for a completion, for at most `limit` or for ever. May be early.
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
            while let Some(entry) = self.more.front() {
                if !try_push(&mut self.kernel, entry) {
                    break;
                }
                self.more.pop_front();
            }
            // Who has more to submit does not wait yet.
            let want = usize::from(self.more.is_empty());
            let done = self.kernel.submitter().submit_with_args(want, &args);
            match done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
                Ok(_) if want == 0 => {}
                Ok(_) | Err(Errno::TIME | Errno::INTR) => return Ok(()),
                // Completions must be taken first, or memory is short.
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

    /// What has been completed, one after the other. `None`: wait again.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            let entry = self.kernel.completion().next()?;
            let ticket = Ticket(entry.user_data());
            match self.operations.get(ticket.place()) {
                Some((known, operation)) if *known == ticket => {
                    if matches!(operation, Operation::Accept { .. }) && cqueue::more(entry.flags())
                    {
                        // SAFETY: it is an accept's, and looked at once.
                        let accepted = unsafe { accepted(&entry) };
                        return Some(Completion::Accepted(None, accepted));
                    }
                }
                _ => continue,
            }
            let (_, operation) = self.operations.remove(ticket.place());
            let result = result(&entry);
            return Some(match operation {
                Operation::Accept { listener, .. } => {
                    // SAFETY: it is an accept's, and looked at once.
                    let accepted = unsafe { accepted(&entry) };
                    Completion::Accepted(Some(listener), accepted)
                }
                Operation::Watch(_) => Completion::Readable,
                Operation::Receive {
                    key,
                    connection,
                    patient,
                    ..
                } if result == Err(Errno::NOBUFS) => {
                    // All the buffers are in completions behind this one: once more, when they have been looked at.
                    // (Under the same name, which is vacant: whoever holds it may want to cancel.)
                    let buffer = None;
                    let again = Operation::Receive {
                        key,
                        connection,
                        patient,
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
                    connection.more = cqueue::sock_nonempty(entry.flags());
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
            Operation::Accept { listener, many } => {
                let (fd, nobody) = (Fd(listener.as_raw_fd()), ptr::null_mut());
                let flags = SocketFlags::CLOEXEC.bits() as i32;
                match many {
                    true => opcode::AcceptMulti::new(fd).flags(flags).build(),
                    false => opcode::Accept::new(fd, nobody, ptr::null_mut())
                        .flags(flags)
                        .build(),
                }
            }
            Operation::Watch(stream) => {
                opcode::PollAdd::new(Fd(stream.as_raw_fd()), PollFlags::IN.bits().into()).build()
            }
            Operation::Receive {
                connection,
                patient,
                buffer,
                ..
            } => {
                let fd = Fd(connection.stream.as_raw_fd());
                let flags = match patient {
                    true => RecvFlags::empty(),
                    false => RecvFlags::DONTWAIT,
                };
                let flags = flags.bits() as i32;
                match buffer {
                    None => opcode::Recv::new(fd, ptr::null_mut(), READ_BUFFER as u32)
                        .flags(flags)
                        // The peer wants the last reply first: an attempt now would mostly find nothing.
                        .ioprio(if *patient && !connection.more {
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
        // What was taken out last is what is filled next; were it not so, the completion would not be known.
        let place = self.operations.insert((ticket, operation));
        assert_eq!(place, ticket.place(), "another place");
        self.push(entry.user_data(ticket.0));
    }

    /// Takes cancellations, which use nothing, and the entry of an operation that has just been put into its place.
    fn push(&mut self, entry: squeue::Entry) {
        if !self.more.is_empty() || !try_push(&mut self.kernel, &entry) {
            self.more.push_back(entry);
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec::new()
        .sec(time.as_secs())
        .nsec(time.subsec_nanos())
}

/// What an operation came to, as system calls tell it.
fn result(entry: &cqueue::Entry) -> Result<usize, Errno> {
    usize::try_from(entry.result()).map_err(|_| Errno::from_raw_os_error(-entry.result()))
}

/// The peer of an accept's completion.
///
/// # Safety
///
/// The completion is an accept's, and nobody has taken the peer from it before.
unsafe fn accepted(entry: &cqueue::Entry) -> Result<TcpStream, Errno> {
    result(entry).map(|_| {
        // SAFETY: what accept gives is a new descriptor, and nobody else has it.
        TcpStream::from(unsafe { OwnedFd::from_raw_fd(entry.result()) })
    })
}

fn try_push(kernel: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: what the entry names is owned by its operation (see `push`), and that stays in `Ring::operations` until it
    // is completed: `next` takes out only those, `drop` waits for all others or leaks them.
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
                // The kernel may use them as long as it likes, so nobody else may.
                mem::forget(mem::take(&mut self.operations));
                mem::forget(self.buffers.take());
                return;
            }
            while self.next().is_some() {}
        }
    }
}

impl Ticket {
    /// Names nothing.
    pub(crate) const NONE: Ticket = Ticket(u64::MAX);

    fn new(place: usize, generation: u32) -> Ticket {
        Ticket(u64::from(generation) << 32 | place as u64)
    }

    fn place(self) -> usize {
        self.0 as u32 as usize
    }
}

/// A socket, and the session that is held over it: what moves from hand to hand.
pub(crate) struct RingConnection {
    stream: TcpStream,
    session: Held,
    /// There was more input than the last receive took.
    more: bool,
    /// What was read of the file that is being sent. Who is sent none has none.
    chunk: Option<Chunk>,
}

/// A part of a file in memory, and what of it is still to be sent.
struct Chunk {
    /// [`FILE_BUFFER`] bytes. (Not a box: see [`Held`].)
    buffer: Vec<u8>,
    rest: Range<usize>,
}

/// As `Box<dyn Session>`, but moving it does not tell the compiler that nobody else points to its bytes.
struct Held(NonNull<dyn Session>);

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: it was a box, and this is its only owner.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A session's next step, with the connection.
pub(crate) enum Next {
    /// Receive.
    Read(RingConnection),
    /// Send these.
    Write(Lent),
    /// Read this, to send it then.
    ReadFile(Reading),
    /// Do this.
    Work(RingConnection, Work),
    /// Say goodbye.
    Close(RingConnection, CloseReason),
}

/// Bytes to be sent from where they lie: in their session, or in what was read of a file. Neither can be reached
/// meanwhile, so they are as good as borrowed: nobody changes them or frees them.
pub(crate) struct Lent {
    connection: RingConnection,
    bytes: *const [u8],
}

/// A range of a file to be read, and where to.
pub(crate) struct Reading {
    connection: RingConnection,
    /// With a share in the file: it stays open until the completion.
    slice: FileSlice,
    buffer: Vec<u8>,
}

impl RingConnection {
    pub(crate) fn new(stream: TcpStream, session: Box<dyn Session>) -> RingConnection {
        RingConnection {
            stream,
            session: Held(NonNull::from(Box::leak(session))),
            more: false,
            chunk: None,
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn session(&mut self) -> &mut dyn Session {
        // SAFETY: its only owner is borrowed for as long.
        unsafe { self.session.0.as_mut() }
    }

    pub(crate) fn step(mut self) -> Next {
        if let Some(chunk) = &self.chunk
            && !chunk.rest.is_empty()
        {
            // It is the beginning of what the session would ask for.
            let bytes = ptr::from_ref(&chunk.buffer[chunk.rest.clone()]);
            let connection = self;
            return Next::Write(Lent { connection, bytes });
        }
        // All is sent, and the memory is for the next part of the file if there is one.
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
            Step::Close(farewell) => Next::Close(self, farewell),
        }
    }

    /// So many of the bytes that were lent last were sent.
    pub(crate) fn sent(&mut self, count: usize) {
        if let Some(chunk) = &mut self.chunk {
            chunk.rest.start += count;
        }
        self.session().sent(count);
    }
}

/// What was received, in one of the ring's buffers until it is dropped.
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
            // SAFETY: the kernel has given the buffer to us, and does not write to it until it has it back, in `drop`.
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

/// Buffers from which the kernel chooses (IORING_REGISTER_PBUF_RING), and the queue in which they are given to it.
struct Buffers {
    queue: Box<Queue>,
    memory: Box<[UnsafeCell<[u8; READ_BUFFER]>]>,
    tail: Cell<u16>,
}

/// The kernel wants it at the start of a page, and no page is larger.
#[repr(C, align(65536))]
struct Queue([UnsafeCell<BufRingEntry>; Buffers::COUNT as usize]);

impl Buffers {
    /// How many; a power of two. Each is away for as long as it takes to look at it.
    const COUNT: u16 = 128;
    const GROUP: u16 = 0;

    /// Buffers that the kernel knows; `None` where it can't choose (before Linux 5.19).
    fn register(kernel: &IoUring) -> io::Result<Option<Rc<Buffers>>> {
        let buffers = Rc::new(Buffers {
            // SAFETY: zero is a valid number, and both are made of numbers only.
            queue: unsafe { Box::new_zeroed().assume_init() },
            // SAFETY: likewise. Zeroed memory is not there before it is used; nobody pays for buffers that never are.
            memory: unsafe { Box::new_zeroed_slice(Self::COUNT.into()).assume_init() },
            tail: Cell::new(0),
        });
        let queue = buffers.queue.0[0].get().expose_provenance() as u64;
        let submitter = kernel.submitter();
        // SAFETY: there are as many entries, and they stay until no operation is left that could choose: see `Ring`'s
        // `drop`.
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

    /// Gives a buffer to the kernel. Only whoever has it may do so: `register`, and each [`Input`] at its end.
    fn provide(&self, number: u16) {
        let tail = self.tail.get();
        let entry = self.queue.0[usize::from(tail % Self::COUNT)].get();
        // SAFETY: the kernel reads up to the tail, and this is the entry behind it: there are as many as buffers, and
        // one of those is here.
        unsafe {
            (*entry).set_addr(self.start(number).expose_provenance() as u64);
            (*entry).set_len(READ_BUFFER as u32);
            (*entry).set_bid(number);
        }
        self.tail.set(tail.wrapping_add(1));
        let first = self.queue.0[0].get();
        // SAFETY: the tail is in an unused part of the first entry; we write it and the kernel reads it, atomically.
        unsafe {
            let shared = BufRingEntry::tail(first).cast_mut();
            AtomicU16::from_ptr(shared).store(self.tail.get(), Ordering::Release);
        }
    }
}
