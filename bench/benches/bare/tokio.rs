//! tokio on one thread, a task per connection.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Builder;

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut buffer = vec![0; super::BUFFER];
                loop {
                    match stream.read(&mut buffer).await? {
                        0 => return io::Result::Ok(()),
                        count => stream.write_all(&buffer[..count]).await?,
                    }
                }
            });
        }
    })
}
