//! A benchmark that sends the next request after the last reply, and reports the mean.

use std::time::Duration;

use super::ExampleServer;

/// Returns the mean latency of `requests` requests.
pub fn measure(server: &mut impl ExampleServer, requests: u32) -> Duration {
    let mut now = Duration::ZERO;
    for _ in 0..requests {
        now = server.reply(now);
    }
    now / requests
}
