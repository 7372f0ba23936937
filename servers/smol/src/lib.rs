//! `smol`, `smol-local`: async tasks on smol's executor, run by some threads or by one.
//!
//! ```text
//!   accept ──► spawn ──► task: converse ─ await ─ await ─ … ──► channel ──► tally
//!                        (run by the thread that takes it from the executor's queue)
//! ```
//!
//! smol is a handful of small crates: an executor that is a value and not a global, a reactor, channels. So the server
//! starts the threads itself: each thread that calls `executor.run` is a worker, and `smol-local` has one.
//!
//! Calls that can't be awaited run on the threads of the crate `blocking` (`unblock`): files are read there piece by
//! piece, and with --offload all work that occupies a thread is done there.
//! These threads belong to the process: a call that outlasts the drain runs to its end, and its result is thrown away.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::net::TcpListener;
use std::num::NonZero;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use contract::files::Piece;
use contract::work::carry_out;
use contract::{
    Capacity, Ending, LINGER, Limits, Model, Needs, Offload, READ_BUFFER, Service, Stop, Tally,
    accept, always_available,
};
use protocol::{CloseReason, Session, Step, Work};
use smol::channel::{self, Receiver};
use smol::future::{or, pending, poll_once, yield_now};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::TcpStream;
use smol::{Async, Executor, Task, Timer, unblock};

/// After a pause of some milliseconds the thread of the crate async-io waits for the events, and wakes this model's
/// threads for each batch of them, until one of them happens to find the reactor free. Under load that takes some tenths
/// of a second.
const NEEDS: Needs = Needs {
    load_without_pauses: true,
    ..Needs::NOTHING
};

/// The models that this crate provides.
pub const MODELS: &[Model] = &[
    Model {
        name: "smol",
        summary: "async tasks on one executor that --workers threads run",
        lineage: "async-std's successor, made of small crates",
        source: "servers/smol/src/lib.rs",
        serve: |listener, service, limits, stop| {
            let workers = limits.workers;
            run(workers, listener, service, limits, stop)
        },
        available: always_available,
        capacity: Capacity::Limit,
        needs: NEEDS,
        offload: Offload::To("the threads of the crate `blocking` (unblock)"),
        deviations: &[],
    },
    Model {
        name: "smol-local",
        summary: "async tasks on an executor that one thread runs",
        lineage: "Python's asyncio, Node.js; one executor per core",
        source: "servers/smol/src/lib.rs",
        serve: |listener, service, limits, stop| {
            run(NonZero::<usize>::MIN, listener, service, limits, stop)
        },
        available: always_available,
        capacity: Capacity::Limit,
        needs: NEEDS,
        offload: Offload::To("the threads of the crate `blocking` (unblock)"),
        deviations: &[],
    },
];

/// Message of a channel on which nothing is ever sent: that the channel is closed is the message.
enum Never {}

fn run(
    workers: NonZero<usize>,
    listener: TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
) -> io::Result<Tally> {
    let executor = Arc::new(Executor::new());
    let (working, done) = channel::bounded::<Never>(1);
    thread::scope(|scope| {
        for _ in 1..workers.get() {
            let worker = thread::Builder::new().name("worker".to_string());
            worker.spawn_scoped(scope, || smol::block_on(executor.run(done.recv())))?;
        }
        // This thread is a worker too. `serve` has a task of its own, so that it is polled like all other tasks: `run`
        // polls the future that it is given only once in 200 turns, which takes long if the tasks occupy the thread.
        let serving = serve(Arc::clone(&executor), listener, service, limits, stop);
        let serving = executor.spawn(serving);
        let tally = smol::block_on(executor.run(serving));
        drop(working);
        tally
    })
    // Dropping the executor drops the tasks that are left, and with them their connections.
}

async fn serve(
    executor: Arc<Executor<'static>>,
    listener: TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
) -> io::Result<Tally> {
    enum Event {
        Stopped(io::Result<()>),
        Ended(u64, Ending),
        Accepted(io::Result<TcpStream>),
    }
    let listener = smol::net::TcpListener::try_from(listener)?;
    let stop = Async::new(stop.stream()?)?;
    // One future from the start of the server to its end: such a future needs a turn of the reactor to see the stop,
    // and one that is created anew beside an accept that always succeeds or always fails would never get that turn.
    let mut stopped = pin!(stop.readable());
    let (stopper, stopping) = channel::bounded::<Never>(1);
    let (sender, endings) = channel::unbounded();
    let mut tally = Tally::default();
    // Kept to cut the remaining connections at the end: dropping a handle cancels its task.
    let mut tasks: HashMap<u64, Task<()>> = HashMap::new();

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
        match or(stop, or(ended, accepted)).await {
            Event::Stopped(stopped) => break stopped,
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
                let task = executor.spawn(async move {
                    let ending = conversation.await;
                    let ending = ending.unwrap_or_else(|error| Ending::of(&error));
                    // This fails when the drain is over: the ending is then not counted any more.
                    let _ = sender.send((number, ending)).await;
                });
                tasks.insert(number, task);
                // Without this, nothing would interrupt the loop while peers come as fast as they are accepted.
                yield_now().await;
            }
            Event::Accepted(Err(error)) => match accept::on_error(error, &mut tally) {
                Ok(None) => {}
                Ok(Some(pause)) => {
                    let stop = async { Some(stopped.as_mut().await) };
                    let paused = async {
                        sleep(pause).await;
                        None
                    };
                    if let Some(stopped) = or(stop, paused).await {
                        break stopped;
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
    or(drained, sleep(limits.drain)).await;
    tally.cut_the_rest();
    ended.map(|()| tally)
}

async fn sleep(time: Duration) {
    Timer::after(time).await;
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
/// socket ready: unlike tokio, smol does not count.
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
    // One timer and one stop for the whole conversation. A timer for every read would wake the reactor each time it
    // is set; this one is only moved when it fires.
    let mut idle = Timer::after(limits.idle_timeout);
    let mut stopped = pin!(stopping.recv());
    let mut steps = 0;

    loop {
        steps += 1;
        if steps % STEPS_BEFORE_YIELD == 0 {
            yield_now().await;
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
                match poll_once(stream.read(&mut buffer)).await {
                    Some(read) => Event::Read(read?),
                    None => {
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
                    (&mut idle).await;
                    Ok(Event::Idle)
                };
                or(read, or(stopped, idle)).await?
            }
            Step::Write(bytes) => {
                let written = async { stream.write(bytes).await.map(Event::Wrote) };
                let idle = async {
                    (&mut idle).await;
                    Ok(Event::Idle)
                };
                or(written, idle).await?
            }
            Step::SendFile(slice) => {
                let (slice, memory) = (slice.clone(), mem::take(&mut piece));
                piece = unblock(move || memory.read(slice)).await?;
                Event::FileRead
            }
            Step::Work(Work::Wait(time)) => {
                sleep(time).await;
                Event::Worked
            }
            Step::Work(work) if limits.offload => {
                // There are at most 500 such threads (BLOCKING_MAX_THREADS), and files are read there too: behind 500
                // slow calls these reads wait as well.
                unblock(move || carry_out(work)).await;
                Event::Worked
            }
            Step::Work(work) => {
                // The work runs on this thread, and every task that this thread would poll waits meanwhile. These
                // tasks, or the stop, are polled next.
                carry_out(work);
                yield_now().await;
                Event::Worked
            }
            Step::Close(reason) => {
                if reason == CloseReason::Refused {
                    let time_out = sleep(LINGER);
                    or(
                        async { drop(linger(&mut stream, &mut buffer).await) },
                        time_out,
                    )
                    .await;
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
                idle.set_at(progress + limits.idle_timeout);
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
        yield_now().await;
    }
    Ok(())
}
