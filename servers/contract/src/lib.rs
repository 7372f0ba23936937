//! The guarantees of every server, and the code that the servers share.
//!
//! A server crate shows one concurrency model: which thread, task or process waits, and which one replies. Code that
//! would be the same in two servers is in this crate, so that two siblings differ only where their models differ:
//!
//! * [`Model`] describes a server, [`Limits`] are its limits, and [`Service`] opens the sessions that it serves.
//! * [`Stop`] requests its end, as a descriptor that every kind of event loop can wait for. [`Tally`] counts its
//!   connections by how they ended.
//! * [`listen`] opens the listening socket, with the same options for all servers.
//! * [`accept`] sorts the errors of accept(2).
//! * [`blocking`] and [`nonblocking`] hold the conversations of the models that wait by blocking and by readiness. The
//!   servers on async runtimes contain their own conversations, written in the idiom of the runtime.
//! * [`files`] sends ranges of files, [`work`] carries out the work before a reply, and [`file_store`] holds the files
//!   that `http` serves.
//! * [`process`] forks, for the models that serve by processes.
//! * [`cli`] is the command line of a single server.
//!
//! Each server crate has one line with `suite!` (feature `suite`) in its `tests/contract.rs`. That line tests whether
//! the server keeps its guarantees.

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
