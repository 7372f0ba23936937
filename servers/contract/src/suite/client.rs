//! A client for the checks that sends and reads exactly what the test orders.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::{GUARD, eventually};

/// Blocking client with time-outs of [`GUARD`].
#[derive(Debug)]
pub(super) struct TestClient {
    stream: TcpStream,
}

impl TestClient {
    #[track_caller]
    pub(super) fn connect(address: SocketAddr) -> TestClient {
        TestClient::try_connect(address).expect("cannot connect to the server")
    }

    pub(super) fn try_connect(address: SocketAddr) -> io::Result<TestClient> {
        let stream = TcpStream::connect(address)?;
        // Every write goes out as a segment of its own, so that the input is cut where the test cuts it.
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GUARD))?;
        stream.set_write_timeout(Some(GUARD))?;
        Ok(TestClient { stream })
    }

    #[track_caller]
    pub(super) fn send(&self, bytes: &[u8]) {
        self.try_send(bytes).expect("cannot send to the server");
    }

    pub(super) fn try_send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    /// Sends without reading until the server has taken nothing for 300 ms. Returns the number of bytes sent.
    pub(super) fn send_until_stuck(&self, bytes: &[u8]) -> usize {
        let small = 64 * 1024;
        SockRef::from(&self.stream)
            .set_send_buffer_size(small)
            .expect("no small send buffer");
        let idle_limit = Some(Duration::from_millis(300));
        self.stream
            .set_write_timeout(idle_limit)
            .expect("no time-out");
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

    /// Ends the client's side of the connection (sends FIN).
    #[track_caller]
    pub(super) fn finish_sending(&self) {
        self.stream
            .shutdown(Shutdown::Write)
            .expect("not connected");
    }

    /// Resets the connection (sends RST).
    pub(super) fn reset(self) {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("no SO_LINGER");
    }

    /// Reads exactly the expected bytes. Fails at the first wrong byte, at an early end and at an error.
    #[track_caller]
    pub(super) fn expect(&self, expected: &[u8]) {
        let mut buffer = [0; 64 * 1024];
        let mut received = 0;
        while received < expected.len() {
            let most = buffer.len().min(expected.len() - received);
            match (&self.stream).read(&mut buffer[..most]) {
                Ok(0) => panic!(
                    "the server ended after {received} bytes, before {}",
                    excerpt(&expected[received..])
                ),
                Ok(count) => {
                    let (got, want) = (&buffer[..count], &expected[received..received + count]);
                    if let Some(wrong) = got.iter().zip(want).position(|(got, want)| got != want) {
                        panic!(
                            "at byte {}: {} instead of {}",
                            received + wrong,
                            excerpt(&got[wrong..]),
                            excerpt(&want[wrong..])
                        );
                    }
                    received += count;
                }
                Err(error) => panic!(
                    "{error} after {received} bytes, before {}",
                    excerpt(&expected[received..])
                ),
            }
        }
    }

    /// Reads the end of the server's side. Fails if bytes or an error come first.
    #[track_caller]
    pub(super) fn expect_end(&self) {
        let mut more = [0; 64];
        match (&self.stream).read(&mut more) {
            Ok(0) => {}
            Ok(count) => panic!("{} instead of the end", excerpt(&more[..count])),
            Err(error) => panic!("{error} instead of the end"),
        }
    }

    /// Reads the end of the connection, by FIN or by RST.
    #[track_caller]
    pub(super) fn expect_end_or_reset(&self) {
        match (&self.stream).read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("{other:?} instead of the end"),
        }
    }

    /// Sends a request and reads exactly its reply.
    #[track_caller]
    pub(super) fn ask(&self, request: &[u8], reply: &[u8]) {
        self.send(request);
        self.expect(reply);
    }

    /// Sends a request and reads exactly its reply. Returns an error if the server has closed.
    pub(super) fn try_ask(&self, request: &[u8], reply: &[u8]) -> io::Result<()> {
        self.try_send(request)?;
        let mut got = vec![0; reply.len()];
        (&self.stream).read_exact(&mut got)?;
        assert_eq!(got, reply);
        Ok(())
    }

    /// Reads `count` bytes. Returns an error if the server has closed.
    pub(super) fn try_read(&self, count: usize) -> io::Result<Vec<u8>> {
        let mut got = vec![0; count];
        (&self.stream).read_exact(&mut got)?;
        Ok(got)
    }

    /// Reads until FIN or RST, and returns all bytes that came before it.
    pub(super) fn read_all(&self) -> Vec<u8> {
        let mut all = Vec::new();
        match (&self.stream).read_to_end(&mut all) {
            Ok(_) => all,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => all,
            Err(error) => panic!("{error} after {} bytes", all.len()),
        }
    }

    /// Ends the client's side and waits for the end of the server's side.
    #[track_caller]
    pub(super) fn leave(self) {
        self.finish_sending();
        self.expect_end();
    }

    /// Returns true if a read would not block: there are bytes, the end or an error.
    pub(super) fn has_input(&self) -> bool {
        self.stream.set_nonblocking(true).expect("not non-blocking");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("not blocking");
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Waits for input, and returns the number of bytes that can be read without blocking, up to `most`.
    pub(super) fn readable_bytes(&self, most: usize) -> usize {
        let mut buffer = vec![0; most];
        self.stream
            .peek(&mut buffer)
            .expect("cannot peek at the input")
    }

    /// Waits until the kernel of the server's side has acknowledged all that was sent, FIN included, whether or not the
    /// server has read it. A write to the loopback device usually has this effect at once, but not on a busy machine.
    #[track_caller]
    pub(super) fn wait_until_arrived(&self) {
        let here = self.stream.local_addr().expect("no address");
        eventually("all that was sent has arrived", || {
            let all = procfs::net::tcp().expect("no /proc");
            all.iter()
                .any(|entry| entry.local_address == here && entry.tx_queue == 0)
        });
    }

    /// Returns the pending error of the socket (SO_ERROR), such as a received RST.
    pub(super) fn error(&self) -> Option<io::Error> {
        self.stream.take_error().expect("no SO_ERROR")
    }
}

/// Returns the first 48 bytes, escaped and in quotation marks.
fn excerpt(bytes: &[u8]) -> impl fmt::Display {
    let shown = &bytes[..bytes.len().min(48)];
    format!("\"{}\"", shown.escape_ascii())
}
