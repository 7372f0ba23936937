//! A peer that does exactly what a test says.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::GUARD;

#[derive(Debug)]
pub(super) struct TestClient {
    stream: TcpStream,
}

impl TestClient {
    #[track_caller]
    pub(super) fn connect(address: SocketAddr) -> TestClient {
        TestClient::try_connect(address).expect("no connection")
    }

    pub(super) fn try_connect(address: SocketAddr) -> io::Result<TestClient> {
        let stream = TcpStream::connect(address)?;
        // Every write goes out as a segment of its own: the cuts are where the test makes them.
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GUARD))?;
        stream.set_write_timeout(Some(GUARD))?;
        Ok(TestClient { stream })
    }

    #[track_caller]
    pub(super) fn send(&self, bytes: &[u8]) {
        self.try_send(bytes).expect("the server takes no more");
    }

    pub(super) fn try_send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    /// Sends without reading, until nothing has been taken for a while; says how much was.
    pub(super) fn send_until_stuck(&self, bytes: &[u8]) -> usize {
        let small = 64 * 1024;
        SockRef::from(&self.stream)
            .set_send_buffer_size(small)
            .expect("no small send buffer");
        let while_ = Some(Duration::from_millis(300));
        self.stream.set_write_timeout(while_).expect("no time-out");
        let mut sent = 0;
        while sent < bytes.len() {
            match (&self.stream).write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("after {sent} bytes: {error}"),
            }
        }
        self.stream
            .set_write_timeout(Some(GUARD))
            .expect("no time-out");
        sent
    }

    /// Ends its own side: FIN.
    #[track_caller]
    pub(super) fn finish_sending(&self) {
        self.stream
            .shutdown(Shutdown::Write)
            .expect("not connected");
    }

    /// Breaks the connection off: RST.
    pub(super) fn reset(self) {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("no SO_LINGER");
    }

    /// Reads exactly that, and no more.
    #[track_caller]
    pub(super) fn expect(&self, expected: &[u8]) {
        let mut buffer = [0; 64 * 1024];
        let mut heard = 0;
        while heard < expected.len() {
            let most = buffer.len().min(expected.len() - heard);
            match (&self.stream).read(&mut buffer[..most]) {
                Ok(0) => panic!(
                    "the end after {heard} bytes, before {}",
                    excerpt(&expected[heard..])
                ),
                Ok(count) => {
                    let (got, want) = (&buffer[..count], &expected[heard..heard + count]);
                    if let Some(wrong) = got.iter().zip(want).position(|(got, want)| got != want) {
                        panic!(
                            "at byte {}: {} instead of {}",
                            heard + wrong,
                            excerpt(&got[wrong..]),
                            excerpt(&want[wrong..])
                        );
                    }
                    heard += count;
                }
                Err(error) => panic!(
                    "{error} after {heard} bytes, before {}",
                    excerpt(&expected[heard..])
                ),
            }
        }
    }

    /// Reads the end of the server's side, and nothing before it.
    #[track_caller]
    pub(super) fn expect_end(&self) {
        let mut more = [0; 64];
        match (&self.stream).read(&mut more) {
            Ok(0) => {}
            Ok(count) => panic!("{} instead of the end", excerpt(&more[..count])),
            Err(error) => panic!("{error} instead of the end"),
        }
    }

    /// Reads the end, in whichever way the server made it.
    #[track_caller]
    pub(super) fn expect_end_or_reset(&self) {
        match (&self.stream).read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("{other:?} instead of the end"),
        }
    }

    #[track_caller]
    pub(super) fn ask(&self, request: &[u8], reply: &[u8]) {
        self.send(request);
        self.expect(reply);
    }

    /// As [`ask`](TestClient::ask), for a server that may have closed.
    pub(super) fn try_ask(&self, request: &[u8], reply: &[u8]) -> io::Result<()> {
        self.try_send(request)?;
        let mut got = vec![0; reply.len()];
        (&self.stream).read_exact(&mut got)?;
        assert_eq!(got, reply);
        Ok(())
    }

    /// Reads so many bytes, from a server that may have closed.
    pub(super) fn try_read(&self, count: usize) -> io::Result<Vec<u8>> {
        let mut got = vec![0; count];
        (&self.stream).read_exact(&mut got)?;
        Ok(got)
    }

    /// Reads to the end, or to the reset; gives all that came.
    pub(super) fn read_all(&self) -> Vec<u8> {
        let mut all = Vec::new();
        match (&self.stream).read_to_end(&mut all) {
            Ok(_) => all,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => all,
            Err(error) => panic!("{error} after {} bytes", all.len()),
        }
    }

    /// Leaves in peace: ends its side, and waits for the server's end.
    #[track_caller]
    pub(super) fn leave(self) {
        self.finish_sending();
        self.expect_end();
    }

    /// Whether something can be read without waiting: bytes, the end or an error.
    pub(super) fn has_heard_something(&self) -> bool {
        self.stream.set_nonblocking(true).expect("not non-blocking");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("not blocking");
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// How many bytes can be read without waiting, up to `most`.
    pub(super) fn has_heard(&self, most: usize) -> usize {
        let mut buffer = vec![0; most];
        self.stream.peek(&mut buffer).expect("nothing to come")
    }

    /// Whether the other side's kernel has taken everything that was sent, read by the server or not.
    pub(super) fn all_has_arrived(&self) -> bool {
        let here = self.stream.local_addr().expect("no address");
        let all = procfs::net::tcp().expect("no /proc");
        all.iter()
            .any(|entry| entry.local_address == here && entry.tx_queue == 0)
    }

    /// What went wrong on the connection behind its back, such as a RST.
    pub(super) fn error(&self) -> Option<io::Error> {
        self.stream.take_error().expect("no SO_ERROR")
    }
}

fn excerpt(bytes: &[u8]) -> impl fmt::Display {
    let shown = &bytes[..bytes.len().min(48)];
    format!("\"{}\"", shown.escape_ascii())
}
