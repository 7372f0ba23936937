//! The conversation owns the bytes of a line read so far. They are kept when the timer fires first.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::{runtime, select, time};

use crate::{ExampleOptions, listen, signals};

/// Interval at which each task checks whether a stop has begun.
const CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// Serves each peer in a task of its own.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    let stop = signals::stop_receiver()?;
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
                () = time::sleep(CHECK_INTERVAL) => {}
            }
        }
        Ok(())
    })
}

/// Sends each line back. The last line needs no line end.
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
            () = time::sleep(CHECK_INTERVAL) => {}
        }
    }
    Ok(())
}
