//! `steady`: open loop at one rate for all models, below their limits. How long do replies take?

use std::time::Duration;

use client::Arrivals;

use crate::format;
use crate::report::table::Column::{Percent, Ratio, Value};
use crate::report::table::{TableText, how};
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{Definition, Kind, Slice, Sweep, Workload};

pub(super) const STEADY: Definition = Definition {
    sweep: Sweep::Cost,
    arrivals: Arrivals::Poisson,
    slice: Some(Slice::Long(Duration::from_millis(50))),
    first_metric: Metric::ResponseP50Ms,
    progress: (Metric::ResponseP99Ms, "ms p99 response time"),
    evaluate: |evaluation| evaluation.steady(),
    ..Definition::new("steady", Kind::Open, table)
}
.by_default();

fn table(results: &Results, number: usize) -> TableText {
    let options = &results.options;
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "Open loop: {} requests/s at random times over {connections} connections, whatever the server does. \
         How long do replies take? Times count from the planned send time; in the column \"service time\", if \
         it is shown, from the actual one. Quiet p99: of the requests that were planned while the client sent \
         nothing late.{}",
            format::digits(options.rate_per_s),
            how(results, Workload::Steady)
        ),
        columns: vec![
            ("p50\n(ms)", Value(Metric::ResponseP50Ms), 0),
            ("p99\n(ms)", Value(Metric::ResponseP99Ms), 0),
            ("times the best", Ratio(Metric::ResponseP99Ms), 2),
            ("quiet\np99\n(ms)", Value(Metric::QuietP99Ms), 1),
            ("p99.9\n(ms)", Value(Metric::ResponseP999Ms), 0),
            ("max\n(ms)", Value(Metric::ResponseMaxMs), 3),
            ("service\ntime p99\n(ms)", Value(Metric::ServiceP99Ms), 5),
            ("CPU µs\nper\nrequest", Value(Metric::CpuUsPerRequest), 0),
            ("times the best", Ratio(Metric::CpuUsPerRequest), 1),
            ("answered\n(%)", Percent(Metric::Availability), 0),
            ("unanswered\nrequests", Value(Metric::UnansweredRequests), 3),
        ],
    }
}
