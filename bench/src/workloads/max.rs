//! `max`: closed loop without pause. How many requests per second at most, and what does each cost?

use crate::format;
use crate::report::table::Column::{Between, Interval, Ratio, Value};
use crate::report::table::{TableText, how};
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{Definition, Kind, Slice, Sweep, Workload};

pub(super) const MAX: Definition = Definition {
    sweep: Sweep::Cost,
    slice: Some(Slice::Short),
    ..Definition::new("max", Kind::Closed, table)
}
.by_default();

fn table(results: &Results, number: usize) -> TableText {
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "Closed loop: each of {connections} connections sends its next request as soon as it has a reply. \
         At what CPU cost, and how many requests per second at most? The requests per second \
         are those of client and server together; \"at most, by CPU\" is a bound for a client that costs \
         nothing. Latency is not shown: under full load it is mostly time in a queue. Fairness: 1 if all \
         connections had equally many replies (Jain's index).{}",
            how(results, Workload::Max)
        ),
        columns: vec![
            ("CPU µs\nper\nrequest", Value(Metric::CpuUsPerRequest), 0),
            ("95 %\ninterval", Interval(Metric::CpuUsPerRequest), 2),
            ("times the best", Ratio(Metric::CpuUsPerRequest), 0),
            ("requests/s", Value(Metric::RequestsPerS), 0),
            ("at most,\nby CPU", Value(Metric::RequestsPerSBound), 1),
            (
                "context\nswitches/\nrequest",
                Value(Metric::SwitchesPerRequest),
                0,
            ),
            ("fairness\n(0–1)", Value(Metric::Fairness), 0),
            (
                "fewest–most\nreplies per\nconnection",
                Between(
                    Metric::FewestRepliesPerConnection,
                    Metric::MostRepliesPerConnection,
                ),
                3,
            ),
        ],
    }
}
