//! A slot is given back when its peer has left.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::{runtime, select, time};

use crate::{ExampleOptions, listen, signals};

/// Serves each peer in a task of its own.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    let mut stop = signals::stop_receiver()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = listen(options)?;
    listener.set_nonblocking(true)?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let count = u32::try_from(options.max_connections).unwrap_or(u32::MAX);
        let slots = Arc::new(Semaphore::new(count as usize));
        loop {
            let next = async { (acquire(&slots).await, listener.accept().await) };
            select! {
                (slot, accepted) = next => {
                    let (stream, _) = accepted?;
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        let _slot = slot;
                        converse(stream, stop).await
                    });
                }
                _ = stop.changed() => break,
            }
        }
        drop(listener);
        // When all slots are free, all peers have left.
        let _ = time::timeout(options.drain, slots.acquire_many(count)).await;
        Ok(())
    })
}

/// Waits for a slot. The slot is given back when the permit is dropped.
async fn acquire(slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(slots).acquire_owned().await.ok()
}

/// Sends each line back, until the peer ends its side or a stop begins. The last line needs no line end.
async fn converse(mut stream: TcpStream, mut stop: watch::Receiver<bool>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        select! {
            // Data that has arrived is answered, even after the stop.
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
