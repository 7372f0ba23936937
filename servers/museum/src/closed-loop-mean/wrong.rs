//! The next request waits for the last reply, and one number stands for all.

use std::time::Duration;

use super::ExampleServer;

/// The mean latency of so many requests.
pub fn measure(server: &mut impl ExampleServer, requests: u32) -> Duration {
    let mut now = Duration::ZERO;
    for _ in 0..requests {
        now = server.reply(now);
    }
    now / requests
}
