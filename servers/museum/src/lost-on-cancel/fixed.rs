//! What was read of a line belongs to the conversation, and is still there when the timer was faster.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::{runtime, select, time};

use crate::{ExampleOptions, listen, signals};

/// So often each task looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(1);

/// A task for each peer.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    let stop = signals::told()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = listen(options)?;
    listener.set_nonblocking(true)?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        while !*stop.borrow() {
            select! {
                accepted = listener.accept() => {
                    tokio::spawn(converse(accepted?.0, stop.clone()));
                }
                () = time::sleep(LOOK) => {}
            }
        }
        Ok(())
    })
}

/// A line in, the same line out. The last one needs no end.
async fn converse(mut stream: TcpStream, stop: watch::Receiver<bool>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while !*stop.borrow() {
        select! {
            read = reader.read_until(b'\n', &mut line) => {
                read?;
                if line.is_empty() {
                    return Ok(());
                }
                writer.write_all(&line).await?;
                line.clear();
            }
            () = time::sleep(LOOK) => {}
        }
    }
    Ok(())
}
