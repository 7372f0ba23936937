//! At a stop the server waits for its last peer, however long that takes.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::{runtime, select};

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
        while peers.join_next().await.is_some() {}
        Ok(())
    })
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
