//! Tests of the ring alone: tickets, queues that overflow, lent bytes, and the return of everything that is away.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::available::available;

/// A session that has bytes to send, and then reads.
struct Offer {
    bytes: Vec<u8>,
    sent: usize,
    /// Shared with the test, which sees by the reference count whether this session still exists.
    _alive: Arc<()>,
}

impl Session for Offer {
    fn receive(&mut self, _: &[u8]) {}

    fn end_of_input(&mut self) {}

    fn step(&mut self) -> Step<'_> {
        match &self.bytes[self.sent..] {
            [] => Step::Read,
            rest => Step::Write(rest),
        }
    }

    fn sent(&mut self, count: usize) {
        self.sent += count;
    }

    fn mid_request(&self) -> bool {
        false
    }
}

/// A session that sends a range of a file, and then reads.
struct Download(FileSlice);

impl Session for Download {
    fn receive(&mut self, _: &[u8]) {}

    fn end_of_input(&mut self) {}

    fn step(&mut self) -> Step<'_> {
        match self.0.is_empty() {
            true => Step::Read,
            false => Step::SendFile(&self.0),
        }
    }

    fn sent(&mut self, count: usize) {
        self.0.advance(count as u64);
    }

    fn mid_request(&self) -> bool {
        false
    }
}

/// Returns a ring. If there is none, prints the reason and returns `None`.
fn ring() -> Option<Ring> {
    match available() {
        Ok(()) => Some(Ring::new().expect("available() has just created a ring")),
        Err(reason) => {
            eprintln!("{reason}; not checked");
            None
        }
    }
}

/// Returns a connection whose session sends these bytes, its peer, and the count by which a test sees whether the
/// session still exists.
fn pair(bytes: Vec<u8>) -> (RingConnection, UnixStream, Arc<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let alive = Arc::new(());
    let session = Offer {
        bytes,
        sent: 0,
        _alive: Arc::clone(&alive),
    };
    // The ring works with every kind of stream.
    let ours = TcpStream::from(OwnedFd::from(ours));
    (RingConnection::new(ours, Box::new(session)), theirs, alive)
}

/// Waits for the next completion.
fn completed(ring: &mut Ring) -> Completion {
    loop {
        if let Some(completion) = ring.next() {
            return completion;
        }
        ring.wait(None).unwrap();
    }
}

#[test]
fn ticket_of_a_completed_operation_cancels_nothing() {
    let Some(mut ring) = ring() else { return };
    let (connection, mut peer, _) = pair(Vec::new());
    let first = ring.receive(7, connection, true);
    peer.write_all(b"x").unwrap();
    let Completion::Received(7, connection, Ok(input)) = completed(&mut ring) else {
        panic!("no input was received");
    };
    assert_eq!(&*input, b"x");
    let second = ring.receive(7, connection, true);
    assert_eq!(first.index(), second.index());
    ring.cancel(first);
    ring.wait(None).unwrap();
    assert!(ring.next().is_none(), "the wrong operation was cancelled");
    ring.cancel(second);
    let Completion::Received(7, _, input) = completed(&mut ring) else {
        panic!("no input was received");
    };
    assert_eq!(input.err(), Some(Errno::CANCELED));
}

#[test]
fn receive_that_may_not_wait_gets_only_input_that_is_there() {
    let Some(mut ring) = ring() else { return };
    let (connection, mut peer, _) = pair(Vec::new());
    peer.write_all(b"x").unwrap();
    ring.receive(0, connection, false);
    let Completion::Received(_, connection, Ok(input)) = completed(&mut ring) else {
        panic!("no input was received");
    };
    assert_eq!(&*input, b"x");
    ring.receive(0, connection, false);
    let Completion::Received(_, _, input) = completed(&mut ring) else {
        panic!("no input was received");
    };
    assert_eq!(input.err(), Some(Errno::AGAIN));
}

/// The peer does not read, and the send is cancelled: the session comes back as it was, and continues where it stopped.
#[test]
fn lent_bytes_stay_valid_until_their_send_completes() {
    let Some(mut ring) = ring() else { return };
    let bytes: Vec<u8> = (0..4_u32 << 20).map(|at| (at % 251) as u8).collect();
    let (mut connection, mut peer, _) = pair(bytes.clone());
    let mut cancelled = false;
    let reader = thread::scope(|scope| {
        let mut reader = None;
        loop {
            let Next::Write(lent) = connection.step() else {
                break;
            };
            let ticket = ring.send(3, lent);
            if !cancelled {
                ring.cancel(ticket);
            }
            let Completion::Sent(3, back, count) = completed(&mut ring) else {
                panic!("the completion of another operation");
            };
            connection = back;
            match count {
                Ok(count) => connection.session().sent(count),
                Err(error) => {
                    assert_eq!(error, Errno::CANCELED);
                    cancelled = true;
                    let peer = peer.try_clone().unwrap();
                    let size = bytes.len();
                    reader = Some(scope.spawn(move || {
                        let mut got = vec![0; size];
                        (&peer).read_exact(&mut got).unwrap();
                        got
                    }));
                }
            }
        }
        reader.expect("no send was cancelled").join().unwrap()
    });
    assert!(reader == bytes, "the peer got wrong bytes");
    assert_eq!(
        peer.read(&mut [0]).unwrap(),
        0,
        "the peer got more bytes than were lent"
    );
}

/// Returns a connection whose session sends a range of the file, and its peer.
fn download(file: &Arc<File>, offset: u64, len: u64) -> (RingConnection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let session = Download(FileSlice::new(Arc::clone(file), offset, len));
    let ours = TcpStream::from(OwnedFd::from(ours));
    (RingConnection::new(ours, Box::new(session)), theirs)
}

/// The file is sent part by part, and the send of one part, which the peer does not read, is cancelled. At the end the
/// connection has no memory for a part any more.
#[test]
fn file_is_sent_exactly_after_a_cancelled_send() {
    let Some(mut ring) = ring() else { return };
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let file = rustix::fs::memfd_create("bytes", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(file);
    file.write_all(&bytes).unwrap();
    let file = Arc::new(file);
    let bytes = &bytes[7..990_007];
    let (mut connection, peer) = download(&file, 7, bytes.len() as u64);
    let mut cancelled = false;
    let got = thread::scope(|scope| {
        let mut reader = None;
        loop {
            match connection.step() {
                Next::ReadFile(reading) => {
                    ring.read_file(3, reading);
                    let Completion::FileRead(3, back, count) = completed(&mut ring) else {
                        panic!("the completion of another operation");
                    };
                    assert!(count.unwrap() > 0);
                    connection = back;
                }
                Next::Write(lent) => {
                    let ticket = ring.send(3, lent);
                    if !cancelled {
                        ring.cancel(ticket);
                    }
                    let Completion::Sent(3, back, count) = completed(&mut ring) else {
                        panic!("the completion of another operation");
                    };
                    connection = back;
                    if let Ok(count) = count {
                        connection.sent(count);
                    } else if !cancelled {
                        cancelled = true;
                        let (mut peer, mut got) = (&peer, vec![0; bytes.len()]);
                        reader = Some(scope.spawn(move || peer.read_exact(&mut got).map(|()| got)));
                    }
                }
                Next::Read(back) => {
                    assert!(
                        back.chunk.is_none(),
                        "the connection keeps memory for a file that is sent"
                    );
                    break;
                }
                _ => panic!("not a step of this session"),
            }
        }
        reader
            .expect("no send was cancelled")
            .join()
            .unwrap()
            .unwrap()
    });
    assert!(got == bytes, "the peer got wrong bytes");
    assert_eq!(
        (&peer).read(&mut [0]).unwrap(),
        0,
        "the peer got more bytes than the range has"
    );
    assert_eq!(Arc::strong_count(&file), 1, "the file is still open");
}

#[test]
fn sleep_lasts_its_time_or_is_cancelled() {
    let Some(mut ring) = ring() else { return };
    let (connection, _peer, _) = pair(Vec::new());
    let (began, time) = (Instant::now(), Duration::from_millis(20));
    ring.sleep(5, connection, time);
    let Completion::Slept(5, connection, over) = completed(&mut ring) else {
        panic!("the completion of another operation");
    };
    assert!(began.elapsed() >= time, "the sleep ended too early");
    assert_eq!(over, Ok(()));
    let ticket = ring.sleep(5, connection, Duration::from_secs(60 * 60));
    ring.cancel(ticket);
    let Completion::Slept(5, _, over) = completed(&mut ring) else {
        panic!("the completion of another operation");
    };
    assert_eq!(over, Err(Errno::CANCELED));
}

/// More receives complete at once than the ring has buffers.
#[test]
fn buffers_run_out_and_come_back() {
    let Some(mut ring) = ring() else { return };
    let count = usize::from(Buffers::COUNT) + 40;
    let mut peers = Vec::new();
    for key in 0..count {
        let (connection, mut peer, _) = pair(Vec::new());
        peer.write_all(&[key as u8]).unwrap();
        peers.push(peer);
        ring.receive(key, connection, true);
    }
    let mut held = Vec::new();
    let mut seen = vec![false; count];
    while let Some(unseen) = seen.iter().position(|seen| !seen) {
        let Completion::Received(key, _, Ok(input)) = completed(&mut ring) else {
            panic!("no input was received, though that of connection {unseen} is missing");
        };
        assert_eq!(*input, [key as u8]);
        assert!(!seen[key], "input was received twice");
        seen[key] = true;
        held.push(input);
        if held.len() == usize::from(Buffers::COUNT) {
            held.clear();
        }
    }
}

/// There are more operations than the submission queue takes, and more completions than the completion queue takes.
#[test]
fn queues_that_overflow_lose_nothing() {
    let Some(mut ring) = ring() else { return };
    let (connection, mut peer, _) = pair(Vec::new());
    ring.receive(0, connection, true);
    for _ in 0..3 * COMPLETIONS {
        ring.cancel(Ticket::NONE);
    }
    let (other, mut other_peer, _) = pair(Vec::new());
    ring.receive(1, other, true);
    peer.write_all(b"x").unwrap();
    other_peer.write_all(b"x").unwrap();
    for _ in 0..2 {
        assert!(matches!(
            completed(&mut ring),
            Completion::Received(_, _, Ok(input)) if *input == *b"x"
        ));
    }
}

#[test]
fn dropped_ring_takes_everything_back() {
    let Some(mut ring) = ring() else { return };
    let (receiving, mut peer, alive) = pair(Vec::new());
    let (sending, mut other, _) = pair(vec![0; 1 << 20]);
    ring.receive(0, receiving, true);
    let Next::Write(lent) = sending.step() else {
        panic!("the session has nothing to send");
    };
    ring.send(1, lent);
    let (sleeping, _sleeping_peer, sleeping_alive) = pair(Vec::new());
    ring.sleep(2, sleeping, Duration::from_secs(60 * 60));
    // No bytes ever come from this stream, as from a disk that does not answer.
    let (empty, _writer) = UnixStream::pair().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(empty)));
    let (reading, _reader) = download(&file, 0, 1);
    let Next::ReadFile(reading) = reading.step() else {
        panic!("the session reads no file");
    };
    ring.read_file(3, reading);
    ring.wait(None).unwrap();
    // Everything must be back when the drop returns, and not some time later: the kernel could still write to memory
    // that it has.
    peer.set_nonblocking(true).unwrap();
    drop(ring);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the socket is still open");
    other
        .read_to_end(&mut Vec::new())
        .expect("the socket is still open");
    assert_eq!(Arc::strong_count(&alive), 1, "the session is still there");
    assert_eq!(
        Arc::strong_count(&sleeping_alive),
        1,
        "the sleeping session is still there"
    );
    assert_eq!(Arc::strong_count(&file), 1, "the file is still open");
}

/// Returns a listener with this number of peers in its backlog, and the peers.
fn listener_with(waiting: usize) -> (TcpListener, Vec<TcpStream>) {
    let address = "127.0.0.1:0".parse().unwrap();
    let listener = contract::listen(address, 1024, contract::Needs::NOTHING).unwrap();
    listener.set_nonblocking(false).unwrap();
    let address = listener.local_addr().unwrap();
    let peers = (0..waiting).map(|_| TcpStream::connect(address).unwrap());
    let peers = peers.collect();
    (listener, peers)
}

/// Returns a ring with short queues, or `None` if the kernel sets no bound to a multishot accept.
fn short_ring() -> Option<Ring> {
    ring()?;
    let ring = Ring::with(16, 16).unwrap();
    if ring.burst() == usize::MAX {
        eprintln!("a bounded multishot accept needs Linux 6.1; not checked");
        return None;
    }
    Some(ring)
}

/// The connection limit depends on this.
#[test]
fn multishot_accept_ends_when_the_queue_is_full() {
    let Some(mut ring) = short_ring() else { return };
    let (listener, peers) = listener_with(100);
    let mut away = Some(listener);
    let mut taken = Vec::new();
    while taken.len() < peers.len() {
        if let Some(listener) = away.take() {
            ring.accept(listener, true);
        }
        ring.wait(None).unwrap();
        let before = taken.len();
        while let Some(completion) = ring.next() {
            let Completion::Accepted(back, accepted) = completion else {
                panic!("the completion of another operation");
            };
            taken.push(accepted.unwrap());
            away = away.or(back);
        }
        assert!(
            taken.len() - before <= ring.burst(),
            "the accept took more peers than its bound"
        );
    }
    // Each submission has taken at least as many peers as the queue holds, and the last one all others.
    assert!(ring.generation <= 100 / 16 + 1);
}

/// The kernel already has the next peer when the accept is cancelled, but has not yet accepted it.
#[test]
fn cancelled_accept_takes_no_further_peer() {
    let Some(mut ring) = short_ring() else { return };
    let (listener, _first) = listener_with(1);
    let address = listener.local_addr().unwrap();
    let accept = ring.accept(listener, true);
    let Completion::Accepted(None, Ok(_)) = completed(&mut ring) else {
        panic!("the accept has not taken the first peer, or does not continue");
    };
    let _second = TcpStream::connect(address).unwrap();
    ring.cancel(accept);
    let Completion::Accepted(Some(listener), Err(Errno::CANCELED)) = completed(&mut ring) else {
        panic!("the accept has taken the second peer, or has not ended");
    };
    listener
        .accept()
        .expect("the second peer is not in the backlog");
}

#[test]
fn dropped_ring_closes_accepted_connections_that_were_not_taken() {
    let Some(mut ring) = short_ring() else { return };
    let (listener, peers) = listener_with(40);
    let address = listener.local_addr().unwrap();
    ring.accept(listener, true);
    ring.wait(None).unwrap();
    drop(ring);
    for mut peer in peers {
        peer.set_nonblocking(true).unwrap();
        // The connection was accepted and closed, or reset in the backlog.
        match peer.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
    assert!(
        TcpStream::connect(address).is_err(),
        "the listener is still open"
    );
}
