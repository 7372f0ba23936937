//! `async-std`: async tasks on async-std's global executor.
//!
//! ```text
//!   accept ──► spawn ──► task: converse ─ await ─ await ─ … ──► channel ──► tally
//!                        (run by the executor's threads, which belong to the process)
//! ```
//!
//! async-std was discontinued by its authors in March 2025 (RUSTSEC-2025-0052); they ask everybody to move to smol.
//! It is here because people still run it and must decide, and not to be chosen for new code. Below its API are
//! smol's own executor and reactor, so what differs from `smol` is defaults and packaging.
//!
//! What can't be awaited is done on blocking threads (`spawn_blocking`): files are read there piece by
//! piece, and with --offload all work that keeps a thread is done there.
//! Those belong to the process: a call that outlasts the drain goes on to its end, for nobody.

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

/// What this crate offers.
pub const MODELS: &[Model] = &[Model {
    name: "async-std",
    summary: "async tasks on a global executor with --workers threads (discontinued: for comparison only)",
    lineage: "the standard library's API, made async; superseded by smol",
    source: "servers/async-std/src/lib.rs",
    serve: run,
    available: always_available,
    capacity: Capacity::Limit,
    needs: Needs::NOTHING,
    offload: Offload::To("the runtime's blocking threads (spawn_blocking)"),
    deviations: &[],
}];

/// Nobody ever sends on it: that it is closed is the message.
enum Never {}

fn run(listener: TcpListener, service: Service, limits: Limits, stop: Stop) -> io::Result<Tally> {
    // The executor belongs to the process and starts with its first task, so the first server of a process decides
    // how many threads there are. In a server process there is only one.
    let workers = limits.workers.get();
    async_global_executor::init_with_config(
        GlobalExecutorConfig::default()
            .with_min_threads(workers)
            .with_max_threads(workers),
    );
    // async-std's own `block_on` would make this thread one more that polls the reactor, and hands every event over.
    let (tell, told) = mpsc::channel();
    task::spawn(async move { tell.send(serve(listener, service, limits, stop).await) });
    told.recv().map_err(io::Error::other)?
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
        Came(io::Result<TcpStream>),
    }
    let listener = async_std::net::TcpListener::from(listener);
    // async-std can't wait for a descriptor as such, only read: the only reader of this one is here.
    let mut stop = UnixStream::from(stop.stream()?);
    let mut byte = [0];
    let mut stopped = pin!(stop.read(&mut byte));
    let (going, stopping) = channel::bounded::<Never>(1);
    let (leave, left) = channel::unbounded();
    let mut tally = Tally::default();
    // To cut what is left at the end: dropping a handle only detaches its task.
    let mut tasks: HashMap<u64, JoinHandle<()>> = HashMap::new();

    let ended = loop {
        let full = tally.accepted - tally.ended() >= limits.max_connections as u64;
        let stop = async { Event::Stopped(stopped.as_mut().await) };
        let gone = async {
            match left.recv().await {
                Ok((number, ending)) => Event::Ended(number, ending),
                Err(_) => pending().await,
            }
        };
        let came = async {
            if full {
                pending::<()>().await;
            }
            Event::Came(listener.accept().await.map(|(stream, _)| stream))
        };
        match stop.race(gone.race(came)).await {
            Event::Stopped(stopped) => break stopped.map(drop),
            Event::Ended(number, ending) => {
                tasks.remove(&number);
                tally.count(ending);
            }
            Event::Came(Ok(stream)) => {
                tally.accepted += 1;
                let number = tally.accepted;
                let conversation =
                    converse(stream, service.open(), limits.clone(), stopping.clone());
                let leave = leave.clone();
                let task = task::spawn(async move {
                    let ending = conversation.await;
                    let ending = ending.unwrap_or_else(|error| Ending::of(&error));
                    // Nobody counts any more once the drain is over.
                    let _ = leave.send((number, ending)).await;
                });
                tasks.insert(number, task);
                // Nothing would interrupt this loop while peers come as fast as they are accepted.
                task::yield_now().await;
            }
            Event::Came(Err(error)) => match accept::on_error(error, &mut tally) {
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

    // Stopped or broken, those who are here are served to the end.
    drop(listener);
    drop(going);
    let drained = async {
        while !tally.adds_up()
            && let Ok((number, ending)) = left.recv().await
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

/// What a step that waited came to.
enum Event {
    Read(usize),
    Wrote(usize),
    FileRead,
    Worked,
    Idle,
    Stopped,
}

/// How often a task may find its socket ready before others have their turn. Nothing else would interrupt it: unlike
/// tokio, async-std does not count.
const TURN: usize = 64;

/// The conversation: take the next step, carry it out, report what came of it.
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
    // each time; a sleep can't be moved here, so it is replaced when it has fired.
    let mut idle: Pin<Box<dyn Future<Output = ()> + Send>> =
        Box::pin(task::sleep(limits.idle_timeout));
    let mut stopped = pin!(stopping.recv());
    let mut steps = 0;

    loop {
        steps += 1;
        if steps % TURN == 0 {
            task::yield_now().await;
        }
        let step = match session.step() {
            Step::SendFile(slice) => match piece.beginning_of(slice) {
                // What is here of it is written like any other reply.
                Some(bytes) => Step::Write(bytes),
                None => Step::SendFile(slice),
            },
            step => {
                // Between two files nobody needs its memory.
                piece = Piece::default();
                step
            }
        };
        let event = match step {
            Step::Read if stopping.is_closed() => {
                // What arrived before the stop was asked before the stop: answer that, and no more.
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
                // There are 500 such threads at most (BLOCKING_MAX_THREADS), and files are read there too: behind 500
                // slow calls they wait as well.
                task::spawn_blocking(move || carry_out(work)).await;
                Event::Worked
            }
            Step::Work(work) => {
                // On this thread, and every task that it would poll waits meanwhile. Those are next, or the stop is.
                carry_out(work);
                task::yield_now().await;
                Event::Worked
            }
            Step::Close(farewell) => {
                if farewell == CloseReason::Refused {
                    let _ = timeout(LINGER, linger(&mut stream, &mut buffer)).await;
                }
                return Ok(farewell.into());
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

/// Gives a refused peer time to read why: see [`CloseReason::Refused`].
async fn linger(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    while stream.read(buffer).await? > 0 {
        // A peer that sends faster than we read would never let the time-out look at its clock.
        task::yield_now().await;
    }
    Ok(())
}
