//! Runs both versions of the benchmark in `closed-loop-mean` against a server that stalls.

use std::time::Duration;

use museum::closed_loop_mean::{ExampleServer, fixed, wrong};

/// Server that answers one request after the other, each in 100 µs, and stalls for 100 ms in every second.
#[derive(Default)]
struct StallingServer {
    free_at: Duration,
}

const SERVICE: Duration = Duration::from_micros(100);
const STALL: Duration = Duration::from_millis(100);

impl ExampleServer for StallingServer {
    fn reply(&mut self, sent: Duration) -> Duration {
        let begin = sent.max(self.free_at);
        let into_second = Duration::from_micros((begin.as_micros() % 1_000_000) as u64);
        let stall = if into_second < STALL {
            STALL - into_second
        } else {
            Duration::ZERO
        };
        self.free_at = begin + stall + SERVICE;
        self.free_at
    }
}

#[test]
fn closed_loop_mean_hides_server_stalls() {
    let mean = wrong::measure(&mut StallingServer::default(), 100_000);
    // Only one request in 9,000 has waited. The benchmark did not send the others during the stall, so their delay is
    // not measured.
    assert!(mean < 2 * SERVICE, "{mean:?}");
}

#[test]
fn p99_from_planned_times_shows_server_stalls() {
    let interval = Duration::from_millis(1);
    let p99 = fixed::measure(&mut StallingServer::default(), 100_000, interval);
    assert!(p99 > STALL * 8 / 10, "{p99:?}");
}

#[test]
fn both_benchmarks_agree_on_a_server_without_stalls() {
    struct SteadyServer;
    impl ExampleServer for SteadyServer {
        fn reply(&mut self, sent: Duration) -> Duration {
            sent + SERVICE
        }
    }
    assert_eq!(wrong::measure(&mut SteadyServer, 1000), SERVICE);
    let interval = Duration::from_millis(1);
    assert_eq!(fixed::measure(&mut SteadyServer, 1000, interval), SERVICE);
}
