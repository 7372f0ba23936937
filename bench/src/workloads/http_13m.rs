//! `http-13m`: all users download a file of 13 MiB at the same time. Are all served, and how fast?

use crate::format;
use crate::report::table::Column::{Interval, Percent, Ratio, Value};
use crate::report::table::TableText;
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{BuiltIn, Definition, Sweep};

/// Number of connections from which on each user sends one request instead of two.
const MANY: usize = 1_000;

pub(super) const HTTP_13M: Definition = Definition {
    sweep: Sweep::Tables,
    protocol: Some("http"),
    file: Some(BuiltIn {
        path: "/files/13m",
        lines: 1 << 20,
    }),
    // With few connections, one file each would arrive too fast to be measured.
    messages: |connections| if connections < MANY { 2 } else { 1 },
    ..Definition::transfer("http-13m", table)
};

fn table(results: &Results, number: usize) -> TableText {
    let options = &results.options;
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "{connections} users connect at once, and each requests a file of 13 MiB {} over HTTP/1.1. How long \
         until all are served, and at what CPU cost? The client waits for {} s at most.",
            if number < MANY { "twice" } else { "once" },
            options.limit_s
        ),
        columns: vec![
            ("answered\n(%)", Percent(Metric::Availability), 0),
            ("MB/s", Value(Metric::MbPerS), 0),
            ("95 %\ninterval", Interval(Metric::MbPerS), 1),
            ("all served\nafter (s)", Value(Metric::AllServedS), 0),
            ("slowest\nreply (ms)", Value(Metric::ResponseMaxMs), 0),
            ("CPU ms\nper GB", Value(Metric::CpuMsPerGb), 0),
            ("times the best", Ratio(Metric::CpuMsPerGb), 1),
            ("peak\nmemory\n(MiB)", Value(Metric::PeakMemoryMib), 0),
        ],
    }
}
