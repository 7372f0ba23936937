//! Work before a reply that occupies a thread. A wait for something slow is implemented by each model in its own way.

use std::thread;
use std::time::Duration;

use protocol::Work;
use rustix::time::{ClockId, clock_gettime};

/// Carries out the work on the calling thread, and returns when it is done.
pub fn carry_out(work: Work) {
    match work {
        Work::Wait(time) | Work::Block(time) => thread::sleep(time),
        Work::Compute(time) => compute(time),
    }
}

/// Uses `time` of CPU time, measured by the thread's own clock. With a wall clock, a thread that is interrupted would
/// do less work.
fn compute(time: Duration) {
    let used = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
    };
    let until = used() + time;
    let mut state = 1_u64;
    while used() < until {
        // One clock_gettime call costs as much as a few hundred of these operations.
        for _ in 0..1_000 {
            state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005) + 1);
        }
    }
}
