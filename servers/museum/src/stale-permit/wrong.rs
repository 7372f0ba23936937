//! A place is given back as soon as it was taken.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::{runtime, select, time};

use crate::{ExampleOptions, listen, signals};

/// A task for each peer.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    let mut stop = signals::told()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = listen(options)?;
    listener.set_nonblocking(true)?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let count = u32::try_from(options.max_connections).unwrap_or(u32::MAX);
        let places = Arc::new(Semaphore::new(count as usize));
        loop {
            let next = async { (place(&places).await, listener.accept().await) };
            select! {
                (place, accepted) = next => {
                    let (stream, _) = accepted?;
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        let _ = place;
                        converse(stream, stop).await
                    });
                }
                _ = stop.changed() => break,
            }
        }
        drop(listener);
        // When all places are free, all peers have left.
        let _ = time::timeout(options.drain, places.acquire_many(count)).await;
        Ok(())
    })
}

/// Waits for a place, which is given back when the permit is dropped.
async fn place(places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(places).acquire_owned().await.ok()
}

/// A line in, the same line out, until the peer's end or the stop. The last line needs no end.
async fn converse(mut stream: TcpStream, mut stop: watch::Receiver<bool>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        select! {
            // What has come is answered, even after the stop.
            biased;
            read = reader.read_until(b'\n', &mut line) => {
                if read? == 0 {
                    return Ok(());
                }
            }
            _ = stop.changed() => return Ok(()),
        }
        writer.write_all(&line).await?;
        line.clear();
    }
}
