//! The connections by themselves: what the loop's clock has to do with work.

use protocol::Step;

use super::*;

/// Keeps the loop before it reads.
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

/// By the clock of the loop's last wait they would have used up their time before they came.
#[test]
fn who_comes_after_work_that_kept_the_loop_is_not_late() {
    if let Err(why) = available::available() {
        eprintln!("{why}; not checked");
        return;
    }
    let kept = Duration::from_millis(30);
    let limits = Limits {
        idle_timeout: kept / 2,
        ..Limits::default()
    };
    let idle_timeout = limits.idle_timeout;
    let mut connections = Connections::new(Ring::new().unwrap(), limits);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let began = connections.now;
    for work in [Some(Work::Block(kept)), None] {
        let _peer = TcpStream::connect(address).unwrap();
        let (stream, _) = listener.accept().unwrap();
        connections.insert(stream, Box::new(Busy(work)));
    }
    for (_, place) in &connections.places {
        assert!(place.deadline(idle_timeout) >= began + kept + idle_timeout);
    }
}
