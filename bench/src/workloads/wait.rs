//! `wait`: each reply waits for something slow that needs no thread. How many can a server wait for at a time?

use std::time::Duration;

use crate::format;
use crate::report::table::Column::{Ratio, Value};
use crate::report::table::TableText;
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{Definition, Kind, Slice, Sweep};

pub(super) const WAIT: Definition = Definition {
    sweep: Sweep::Tables,
    // A reply takes milliseconds, so a slice must be long enough for many of them.
    slice: Some(Slice::Long(Duration::from_millis(100))),
    work: Some("wait:5ms"),
    progress: (Metric::RequestsPerS, "requests/s"),
    evaluate: |evaluation| evaluation.closed_loop_with_times(),
    ..Definition::new("wait", Kind::Closed, table)
};

fn table(results: &Results, number: usize) -> TableText {
    let options = &results.options;
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "Closed loop in which each reply waits 5 ms for something slow that needs no thread: {connections} \
         connections, for {} s. More than {} requests/s are impossible.",
            options.duration_s,
            format::count(number as u64 * 200)
        ),
        columns: vec![
            ("requests/s", Value(Metric::RequestsPerS), 0),
            ("p50\n(ms)", Value(Metric::ResponseP50Ms), 0),
            ("p99\n(ms)", Value(Metric::ResponseP99Ms), 0),
            ("CPU µs\nper\nrequest", Value(Metric::CpuUsPerRequest), 0),
            ("times the best", Ratio(Metric::CpuUsPerRequest), 1),
            ("threads", Value(Metric::Threads), 0),
        ],
    }
}
