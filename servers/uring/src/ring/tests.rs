//! The ring by itself: names, queues that overflow, what is lent and what is taken back.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::available::available;

/// Has bytes to send, and then reads.
struct Offer {
    bytes: Vec<u8>,
    sent: usize,
    /// Whoever has the other half knows whether this session is still there.
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

/// Sends a range of a file, and then reads.
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

/// A ring, or a word about why there is none.
fn ring() -> Option<Ring> {
    match available() {
        Ok(()) => Some(Ring::new().expect("it was available just now")),
        Err(why) => {
            eprintln!("{why}; not checked");
            None
        }
    }
}

fn pair(bytes: Vec<u8>) -> (RingConnection, UnixStream, Arc<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let alive = Arc::new(());
    let session = Offer {
        bytes,
        sent: 0,
        _alive: Arc::clone(&alive),
    };
    // The ring does not mind what kind of stream it is.
    let ours = TcpStream::from(OwnedFd::from(ours));
    (RingConnection::new(ours, Box::new(session)), theirs, alive)
}

fn completed(ring: &mut Ring) -> Completion {
    loop {
        if let Some(completion) = ring.next() {
            return completion;
        }
        ring.wait(None).unwrap();
    }
}

#[test]
fn a_name_that_has_been_means_nothing() {
    let Some(mut ring) = ring() else { return };
    let (connection, mut peer, _) = pair(Vec::new());
    let first = ring.receive(7, connection, true);
    peer.write_all(b"x").unwrap();
    let Completion::Received(7, connection, Ok(input)) = completed(&mut ring) else {
        panic!("nothing came");
    };
    assert_eq!(&*input, b"x");
    let second = ring.receive(7, connection, true);
    assert_eq!(first.place(), second.place());
    ring.cancel(first);
    ring.wait(None).unwrap();
    assert!(ring.next().is_none(), "the wrong one was cancelled");
    ring.cancel(second);
    let Completion::Received(7, _, input) = completed(&mut ring) else {
        panic!("nothing came");
    };
    assert_eq!(input.err(), Some(Errno::CANCELED));
}

#[test]
fn who_is_not_patient_gets_what_is_there() {
    let Some(mut ring) = ring() else { return };
    let (connection, mut peer, _) = pair(Vec::new());
    peer.write_all(b"x").unwrap();
    ring.receive(0, connection, false);
    let Completion::Received(_, connection, Ok(input)) = completed(&mut ring) else {
        panic!("nothing came");
    };
    assert_eq!(&*input, b"x");
    ring.receive(0, connection, false);
    let Completion::Received(_, _, input) = completed(&mut ring) else {
        panic!("nothing came");
    };
    assert_eq!(input.err(), Some(Errno::AGAIN));
}

/// A send that the peer holds up is cancelled: the session comes back as it was, and goes on where it stopped.
#[test]
fn lent_bytes_stay_until_they_are_given_back() {
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
                panic!("not what was submitted");
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
        reader.expect("never held up").join().unwrap()
    });
    assert!(reader == bytes, "wrong bytes");
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "more than was lent");
}

fn download(file: &Arc<File>, offset: u64, len: u64) -> (RingConnection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let session = Download(FileSlice::new(Arc::clone(file), offset, len));
    let ours = TcpStream::from(OwnedFd::from(ours));
    (RingConnection::new(ours, Box::new(session)), theirs)
}

/// Part by part, and also when a part that the peer holds up is cancelled. Who is sent no more has no memory for it.
#[test]
fn a_file_is_sent_exactly() {
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
                        panic!("not what was submitted");
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
                        panic!("not what was submitted");
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
                    assert!(back.chunk.is_none(), "kept for nothing");
                    break;
                }
                _ => panic!("not what the session asks"),
            }
        }
        reader.expect("never held up").join().unwrap().unwrap()
    });
    assert!(got == bytes, "wrong bytes");
    assert_eq!((&peer).read(&mut [0]).unwrap(), 0, "more than the range");
    assert_eq!(Arc::strong_count(&file), 1, "somebody has it still");
}

#[test]
fn a_sleep_lasts_its_time_or_is_ended() {
    let Some(mut ring) = ring() else { return };
    let (connection, _peer, _) = pair(Vec::new());
    let (began, time) = (Instant::now(), Duration::from_millis(20));
    ring.sleep(5, connection, time);
    let Completion::Slept(5, connection, over) = completed(&mut ring) else {
        panic!("not what was submitted");
    };
    assert!(began.elapsed() >= time, "too early");
    assert_eq!(over, Ok(()));
    let ticket = ring.sleep(5, connection, Duration::from_secs(60 * 60));
    ring.cancel(ticket);
    let Completion::Slept(5, _, over) = completed(&mut ring) else {
        panic!("not what was submitted");
    };
    assert_eq!(over, Err(Errno::CANCELED));
}

/// More receives complete at once than there are buffers.
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
            panic!("nothing came; {unseen} is still to come");
        };
        assert_eq!(*input, [key as u8]);
        assert!(!seen[key], "twice");
        seen[key] = true;
        held.push(input);
        if held.len() == usize::from(Buffers::COUNT) {
            held.clear();
        }
    }
}

/// More operations than the submission queue takes, and more completions than the completion queue has room for.
#[test]
fn queues_overflow_and_nothing_is_lost() {
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
fn a_ring_that_is_dropped_takes_everything_back() {
    let Some(mut ring) = ring() else { return };
    let (receiving, mut peer, alive) = pair(Vec::new());
    let (sending, mut other, _) = pair(vec![0; 1 << 20]);
    ring.receive(0, receiving, true);
    let Next::Write(lent) = sending.step() else {
        panic!("nothing to send");
    };
    ring.send(1, lent);
    let (sleeping, _awake, dreams) = pair(Vec::new());
    ring.sleep(2, sleeping, Duration::from_secs(60 * 60));
    // Nothing comes, as if a disk did not answer.
    let (silent, _writer) = UnixStream::pair().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(silent)));
    let (reading, _reader) = download(&file, 0, 1);
    let Next::ReadFile(reading) = reading.step() else {
        panic!("nothing to read");
    };
    ring.read_file(3, reading);
    ring.wait(None).unwrap();
    // Now, and not when the kernel gets round to it: what it has it could still write to.
    peer.set_nonblocking(true).unwrap();
    drop(ring);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "still open");
    other.read_to_end(&mut Vec::new()).expect("still open");
    assert_eq!(Arc::strong_count(&alive), 1, "the session is still there");
    assert_eq!(Arc::strong_count(&dreams), 1, "still asleep");
    assert_eq!(Arc::strong_count(&file), 1, "the file is still open");
}

fn listener_with(waiting: usize) -> (TcpListener, Vec<TcpStream>) {
    let address = "127.0.0.1:0".parse().unwrap();
    let listener = contract::listen(address, 1024, contract::Needs::NOTHING).unwrap();
    listener.set_nonblocking(false).unwrap();
    let address = listener.local_addr().unwrap();
    let peers = (0..waiting).map(|_| TcpStream::connect(address).unwrap());
    let peers = peers.collect();
    (listener, peers)
}

/// A ring with short queues, if it accepts many.
fn short_ring() -> Option<Ring> {
    ring()?;
    let ring = Ring::with(16, 16).unwrap();
    if ring.burst() == usize::MAX {
        eprintln!("it takes Linux 6.1 to accept many; not checked");
        return None;
    }
    Some(ring)
}

/// On this the connection limit rests.
#[test]
fn an_accept_of_many_ends_when_the_queue_is_full() {
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
                panic!("not what was submitted");
            };
            taken.push(accepted.unwrap());
            away = away.or(back);
        }
        assert!(taken.len() - before <= ring.burst(), "no room for so many");
    }
    // Each submission has served at least as many as the queue holds, and the last one all others.
    assert!(ring.generation <= 100 / 16 + 1);
}

/// The kernel has the next peer already when the accept is cancelled, but has not worked it out.
#[test]
fn a_cancelled_accept_takes_nobody_else() {
    let Some(mut ring) = short_ring() else { return };
    let (listener, _first) = listener_with(1);
    let address = listener.local_addr().unwrap();
    let accept = ring.accept(listener, true);
    let Completion::Accepted(None, Ok(_)) = completed(&mut ring) else {
        panic!("it has not taken the first, or not gone on");
    };
    let _second = TcpStream::connect(address).unwrap();
    ring.cancel(accept);
    let Completion::Accepted(Some(listener), Err(Errno::CANCELED)) = completed(&mut ring) else {
        panic!("it has taken the second, or not ended");
    };
    listener.accept().expect("the second is not there");
}

#[test]
fn a_ring_that_is_dropped_closes_whom_nobody_took() {
    let Some(mut ring) = short_ring() else { return };
    let (listener, peers) = listener_with(40);
    let address = listener.local_addr().unwrap();
    ring.accept(listener, true);
    ring.wait(None).unwrap();
    drop(ring);
    for mut peer in peers {
        peer.set_nonblocking(true).unwrap();
        // Accepted, or reset in the backlog.
        match peer.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
    assert!(TcpStream::connect(address).is_err(), "still listening");
}
