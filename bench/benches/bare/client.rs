//! The smallest client that keeps many connections busy: epoll, a read and a write per request. It checks no reply and
//! measures no latency.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::time::{ClockId, clock_gettime};

/// Sends requests on `connections` connections, one line at a time on each, for `warmup` and then for `duration`. Returns
/// the number of replies in `duration`, and the CPU time that the calling thread used for them.
pub(crate) fn drive(
    address: SocketAddr,
    connections: usize,
    line: &[u8],
    warmup: Duration,
    duration: Duration,
) -> io::Result<(u64, Duration)> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut streams = Vec::new();
    for number in 0..connections {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(
            &epoll,
            &stream,
            epoll::EventData::new_u64(number as u64),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        stream.write_all(line)?;
        streams.push(stream);
    }
    let mut events = Vec::with_capacity(1024);
    let mut buffer = [0; 64 * 1024];
    let mut replies = 0;
    let mut begin = Instant::now() + warmup;
    let mut measured_from = None;
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let stream = &mut streams[event.data.u64() as usize];
            let mut owed = line.len();
            while owed > 0 {
                match stream.read(&mut buffer)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => owed -= count,
                }
            }
            stream.write_all(line)?;
            replies += 1;
        }
        // The clock is read once per turn, not once per request.
        if Instant::now() >= begin {
            match measured_from {
                None => {
                    measured_from = Some(cpu());
                    replies = 0;
                    begin = Instant::now() + duration;
                }
                Some(before) => return Ok((replies, cpu() - before)),
            }
        }
    }
}

/// Returns the CPU time of the calling thread.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
