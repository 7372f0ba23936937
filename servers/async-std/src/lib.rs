//! `async-std`: async tasks on async-std's global executor.
//!
//! ```text
//!   accept ──► spawn ──► task: converse ─ await ─ await ─ … ──► channel ──► tally
//!                        (run by the executor's threads, which belong to the process)
//! ```
//!
//! async-std was discontinued by its authors in March 2025 (RUSTSEC-2025-0052); they ask all users to move to smol. It
//! is here because it is still in use and its users must decide, and not to be chosen for new code. Below its API are
//! smol's own executor and reactor, so it differs from `smol` in defaults and packaging.
//!
//! Calls that can't be awaited run on the runtime's blocking threads (`spawn_blocking`): files are read there piece by
//! piece, and with --offload all work that occupies a thread is done there.
//! These threads belong to the process: a call that outlasts the drain runs to its end, and its result is thrown away.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use async_global_executor::GlobalExecutorConfig;
use async_std::channel::{self, Receiver};
use async_std::future::{pending, timeout};
use async_std::io::{ReadExt, WriteExt};
use async_std::net::TcpStream;
use async_std::os::unix::net::UnixStream;
use async_std::prelude::FutureExt;
use async_std::task::{self, JoinHandle};
use contract::files::Piece;
use contract::work::carry_out;
use contract::{
    Capacity, Ending, LINGER, Limits, Model, Needs, Offload, READ_BUFFER, Service, Stop, Tally,
    accept, always_available,
};
use protocol::{CloseReason, Session, Step, Work};

/// After a pause of some milliseconds the thread of the crate async-io waits for the events, and wakes this model's
/// threads for each batch of them, until one of them happens to find the reactor free. Under load that takes some tenths
/// of a second.
const NEEDS: Needs = Needs {
    load_without_pauses: true,
    ..Needs::NOTHING
};

/// The models that this crate provides.
pub const MODELS: &[Model] = &[Model {
    name: "async-std",
    summary: "async tasks on a global executor with --workers threads (discontinued: for comparison only)",
    lineage: "the API of the standard library, made async; superseded by smol",
    source: "servers/async-std/src/lib.rs",
    serve: run,
    available: always_available,
    capacity: Capacity::Limit,
    needs: NEEDS,
    offload: Offload::To("the runtime's blocking threads (spawn_blocking)"),
    deviations: &[],
}];

/// Message of a channel on which nothing is ever sent: that the channel is closed is the message.
enum Never {}

fn run(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    // The executor belongs to the process and starts with its first task, so the first server of a process decides
    // how many threads there are. A server process has only one server.
    let workers = limits.workers.get();
    async_global_executor::init_with_config(
        GlobalExecutorConfig::default()
            .with_min_threads(workers)
            .with_max_threads(workers),
    );
    // async-std's own `block_on` would make this thread one more that polls the reactor, and that hands every event
    // over.
    let (sender, receiver) = mpsc::channel();
    task::spawn(async move { sender.send(serve(listener, service, limits, stop).await) });
    receiver.recv().map_err(io::Error::other)?
}

async fn serve(
    listener: TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
) -> io::Result<Tally> {
    enum Event {
        Stopped(io::Result<usize>),
        Ended(u64, Ending),
        Accepted(io::Result<TcpStream>),
    }
    let listener = async_std::net::TcpListener::from(listener);
    // async-std can't wait for a descriptor as such, only read from it. No other code reads from this one.
    let mut stop = UnixStream::from(stop.stream()?);
    let mut byte = [0];
    let mut stopped = pin!(stop.read(&mut byte));
    let (stopper, stopping) = channel::bounded::<Never>(1);
    let (sender, endings) = channel::unbounded();
    let mut tally = Tally::default();
    // Kept to cut the remaining connections at the end: dropping a handle only detaches its task.
    let mut tasks: HashMap<u64, JoinHandle<()>> = HashMap::new();

    let ended = loop {
        let full = tally.accepted - tally.ended() >= limits.max_connections as u64;
        let stop = async { Event::Stopped(stopped.as_mut().await) };
        let ended = async {
            match endings.recv().await {
                Ok((number, ending)) => Event::Ended(number, ending),
                Err(_) => pending().await,
            }
        };
        let accepted = async {
            if full {
                pending::<()>().await;
            }
            Event::Accepted(listener.accept().await.map(|(stream, _)| stream))
        };
        match stop.race(ended.race(accepted)).await {
            Event::Stopped(stopped) => break stopped.map(drop),
            Event::Ended(number, ending) => {
                tasks.remove(&number);
                tally.count(ending);
            }
            Event::Accepted(Ok(stream)) => {
                tally.accepted += 1;
                let number = tally.accepted;
                let conversation =
                    converse(stream, service.open(), limits.clone(), stopping.clone());
                let sender = sender.clone();
                let task = task::spawn(async move {
                    let ending = conversation.await;
                    let ending = ending.unwrap_or_else(|error| Ending::of(&error));
                    // This fails when the drain is over: the ending is then not counted any more.
                    let _ = sender.send((number, ending)).await;
                });
                tasks.insert(number, task);
                // Without this, nothing would interrupt the loop while peers come as fast as they are accepted.
                task::yield_now().await;
            }
            Event::Accepted(Err(error)) => match accept::on_error(error, &mut tally) {
                Ok(None) => {}
                Ok(Some(pause)) => {
                    if let Ok(stopped) = timeout(pause, stopped.as_mut()).await {
                        break stopped.map(drop);
                    }
                }
                Err(broken) => break Err(broken),
            },
        }
    };

    // The server was stopped, or the listener is broken. In both cases the connections are drained.
    drop(listener);
    drop(stopper);
    let drained = async {
        while !tally.adds_up()
            && let Ok((number, ending)) = endings.recv().await
        {
            tasks.remove(&number);
            tally.count(ending);
        }
    };
    let _ = timeout(limits.drain, drained).await;
    for (_, task) in tasks {
        task.cancel().await;
    }
    tally.cut_the_rest();
    ended.map(|()| tally)
}

/// Result of a step that has waited.
enum Event {
    Read(usize),
    Wrote(usize),
    FileRead,
    Worked,
    Idle,
    Stopped,
}

/// Number of steps after which a task lets other tasks run. Nothing else would interrupt a task that always finds its
/// socket ready: unlike tokio, async-std does not count.
const STEPS_BEFORE_YIELD: usize = 64;

/// Holds the conversation: takes the session's next step, carries it out, and reports the result to the session.
async fn converse(
    mut stream: TcpStream,
    mut session: Box<dyn Session>,
    limits: Limits,
    stopping: Receiver<Never>,
) -> io::Result<Ending> {
    let mut buffer = vec![0; READ_BUFFER];
    let mut piece = Piece::default();
    let mut progress = Instant::now();
    // One timer and one stop for the whole conversation. An `io::timeout` around every read would wake the reactor
    // each time it is set; a sleep of async-std can't be moved, so it is replaced when it has fired.
    let mut idle: Pin<Box<dyn Future<Output = ()> + Send>> =
        Box::pin(task::sleep(limits.idle_timeout));
    let mut stopped = pin!(stopping.recv());
    let mut steps = 0;

    loop {
        steps += 1;
        if steps % STEPS_BEFORE_YIELD == 0 {
            task::yield_now().await;
        }
        let step = match session.step() {
            Step::SendFile(slice) => match piece.beginning_of(slice) {
                // The part that is in memory is written like any other reply.
                Some(bytes) => Step::Write(bytes),
                None => Step::SendFile(slice),
            },
            step => {
                // Between two files the memory of the piece is not needed.
                piece = Piece::default();
                step
            }
        };
        let event = match step {
            Step::Read if stopping.is_closed() => {
                // Requests that arrived before the stop are answered, and no more.
                match timeout(Duration::ZERO, stream.read(&mut buffer)).await {
                    Ok(read) => Event::Read(read?),
                    Err(_) => {
                        let cut = session.mid_request();
                        return Ok(if cut { Ending::Cut } else { Ending::Served });
                    }
                }
            }
            Step::Read => {
                let read = async { stream.read(&mut buffer).await.map(Event::Read) };
                let stopped = async {
                    let _ = stopped.as_mut().await;
                    Ok(Event::Stopped)
                };
                let idle = async {
                    idle.as_mut().await;
                    Ok(Event::Idle)
                };
                read.race(stopped.race(idle)).await?
            }
            Step::Write(bytes) => {
                let written = async { stream.write(bytes).await.map(Event::Wrote) };
                let idle = async {
                    idle.as_mut().await;
                    Ok(Event::Idle)
                };
                written.race(idle).await?
            }
            Step::SendFile(slice) => {
                let (slice, memory) = (slice.clone(), mem::take(&mut piece));
                piece = task::spawn_blocking(move || memory.read(slice)).await?;
                Event::FileRead
            }
            Step::Work(Work::Wait(time)) => {
                task::sleep(time).await;
                Event::Worked
            }
            Step::Work(work) if limits.offload => {
                // There are at most 500 such threads (BLOCKING_MAX_THREADS), and files are read there too: behind 500
                // slow calls these reads wait as well.
                task::spawn_blocking(move || carry_out(work)).await;
                Event::Worked
            }
            Step::Work(work) => {
                // The work runs on this thread, and every task that this thread would poll waits meanwhile. These
                // tasks, or the stop, are polled next.
                carry_out(work);
                task::yield_now().await;
                Event::Worked
            }
            Step::Close(reason) => {
                if reason == CloseReason::Refused {
                    let _ = timeout(LINGER, linger(&mut stream, &mut buffer)).await;
                }
                return Ok(reason.into());
            }
        };
        match event {
            Event::Read(0) => session.end_of_input(),
            Event::Read(count) => session.receive(&buffer[..count]),
            Event::Wrote(count) => session.sent(count),
            Event::FileRead => {}
            Event::Worked => session.worked(),
            Event::Stopped => continue,
            Event::Idle if progress.elapsed() >= limits.idle_timeout => {
                return Ok(Ending::TimedOut);
            }
            Event::Idle => {
                idle = Box::pin(task::sleep(
                    limits.idle_timeout.saturating_sub(progress.elapsed()),
                ));
                continue;
            }
        }
        progress = Instant::now();
    }
}

/// Gives a refused peer time to read the error reply: see [`CloseReason::Refused`].
async fn linger(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    while stream.read(buffer).await? > 0 {
        // Without this, a peer that sends faster than the server reads would never let the time-out check its clock.
        task::yield_now().await;
    }
    Ok(())
}
