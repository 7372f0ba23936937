//! The command line of one server.

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZero;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser};
use protocol::{PROTOCOLS, Protocol, SessionOptions};

use crate::{
    CpuList, LEAST_STACK, Limits, Model, Service, Stop, Tally, listen, pin, raise_descriptor_limit,
};

/// What every server can be told.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000", value_parser = parse_address)]
    pub listen: SocketAddr,

    /// What to say (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    pub protocol: &'static Protocol,

    /// Close connections without progress after this time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_some_time)]
    pub idle_timeout: Duration,

    /// Serve this many at a time; more wait in the backlog
    #[arg(long, value_name = "N", default_value_t = NonZero::new(Limits::default().max_connections).unwrap_or(NonZero::<usize>::MIN))]
    pub max_connections: NonZero<usize>,

    /// After a stop, let replies under way take this long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_time)]
    pub drain: Duration,

    /// Threads or processes that serve, in the models that can choose [default: as many as it may use CPUs; 200 where each is held by one peer]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub workers: Option<NonZero<usize>>,

    /// Connections that the kernel completes ahead of accept(2); it has a limit of its own, net.core.somaxconn
    #[arg(long, value_name = "N", default_value_t = Limits::default().backlog)]
    pub backlog: u32,

    /// Stack of each thread or coroutine that serves a peer, in the models that have one, such as 128K or 2M
    #[arg(long, value_name = "SIZE", value_parser = parse_stack)]
    pub stack: Option<usize>,

    /// The longest line that is answered, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = SessionOptions::default().max_line)]
    pub max_line: usize,

    /// Run on these CPUs only, such as 0 or 0,2 or 0-3
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Print the tally at the end as JSON
    #[arg(long)]
    pub json: bool,

    /// Log what happens to standard error; twice: every connection
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// A protocol by its name.
///
/// # Errors
///
/// There is none of that name; the message says which there are.
pub fn parse_protocol(name: &str) -> Result<&'static Protocol, String> {
    Protocol::find(name).ok_or_else(|| {
        let names: Vec<_> = PROTOCOLS.iter().map(|protocol| protocol.name).collect();
        format!("no such protocol; there are {}", names.join(", "))
    })
}

/// An address such as `127.0.0.1:7000` or `localhost:7000`.
///
/// # Errors
///
/// It is not one, or nobody knows the name; the message shows how to write it.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let help = "write HOST:PORT, such as 127.0.0.1:7000";
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}; {help}"))?;
    found.next().ok_or_else(|| help.to_string())
}

/// A time such as `5s` or `100ms`, of a year at most: moments further away can't be counted on every system.
///
/// # Errors
///
/// It is not one; the message shows how to write it.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    match humantime::parse_duration(text) {
        Ok(time) if time <= YEAR => Ok(time),
        Ok(_) => Err("a year is the longest".to_string()),
        Err(_) => Err("write a time as 5s, 100ms or 2m".to_string()),
    }
}

/// A number of threads.
///
/// # Errors
///
/// Not a number from 1 to 1,024.
pub fn parse_threads(text: &str) -> Result<NonZero<usize>, String> {
    parse_count(text, 1_024)
}

/// A number of connections.
///
/// # Errors
///
/// Not a number from 1 to 1,000,000: more than one machine has ports and memory for.
pub fn parse_connections(text: &str) -> Result<NonZero<usize>, String> {
    parse_count(text, 1_000_000)
}

/// A number from 1 to `most`.
///
/// # Errors
///
/// Anything else.
pub fn parse_count(text: &str, most: usize) -> Result<NonZero<usize>, String> {
    let count = text
        .parse()
        .ok()
        .filter(|count: &NonZero<usize>| count.get() <= most);
    count.ok_or_else(|| format!("write a number from 1 to {most}"))
}

/// The size of a stack, such as `128K`, `2M` or a number of bytes.
///
/// # Errors
///
/// It is not one, or less than a conversation needs ([`LEAST_STACK`]), or more than 1 GiB.
pub fn parse_stack(text: &str) -> Result<usize, String> {
    const MOST: usize = 1 << 30;
    let (number, unit) = match text.strip_suffix(['K', 'k']) {
        Some(number) => (number, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(number) => (number, 1 << 20),
            None => (text, 1),
        },
    };
    let size = number.parse().ok().and_then(|n: usize| n.checked_mul(unit));
    match size {
        Some(size) if size < LEAST_STACK => Err(format!(
            "a conversation needs {}K",
            LEAST_STACK.div_ceil(1 << 10)
        )),
        Some(size) if size <= MOST => Ok(size),
        Some(_) => Err("1024M is the most".to_string()),
        None => Err("write a size as 128K, 2M or a number of bytes".to_string()),
    }
}

/// A time that is not zero.
///
/// # Errors
///
/// As [`parse_time`], and for zero.
pub fn parse_some_time(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err("must be longer than nothing".to_string()),
        time => Ok(time),
    }
}

/// Serves with one model, from the first line of output to the tally: the life of a server process.
///
/// Prints `listening on ADDR` to standard output once connections are accepted, and the tally at the end.
///
/// # Errors
///
/// In one line: what failed, why, and what to do.
pub fn serve(model: &Model, args: &ServeArgs) -> Result<Tally, String> {
    (model.available)().map_err(|why| format!("{} cannot run here: {why}", model.name))?;
    log(args.verbose);
    if let Some(cpus) = &args.cpus {
        // Before any thread starts, and before the workers are counted: both inherit it.
        pin(cpus).map_err(|error| error.to_string())?;
    }
    let descriptors = raise_descriptor_limit();
    if !descriptors.allow(args.max_connections.get()) {
        tracing::info!(
            "--max-connections {} is more than the descriptor limit of {} allows; peers beyond that wait in the backlog",
            args.max_connections,
            descriptors.now.unwrap_or(u64::MAX)
        );
    }
    let limits = Limits {
        idle_timeout: args.idle_timeout,
        max_connections: args.max_connections.get(),
        drain: args.drain,
        workers: args.workers.unwrap_or_else(|| model.capacity.workers()),
        backlog: args.backlog,
        stack: args.stack,
    };
    let options = SessionOptions {
        max_line: args.max_line,
    };
    // In this order: whoever reads "listening" may send a signal at once, and must find it handled.
    let stop = Stop::on_signals().map_err(|error| format!("cannot handle signals: {error}"))?;
    let listener =
        listen(args.listen, args.backlog, model.needs).map_err(|error| error.to_string())?;
    let address = listener
        .local_addr()
        .map_err(|error| format!("cannot tell where it listens: {error}"))?;
    print_line(&format!("listening on {address}"));
    let service = Service::of(args.protocol, options);
    let tally = (model.serve)(listener, service, limits, stop)
        .map_err(|error| format!("{} stopped serving: {error}", model.name))?;
    print_line(&if args.json {
        serde_json::to_string(&tally).map_err(|error| error.to_string())?
    } else {
        tally.to_string()
    });
    Ok(tally)
}

/// Prints a line for whoever still reads; a reader that has left must not end a server.
fn print_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Says what is wrong to whoever still listens. `eprintln!` panics if nobody does, and a server whose log can't be
/// written has better things to do than to die of it.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn log(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    // Fails where a log is set up already (tests run many servers in one process): that one serves as well.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_writer(io::stderr)
        // Its complaint about a log that can't be written would go where the log can't, and panic.
        .log_internal_errors(false)
        .try_init();
}

/// The error of a command line in one line: what is wrong and where help is. (clap's own rendering has four.)
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut parts = text
        .split("\n\n")
        .map(str::trim)
        .filter(|part| !part.is_empty() && !part.starts_with("Usage:"))
        .filter(|part| !part.starts_with("For more information"))
        // Never what is meant here: no value may begin with a dash.
        .filter(|part| !part.starts_with("tip: to pass"));
    let first = parts.next().unwrap_or("error: wrong usage");
    let mut line: String = first.split_whitespace().collect::<Vec<_>>().join(" ");
    for tip in parts {
        line.push_str("; ");
        line.push_str(&tip.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    line.push_str(" (see --help)");
    line
}

/// One server as a program of its own.
#[derive(Debug, Parser)]
struct Server {
    #[command(flatten)]
    serve: ServeArgs,

    /// Which variant to run
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

/// The `main` of a server crate: serves with the crate's first model, or the one named by `--model`.
pub fn main(models: &'static [Model]) -> ExitCode {
    let names: Vec<&str> = models.iter().map(|model| model.name).collect();
    let command = Server::command()
        .name(format!("server-{}", names[0]))
        .about(models[0].summary)
        .mut_arg("model", |arg| {
            arg.value_parser(clap::builder::PossibleValuesParser::new(names.clone()))
                .default_value(names[0])
        });
    let parsed = command
        .try_get_matches()
        .and_then(|matches| Server::from_arg_matches(&matches));
    let server = match parsed {
        Ok(server) => server,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            complain(&one_line(&error));
            return ExitCode::from(2);
        }
    };
    let named = |model: &&Model| Some(model.name) == server.model.as_deref();
    let model = models.iter().find(named).unwrap_or(&models[0]);
    match serve(model, &server.serve) {
        Ok(_) => ExitCode::SUCCESS,
        Err(message) => {
            complain(&format!("error: {message}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_stack() {
        for (text, size) in [("64K", 64 << 10), ("2m", 2 << 20), ("100000", 100_000)] {
            assert_eq!(parse_stack(text), Ok(size));
        }
        for (text, what) in [
            ("63K", "a conversation needs 64K"),
            ("16", "a conversation needs 64K"),
            ("1025M", "the most"),
            ("K", "write a size as"),
            ("2 M", "write a size as"),
            ("-1", "write a size as"),
            ("99999999999999999M", "write a size as"),
        ] {
            assert!(parse_stack(text).unwrap_err().contains(what), "{text}");
        }
    }
}
