//! Work before a reply, as far as it is done by keeping a thread. (To wait for something slow is each model's own art.)

use std::thread;
use std::time::Duration;

use protocol::Work;
use rustix::time::{ClockId, clock_gettime};

/// Does the work on the calling thread, and returns when it is done.
pub fn carry_out(work: Work) {
    match work {
        Work::Wait(time) | Work::Block(time) => thread::sleep(time),
        Work::Compute(time) => compute(time),
    }
}

/// Uses so much CPU time. By the thread's own clock: by the wall's, whoever is interrupted would have less to do.
fn compute(time: Duration) {
    let used = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
    };
    let until = used() + time;
    let mut state = 1_u64;
    while used() < until {
        // A look at the clock costs as much as a few hundred of these.
        for _ in 0..1_000 {
            state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005) + 1);
        }
    }
}
