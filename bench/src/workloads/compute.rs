//! `compute`: each reply takes CPU time. Do the models still differ?

use std::time::Duration;

use crate::format;
use crate::report::table::Column::{Ratio, Value};
use crate::report::table::TableText;
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{Definition, Kind, Slice, Sweep};

pub(super) const COMPUTE: Definition = Definition {
    sweep: Sweep::Tables,
    slice: Some(Slice::Long(Duration::from_millis(100))),
    work: Some("compute:200us"),
    evaluate: |evaluation| evaluation.closed_loop_with_times(),
    ..Definition::new("compute", Kind::Closed, table)
};

fn table(results: &Results, number: usize) -> TableText {
    let options = &results.options;
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "Closed loop in which each reply takes 200 µs of CPU time: {connections} connections, for {} s. How \
         far do the models still differ?",
            options.duration_s
        ),
        columns: vec![
            ("requests/s", Value(Metric::RequestsPerS), 0),
            ("p50\n(ms)", Value(Metric::ResponseP50Ms), 0),
            ("p99\n(ms)", Value(Metric::ResponseP99Ms), 0),
            ("CPU µs\nper\nrequest", Value(Metric::CpuUsPerRequest), 0),
            ("times the best", Ratio(Metric::CpuUsPerRequest), 1),
        ],
    }
}
