//! `compio`: async tasks on one thread, by completions (io_uring).
//!
//! ```text
//!   task: converse     read(buffer).await ·················· write(buffer).await ·········
//!                          │ submit                 ▲ complete   │ submit        ▲ complete
//!   kernel                 ▼   waits, then copies ──┘            ▼   copies ─────┘
//! ```
//!
//! The conversation reads like tokio's, with one difference in every line that does I/O: the buffer is given away and
//! comes back with the result. The task does not wait until the socket is ready for a read, but until the kernel has
//! done the read.

use contract::{Capacity, Model, Needs, Offload};

#[cfg(target_os = "linux")]
mod runtime;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
use {runtime::available, serve::serve};

#[cfg(not(target_os = "linux"))]
fn available() -> Result<(), String> {
    Err("this model needs io_uring, which only Linux has".to_string())
}

#[cfg(not(target_os = "linux"))]
fn serve(
    _: std::net::TcpListener,
    _: contract::Service,
    _: contract::Limits,
    _: contract::Stop,
) -> std::io::Result<contract::Tally> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "compio",
    summary: "async tasks on one thread, by completions (io_uring)",
    lineage: "the Proactor pattern: Windows' IOCP, Boost.Asio; one runtime per core",
    source: "servers/compio/src/serve.rs",
    serve,
    available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::To("the runtime's blocking threads (spawn_blocking)"),
    deviations: &[],
}];
