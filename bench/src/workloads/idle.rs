//! `idle`: many idle connections. How much memory and CPU time do they cost?

use crate::format;
use crate::report::table::Column::{Range, Value};
use crate::report::table::{TableText, measured_together};
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{Definition, Kind};

/// Number of connections. With this number, the memory per connection is larger than the rounding of the allocator.
pub(crate) const IDLE_CONNECTIONS: usize = 1_000;

pub(super) const IDLE: Definition = Definition {
    few_rounds: true,
    main_metric: Metric::KibPerConnection,
    first_metric: Metric::KibPerConnection,
    progress: (Metric::IdleCpuMsPerS, "ms of CPU time per second"),
    evaluate: |evaluation| evaluation.idle(),
    ..Definition::new("idle", Kind::Idle, table)
}
.by_default();

fn table(results: &Results, number: usize) -> TableText {
    let options = &results.options;
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "{} connections are idle for {} s after one exchange each. How much memory and CPU time do they cost \
         the server? Memory is the server's own: anonymous and shared pages, each counted once, without the \
         kernel's memory for sockets, threads and page tables.{}",
            connections,
            options.idle_duration_s,
            measured_together(results)
        ),
        columns: vec![
            (
                "memory per\nconnection\n(KiB)",
                Value(Metric::KibPerConnection),
                0,
            ),
            ("min–max\nof rounds", Range(Metric::KibPerConnection), 1),
            ("total\nmemory\n(MiB)", Value(Metric::MemoryMib), 0),
            ("CPU ms per s\nwhile idle", Value(Metric::IdleCpuMsPerS), 0),
            ("min–max\nof rounds", Range(Metric::IdleCpuMsPerS), 1),
            ("threads", Value(Metric::Threads), 0),
            ("processes", Value(Metric::Processes), 0),
        ],
    }
}
