//! What is served, seen from a server: something that opens sessions.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use protocol::{Farewell, Protocol, Session, SessionOptions, Step};

/// Opens a session for every connection. Servers know nothing else of protocols.
#[derive(Clone)]
pub struct Service {
    open: Arc<dyn Fn() -> Box<dyn Session> + Send + Sync>,
}

impl Service {
    /// Serves a protocol.
    pub fn of(protocol: &'static Protocol, options: SessionOptions) -> Service {
        Service::new(move || (protocol.open)(&options))
    }

    /// Serves whatever `open` opens.
    pub fn new(open: impl Fn() -> Box<dyn Session> + Send + Sync + 'static) -> Service {
        Service {
            open: Arc::new(open),
        }
    }

    /// A session for a new connection. It never panics: if the one inside does, it asks to be closed with
    /// [`Farewell::Failed`].
    ///
    /// A thread or a task would keep a panic to itself; in an event loop the same panic ends everybody's connection.
    /// Guarded here, all models keep the promise alike and none needs a line for it.
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
                    Step::Close(Farewell::Failed)
                }
            },
            _ => Step::Close(Farewell::Failed),
        }
    }

    fn sent(&mut self, count: usize) {
        self.guard(|session| session.sent(count));
    }

    fn mid_request(&self) -> bool {
        match &self.session {
            Some(session) if !self.failed => caught(|| session.mid_request()).unwrap_or(true),
            _ => true,
        }
    }
}
