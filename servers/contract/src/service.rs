//! What is served, seen from a server: something that opens sessions.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use protocol::{CloseReason, Protocol, Session, SessionOptions, Step, WorkPlan};

/// Opens a session for every connection. Servers know nothing else of protocols.
#[derive(Clone)]
pub struct Service {
    open: Arc<dyn Fn() -> Box<dyn Session> + Send + Sync>,
    work: Option<WorkPlan>,
}

impl Service {
    /// Serves a protocol.
    pub fn of(protocol: &'static Protocol, options: SessionOptions) -> Service {
        let work = options.work.clone();
        let service = Service::new(move || (protocol.open)(&options));
        Service { work, ..service }
    }

    /// Serves whatever `open` opens.
    pub fn new(open: impl Fn() -> Box<dyn Session> + Send + Sync + 'static) -> Service {
        Service {
            open: Arc::new(open),
            work: None,
        }
    }

    /// The same, with a fault: a session that is sent this text panics. So whoever checks what a panic does to the others
    /// checks the very program that is measured and used, and no build of its own.
    pub fn that_panics_on(&self, text: &str) -> Service {
        let (open, text) = (Arc::clone(&self.open), Arc::<[u8]>::from(text.as_bytes()));
        let open = move || -> Box<dyn Session> {
            Box::new(Faulty {
                session: open(),
                text: Arc::clone(&text),
            })
        };
        Service {
            open: Arc::new(open),
            work: self.work.clone(),
        }
    }

    /// Numbers the sessions that are opened from now on, from there; what they draw at random depends on it. For
    /// processes that were forked: each has a copy of the counter.
    pub fn number_from(&self, number: u64) {
        if let Some(work) = &self.work {
            work.number_from(number);
        }
    }

    /// A session for a new connection. It never panics: if the one inside does, it asks to be closed with
    /// [`CloseReason::Failed`].
    ///
    /// A thread or a task would keep a panic to itself; in an event loop the same panic ends everybody's connection.
    /// Guarded here, all models keep the guarantee alike and none needs a line for it.
    pub fn open(&self) -> Box<dyn Session> {
        tracing::debug!("a peer came");
        let mut guarded = Guarded {
            session: None,
            failed: false,
        };
        // Opening is the protocol's code too.
        match caught(|| (self.open)()) {
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

/// A session that panics when it is told to.
struct Faulty {
    session: Box<dyn Session>,
    text: Arc<[u8]>,
}

impl Session for Faulty {
    fn receive(&mut self, input: &[u8]) {
        if memchr::memmem::find(input, &self.text).is_some() {
            // The hook is not called: nobody needs to be told of a panic that was asked for.
            resume_unwind(Box::new("told to panic"));
        }
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

/// A session whose panics end it, and nothing else. A session that has panicked is never called again: what its
/// fields mean then, nobody knows.
struct Guarded {
    session: Option<Box<dyn Session>>,
    failed: bool,
}

/// Runs a session's code, whose state nobody looks at after a panic.
fn caught<R>(call: impl FnOnce() -> R) -> std::thread::Result<R> {
    catch_unwind(AssertUnwindSafe(call))
}

impl Guarded {
    fn guard(&mut self, call: impl FnOnce(&mut dyn Session)) {
        let Guarded { session, failed } = self;
        if let Some(session) = session
            && !*failed
        {
            *failed = caught(|| call(session.as_mut())).is_err();
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
            Some(session) if !*failed => match caught(move || session.step()) {
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
            Some(session) if !self.failed => caught(|| session.mid_request()).unwrap_or(true),
            _ => true,
        }
    }
}
