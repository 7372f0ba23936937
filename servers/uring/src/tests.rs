//! Tests of the connections without the loop: the loop's clock after work that occupied the thread.

use protocol::Step;

use super::*;

/// A session that occupies the loop with work before it reads.
struct Busy(Option<Work>);

impl Session for Busy {
    fn receive(&mut self, _: &[u8]) {}

    fn end_of_input(&mut self) {}

    fn step(&mut self) -> Step<'_> {
        self.0.map_or(Step::Read, Step::Work)
    }

    fn sent(&mut self, _: usize) {}

    fn worked(&mut self) {
        self.0 = None;
    }

    fn mid_request(&self) -> bool {
        false
    }
}

/// By the time of the loop's last wait, the connections would be overdue before they came.
#[test]
fn connection_inserted_after_long_work_is_not_overdue() {
    if let Err(reason) = available::available() {
        eprintln!("{reason}; not checked");
        return;
    }
    let occupied = Duration::from_millis(30);
    let limits = Limits {
        idle_timeout: occupied / 2,
        ..Limits::default()
    };
    let idle_timeout = limits.idle_timeout;
    let mut connections = Connections::new(Ring::new().unwrap(), limits);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let began = connections.now;
    for work in [Some(Work::Block(occupied)), None] {
        let _peer = TcpStream::connect(address).unwrap();
        let (stream, _) = listener.accept().unwrap();
        connections.insert(stream, Box::new(Busy(work)));
    }
    for (_, slot) in &connections.slots {
        assert!(slot.deadline(idle_timeout) >= began + occupied + idle_timeout);
    }
}
