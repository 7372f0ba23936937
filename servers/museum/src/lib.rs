//! The museum of mistakes: frequent mistakes in servers, and in the tests and benchmarks of servers.
//!
//! Each example is a small server in two versions, in a folder of its own: `wrong.rs`, and `fixed.rs`, which differs
//! from it in the fix and in nothing else. Both versions leave out everything that has nothing to do with the mistake,
//! so neither of them is a model to follow; the models are in `servers/`. `bench/tests/museum.rs` runs the `check`
//! command on both versions: the wrong one must be reported as broken, and the fixed one must pass.

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
    //! A test that passes whatever the server sends. `docs/src/museum/cannot-fail.md` explains it.
    pub mod fixed;
    pub mod wrong;
}
#[path = "closed-loop-mean"]
pub mod closed_loop_mean {
    //! A benchmark that does not notice that the server stalls. `docs/src/museum/closed-loop-mean.md` explains it.
    pub mod fixed;
    pub mod wrong;

    /// A server as a benchmark sees it, without sockets and on a simulated clock.
    pub trait ExampleServer {
        /// Returns the time at which the reply arrives to a request that is sent at the time `sent`. Both times count
        /// from the start of the benchmark.
        fn reply(&mut self, sent: std::time::Duration) -> std::time::Duration;
    }
}
#[path = "copied-protocol"]
pub mod copied_protocol {
    //! A protocol that is written once for each server, and fixed in one of them only.
    //! `docs/src/museum/copied-protocol.md` explains it.
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

/// Command line of the museum program.
#[derive(Debug, Clone, Parser)]
#[command(about = "Servers that are wrong on purpose, each with its fix")]
pub struct ExampleOptions {
    /// Name of the example
    #[arg(value_parser = find)]
    pub example: &'static Example,

    /// Run the fixed version instead of the wrong one
    #[arg(long)]
    pub fixed: bool,

    /// TCP port to listen on, at 127.0.0.1
    #[arg(long)]
    pub port: u16,

    /// Close a connection that is idle for this number of seconds
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub idle_timeout: Duration,

    /// Time after a stop in which replies under way may finish, in seconds
    #[arg(long, default_value = "2", value_parser = seconds)]
    pub drain: Duration,

    /// Maximum number of connections served at a time
    #[arg(long, default_value = "10000")]
    pub max_connections: usize,

    /// Panic in a session that receives this text
    #[arg(long)]
    pub panic: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// A mistake and its fix.
#[derive(Debug)]
pub struct Example {
    /// Name on the command line, and name of the folder.
    pub name: &'static str,
    /// Description of the mistake, in one line.
    pub mistake: &'static str,
    /// Name of the protocol that the server speaks.
    pub protocol: &'static str,
    /// Name of the guarantee that the wrong version breaks, as `check` names it.
    pub caught_by: &'static str,
    /// Server with the mistake.
    pub wrong: ServeExample,
    /// Server with the fix.
    pub fixed: ServeExample,
}

/// Function that serves until SIGTERM or SIGINT stops it, or for ever, if that is the mistake.
pub type ServeExample = fn(&ExampleOptions) -> io::Result<()>;

/// All examples that are servers, in the order of the page.
pub static EXAMPLES: &[Example] = &[
    Example {
        name: "short-write",
        mistake: "a write that took only a part of the bytes is treated as complete",
        protocol: "echo",
        caught_by: "exact",
        wrong: short_write::wrong::serve,
        fixed: short_write::fixed::serve,
    },
    Example {
        name: "one-message-per-read",
        mistake: "the bytes of one read are treated as one message",
        protocol: "pair",
        caught_by: "exact",
        wrong: one_message_per_read::wrong::serve,
        fixed: one_message_per_read::fixed::serve,
    },
    Example {
        name: "edge-not-drained",
        mistake: "one read per event, though an edge-triggered selector reports each arrival once",
        protocol: "echo",
        caught_by: "exact",
        wrong: edge_not_drained::wrong::serve,
        fixed: edge_not_drained::fixed::serve,
    },
    Example {
        name: "drops-a-byte",
        mistake: "an index is off by one where lines are cut",
        protocol: "pair",
        caught_by: "exact",
        wrong: drops_a_byte::wrong::serve,
        fixed: drops_a_byte::fixed::serve,
    },
    Example {
        name: "answers-twice",
        mistake: "a write that had to wait starts again at the first byte",
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
        mistake: "a peer that has ended its side is treated as gone",
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
        mistake: "an error of accept(2) is skipped, and the next call fails at once again",
        protocol: "echo",
        caught_by: "accept",
        wrong: accept_spins::wrong::serve,
        fixed: accept_spins::fixed::serve,
    },
    Example {
        name: "always-writable",
        mistake: "poll(2) is always asked for writability, even with nothing to write",
        protocol: "echo",
        caught_by: "limit",
        wrong: always_writable::wrong::serve,
        fixed: always_writable::fixed::serve,
    },
    Example {
        name: "no-limit",
        mistake: "a thread for every connection, without a limit",
        protocol: "echo",
        caught_by: "limit",
        wrong: no_limit::wrong::serve,
        fixed: no_limit::fixed::serve,
    },
    Example {
        name: "unbounded-output",
        mistake: "the server goes on reading while output piles up",
        protocol: "echo",
        caught_by: "memory",
        wrong: unbounded_output::wrong::serve,
        fixed: unbounded_output::fixed::serve,
    },
    Example {
        name: "one-slow-reader",
        mistake: "one thread sends the replies of all connections",
        protocol: "echo",
        caught_by: "memory",
        wrong: one_slow_reader::wrong::serve,
        fixed: one_slow_reader::fixed::serve,
    },
    Example {
        name: "unbounded-line",
        mistake: "a line of any length is collected in memory",
        protocol: "echo",
        caught_by: "bad-input",
        wrong: unbounded_line::wrong::serve,
        fixed: unbounded_line::fixed::serve,
    },
    Example {
        name: "no-reuseaddr",
        mistake: "the listener is made without SO_REUSEADDR",
        protocol: "echo",
        caught_by: "restart",
        wrong: no_reuseaddr::wrong::serve,
        fixed: no_reuseaddr::fixed::serve,
    },
    Example {
        name: "no-timeout",
        mistake: "the server waits for its peers without a time limit",
        protocol: "echo",
        caught_by: "idle",
        wrong: no_timeout::wrong::serve,
        fixed: no_timeout::fixed::serve,
    },
    Example {
        name: "pool-loses-workers",
        mistake: "a panic in a job ends a worker of the pool",
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
        mistake: "bytes that were read are dropped with the future that read them",
        protocol: "echo",
        caught_by: "exact",
        wrong: lost_on_cancel::wrong::serve,
        fixed: lost_on_cancel::fixed::serve,
    },
    Example {
        name: "no-drain-deadline",
        mistake: "a stop waits for the last peer, without a deadline",
        protocol: "echo",
        caught_by: "stop",
        wrong: no_drain_deadline::wrong::serve,
        fixed: no_drain_deadline::fixed::serve,
    },
    Example {
        name: "stale-permit",
        mistake: "a slot is given back as soon as it was taken, so that a stop waits for no peer",
        protocol: "echo",
        caught_by: "stop",
        wrong: stale_permit::wrong::serve,
        fixed: stale_permit::fixed::serve,
    },
    Example {
        name: "hangs-at-stop",
        mistake: "a stop is noticed only when the next peer connects",
        protocol: "echo",
        caught_by: "stop",
        wrong: hangs_at_stop::wrong::serve,
        fixed: hangs_at_stop::fixed::serve,
    },
    Example {
        name: "second-signal-ignored",
        mistake: "every signal is treated as the first",
        protocol: "echo",
        caught_by: "stop",
        wrong: second_signal_ignored::wrong::serve,
        fixed: second_signal_ignored::fixed::serve,
    },
    Example {
        name: "one-panic-ends-all",
        mistake: "a panic in one conversation ends all conversations on the thread",
        protocol: "echo",
        caught_by: "panic",
        wrong: one_panic_ends_all::wrong::serve,
        fixed: one_panic_ends_all::fixed::serve,
    },
    Example {
        name: "lost-account",
        mistake: "connections that the peer reset are missing from the tally",
        protocol: "echo",
        caught_by: "tally",
        wrong: lost_account::wrong::serve,
        fixed: lost_account::fixed::serve,
    },
    Example {
        name: "leaks-descriptors",
        mistake: "a peer that breaks off stays in the list of open connections",
        protocol: "echo",
        caught_by: "leaks",
        wrong: leaks_descriptors::wrong::serve,
        fixed: leaks_descriptors::fixed::serve,
    },
    Example {
        name: "leaks-threads",
        mistake: "a thread watches each peer and never ends",
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
        format!(
            "no example has this name; choose one of {}",
            names.join(", ")
        )
    })
}

/// Listens on the port of the command line, at 127.0.0.1.
///
/// # Errors
///
/// Another socket listens on the port.
pub fn listen(options: &ExampleOptions) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, options.port)))
}

/// Returns a flag that becomes true with the first SIGTERM or SIGINT.
///
/// # Errors
///
/// The signal handlers could not be set.
pub fn stop() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Makes the first SIGTERM or SIGINT end the process at once, with status 0. It is for examples whose mistake has
/// nothing to do with a stop.
///
/// # Errors
///
/// The signal handlers could not be set.
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

/// Runs the wrong or the fixed version of an example, as the command line says.
///
/// # Errors
///
/// The server could not start, or it ended with an error, if that is its mistake.
pub fn run(options: &ExampleOptions) -> io::Result<()> {
    let example = options.example;
    let serve = if options.fixed {
        example.fixed
    } else {
        example.wrong
    };
    serve(options)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", example.name)))
}

/// Runs the museum program: parses the command line, runs the example, and returns the exit status.
pub fn main() -> ExitCode {
    match run(&ExampleOptions::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
