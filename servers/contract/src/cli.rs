//! Command line of a server.

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

/// Options of every server.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Address to listen on; port 0 selects a free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000", value_parser = parse_address)]
    pub listen: SocketAddr,

    /// Protocol to serve (see `samewire list`)
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = parse_protocol)]
    pub protocol: &'static Protocol,

    /// Close a connection after this time without progress; each byte received or sent is progress
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_some_time)]
    pub idle_timeout: Duration,

    /// Connections to serve at a time; further ones wait in the backlog
    #[arg(long, value_name = "N", default_value_t = NonZero::new(Limits::default().max_connections).unwrap_or(NonZero::<usize>::MIN))]
    pub max_connections: NonZero<usize>,

    /// After a stop, how long replies in progress may take before they are cut
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_time)]
    pub drain: Duration,

    /// Threads or processes that serve, in models with a variable number of them [default: one per CPU that the server may
    /// use; 200 in pool and prefork, where a worker serves one connection from start to end]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub workers: Option<NonZero<usize>>,

    /// Connections that may wait to be accepted (completed by the kernel ahead of accept(2)); net.core.somaxconn limits it
    #[arg(long, value_name = "N", default_value_t = Limits::default().backlog)]
    pub backlog: u32,

    /// Stack of each thread or coroutine that serves a connection, such as 128K or 2M; only in models with a stack per
    /// connection [default: 2M in threads and pool, 128K in coroutines]
    #[arg(long, value_name = "SIZE", value_parser = parse_stack)]
    pub stack: Option<usize>,

    /// Longest line that is answered, in bytes; a longer one gets an error reply
    #[arg(long, value_name = "BYTES", default_value_t = SessionOptions::default().max_line)]
    pub max_line: usize,

    /// For http: serve only the files under this directory, without hidden ones [default: three built-in
    /// files: 13b (13 bytes), 13k (13 KiB), 13m (13 MiB)]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Size and number of the messages of bulk.
    #[command(flatten)]
    pub bulk: BulkArgs,

    /// Work before replies.
    #[command(flatten)]
    pub work: WorkArgs,

    /// Move work that occupies a thread (block, compute) to other threads, in the models that support it (see `samewire
    /// list`; models that do not need it ignore it, the others refuse it)
    #[arg(long, requires = "work")]
    pub offload: bool,

    /// For checks: a session panics when it receives this text
    #[arg(long, value_name = "TEXT", hide = true)]
    pub panic_on: Option<String>,

    /// CPU time that each input costs in addition, for comparisons that must find a known difference
    #[arg(long, value_name = "TIME", hide = true, value_parser = parse_some_time)]
    pub burn: Option<Duration>,

    /// Run on these CPUs only, such as 0 or 0,2 or 0-3
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Print the tally (counts of accepted, served, cut … connections) at the end as JSON
    #[arg(long)]
    pub json: bool,

    /// Log events to standard error; -vv also logs every connection
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Options of `bulk`, the same for server and client.
#[derive(Debug, Clone, Copy, Args)]
pub struct BulkArgs {
    /// For bulk: bytes per message, such as 3M, 64K or 100 (M is MiB, K is KiB)
    #[arg(long, value_name = "SIZE", default_value = "3M", value_parser = parse_bulk_size)]
    pub bulk_size: u64,

    /// For bulk: messages per start request
    #[arg(long, value_name = "N", default_value_t = Bulk::default().count, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub bulk_count: u64,
}

impl BulkArgs {
    /// Returns these options as sessions and scripts take them.
    pub fn bulk(&self) -> Bulk {
        Bulk {
            size: self.bulk_size,
            count: self.bulk_count,
        }
    }
}

/// Options for work before replies, the same for server and client: with them the client can report the latency of the
/// other requests separately.
#[derive(Debug, Clone, Args)]
pub struct WorkArgs {
    /// Work before each reply, such as wait:5ms, wait:0ms..2s, block:5ms@10% or compute:200us. KIND is wait (something
    /// else is slow), block (a call that blocks its thread) or compute (uses the CPU). TIME is fixed (5ms) or evenly drawn
    /// (0ms..2s). @10% means one request in ten
    #[arg(long, value_name = "KIND:TIME", value_parser = parse_work)]
    pub work: Option<WorkPlan>,

    /// Seed of the work: the same seed gives the same requests the same work
    #[arg(long, value_name = "N", default_value_t = 0, requires = "work")]
    pub work_seed: u64,
}

impl WorkArgs {
    /// Returns the work as a plan; `None` without `--work`.
    pub fn plan(&self) -> Option<WorkPlan> {
        let plan = self.work.clone();
        plan.map(|plan| plan.with_seed(self.work_seed))
    }
}

/// Checks that the work is possible over the protocol.
///
/// # Errors
///
/// The work is for a share of the requests, and the requests of the protocol can't be told apart.
pub fn check_work(protocol: &Protocol, work: Option<&WorkPlan>) -> Result<(), String> {
    match work {
        Some(work) if work.percent() < 100 && !protocol.requests_differ => Err(format!(
            "a share of the requests is selected by their bytes, and all requests of {} have the same bytes; leave out @{}%",
            protocol.name,
            work.percent()
        )),
        _ => Ok(()),
    }
}

/// Parses work before replies, such as `wait:5ms`, `wait:0ms..2s` or `block:5ms@10%`.
///
/// # Errors
///
/// The text is no such work, or the work takes too long; the message shows how to write it.
pub fn parse_work(text: &str) -> Result<WorkPlan, String> {
    const HELP: &str = "write wait:5ms, wait:0ms..2s, block:5ms@10% or compute:200us";
    let (kind, rest) = text.split_once(':').ok_or(HELP)?;
    let (work_kind, most) = match kind {
        "wait" => (WorkKind::Wait, Duration::from_secs(60 * 60)),
        // Nothing can end this work before its time, not even a stop.
        "block" => (WorkKind::Block, Duration::from_secs(60)),
        "compute" => (WorkKind::Compute, Duration::from_secs(60)),
        other => return Err(format!("there is no kind of work named {other}; {HELP}")),
    };
    let (time, percent) = match rest.split_once('@') {
        None => (rest, 100),
        Some((time, share)) => {
            let percent = share.strip_suffix('%').and_then(|share| share.parse().ok());
            let percent = percent.filter(|percent| (1..=100).contains(percent));
            (
                time,
                percent.ok_or_else(|| format!("the share must be from 1% to 100%; {HELP}"))?,
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
        return Err("the end of the range of times is less than its start".to_string());
    }
    if *time.end() > most {
        let most = humantime::format_duration(most);
        return Err(format!("the longest time for {kind} is {most}"));
    }
    Ok(WorkPlan::new(work_kind, time, percent, 0))
}

/// Parses the size of the messages of `bulk`: from [`Bulk::LEAST`] bytes to 1 GiB.
fn parse_bulk_size(text: &str) -> Result<u64, String> {
    const MOST: u64 = 1 << 30;
    match parse_bytes(text) {
        Some(size) if size < Bulk::LEAST => Err(format!(
            "a message has at least {} bytes, its head and its tail",
            Bulk::LEAST
        )),
        Some(size) if size <= MOST => Ok(size),
        Some(_) => Err("the largest size is 1024M".to_string()),
        None => Err("write a size as 64K, 3M or a number of bytes".to_string()),
    }
}

/// Parses a number of bytes, such as `64K`, `3M` or `100`.
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

/// Returns the protocol with the given name.
///
/// # Errors
///
/// No protocol has that name; the message lists the names of all protocols.
pub fn parse_protocol(name: &str) -> Result<&'static Protocol, String> {
    Protocol::find(name).ok_or_else(|| {
        let names: Vec<_> = PROTOCOLS.iter().map(|protocol| protocol.name).collect();
        format!("no such protocol; the protocols are {}", names.join(", "))
    })
}

/// Parses an address such as `127.0.0.1:7000` or `localhost:7000`.
///
/// # Errors
///
/// The text is no address, or the host name can't be resolved; the message shows how to write it.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let help = "write HOST:PORT, such as 127.0.0.1:7000";
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}; {help}"))?;
    found.next().ok_or_else(|| help.to_string())
}

/// Parses a time such as `5s` or `100ms`, of at most a year: not every system can represent moments further away.
///
/// # Errors
///
/// The text is no time, or a longer one; the message shows how to write it.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    match humantime::parse_duration(text) {
        Ok(time) if time <= YEAR => Ok(time),
        Ok(_) => Err("the longest time is a year".to_string()),
        Err(_) => Err("write a time as 5s, 100ms or 2m".to_string()),
    }
}

/// Parses a number of threads.
///
/// # Errors
///
/// The text is not a number from 1 to 1,024.
pub fn parse_threads(text: &str) -> Result<NonZero<usize>, String> {
    parse_count(text, 1_024)
}

/// Parses a number of connections.
///
/// # Errors
///
/// The text is not a number from 1 to 1,000,000. One machine does not have the ports and the memory for more.
pub fn parse_connections(text: &str) -> Result<NonZero<usize>, String> {
    parse_count(text, 1_000_000)
}

/// Parses a number from 1 to `most`.
///
/// # Errors
///
/// The text is not such a number.
pub fn parse_count(text: &str, most: usize) -> Result<NonZero<usize>, String> {
    let count = text
        .parse()
        .ok()
        .filter(|count: &NonZero<usize>| count.get() <= most);
    count.ok_or_else(|| format!("write a number from 1 to {most}"))
}

/// Parses the size of a stack, such as `128K`, `2M` or a number of bytes.
///
/// # Errors
///
/// The text is no size, or the size is less than a conversation needs ([`LEAST_STACK`]), or more than 1 GiB.
pub fn parse_stack(text: &str) -> Result<usize, String> {
    const MOST: usize = 1 << 30;
    let size = parse_bytes(text).map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    match size {
        Some(size) if size < LEAST_STACK => Err(format!(
            "the smallest stack is {}K",
            LEAST_STACK.div_ceil(1 << 10)
        )),
        Some(size) if size <= MOST => Ok(size),
        Some(_) => Err("the largest size is 1024M".to_string()),
        None => Err("write a size as 128K, 2M or a number of bytes".to_string()),
    }
}

/// Parses a time that is greater than zero.
///
/// # Errors
///
/// As [`parse_time`], and if the time is zero.
pub fn parse_some_time(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err("must be greater than zero".to_string()),
        time => Ok(time),
    }
}

/// Runs a server process with one model until it is stopped, and returns its tally.
///
/// Prints `listening on ADDR` to standard output once connections are accepted, and the tally at the end.
///
/// # Errors
///
/// One line that says what failed, why, and what to do.
pub fn serve(model: &Model, args: &ServeArgs) -> Result<Tally, String> {
    (model.available)().map_err(|why| format!("{} cannot run here: {why}", model.name))?;
    if args.offload
        && let Offload::Nowhere(why) = model.offload
    {
        return Err(format!(
            "{} does not support --offload: {why}; leave out --offload",
            model.name
        ));
    }
    log(args.verbose);
    if args.offload
        && let Offload::Needless(why) = model.offload
    {
        tracing::info!("--offload has no effect in {}: {why}", model.name);
    }
    if let Some(cpus) = &args.cpus {
        // Before any thread starts, because threads inherit the CPUs, and before the number of workers is taken from them.
        pin(cpus).map_err(|error| error.to_string())?;
    }
    let descriptors = raise_descriptor_limit();
    if !descriptors.allow(args.max_connections.get()) {
        tracing::info!(
            "--max-connections {} is more than the descriptor limit of {} allows; further peers wait in the backlog",
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
    // The order matters: a program that reads "listening" may send a signal at once, which must then be handled.
    let stop = Stop::on_signals()
        .map_err(|error| format!("cannot install the signal handlers: {error}"))?;
    let listener =
        listen(args.listen, args.backlog, model.needs).map_err(|error| error.to_string())?;
    let address = listener
        .local_addr()
        .map_err(|error| format!("cannot read the address of the listener: {error}"))?;
    print_line(&format!("listening on {address}"));
    let mut service = Service::of(args.protocol, options);
    if let Some(text) = &args.panic_on {
        service = service.that_panics_on(text);
    }
    if let Some(time) = args.burn {
        service = service.that_burns(time);
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

/// Returns the options of sessions.
///
/// # Errors
///
/// The options contradict each other, or the files can't be read or created.
fn session_options(args: &ServeArgs) -> Result<SessionOptions, String> {
    check_work(args.protocol, args.work.work.as_ref())?;
    let mut options = SessionOptions {
        max_line: args.max_line,
        work: args.work.plan(),
        bulk: args.bulk.bulk(),
        ..SessionOptions::default()
    };
    // The files are opened before a model forks, and only for the protocol that serves them.
    if args.protocol.name == "http" {
        options.file_store = match &args.root {
            Some(root) => file_store::directory(root)
                .map_err(|error| format!("cannot serve {}: {error}", root.display()))?,
            None => file_store::built_in()
                .map_err(|error| format!("cannot create the built-in files: {error}"))?,
        };
    } else if args.root.is_some() {
        return Err(format!(
            "--root applies to --protocol http only, and the protocol is {}",
            args.protocol.name
        ));
    }
    Ok(options)
}

/// Prints a line to standard output. Errors are ignored: if the reader of a pipe has left, the server must not end.
fn print_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a line to standard error. Errors are ignored: `eprintln!` panics if the line can't be written, and a server
/// must not end for that reason.
pub fn print_error(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Starts the log on standard error: warnings, with 1 also information, from 2 also every connection.
fn log(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    // Fails if there is a log already (tests run many servers in one process), which is then used instead.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_writer(io::stderr)
        // The error message about a log that can't be written would also go to standard error, and panic.
        .log_internal_errors(false)
        .try_init();
}

/// Returns an error of the command line as one line: what is wrong, and where to find help. The text of clap has four
/// lines.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut parts = text
        .split("\n\n")
        .map(str::trim)
        .filter(|part| !part.is_empty() && !part.starts_with("Usage:"))
        .filter(|part| !part.starts_with("For more information"))
        // This tip never applies here, because no value begins with a dash.
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

/// Command line of a server crate's own program.
#[derive(Debug, Parser)]
struct Server {
    #[command(flatten)]
    serve: ServeArgs,

    /// Variant of the model to run
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

/// Runs the `main` function of a server crate: serves with the crate's first model, or with the one named by `--model`.
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
    fn work_is_parsed_or_refused_with_help() {
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
            ("sleep:5ms", "no kind of work named sleep"),
            ("wait:5", "write wait:5ms"),
            ("wait:2s..1s", "less than its start"),
            ("wait:1s..", "write wait:5ms"),
            ("wait:2h", "longest time for wait is 1h"),
            ("block:61s", "longest time for block is 1m"),
            ("block:5ms@0%", "1% to 100%"),
            ("block:5ms@10", "1% to 100%"),
            ("block:5ms@101%", "1% to 100%"),
        ] {
            let wrong = parse_work(text).unwrap_err();
            assert!(wrong.contains(what), "{text}: {wrong}");
        }
    }

    #[test]
    fn bulk_size_is_parsed_and_limited() {
        for (text, size) in [("8", 8), ("64K", 64 << 10), ("3M", 3 << 20)] {
            assert_eq!(parse_bulk_size(text), Ok(size));
        }
        for (text, what) in [
            ("7", "at least 8 bytes"),
            ("1025M", "largest size is 1024M"),
            ("3G", "write a size"),
        ] {
            assert!(parse_bulk_size(text).unwrap_err().contains(what), "{text}");
        }
    }

    #[test]
    fn stack_size_is_parsed_and_limited() {
        for (text, size) in [("64K", 64 << 10), ("2m", 2 << 20), ("100000", 100_000)] {
            assert_eq!(parse_stack(text), Ok(size));
        }
        for (text, what) in [
            ("63K", "smallest stack is 64K"),
            ("16", "smallest stack is 64K"),
            ("1025M", "largest size is 1024M"),
            ("K", "write a size as"),
            ("2 M", "write a size as"),
            ("-1", "write a size as"),
            ("99999999999999999M", "write a size as"),
        ] {
            assert!(parse_stack(text).unwrap_err().contains(what), "{text}");
        }
    }
}
