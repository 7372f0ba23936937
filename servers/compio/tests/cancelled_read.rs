//! The reason why `serve.rs` abandons no read. This is not a guarantee of the server, but a property of completions on
//! which its design rests: if this test fails one day, much of that design can be removed.

#![cfg(target_os = "linux")]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use compio::io::AsyncRead;
use compio::runtime::Runtime;
use compio::time::sleep;
use rustix::net::RecvFlags;

/// A read waits, input arrives, and then the read is dropped, as a time-out around the read would drop it. The bytes
/// are no longer in the socket, and no buffer has them.
#[test]
fn input_of_a_dropped_read_is_lost() {
    if let Err(reason) = (server_compio::MODELS[0].available)() {
        eprintln!("compio cannot run here: {reason}; not checked");
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("not listening");
    let address = listener.local_addr().expect("no address");
    let mut peer = TcpStream::connect(address).expect("not connected");
    let (stream, _) = listener.accept().expect("not accepted");
    let socket = stream.try_clone().expect("no descriptor");
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;

    Runtime::new().expect("no runtime").block_on(async {
        let mut stream = compio::net::TcpStream::from_std(stream).expect("not taken over");
        {
            let mut read = pin!(stream.read(Vec::with_capacity(100)));
            let mut context = Context::from_waker(Waker::noop());
            assert!(read.as_mut().poll(&mut context).is_pending());
            // The runtime submits operations to the kernel when no task is ready.
            sleep(Duration::from_millis(1)).await;
            peer.write_all(b"lost").expect("not sent");
            // On the loopback device the bytes have arrived by now. If they are not in the socket, the read has taken
            // them.
            while rustix::net::recv(&socket, &mut [0; 4], peek).is_ok() {
                sleep(Duration::from_millis(1)).await;
            }
        }
        peer.write_all(b"kept").expect("not sent");
        let compio::BufResult(read, buffer) = stream.read(Vec::with_capacity(100)).await;
        assert_eq!(read.expect("not read"), 4);
        assert_eq!(buffer, b"kept");
    });
}
