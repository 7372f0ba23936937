//! What the client's own machine refuses. In a process of its own, since the limit is the process's.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{Load, Plan, Snapshot, Watch, drive};
use protocol::Protocol;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

struct StopWhenAllTried<'s>(&'s AtomicBool);

impl Watch for StopWhenAllTried<'_> {
    fn progress(&self, snapshot: Snapshot) {
        if snapshot.open + snapshot.errors == 64 {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn no_more_descriptors_is_an_error_of_this_machine_and_says_so() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(32);
    setrlimit(Resource::Nofile, Rlimit { ..limit }).unwrap();

    let plan = Plan {
        address: listener.local_addr().unwrap(),
        protocol: Protocol::find("echo").unwrap(),
        connections: 64,
        size: None,
        bulk: Default::default(),
        page: Default::default(),
        work: None,
        load: Load::Messages {
            messages: 1,
            think: Duration::ZERO,
            rounds: 1,
            limit: None,
        },
        connect_first: false,
        ramp: Duration::ZERO,
        timeout: Duration::from_secs(60),
        seed: 0,
        threads: 2,
        cpus: Vec::new(),
    };
    let stop = AtomicBool::new(false);
    let report = drive(&plan, &StopWhenAllTried(&stop), &stop).unwrap();
    assert!(report.errors.local >= 32, "{:?}", report.errors);
    assert_eq!(report.errors.total(), report.errors.local);
    assert!(
        report.examples[0].contains("ulimit -n"),
        "{:?}",
        report.examples
    );
    // The others were let in, and nobody answered them.
    assert!(report.unanswered > 0);
    assert_eq!(report.errors.local + report.unanswered, 64);
}
