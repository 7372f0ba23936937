//! Why `serve.rs` abandons no read. Not a guarantee of ours, but a property of completions that all of it is built around:
//! should this test fail one day, much of that can go.

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

/// A read that waits, input that comes, and then somebody drops the read, as a time-out around it would. The bytes are
/// neither in the socket any more nor anywhere else.
#[test]
fn what_it_had_taken_is_lost() {
    if let Err(why) = (server_compio::MODELS[0].available)() {
        eprintln!("compio cannot run here: {why}; not checked");
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("not listening");
    let address = listener.local_addr().expect("no address");
    let mut peer = TcpStream::connect(address).expect("not connected");
    let (stream, _) = listener.accept().expect("not accepted");
    let socket = stream.try_clone().expect("no descriptor");
    let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;

    Runtime::new().expect("no runtime").block_on(async {
        let mut stream = compio::net::TcpStream::from_std(stream).expect("not taken over");
        {
            let mut read = pin!(stream.read(Vec::with_capacity(100)));
            let mut context = Context::from_waker(Waker::noop());
            assert!(read.as_mut().poll(&mut context).is_pending());
            // What is submitted goes to the kernel when nobody has anything to do.
            sleep(Duration::from_millis(1)).await;
            peer.write_all(b"lost").expect("not sent");
            // On the loopback device the bytes have arrived by now; so if they are not in the socket, the read has them.
            while rustix::net::recv(&socket, &mut [0; 4], look).is_ok() {
                sleep(Duration::from_millis(1)).await;
            }
        }
        peer.write_all(b"kept").expect("not sent");
        let compio::BufResult(read, buffer) = stream.read(Vec::with_capacity(100)).await;
        assert_eq!(read.expect("not read"), 4);
        assert_eq!(buffer, b"kept");
    });
}
