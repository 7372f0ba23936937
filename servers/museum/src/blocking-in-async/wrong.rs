//! Echo in async functions, with calls that block the thread.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;

use tokio::runtime;

use crate::{ExampleOptions, listen, stop_at_once};

/// Serves each peer in a task of its own. Two threads run all tasks.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let mut builder = runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build()?;
    let listener = listen(options)?;
    runtime.block_on(async {
        loop {
            let (stream, _) = listener.accept()?;
            runtime.spawn(converse(stream));
        }
    })
}

/// Sends each line back. The last line needs no line end.
async fn converse(mut stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        stream.write_all(&line)?;
        line.clear();
    }
    Ok(())
}
