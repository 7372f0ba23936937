//! `crowd`: many clients connect at once and pause between requests. How long until all are served?

use crate::format;
use crate::measure::plan::{CROWD_MESSAGES, CROWD_THINK};
use crate::report::table::Column::{Range, Value};
use crate::report::table::TableText;
use crate::results::Results;
use crate::results::metric::Metric;
use crate::workloads::{Definition, Kind};

pub(super) const CROWD: Definition = Definition {
    few_rounds: true,
    main_metric: Metric::AllServedExcessS,
    first_metric: Metric::AllServedS,
    progress: (Metric::ClientsServed, "clients served"),
    evaluate: |evaluation| evaluation.crowd(),
    ..Definition::new("crowd", Kind::Crowd, table)
}
.by_default();

fn table(results: &Results, number: usize) -> TableText {
    let options = &results.options;
    let connections = format::count(number as u64);
    TableText {
        about: format!(
            "{connections} clients connect at once. Each sends {CROWD_MESSAGES} requests, with a pause of {} ms \
         after each reply. How long until all are served? The client waits for {} s at most. The time to the \
         first reply starts at the connect.",
            CROWD_THINK.as_millis(),
            options.patience_s
        ),
        columns: vec![
            ("all served\nafter (s)", Value(Metric::AllServedS), 0),
            (
                "without the\npauses (s)",
                Value(Metric::AllServedExcessS),
                1,
            ),
            ("min–max\nof rounds", Range(Metric::AllServedExcessS), 3),
            ("clients\nserved", Value(Metric::ClientsServed), 0),
            (
                "median first\nreply (ms)",
                Value(Metric::FirstReplyP50Ms),
                0,
            ),
            (
                "slowest first\nreply (ms)",
                Value(Metric::FirstReplyMaxMs),
                0,
            ),
            ("min–max\nof rounds", Range(Metric::FirstReplyMaxMs), 1),
            ("threads", Value(Metric::Threads), 0),
            ("processes", Value(Metric::Processes), 2),
        ],
    }
}
