//! `block` and `block-offload`: one reply in ten blocks its thread for a while. How long do the other requests take?

use std::time::Duration;

use crate::format;
use crate::report::table::Column::{Interval, Percent, Ratio, Value};
use crate::report::table::TableText;
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{Definition, Kind};

/// Requests per second, over all connections. One request in ten takes 5 ms, so this rate keeps one thread busy for 30 % of
/// the time: no server is overloaded, but a server with one thread still keeps the other requests waiting.
pub(crate) const BLOCK_RATE: f64 = 600.0;

/// Shortest measured window. At [`BLOCK_RATE`] it takes two seconds to have enough samples for a 99th percentile of the
/// bystanders.
pub(crate) const BLOCK_LEAST: Duration = Duration::from_secs(3);

pub(super) const BLOCK: Definition =
    blocking("block", |results, number| table(results, number, ""));

pub(super) const BLOCK_OFFLOAD: Definition = Definition {
    offloads: true,
    ..blocking("block-offload", |results, number| {
        let thread = " This call runs on a thread that is reserved for such calls (--offload).";
        table(results, number, thread)
    })
};

const fn blocking(name: &'static str, table: fn(&Results, usize) -> TableText) -> Definition {
    Definition {
        rate: Some(BLOCK_RATE),
        least_duration: BLOCK_LEAST,
        work: Some("block:5ms@10%"),
        main_metric: Metric::BystandersP99Ms,
        first_metric: Metric::BystandersP50Ms,
        progress: (
            Metric::BystandersP99Ms,
            "ms p99 response time of the bystanders",
        ),
        evaluate: |evaluation| {
            evaluation.steady();
            evaluation.bystanders();
        },
        ..Definition::new(name, Kind::Open, table)
    }
}

fn table(results: &Results, number: usize, where_it_runs: &str) -> TableText {
    let options = &results.options;
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "Open loop: {} requests/s, evenly over {connections} connections, for {} s. Before one reply in ten, a \
         call blocks its thread for 5 ms.{} The other nine are the bystanders. How long do they take, from the \
         planned send time?",
            format::count(options.block_rate_per_s as u64),
            options.block_duration_s,
            where_it_runs
        ),
        columns: vec![
            ("bystanders\np50 (ms)", Value(Metric::BystandersP50Ms), 0),
            ("bystanders\np99 (ms)", Value(Metric::BystandersP99Ms), 0),
            ("times the best", Ratio(Metric::BystandersP99Ms), 1),
            ("all\np99 (ms)", Value(Metric::ResponseP99Ms), 0),
            ("95 %\ninterval", Interval(Metric::ResponseP99Ms), 2),
            ("answered\n(%)", Percent(Metric::Availability), 0),
        ],
    }
}
