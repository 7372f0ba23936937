//! Each connection has one ending, and each ending has a column in the tally.

use std::time::Duration;

use tokio::io::{self, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::{runtime, select, time};

use crate::{ExampleOptions, listen, signals};

/// Maximum length of a line, in bytes, with its line end.
const MAX_LINE: usize = 64 * 1024;

/// Time for which a refused peer may still send, so that it can read the reason for the refusal.
const LINGER: Duration = Duration::from_secs(1);

/// Number of accepted connections, and of connections by the way in which they ended.
#[derive(Debug, Default)]
struct Tally {
    accepted: u64,
    served: u64,
    refused: u64,
    timed_out: u64,
    reset: u64,
    cut: u64,
    failed: u64,
}

/// Way in which a conversation ended without an error.
enum Ending {
    Served,
    Refused,
    TimedOut,
    Cut,
}

/// Serves each peer in a task of its own, and prints the tally at the end.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    let mut stop = signals::stop_receiver()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = listen(options)?;
    listener.set_nonblocking(true)?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let mut tally = Tally::default();
        let mut peers = JoinSet::new();
        loop {
            select! {
                accepted = listener.accept() => {
                    tally.accepted += 1;
                    peers.spawn(converse(accepted?.0, stop.clone(), options.clone()));
                }
                Some(end) = peers.join_next() => tally.count(end),
                _ = stop.changed() => break,
            }
        }
        drop(listener);
        let deadline = time::Instant::now() + options.drain;
        while let Ok(Some(end)) = time::timeout_at(deadline, peers.join_next()).await {
            tally.count(end);
        }
        tally.cut += peers.len() as u64;
        tally.print();
        Ok(())
    })
}

impl Tally {
    fn count(&mut self, end: Result<io::Result<Ending>, JoinError>) {
        match end {
            Ok(Ok(Ending::Served)) => self.served += 1,
            Ok(Ok(Ending::Refused)) => self.refused += 1,
            Ok(Ok(Ending::TimedOut)) => self.timed_out += 1,
            Ok(Ok(Ending::Cut)) => self.cut += 1,
            Ok(Err(error)) => {
                eprintln!("connection lost: {error}");
                self.reset += 1;
            }
            Err(_) => self.failed += 1,
        }
    }

    fn print(&self) {
        let Tally {
            accepted,
            served,
            refused,
            timed_out,
            reset,
            cut,
            failed,
        } = self;
        println!(
            "{{\"accepted\":{accepted},\"served\":{served},\"refused\":{refused},\"timed_out\":{timed_out},\
             \"reset\":{reset},\"cut\":{cut},\"failed\":{failed},\"accept_errors\":0}}"
        );
    }
}

/// Sends the lines back, until the peer ends its side or a stop begins. The last line needs no line end.
async fn converse(
    mut stream: TcpStream,
    mut stop: watch::Receiver<bool>,
    options: ExampleOptions,
) -> io::Result<Ending> {
    let mut input = Vec::new();
    loop {
        let count = select! {
            // Data that has arrived is answered, even after the stop.
            biased;
            read = time::timeout(options.idle_timeout, stream.read_buf(&mut input)) => match read {
                Ok(count) => count?,
                Err(_) => return Ok(Ending::TimedOut),
            },
            _ = stop.changed() => {
                let idle = input.is_empty();
                return Ok(if idle { Ending::Served } else { Ending::Cut });
            }
        };
        if input
            .split(|byte| *byte == b'\n')
            .any(|line| line.len() >= MAX_LINE)
        {
            let refusal = format!("error: a line may have at most {MAX_LINE} bytes\n");
            stream.write_all(refusal.as_bytes()).await?;
            stream.shutdown().await?;
            // Input that is unread at the close makes the kernel send RST, which can overtake the reply.
            let _ = time::timeout(LINGER, io::copy(&mut stream, &mut io::sink())).await;
            return Ok(Ending::Refused);
        }
        let last = input.iter().rposition(|byte| *byte == b'\n');
        let complete = last.map_or(0, |end| end + 1);
        let answered = if count == 0 { input.len() } else { complete };
        let lines: Vec<u8> = input.drain(..answered).collect();
        if let Some(panic) = &options.panic {
            assert!(!String::from_utf8_lossy(&lines).contains(panic));
        }
        match time::timeout(options.idle_timeout, stream.write_all(&lines)).await {
            Ok(written) => written?,
            Err(_) => return Ok(Ending::TimedOut),
        }
        if count == 0 {
            return Ok(Ending::Served);
        }
    }
}
