//! The benchmark that waits for each reply does not see what its server's users see.

use std::time::Duration;

use museum::closed_loop_mean::{ExampleServer, fixed, wrong};

/// Answers one request after the other, each in 100 µs; but every second it stands still for 100 ms.
#[derive(Default)]
struct Stalls {
    free_at: Duration,
}

const SERVICE: Duration = Duration::from_micros(100);
const STALL: Duration = Duration::from_millis(100);

impl ExampleServer for Stalls {
    fn reply(&mut self, asked: Duration) -> Duration {
        let begin = asked.max(self.free_at);
        let since = Duration::from_micros((begin.as_micros() % 1_000_000) as u64);
        let standstill = if since < STALL {
            STALL - since
        } else {
            Duration::ZERO
        };
        self.free_at = begin + standstill + SERVICE;
        self.free_at
    }
}

#[test]
fn the_mean_of_a_closed_loop_hides_that_the_server_stalls() {
    let mean = wrong::measure(&mut Stalls::default(), 100_000);
    // One request in 9,000 has waited: all others were held back with it, and waited on no clock.
    assert!(mean < 2 * SERVICE, "{mean:?}");
}

#[test]
fn the_99th_percentile_from_planned_times_shows_that_the_server_stalls() {
    let rate = Duration::from_millis(1);
    let p99 = fixed::measure(&mut Stalls::default(), 100_000, rate);
    assert!(p99 > STALL * 8 / 10, "{p99:?}");
}

#[test]
fn of_a_server_that_does_not_stall_both_say_the_same() {
    struct Steady;
    impl ExampleServer for Steady {
        fn reply(&mut self, asked: Duration) -> Duration {
            asked + SERVICE
        }
    }
    assert_eq!(wrong::measure(&mut Steady, 1000), SERVICE);
    let rate = Duration::from_millis(1);
    assert_eq!(fixed::measure(&mut Steady, 1000, rate), SERVICE);
}
