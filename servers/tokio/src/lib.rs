//! `tokio`, `tokio-local`: async tasks on tokio's work-stealing threads, or on one thread.
//!
//! ```text
//!   accept ──► spawn ──► task: converse ─ await ─ await ─ … ──► join
//!                        (polled by a worker whenever its socket, timer or stop wakes it)
//! ```
//!
//! The conversation reads like the blocking one, with `await` where that one waits. The compiler turns it into a state
//! machine; the runtime is the event loop that `mio` writes by hand.
//!
//! Calls that can't be awaited run on the runtime's blocking threads (`spawn_blocking`): files are read there piece by
//! piece, and with --offload all work that occupies a thread is done there.

use std::io;
use std::mem;
use std::net::TcpListener;
use std::pin::pin;
use std::time::Duration;

use contract::files::Piece;
use contract::work::carry_out;
use contract::{
    Capacity, Ending, LINGER, Limits, Model, Needs, Offload, READ_BUFFER, Service, Stop, Tally,
    accept, always_available,
};
use protocol::{CloseReason, Session, Step, Work};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::select;
use tokio::task::{JoinError, JoinSet, spawn_blocking, yield_now};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// The models that this crate provides.
pub const MODELS: &[Model] = &[
    Model {
        name: "tokio",
        summary: "async tasks on --workers threads that steal tasks from each other",
        lineage: "Go's and Cilk's schedulers; most Rust services",
        source: "servers/tokio/src/lib.rs",
        serve: |listener, service, limits, stop| {
            let runtime = Builder::new_multi_thread()
                .worker_threads(limits.workers.get())
                .enable_all()
                .build()?;
            run(runtime, listener, service, limits, stop)
        },
        available: always_available,
        capacity: Capacity::Limit,
        needs: Needs::NOTHING,
        offload: Offload::To("the runtime's blocking threads (spawn_blocking)"),
        deviations: &[],
    },
    Model {
        name: "tokio-local",
        summary: "async tasks on one thread, by tokio's scheduler without stealing",
        lineage: "Python's asyncio, Node.js; one runtime per core",
        source: "servers/tokio/src/lib.rs",
        serve: |listener, service, limits, stop| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            run(runtime, listener, service, limits, stop)
        },
        available: always_available,
        capacity: Capacity::Limit,
        needs: Needs::NOTHING,
        offload: Offload::To("the runtime's blocking threads (spawn_blocking)"),
        deviations: &[],
    },
];

/// Time that the blocking threads have to end, after everything else has ended.
const BLOCKING_CALLS_END: Duration = Duration::from_secs(1);

fn run(
    runtime: Runtime,
    listener: TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
) -> io::Result<Tally> {
    // `serve` has a task of its own: the thread that calls `block_on` is not one of the workers, so every accept there
    // would wake two threads.
    let serving = runtime.spawn(serve(listener, service, limits, stop));
    let tally = runtime.block_on(serving).map_err(io::Error::other);
    // A runtime that is dropped waits for the calls of its blocking threads, and nothing can end these calls early.
    // After a complete drain there are none; after the drain deadline such a thread is left behind until its call
    // returns.
    runtime.shutdown_timeout(BLOCKING_CALLS_END);
    tally?
}

async fn serve(
    listener: TcpListener,
    service: Service,
    limits: Limits,
    stop: Stop,
) -> io::Result<Tally> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stop = UnixStream::from_std(stop.stream()?)?;
    let stopping = CancellationToken::new();
    let mut tally = Tally::default();
    let mut tasks = JoinSet::new();

    let ended = loop {
        select! {
            biased;
            stopped = stop.readable() => break stopped,
            Some(ended) = tasks.join_next() => tally.count(ending(ended)),
            accepted = listener.accept(), if tasks.len() < limits.max_connections => match accepted {
                Ok((stream, _)) => {
                    tally.accepted += 1;
                    tasks.spawn(converse(stream, service.open(), limits.clone(), stopping.clone()));
                }
                Err(error) => match accept::on_error(error, &mut tally) {
                    Ok(None) => {}
                    Ok(Some(pause)) => select! {
                        stopped = stop.readable() => break stopped,
                        () = sleep(pause) => {}
                    },
                    Err(broken) => break Err(broken),
                },
            },
        }
    };

    // The server was stopped, or the listener is broken. In both cases the connections are drained.
    drop(listener);
    stopping.cancel();
    let drained = timeout(limits.drain, async {
        while let Some(ended) = tasks.join_next().await {
            tally.count(ending(ended));
        }
    });
    if drained.await.is_err() {
        tasks.shutdown().await;
        tally.cut_the_rest();
    }
    ended.map(|()| tally)
}

fn ending(ended: Result<io::Result<Ending>, JoinError>) -> Ending {
    match ended {
        Ok(Ok(ending)) => ending,
        Ok(Err(error)) => Ending::of(&error),
        Err(_panicked) => Ending::Failed,
    }
}

/// Result of a step that has waited.
enum Event {
    Read(usize),
    Wrote(usize),
    FileRead,
    Worked,
    Idle,
}

/// Holds the conversation: takes the session's next step, carries it out, and reports the result to the session.
async fn converse(
    mut stream: TcpStream,
    mut session: Box<dyn Session>,
    limits: Limits,
    stopping: CancellationToken,
) -> io::Result<Ending> {
    let mut buffer = vec![0; READ_BUFFER];
    let mut piece = Piece::default();
    let mut progress = Instant::now();
    // One timer and one stop for the whole conversation. A `timeout` around every read would be registered with the
    // runtime and removed again for each request; these are registered once, and the timer is moved when it fires.
    let mut idle = pin!(sleep_until(progress + limits.idle_timeout));
    let mut stopped = pin!(stopping.cancelled());

    loop {
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
            Step::Read if stopping.is_cancelled() => {
                // Requests that arrived before the stop are answered, and no more. `try_read` knows only the input that
                // the driver has seen. The driver sees input before a later stop; another turn lets it see more.
                yield_now().await;
                match stream.try_read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let cut = session.mid_request();
                        return Ok(if cut { Ending::Cut } else { Ending::Served });
                    }
                    read => Event::Read(read?),
                }
            }
            Step::Read => select! {
                biased;
                read = stream.read(&mut buffer) => Event::Read(read?),
                () = &mut stopped => continue,
                () = &mut idle => Event::Idle,
            },
            Step::Write(bytes) => select! {
                biased;
                written = stream.write(bytes) => Event::Wrote(written?),
                () = &mut idle => Event::Idle,
            },
            Step::SendFile(slice) => {
                let (slice, memory) = (slice.clone(), mem::take(&mut piece));
                piece = spawn_blocking(move || memory.read(slice)).await??;
                Event::FileRead
            }
            Step::Work(Work::Wait(time)) => {
                sleep(time).await;
                Event::Worked
            }
            Step::Work(work) if limits.offload => {
                // There are at most 512 such threads, and files are read there too: behind 512 slow calls these reads
                // wait as well.
                spawn_blocking(move || carry_out(work)).await?;
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
            Event::Idle if progress.elapsed() >= limits.idle_timeout => {
                return Ok(Ending::TimedOut);
            }
            Event::Idle => {
                idle.as_mut().reset(progress + limits.idle_timeout);
                continue;
            }
        }
        progress = Instant::now();
    }
}

/// Gives a refused peer time to read the error reply: see [`CloseReason::Refused`].
async fn linger(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.shutdown().await?;
    while stream.read(buffer).await? > 0 {}
    Ok(())
}
