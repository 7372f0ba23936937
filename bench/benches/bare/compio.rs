//! compio, a task per connection. One buffer is passed to the read, returned filled, and passed to the write.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;

use compio::BufResult;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::runtime::{Runtime, spawn};

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    listener.set_nonblocking(false)?;
    Runtime::new()?.block_on(async {
        let listener = compio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let task = spawn(async move {
                let mut buffer = Vec::with_capacity(super::BUFFER);
                loop {
                    let BufResult(read, mut filled) = stream.read(buffer).await;
                    match read? {
                        0 => return io::Result::Ok(()),
                        count => filled.truncate(count),
                    }
                    let BufResult(written, sent) = stream.write_all(filled).await;
                    written?;
                    buffer = sent;
                }
            });
            task.detach();
        }
    })
}
