//! `http-13b` and `http-13k`: a small file over HTTP, again and again. What does the protocol cost?

use crate::format;
use crate::report::table::Column::{Percent, Ratio, Value};
use crate::report::table::{TableText, how};
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{BuiltIn, Definition, Kind, Slice, Sweep, Workload};

pub(super) const HTTP_13B: Definition = Definition {
    file: Some(BuiltIn {
        path: "/files/13b",
        lines: 1,
    }),
    ..small_file("http-13b", |results, number| {
        table(results, Workload::Http13b, number, "13 bytes")
    })
};

/// A socket takes all of this file in one write.
pub(super) const HTTP_13K: Definition = Definition {
    file: Some(BuiltIn {
        path: "/files/13k",
        lines: 1 << 10,
    }),
    ..small_file("http-13k", |results, number| {
        table(results, Workload::Http13k, number, "13 KiB")
    })
};

const fn small_file(name: &'static str, table: fn(&Results, usize) -> TableText) -> Definition {
    Definition {
        sweep: Sweep::Tables,
        slice: Some(Slice::Short),
        protocol: Some("http"),
        evaluate: |evaluation| evaluation.closed_loop_with_times(),
        ..Definition::new(name, Kind::Closed, table)
    }
}

fn table(results: &Results, workload: Workload, number: usize, size: &str) -> TableText {
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "Closed loop over HTTP/1.1: each of {connections} keep-alive connections requests a file of {} again as \
         soon as it has received it. How many requests per second at most, and at what CPU cost?{}",
            size,
            how(results, workload)
        ),
        columns: vec![
            ("requests/s", Value(Metric::RequestsPerS), 0),
            ("MB/s", Value(Metric::MbPerS), 0),
            ("CPU µs\nper\nrequest", Value(Metric::CpuUsPerRequest), 0),
            ("times the best", Ratio(Metric::CpuUsPerRequest), 1),
            ("p50\n(ms)", Value(Metric::ResponseP50Ms), 0),
            ("p99\n(ms)", Value(Metric::ResponseP99Ms), 0),
            ("answered\n(%)", Percent(Metric::Availability), 0),
            ("peak\nmemory\n(MiB)", Value(Metric::PeakMemoryMib), 0),
        ],
    }
}
