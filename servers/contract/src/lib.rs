//! What every server guarantees, and what they share.
//!
//! A server crate is one small story: who waits, and who answers. Everything that would read the same in two of them
//! is here, so that two siblings differ only where their models do:
//!
//! * [`Model`] is how a server presents itself; [`Limits`] what it must keep to; [`Service`] what it serves;
//! * [`Stop`] ends it, as a descriptor that every kind of loop can wait for; [`Tally`] is its account at the end;
//! * [`listen`] makes the listening socket, with the same options for all;
//! * [`accept`] sorts the errors of accept(2), and [`blocking`] and [`nonblocking`] hold the conversations of the
//!   models that wait by blocking and by readiness. Async runtimes write theirs out, in their own idiom.
//! * [`files`] sends ranges of files, [`work`] does what is to be done before a reply, [`site`] is what `http` serves;
//! * [`process`] forks, for the models that serve by processes;
//! * [`cli`] is the command line of one server.
//!
//! Whether a server keeps its guarantees, its `tests/contract.rs` finds out, by one line with `suite!` (feature `suite`).

pub mod accept;
pub mod blocking;
pub mod cli;
mod cpus;
mod deadlines;
mod descriptors;
pub mod file_store;
pub mod files;
mod limits;
mod listen;
mod model;
pub mod nonblocking;
pub mod process;
mod service;
mod stop;
#[cfg(all(feature = "suite", target_os = "linux"))]
pub mod suite;
mod tally;
pub mod work;

pub use cpus::{CpuList, pin};
pub use deadlines::Deadlines;
pub use descriptors::{Descriptors, raise_descriptor_limit};
pub use limits::{LEAST_STACK, LINGER, Limits, READ_BUFFER};
pub use listen::{ListenError, listen, listen_beside};
pub use model::{Capacity, Deviation, Guarantee, Model, Needs, Offload, Serve, always_available};
pub use service::Service;
pub use stop::{Stop, Stopper};
pub use tally::{Ending, Tally};
