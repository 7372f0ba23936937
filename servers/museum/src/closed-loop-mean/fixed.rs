//! Requests come when they are planned, as from people who don't know of one another; and what the slowest of them
//! have waited is told.

use std::time::Duration;

use super::ExampleServer;

/// The latency that one request in a hundred exceeds, of so many that are asked at such intervals: from when each was
/// *planned*, so that what kept it from being sent counts too.
pub fn measure(server: &mut impl ExampleServer, requests: u32, interval: Duration) -> Duration {
    let mut latencies: Vec<Duration> = (0..requests)
        .map(|number| {
            let planned = number * interval;
            server.reply(planned) - planned
        })
        .collect();
    latencies.sort();
    latencies[latencies.len() * 99 / 100]
}
