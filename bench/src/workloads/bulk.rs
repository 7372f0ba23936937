//! `bulk`: all users receive 3 messages of 3 MiB over the protocol `bulk` at the same time.

use crate::format;
use crate::report::table::Column::{Interval, Percent, Ratio, Value};
use crate::report::table::TableText;
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{Definition, Sweep};

pub(super) const BULK: Definition = Definition {
    sweep: Sweep::Tables,
    protocol: Some("bulk"),
    ..Definition::transfer("bulk", table)
};

fn table(results: &Results, number: usize) -> TableText {
    let options = &results.options;
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "{connections} peers connect at once. Each receives 3 messages of 3 MiB and confirms each. How long \
         until all are served, and at what CPU cost? The client waits for {} s at most. Peak memory: the \
         largest resident memory. Growth: its increase under the load, per connection.",
            options.limit_s
        ),
        columns: vec![
            ("answered\n(%)", Percent(Metric::Availability), 0),
            ("MB/s", Value(Metric::MbPerS), 0),
            ("95 %\ninterval", Interval(Metric::MbPerS), 1),
            ("all served\nafter (s)", Value(Metric::AllServedS), 0),
            ("CPU ms\nper GB", Value(Metric::CpuMsPerGb), 0),
            ("times the best", Ratio(Metric::CpuMsPerGb), 1),
            ("peak\nmemory\n(MiB)", Value(Metric::PeakMemoryMib), 0),
            (
                "growth per\nconnection\n(KiB)",
                Value(Metric::PeakKibPerConnection),
                0,
            ),
        ],
    }
}
