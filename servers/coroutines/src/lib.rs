//! `coroutines`: green threads with stacks of their own, on an epoll hub.
//!
//! ```text
//!   accept ──┬──► coroutine: converse ─ read ─┐   would block: switch to the hub
//!            ├──► coroutine: converse ─ …     │
//!            └──► coroutine: converse ─ …     │
//!   hub  ◄────────────────────────────────────┘
//!    └─► wait ──► switch to each whose socket is ready ──► wait ──► …
//! ```
//!
//! The conversation is the same function as in `threads`, not a copy: `contract::blocking::converse`. A function that
//! runs on a stack of its own can be suspended in the middle of any call, and resumed later. So a function that waits
//! needs no other colour than one that does not, and its callers need not know. An `async` function is suspended in the
//! middle too, but only by its own `await`: every function between it and the runtime must be `async` as well.
//!
//! `serve` has the code that runs on the coroutines, which looks like that of threads; `hub` has the code that switches
//! between them, which looks like `mio`.

use contract::{Capacity, Model, Needs, Offload};

#[cfg(target_os = "linux")]
mod hub;
#[cfg(target_os = "linux")]
mod serve;

/// Stands in for the server on other systems, which have no epoll(7).
#[cfg(not(target_os = "linux"))]
mod serve {
    use contract::{Limits, Service, Stop, Tally};

    pub(crate) fn serve(
        _: std::net::TcpListener,
        _: Service,
        _: Limits,
        _: Stop,
    ) -> std::io::Result<Tally> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "coroutines",
    summary: "green threads with stacks of their own, run by one event loop",
    lineage: "Modula-2, Windows fibers, greenlet and gevent; goroutines",
    source: "servers/coroutines/src/serve.rs",
    serve: serve::serve,
    available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("all coroutines run on one thread"),
    deviations: &[],
}];

fn available() -> Result<(), String> {
    if cfg!(target_os = "linux") {
        Ok(())
    } else {
        Err("this model needs epoll, which only Linux has".to_string())
    }
}
