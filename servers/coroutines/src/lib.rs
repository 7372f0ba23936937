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
//! The conversation is the one of `threads`, not a copy of it but the same function: `contract::blocking::converse`.
//! A function that runs on a stack of its own can be left in the middle of any call, and gone back to; so what waits
//! needs no other colour than what does not, and no caller of it has to know. (An `async` function is left in the middle
//! too, but only by its own `await`: every function between it and the runtime must be `async` as well.)
//!
//! `serve` is what runs on the coroutines, and looks like threads; `hub` is what switches between them, and looks like
//! `mio`.

use contract::{Capacity, Model, Needs, Offload};

#[cfg(target_os = "linux")]
mod hub;
#[cfg(target_os = "linux")]
mod serve;

/// The hub waits by epoll(7).
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

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "coroutines",
    summary: "green threads with stacks of their own, switched by one event loop",
    lineage: "Modula-2, Windows fibers, greenlet and gevent; goroutines",
    source: "servers/coroutines/src/serve.rs",
    serve: serve::serve,
    available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::Nowhere("all coroutines are on one thread"),
    deviations: &[],
}];

fn available() -> Result<(), String> {
    if cfg!(target_os = "linux") {
        Ok(())
    } else {
        Err("its hub waits by epoll, which only Linux has".to_string())
    }
}
