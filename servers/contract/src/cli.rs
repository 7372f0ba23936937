//! The command line of one server.

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser};
use protocol::{Bulk, PROTOCOLS, Protocol, SessionOptions, WorkKind, WorkPlan};

use crate::{
    CpuList, LEAST_STACK, Limits, Model, Offload, Service, Stop, Tally, file_store, listen, pin,
    raise_descriptor_limit,
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

    /// Of http: serve the files under this directory, and nothing else; hidden ones are not [default: three built-in files, 13b, 13k and 13m]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// What bulk sends.
    #[command(flatten)]
    pub bulk: BulkArgs,

    /// What is to be done before replies.
    #[command(flatten)]
    pub work: WorkArgs,

    /// Move work that keeps a thread (block, compute) to where the model has threads for it
    #[arg(long, requires = "work")]
    pub offload: bool,

    /// For checks: sessions panic when they are sent this
    #[arg(long, value_name = "TEXT", hide = true)]
    pub panic_on: Option<String>,

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

/// What `bulk` sends: told to both sides.
#[derive(Debug, Clone, Copy, Args)]
pub struct BulkArgs {
    /// Of bulk: bytes per message, such as 3M, 64K or 100
    #[arg(long, value_name = "SIZE", default_value = "3M", value_parser = parse_bulk_size)]
    pub bulk_size: u64,

    /// Of bulk: messages per start
    #[arg(long, value_name = "N", default_value_t = Bulk::default().count, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub bulk_count: u64,
}

impl BulkArgs {
    /// The same, for sessions and scripts.
    pub fn bulk(&self) -> Bulk {
        Bulk {
            size: self.bulk_size,
            count: self.bulk_count,
        }
    }
}

/// The work before replies. A client that is told the same tells the other requests' latency apart.
#[derive(Debug, Clone, Args)]
pub struct WorkArgs {
    /// Before each reply: wait:5ms, wait:0ms..2s (evenly drawn), block:5ms@10% (one request in ten), compute:200us
    #[arg(long, value_name = "KIND:TIME", value_parser = parse_work)]
    pub work: Option<WorkPlan>,

    /// The same seed draws the same work, for the same requests
    #[arg(long, value_name = "N", default_value_t = 0, requires = "work")]
    pub work_seed: u64,
}

impl WorkArgs {
    /// The same, as a plan.
    pub fn plan(&self) -> Option<WorkPlan> {
        let plan = self.work.clone();
        plan.map(|plan| plan.with_seed(self.work_seed))
    }
}

/// Whether that work can be done over that protocol.
///
/// # Errors
///
/// It is for a share of the requests, and they can't be told apart.
pub fn check_work(protocol: &Protocol, work: Option<&WorkPlan>) -> Result<(), String> {
    match work {
        Some(work) if work.percent() < 100 && !protocol.requests_differ => Err(format!(
            "which requests cost work is decided by their bytes, and those of {} are all the same: leave out @{}%",
            protocol.name,
            work.percent()
        )),
        _ => Ok(()),
    }
}

/// Work before replies, such as `wait:5ms`, `wait:0ms..2s` or `block:5ms@10%`.
///
/// # Errors
///
/// It is none; the message shows how to write it.
pub fn parse_work(text: &str) -> Result<WorkPlan, String> {
    const HELP: &str = "write wait:5ms, wait:0ms..2s, block:5ms@10% or compute:200us";
    let (kind, rest) = text.split_once(':').ok_or(HELP)?;
    let (kind, most) = match kind {
        "wait" => (WorkKind::Wait, Duration::from_secs(60 * 60)),
        // Nobody can end these before their time, not even a stop.
        "block" => (WorkKind::Block, Duration::from_secs(60)),
        "compute" => (WorkKind::Compute, Duration::from_secs(60)),
        other => return Err(format!("there is no work {other}; {HELP}")),
    };
    let (time, percent) = match rest.split_once('@') {
        None => (rest, 100),
        Some((time, share)) => {
            let percent = share.strip_suffix('%').and_then(|share| share.parse().ok());
            let percent = percent.filter(|percent| (1..=100).contains(percent));
            (
                time,
                percent.ok_or_else(|| format!("a share is 1% to 100%; {HELP}"))?,
            )
        }
    };
    let parse = |time| humantime::parse_duration(time).map_err(|_| HELP.to_string());
    let time: RangeInclusive<Duration> = match time.split_once("..") {
        None => {
            let time = parse(time)?;
            time..=time
        }
        Some((least, most)) => parse(least)?..=parse(most)?,
    };
    if time.is_empty() {
        return Err("the longest time is shorter than the shortest".to_string());
    }
    if *time.end() > most {
        let most = humantime::format_duration(most);
        return Err(format!("{most} is the longest of that kind"));
    }
    Ok(WorkPlan::new(kind, time, percent, 0))
}

/// The size of `bulk`'s messages.
fn parse_bulk_size(text: &str) -> Result<u64, String> {
    const MOST: u64 = 1 << 30;
    match parse_bytes(text) {
        Some(size) if size < Bulk::LEAST => Err(format!(
            "a message has {} bytes at least, its head and its tail",
            Bulk::LEAST
        )),
        Some(size) if size <= MOST => Ok(size),
        Some(_) => Err("1024M is the most".to_string()),
        None => Err("write a size as 64K, 3M or a number of bytes".to_string()),
    }
}

/// A number of bytes, such as `64K`, `3M` or `100`.
fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix(['K', 'k']) {
        Some(number) => (number, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(number) => (number, 1 << 20),
            None => (text, 1),
        },
    };
    number.parse().ok().and_then(|n: u64| n.checked_mul(unit))
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
    let size = parse_bytes(text).map(|size| usize::try_from(size).unwrap_or(usize::MAX));
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
    if args.offload
        && let Offload::Nowhere(why) = model.offload
    {
        return Err(format!(
            "{} has nowhere to move work to: {why}; leave out --offload",
            model.name
        ));
    }
    log(args.verbose);
    if args.offload
        && let Offload::Needless(why) = model.offload
    {
        tracing::info!("--offload changes nothing in {}: {why}", model.name);
    }
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
        offload: args.offload,
    };
    let options = session_options(args)?;
    // In this order: whoever reads "listening" may send a signal at once, and must find it handled.
    let stop = Stop::on_signals().map_err(|error| format!("cannot handle signals: {error}"))?;
    let listener =
        listen(args.listen, args.backlog, model.needs).map_err(|error| error.to_string())?;
    let address = listener
        .local_addr()
        .map_err(|error| format!("cannot tell where it listens: {error}"))?;
    print_line(&format!("listening on {address}"));
    let mut service = Service::of(args.protocol, options);
    if let Some(text) = &args.panic_on {
        service = service.that_panics_on(text);
    }
    let tally = (model.serve)(listener, service, limits, stop)
        .map_err(|error| format!("{} stopped serving: {error}", model.name))?;
    print_line(&if args.json {
        serde_json::to_string(&tally).map_err(|error| error.to_string())?
    } else {
        tally.to_string()
    });
    Ok(tally)
}

/// What sessions are told.
fn session_options(args: &ServeArgs) -> Result<SessionOptions, String> {
    check_work(args.protocol, args.work.work.as_ref())?;
    let mut options = SessionOptions {
        max_line: args.max_line,
        work: args.work.plan(),
        bulk: args.bulk.bulk(),
        ..SessionOptions::default()
    };
    // The files are there before anybody forks, and only for whom they concern.
    if args.protocol.name == "http" {
        options.file_store = match &args.root {
            Some(root) => file_store::directory(root)
                .map_err(|error| format!("cannot serve {}: {error}", root.display()))?,
            None => file_store::built_in()
                .map_err(|error| format!("cannot make the built-in files: {error}"))?,
        };
    } else if args.root.is_some() {
        return Err(format!(
            "--root is for --protocol http, and this is {}",
            args.protocol.name
        ));
    }
    Ok(options)
}

/// Prints a line for whoever still reads; a reader that has left must not end a server.
fn print_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Says what is wrong to whoever still listens. `eprintln!` panics if nobody does, and a server whose log can't be
/// written has better things to do than to die of it.
pub fn print_error(line: &str) {
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
            print_error(&one_line(&error));
            return ExitCode::from(2);
        }
    };
    let named = |model: &&Model| Some(model.name) == server.model.as_deref();
    let model = models.iter().find(named).unwrap_or(&models[0]);
    match serve(model, &server.serve) {
        Ok(_) => ExitCode::SUCCESS,
        Err(message) => {
            print_error(&format!("error: {message}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_before_replies() {
        let ms = Duration::from_millis;
        for (text, kind, least, most, percent) in [
            ("wait:5ms", WorkKind::Wait, ms(5), ms(5), 100),
            ("wait:0ms..2s", WorkKind::Wait, ms(0), ms(2000), 100),
            ("block:5ms@10%", WorkKind::Block, ms(5), ms(5), 10),
            ("compute:1ms..2ms@1%", WorkKind::Compute, ms(1), ms(2), 1),
        ] {
            let plan = parse_work(text).unwrap();
            assert_eq!(
                (plan.kind(), plan.time(), plan.percent()),
                (kind, &(least..=most), percent),
                "{text}"
            );
        }
        for (text, what) in [
            ("5ms", "write wait:5ms"),
            ("sleep:5ms", "no work sleep"),
            ("wait:5", "write wait:5ms"),
            ("wait:2s..1s", "shorter than the shortest"),
            ("wait:1s..", "write wait:5ms"),
            ("wait:2h", "1h is the longest"),
            ("block:61s", "1m is the longest"),
            ("block:5ms@0%", "1% to 100%"),
            ("block:5ms@10", "1% to 100%"),
            ("block:5ms@101%", "1% to 100%"),
        ] {
            let wrong = parse_work(text).unwrap_err();
            assert!(wrong.contains(what), "{text}: {wrong}");
        }
    }

    #[test]
    fn the_size_of_bulk_messages() {
        for (text, size) in [("8", 8), ("64K", 64 << 10), ("3M", 3 << 20)] {
            assert_eq!(parse_bulk_size(text), Ok(size));
        }
        for (text, what) in [
            ("7", "8 bytes at least"),
            ("1025M", "the most"),
            ("3G", "write a size"),
        ] {
            assert!(parse_bulk_size(text).unwrap_err().contains(what), "{text}");
        }
    }

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
