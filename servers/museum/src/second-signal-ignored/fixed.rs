//! The first signal asks for a stop, the second for one at once.

use std::io;
use std::process;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::{runtime, select, time};

use crate::{ExampleOptions, listen};

/// A task for each peer.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    let (tell, mut stop) = watch::channel(false);
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        for (number, _) in signals.forever().enumerate() {
            if number > 0 {
                process::exit(1);
            }
            tell.send_replace(true);
        }
    });
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
