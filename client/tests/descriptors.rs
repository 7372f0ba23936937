//! Errors that the client's own machine causes. The test has a process of its own, since the limit belongs to the
//! process.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{Load, Plan, Snapshot, Watch, drive};
use protocol::Protocol;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

struct StopAfterAllConnects<'s>(&'s AtomicBool);

impl Watch for StopAfterAllConnects<'_> {
    fn progress(&self, snapshot: Snapshot) {
        if snapshot.open + snapshot.errors == 64 {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn exhausted_descriptors_are_local_errors_that_name_the_limit() {
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
    let report = drive(&plan, &StopAfterAllConnects(&stop), &stop).unwrap();
    assert!(report.errors.local >= 32, "{:?}", report.errors);
    assert_eq!(report.errors.total(), report.errors.local);
    assert!(
        report.examples[0].contains("ulimit -n"),
        "{:?}",
        report.examples
    );
    // The other connections were accepted by the kernel, and got no reply.
    assert!(report.unanswered > 0);
    assert_eq!(report.errors.local + report.unanswered, 64);
}
