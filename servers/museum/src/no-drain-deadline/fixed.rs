//! Waits for its last peer at a stop, until the deadline.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
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
        let mut peers = JoinSet::new();
        loop {
            select! {
                accepted = listener.accept() => {
                    peers.spawn(converse(accepted?.0, stop.clone()));
                }
                Some(_) = peers.join_next() => {}
                _ = stop.changed() => break,
            }
        }
        drop(listener);
        let all = async { while peers.join_next().await.is_some() {} };
        // Whoever is still there then is cut.
        let _ = time::timeout(options.drain, all).await;
        Ok(())
    })
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
