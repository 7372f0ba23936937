//! The service that a server offers: an object that opens a session for each connection.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{CloseReason, Protocol, Session, SessionOptions, Step, WorkPlan};

/// Factory of sessions: it opens one for every connection. Servers know nothing else of protocols.
#[derive(Clone)]
pub struct Service {
    open: Arc<dyn Fn() -> Box<dyn Session> + Send + Sync>,
    work: Option<WorkPlan>,
}

impl Service {
    /// Creates a service of a protocol.
    pub fn of(protocol: &'static Protocol, options: SessionOptions) -> Service {
        let work = options.work.clone();
        let service = Service::new(move || (protocol.open)(&options));
        Service { work, ..service }
    }

    /// Creates a service of the sessions that `open` returns.
    pub fn new(open: impl Fn() -> Box<dyn Session> + Send + Sync + 'static) -> Service {
        Service {
            open: Arc::new(open),
            work: None,
        }
    }

    /// Returns the same service with a fault: a session that receives `text` panics. So a check of what a panic does to
    /// other connections runs the same program that is measured and used, and needs no separate build.
    pub fn that_panics_on(&self, text: &str) -> Service {
        let text = text.as_bytes().to_vec();
        self.with_input_hook(move |input| {
            if memchr::memmem::find(input, &text).is_some() {
                // Unlike panic!, this does not call the panic hook: an intended panic needs no report.
                resume_unwind(Box::new("panic on request"));
            }
        })
    }

    /// Returns the same service with a handicap: each input costs this much more CPU time. A comparison must find a server
    /// that is slower by a known amount.
    pub fn that_burns(&self, time: Duration) -> Service {
        self.with_input_hook(move |_| {
            let begin = Instant::now();
            while begin.elapsed() < time {
                std::hint::spin_loop();
            }
        })
    }

    /// Returns the same service, with a function that sees each input before the session. A service without one pays
    /// nothing for it.
    fn with_input_hook(&self, hook: impl Fn(&[u8]) + Send + Sync + 'static) -> Service {
        let (open, hook) = (Arc::clone(&self.open), Arc::new(hook));
        let open = move || -> Box<dyn Session> {
            Box::new(Hooked {
                session: open(),
                hook: hook.clone(),
            })
        };
        Service {
            open: Arc::new(open),
            work: self.work.clone(),
        }
    }

    /// Sets the number of the session that is opened next; later sessions count up from it. The times that a session
    /// draws at random depend on its number. Forked processes need this, because each has a copy of the counter.
    pub fn number_from(&self, number: u64) {
        if let Some(work) = &self.work {
            work.number_from(number);
        }
    }

    /// Opens a session for a new connection. The session never panics: if the protocol's session inside it panics, the
    /// next step is [`Step::Close`] with [`CloseReason::Failed`].
    ///
    /// A panic in a thread or a task ends one connection; the same panic in an event loop ends all connections of the
    /// loop. With the guard here, all models keep the guarantee [`Panic`](crate::Guarantee::Panic) in the same way, and
    /// no model needs a line of code for it.
    pub fn open(&self) -> Box<dyn Session> {
        tracing::debug!("connection opened");
        let mut guarded = Guarded {
            session: None,
            failed: false,
        };
        // Opening a session runs code of the protocol, which may panic too.
        match catch_panic(|| (self.open)()) {
            Ok(session) => guarded.session = Some(session),
            Err(_) => guarded.failed = true,
        }
        Box::new(guarded)
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Service")
    }
}

/// A function that sees each input before the session.
type InputHook = dyn Fn(&[u8]) + Send + Sync;

/// A session with such a function.
struct Hooked {
    session: Box<dyn Session>,
    hook: Arc<InputHook>,
}

impl Session for Hooked {
    fn receive(&mut self, input: &[u8]) {
        (self.hook)(input);
        self.session.receive(input);
    }

    fn end_of_input(&mut self) {
        self.session.end_of_input();
    }

    fn step(&mut self) -> Step<'_> {
        self.session.step()
    }

    fn sent(&mut self, count: usize) {
        self.session.sent(count);
    }

    fn worked(&mut self) {
        self.session.worked();
    }

    fn mid_request(&self) -> bool {
        self.session.mid_request()
    }
}

/// A session whose panic ends that session and nothing else. A session that has panicked is never called again, because
/// its fields may be inconsistent.
struct Guarded {
    session: Option<Box<dyn Session>>,
    failed: bool,
}

/// Runs code of a session and catches its panic. The unwind safety is asserted: after a panic the session's state is
/// not used again.
fn catch_panic<R>(call: impl FnOnce() -> R) -> std::thread::Result<R> {
    catch_unwind(AssertUnwindSafe(call))
}

impl Guarded {
    fn guard(&mut self, call: impl FnOnce(&mut dyn Session)) {
        let Guarded { session, failed } = self;
        if let Some(session) = session
            && !*failed
        {
            *failed = catch_panic(|| call(session.as_mut())).is_err();
        }
    }
}

impl Session for Guarded {
    fn receive(&mut self, input: &[u8]) {
        self.guard(|session| session.receive(input));
    }

    fn end_of_input(&mut self) {
        self.guard(|session| session.end_of_input());
    }

    fn step(&mut self) -> Step<'_> {
        let Guarded { session, failed } = self;
        match session {
            Some(session) if !*failed => match catch_panic(move || session.step()) {
                Ok(step) => step,
                Err(_) => {
                    *failed = true;
                    Step::Close(CloseReason::Failed)
                }
            },
            _ => Step::Close(CloseReason::Failed),
        }
    }

    fn sent(&mut self, count: usize) {
        self.guard(|session| session.sent(count));
    }

    fn worked(&mut self) {
        self.guard(|session| session.worked());
    }

    fn mid_request(&self) -> bool {
        match &self.session {
            Some(session) if !self.failed => catch_panic(|| session.mid_request()).unwrap_or(true),
            _ => true,
        }
    }
}
