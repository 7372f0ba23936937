//! The names of the workloads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kind of load under which every model is measured. Each workload answers one question.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Many clients connect at once and pause between requests: how long until all are served?
    Crowd,
    /// Closed loop without pause: how many requests per second at most, and what does each cost?
    Max,
    /// Open loop at one rate for all models, below their limits: how long do replies take?
    Steady,
    /// Many idle connections: how much memory and CPU time do they cost?
    Idle,
    /// A file of 13 bytes over HTTP, again and again: what does the protocol cost?
    #[serde(rename = "http-13b")]
    Http13b,
    /// A file of 13 KiB over HTTP, again and again. A socket takes all of it in one write.
    #[serde(rename = "http-13k")]
    Http13k,
    /// All users download a file of 13 MiB at the same time: are all served, and how fast?
    #[serde(rename = "http-13m")]
    Http13m,
    /// Like [`Workload::Http13m`], with 3 messages of 3 MiB for each peer over the protocol `bulk`.
    Bulk,
    /// Each reply waits for something slow that needs no thread: how many slow replies can a server handle at the
    /// same time?
    Wait,
    /// One reply in ten blocks its thread for a while: how long do the other requests take?
    Block,
    /// Like [`Workload::Block`], but the call runs on other threads (`--offload`).
    BlockOffload,
    /// Each reply takes CPU time: do the models still differ?
    Compute,
}
