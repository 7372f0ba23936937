//! `prefork`: processes that share a listener.
//!
//! ```text
//!            fork ──► process: accept ──► converse ──► accept ──► …   ─┐
//!   parent ──fork ──► process: accept ──► converse ──► …               ├──► reports
//!      ▲     fork ──► process: accept ──► …   (killed: replaced)       │
//!      └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! Each process is `serial`, word for word. There are as many of them as peers can be served at a time, and they are
//! there before the first peer comes: what `fork` pays for every connection is paid once. They all sleep in accept(2) on
//! the same listener, which their parent opened before it forked; for each peer the kernel wakes one.
//!
//! The parent serves nobody. It counts what the others report as it happens (one that is killed can't report any more),
//! and puts another in the place of one that has died.

use std::collections::HashSet;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process;
use std::time::{Duration, Instant};

use contract::blocking::Acceptor;
use contract::process::{ChildExit, Children};
use contract::{
    Capacity, Deviation, Ending, Guarantee, Limits, Model, Needs, Offload, Service, Stop, Tally,
    accept, always_available,
};
use nix::sys::signal::Signal;

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "prefork",
    summary: "processes that share a listener, each with one connection at a time",
    lineage: "Stevens' UNP, server 2; Apache's prefork, gunicorn",
    source: "servers/prefork/src/lib.rs",
    serve,
    available: always_available,
    capacity: Capacity::Workers,
    needs: Needs {
        own_process: true,
        ..Needs::NOTHING
    },
    offload: Offload::Needless("each peer that is served has a process of its own"),
    deviations: &[
        Deviation {
            guarantee: Guarantee::Memory,
            reason: "a peer that never reads holds a process; as many as there are processes hold up all others",
        },
        Deviation {
            guarantee: Guarantee::Limit,
            reason: "no more are served at a time than there are processes (--workers), even if all they do is to be silent",
        },
        Deviation {
            guarantee: Guarantee::Isolation,
            reason: "peers that stay without asking, such as 250 that begin a request and never go on, keep all processes, and whoever comes later waits",
        },
    ],
}];

/// What a process reports when it has accepted a peer. How that ended is reported by the ending's code.
const ACCEPTED: u8 = 100;
/// What it reports at its end for each error of accept(2).
const ACCEPT_ERROR: u8 = 101;

/// The exit status of a process that could not serve, for want of something that may come back.
const REPLACE_ME: u8 = u8::MAX;

fn serve(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    let mut children = Children::new()?;
    let (reports, report) = io::pipe()?;
    let mut book = Book::new(reports)?;
    // Theirs. So the parent can end them for another reason than its own stop.
    let (stopper, told) = Stop::channel()?;
    let workers = limits.workers.get().min(limits.max_connections);
    // Somebody died, or could not be started: nobody takes the place before then. One that dies at once would otherwise
    // be replaced as fast as the machine can fork.
    let mut resume: Option<Instant> = None;
    let mut started: u64 = 0;

    let ended = loop {
        let now = Instant::now();
        match book.account(&mut children, Ending::Failed) {
            Ok(0) => resume = resume.filter(|at| *at > now),
            Ok(_) => resume = Some(now + accept::PAUSE),
            Err(broken) => break Err(broken),
        }
        while resume.is_none() && children.len() < workers {
            started += 1;
            let life = || {
                service.number_from(started << 32);
                work(&listener, &service, &limits, &told, &report)
            };
            if let Err(error) = children.fork(life) {
                tracing::warn!("no process to serve with: {error}");
                resume = Some(now + accept::PAUSE);
            }
        }
        let wanted = [Some(stop.as_fd()), Some(book.reports.as_fd())];
        let [stopped, _] = children.wait(wanted, resume.map(|at| at - now))?;
        if stopped {
            break Ok(());
        }
    };

    drop(stopper);
    // They cut what is left at the deadline themselves. Who is still there a second later hears nothing.
    let drained_by = Instant::now() + limits.drain + Duration::from_secs(1);
    let mut killed = Ending::Failed;
    loop {
        // Whatever ended it: the first reason counts.
        let _ = book.account(&mut children, killed);
        if children.is_empty() {
            return ended.map(|()| book.tally);
        }
        let left = drained_by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            children.tell(Signal::SIGKILL);
            killed = Ending::Cut;
        }
        let wanted = [Some(book.reports.as_fd())];
        children.wait(wanted, (!left.is_zero()).then_some(left))?;
    }
}

/// The life of a process: the one of `serial`, and a report for every peer.
fn work(
    listener: &TcpListener,
    service: &Service,
    limits: &Limits,
    told: &Stop,
    report: &PipeWriter,
) -> u8 {
    let say = |what: u8| {
        let mut line = [what; REPORT];
        line[1..].copy_from_slice(&process::id().to_ne_bytes());
        // A write of this size is all or nothing (PIPE_BUF in pipe(7)); and without a parent nobody needs it.
        let _ = (&*report).write_all(&line);
    };
    let acceptor = listener.try_clone().and_then(|listener| {
        Acceptor::new(listener, service.clone(), limits.clone(), told.clone())
    });
    let mut acceptor = match acceptor {
        Ok(acceptor) => acceptor,
        Err(error) => {
            tracing::warn!("process {}: {error}", process::id());
            return REPLACE_ME;
        }
    };
    let ended = loop {
        match acceptor.accept() {
            Ok(Some(connection)) => {
                say(ACCEPTED);
                say(connection.converse().code());
            }
            Ok(None) => break 0,
            Err(broken) => {
                break broken
                    .raw_os_error()
                    .map_or(REPLACE_ME, |errno| errno as u8);
            }
        }
    };
    for _ in 0..acceptor.finish().accept_errors {
        say(ACCEPT_ERROR);
    }
    ended
}

/// A report: what, and from which process.
const REPORT: usize = 1 + size_of::<u32>();

/// The account, kept as reports come in.
struct Book {
    reports: PipeReader,
    /// Those that have a peer.
    busy: HashSet<u32>,
    tally: Tally,
}

impl Book {
    fn new(reports: PipeReader) -> io::Result<Book> {
        rustix::io::ioctl_fionbio(&reports, true)?;
        Ok(Book {
            reports,
            busy: HashSet::new(),
            tally: Tally::default(),
        })
    }

    /// Takes the reports that have come and the children that have ended; `killed` is what it means for the peer of one
    /// that could not report. Says how many have ended.
    fn account(&mut self, children: &mut Children, killed: Ending) -> io::Result<usize> {
        let mut ended = Ok(0);
        self.take_reports();
        while let Some((child, end)) = children.reap() {
            ended = ended.map(|count| count + 1);
            // Its last report may have come since.
            self.take_reports();
            if end != ChildExit::Exited(0) {
                tracing::warn!("process {child} is gone ({end:?})");
            }
            if self.busy.remove(&child.as_raw().unsigned_abs()) {
                self.tally.count(killed);
            }
            if let ChildExit::Exited(errno) = end
                && errno != 0
                && errno != REPLACE_ME
            {
                ended = Err(io::Error::from_raw_os_error(errno.into()));
            }
        }
        ended
    }

    fn take_reports(&mut self) {
        let mut buffer = [0; 100 * REPORT];
        while let Ok(count) = self.reports.read(&mut buffer) {
            for report in buffer[..count].chunks_exact(REPORT) {
                let &[what, a, b, c, d] = report else {
                    continue;
                };
                let from = u32::from_ne_bytes([a, b, c, d]);
                match Ending::of_code(what) {
                    Some(ending) => {
                        self.busy.remove(&from);
                        self.tally.count(ending);
                    }
                    None if what == ACCEPTED => {
                        self.busy.insert(from);
                        self.tally.accepted += 1;
                    }
                    None => self.tally.accept_errors += 1,
                }
            }
        }
    }
}
