//! Echo in async functions, with calls that block only their task.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;

use crate::{ExampleOptions, listen, stop_at_once};

/// Serves each peer in a task of its own. Two threads run all tasks.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let mut builder = runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build()?;
    let listener = listen(options)?;
    listener.set_nonblocking(true)?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            runtime.spawn(converse(stream));
        }
    })
}

/// Sends each line back. The last line needs no line end.
async fn converse(stream: TcpStream) -> io::Result<()> {
    let (reader, mut stream) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).await? > 0 {
        stream.write_all(&line).await?;
        line.clear();
    }
    Ok(())
}
