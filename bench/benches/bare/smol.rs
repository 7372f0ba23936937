//! smol on one thread, a task per connection.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;

use smol::LocalExecutor;
use smol::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    let executor = LocalExecutor::new();
    smol::block_on(executor.run(async {
        let listener = smol::net::TcpListener::try_from(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let task = executor.spawn(async move {
                let mut buffer = vec![0; super::BUFFER];
                loop {
                    match stream.read(&mut buffer).await? {
                        0 => return io::Result::Ok(()),
                        count => stream.write_all(&buffer[..count]).await?,
                    }
                }
            });
            task.detach();
        }
    }))
}
