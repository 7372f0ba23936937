//! A benchmark that sends requests at planned times, as independent users do, and reports the 99th percentile.

use std::time::Duration;

use super::ExampleServer;

/// Returns the 99th percentile of the latencies of `requests` requests, one planned per `interval`. Each latency counts
/// from the *planned* time, so that a delay before the request was sent counts too.
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
