//! The server notices a stop only when the next peer connects.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::{runtime, select, time};

use crate::{ExampleOptions, listen, signals};

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
        let mut peers = JoinSet::new();
        while !*stop.borrow() {
            let (stream, _) = listener.accept().await?;
            peers.spawn(converse(stream, stop.clone()));
            while peers.try_join_next().is_some() {}
        }
        drop(listener);
        let all = async { while peers.join_next().await.is_some() {} };
        // Peers that are still connected after that are cut.
        let _ = time::timeout(options.drain, all).await;
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
