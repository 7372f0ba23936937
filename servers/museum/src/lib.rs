//! The bug museum: the mistakes that servers, and those who test and measure them, make again and again.
//!
//! Each example is a small server twice, in a folder of its own: `wrong.rs`, and `fixed.rs`, which differs from it in
//! the mend and in nothing else. Both are complete, but for what has nothing to do with the mistake: so none of them is
//! a model to follow (those are in `servers/`). That the mistakes are caught, and the mends let through, is tested in
//! `bench/tests/museum.rs`, by the `check` command.

mod event_loop;
mod threads;

#[path = "accept-gives-up"]
mod accept_gives_up {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "accept-spins"]
mod accept_spins {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "always-writable"]
mod always_writable {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "answers-twice"]
mod answers_twice {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "drops-a-byte"]
mod drops_a_byte {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "edge-not-drained"]
mod edge_not_drained {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "ignores-half-close"]
mod ignores_half_close {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "no-limit"]
mod no_limit {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "no-reuseaddr"]
mod no_reuseaddr {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "one-error-ends-all"]
mod one_error_ends_all {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "one-message-per-read"]
mod one_message_per_read {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "one-slow-reader"]
mod one_slow_reader {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "short-write"]
mod short_write {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "unbounded-line"]
mod unbounded_line {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "unbounded-output"]
mod unbounded_output {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}

mod signals;
#[path = "blocking-in-async"]
mod blocking_in_async {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "hangs-at-stop"]
mod hangs_at_stop {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "leaks-descriptors"]
mod leaks_descriptors {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "leaks-threads"]
mod leaks_threads {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "lost-account"]
mod lost_account {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "lost-on-cancel"]
mod lost_on_cancel {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "no-drain-deadline"]
mod no_drain_deadline {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "no-timeout"]
mod no_timeout {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "one-panic-ends-all"]
mod one_panic_ends_all {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "pool-loses-workers"]
mod pool_loses_workers {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "second-signal-ignored"]
mod second_signal_ignored {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "stale-permit"]
mod stale_permit {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "starved-pool"]
mod starved_pool {
    pub(crate) mod fixed;
    pub(crate) mod wrong;
}
#[path = "cannot-fail"]
pub mod cannot_fail {
    //! A test that passes whatever the server says. See the docs.
    pub mod fixed;
    pub mod wrong;
}
#[path = "closed-loop-mean"]
pub mod closed_loop_mean {
    //! A benchmark that does not see the server stall. See the docs.
    pub mod fixed;
    pub mod wrong;

    /// A server, as a benchmark sees it: without sockets, on a clock that costs no time.
    pub trait ExampleServer {
        /// When the reply comes to what is asked at that time.
        fn reply(&mut self, asked: std::time::Duration) -> std::time::Duration;
    }
}
#[path = "copied-protocol"]
pub mod copied_protocol {
    //! A protocol that is written once for each server, and fixed in one of them. See the docs.
    pub mod fixed;
    pub mod wrong;
}

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};

/// What an example is told.
#[derive(Debug, Clone, Parser)]
#[command(about = "Servers that are wrong on purpose")]
pub struct ExampleOptions {
    /// Which example
    #[arg(value_parser = find)]
    pub example: &'static Example,

    /// As it should be
    #[arg(long)]
    pub fixed: bool,

    /// Where to listen, on 127.0.0.1
    #[arg(long)]
    pub port: u16,

    /// Close idle peers after so many seconds
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub idle_timeout: Duration,

    /// After a stop, let replies under way take so many seconds
    #[arg(long, default_value = "2", value_parser = seconds)]
    pub drain: Duration,

    /// ServeExample so many at a time
    #[arg(long, default_value = "10000")]
    pub max_connections: usize,

    /// Panic in a session that is sent this
    #[arg(long)]
    pub panic: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "write a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// A mistake, and its mend.
#[derive(Debug)]
pub struct Example {
    /// What the command line calls it; its folder has the same name.
    pub name: &'static str,
    /// What is wrong, in one line.
    pub mistake: &'static str,
    /// What it says: a protocol's name.
    pub protocol: &'static str,
    /// The guarantee that it breaks, by the name that `check` has for it.
    pub caught_by: &'static str,
    /// Serves wrongly until it is told to stop.
    pub wrong: ServeExample,
    /// Serves rightly.
    pub fixed: ServeExample,
}

/// Serves until it is told to stop (SIGTERM, SIGINT), or for ever: the mistakes are in here.
pub type ServeExample = fn(&ExampleOptions) -> io::Result<()>;

/// All examples.
pub static EXAMPLES: &[Example] = &[
    Example {
        name: "short-write",
        mistake: "a write that took a part is taken for one that took all",
        protocol: "echo",
        caught_by: "exact",
        wrong: short_write::wrong::serve,
        fixed: short_write::fixed::serve,
    },
    Example {
        name: "one-message-per-read",
        mistake: "what one read gives is taken for one message",
        protocol: "pair",
        caught_by: "exact",
        wrong: one_message_per_read::wrong::serve,
        fixed: one_message_per_read::fixed::serve,
    },
    Example {
        name: "edge-not-drained",
        mistake: "one read for each event, of a selector that tells of each arrival once",
        protocol: "echo",
        caught_by: "exact",
        wrong: edge_not_drained::wrong::serve,
        fixed: edge_not_drained::fixed::serve,
    },
    Example {
        name: "drops-a-byte",
        mistake: "an index is off by one where a line is cut",
        protocol: "pair",
        caught_by: "exact",
        wrong: drops_a_byte::wrong::serve,
        fixed: drops_a_byte::fixed::serve,
    },
    Example {
        name: "answers-twice",
        mistake: "a write that has to wait begins again from the start",
        protocol: "echo",
        caught_by: "exact",
        wrong: answers_twice::wrong::serve,
        fixed: answers_twice::fixed::serve,
    },
    Example {
        name: "one-error-ends-all",
        mistake: "an error of one connection ends the server",
        protocol: "echo",
        caught_by: "half-close",
        wrong: one_error_ends_all::wrong::serve,
        fixed: one_error_ends_all::fixed::serve,
    },
    Example {
        name: "ignores-half-close",
        mistake: "a peer that has ended its side is taken for one that has gone",
        protocol: "echo",
        caught_by: "half-close",
        wrong: ignores_half_close::wrong::serve,
        fixed: ignores_half_close::fixed::serve,
    },
    Example {
        name: "accept-gives-up",
        mistake: "the first error of accept(2) ends the server",
        protocol: "echo",
        caught_by: "accept",
        wrong: accept_gives_up::wrong::serve,
        fixed: accept_gives_up::fixed::serve,
    },
    Example {
        name: "accept-spins",
        mistake: "an error of accept(2) is skipped, and comes again at once",
        protocol: "echo",
        caught_by: "accept",
        wrong: accept_spins::wrong::serve,
        fixed: accept_spins::fixed::serve,
    },
    Example {
        name: "always-writable",
        mistake: "poll(2) is always asked whether a write would do",
        protocol: "echo",
        caught_by: "limit",
        wrong: always_writable::wrong::serve,
        fixed: always_writable::fixed::serve,
    },
    Example {
        name: "no-limit",
        mistake: "a thread for everybody who comes",
        protocol: "echo",
        caught_by: "limit",
        wrong: no_limit::wrong::serve,
        fixed: no_limit::fixed::serve,
    },
    Example {
        name: "unbounded-output",
        mistake: "reads on while what is to be sent piles up",
        protocol: "echo",
        caught_by: "memory",
        wrong: unbounded_output::wrong::serve,
        fixed: unbounded_output::fixed::serve,
    },
    Example {
        name: "one-slow-reader",
        mistake: "one thread sends the replies of all",
        protocol: "echo",
        caught_by: "memory",
        wrong: one_slow_reader::wrong::serve,
        fixed: one_slow_reader::fixed::serve,
    },
    Example {
        name: "unbounded-line",
        mistake: "collects a line of any length",
        protocol: "echo",
        caught_by: "bad-input",
        wrong: unbounded_line::wrong::serve,
        fixed: unbounded_line::fixed::serve,
    },
    Example {
        name: "no-reuseaddr",
        mistake: "listens without SO_REUSEADDR",
        protocol: "echo",
        caught_by: "restart",
        wrong: no_reuseaddr::wrong::serve,
        fixed: no_reuseaddr::fixed::serve,
    },
    Example {
        name: "no-timeout",
        mistake: "waits for its peers for as long as they like",
        protocol: "echo",
        caught_by: "idle",
        wrong: no_timeout::wrong::serve,
        fixed: no_timeout::fixed::serve,
    },
    Example {
        name: "pool-loses-workers",
        mistake: "a panic in a job takes a worker of the pool with it",
        protocol: "echo",
        caught_by: "panic",
        wrong: pool_loses_workers::wrong::serve,
        fixed: pool_loses_workers::fixed::serve,
    },
    Example {
        name: "starved-pool",
        mistake: "idle peers hold all workers of a small pool",
        protocol: "echo",
        caught_by: "limit",
        wrong: starved_pool::wrong::serve,
        fixed: starved_pool::fixed::serve,
    },
    Example {
        name: "blocking-in-async",
        mistake: "calls that block the thread, in async functions",
        protocol: "echo",
        caught_by: "isolation",
        wrong: blocking_in_async::wrong::serve,
        fixed: blocking_in_async::fixed::serve,
    },
    Example {
        name: "lost-on-cancel",
        mistake: "what was read is dropped with the future that read it",
        protocol: "echo",
        caught_by: "exact",
        wrong: lost_on_cancel::wrong::serve,
        fixed: lost_on_cancel::fixed::serve,
    },
    Example {
        name: "no-drain-deadline",
        mistake: "waits for its last peer at a stop, however long that takes",
        protocol: "echo",
        caught_by: "stop",
        wrong: no_drain_deadline::wrong::serve,
        fixed: no_drain_deadline::fixed::serve,
    },
    Example {
        name: "stale-permit",
        mistake: "a place is given back as soon as it was taken, so that the stop waits for nobody",
        protocol: "echo",
        caught_by: "stop",
        wrong: stale_permit::wrong::serve,
        fixed: stale_permit::fixed::serve,
    },
    Example {
        name: "hangs-at-stop",
        mistake: "hears of a stop only when the next peer comes",
        protocol: "echo",
        caught_by: "stop",
        wrong: hangs_at_stop::wrong::serve,
        fixed: hangs_at_stop::fixed::serve,
    },
    Example {
        name: "second-signal-ignored",
        mistake: "takes every signal for the first",
        protocol: "echo",
        caught_by: "stop",
        wrong: second_signal_ignored::wrong::serve,
        fixed: second_signal_ignored::fixed::serve,
    },
    Example {
        name: "one-panic-ends-all",
        mistake: "a panic in one conversation ends all that are on the thread",
        protocol: "echo",
        caught_by: "panic",
        wrong: one_panic_ends_all::wrong::serve,
        fixed: one_panic_ends_all::fixed::serve,
    },
    Example {
        name: "lost-account",
        mistake: "a tally without a column for those who broke off",
        protocol: "echo",
        caught_by: "tally",
        wrong: lost_account::wrong::serve,
        fixed: lost_account::fixed::serve,
    },
    Example {
        name: "leaks-descriptors",
        mistake: "who breaks off stays in the list of those who are there",
        protocol: "echo",
        caught_by: "leaks",
        wrong: leaks_descriptors::wrong::serve,
        fixed: leaks_descriptors::fixed::serve,
    },
    Example {
        name: "leaks-threads",
        mistake: "a thread that watches over each peer, and never ends",
        protocol: "echo",
        caught_by: "leaks",
        wrong: leaks_threads::wrong::serve,
        fixed: leaks_threads::fixed::serve,
    },
];

fn find(name: &str) -> Result<&'static Example, String> {
    let found = EXAMPLES.iter().find(|example| example.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = EXAMPLES.iter().map(|example| example.name).collect();
        format!("no such example; there are {}", names.join(", "))
    })
}

/// Listens where an example is told to.
///
/// # Errors
///
/// The port is taken.
pub fn listen(options: &ExampleOptions) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, options.port)))
}

/// Becomes true with the first SIGTERM or SIGINT.
///
/// # Errors
///
/// The handlers could not be set.
pub fn stop() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Ends the process with status 0 at the first SIGTERM or SIGINT, whatever it does then: for examples whose mistake has
/// nothing to do with the stop.
///
/// # Errors
///
/// The handlers could not be set.
pub fn stop_at_once() -> io::Result<()> {
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            0,
            Arc::new(AtomicBool::new(true)),
        )?;
    }
    Ok(())
}

/// Shows an example: serves as it is told, rightly or wrongly.
///
/// # Errors
///
/// The example could not begin; or it gave up, if that is its mistake.
pub fn show(options: &ExampleOptions) -> io::Result<()> {
    let example = options.example;
    let serve = if options.fixed {
        example.fixed
    } else {
        example.wrong
    };
    serve(options)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", example.name)))
}

/// The whole program.
pub fn main() -> ExitCode {
    match show(&ExampleOptions::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
