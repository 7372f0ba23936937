//! The `samewire` command, as a library, so that benches and tests measure in the same way.

pub mod check;
mod child;
pub mod commands;
pub mod drive;
pub mod format;
pub mod interrupt;
pub mod list;
mod measure;
mod misbehave;
mod null_server;
pub mod output;
mod placement;
pub mod probe;
pub mod registry;
mod report;
mod resources;
pub mod results;
pub mod statistics;
pub mod target;
pub mod workloads;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use contract::cli::{ServeArgs, one_line};
use contract::{CpuList, Model, pin};
use rustix::process::Signal;

/// The same protocols, one client, many concurrency models, side by side
#[derive(Debug, Parser)]
#[command(
    version,
    about = "The same protocols, one client, many concurrency models, side by side",
    max_term_width = 100,
    after_help = "Examples:
  samewire compare                        all models on four workloads, within eight minutes
  samewire serve mio                      one server, on 127.0.0.1:7000
  samewire drive 127.0.0.1:7000           send load to it, and check every reply

Each command has its own --help."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the models, the protocols and the kinds of misbehaving clients
    List(list::ListArgs),
    /// Run one server until Ctrl-C
    #[command(after_help = "Examples:
  samewire serve threads
  samewire serve tokio --workers 4 --protocol echo --listen 127.0.0.1:0
  samewire serve mio --cpus 1 --idle-timeout 5s --max-connections 500

Ctrl-C stops the server gracefully; a second Ctrl-C ends it at once.")]
    Serve(Serve),
    /// Send load to one server, and check every reply
    Drive(drive::DriveArgs),
    /// Check every guarantee of every model, and print the results as a matrix
    Check(check::CheckArgs),
    /// Measure the models under the same workloads, and compare them (the main command)
    Compare(commands::compare::CompareArgs),
    /// Compare two comparisons: which figures became worse, better, or stayed the same
    Diff(commands::diff::DiffArgs),
    /// Take the comparisons of several machines together
    Merge(commands::merge::MergeArgs),
    /// Find the highest rate at which a server keeps a promise about its response times
    Capacity(commands::capacity::CapacityArgs),
    /// Test the method of measuring on this machine, with servers whose differences are known
    Calibrate(commands::calibrate::CalibrateArgs),
    /// Measure this machine: how late it wakes a thread, and how fast the client is
    Probe(probe::ProbeArgs),
    /// Print the report of an earlier comparison again, and write its report.md and summary.csv again
    Report(commands::report::ReportArgs),
    /// Replace this process by another program, which ends when the parent process ends
    #[command(hide = true)]
    Exec(Exec),
    /// Serve with the least that a server needs, as a reference for the models
    #[command(hide = true)]
    NullServer(null_server::NullServerArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:
  samewire completions bash > ~/.local/share/bash-completion/completions/samewire")]
    Completions {
        /// Shell that the script is for
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// Model to serve with (see `samewire list`)
    #[arg(value_parser = registry::find)]
    model: &'static Model,

    #[command(flatten)]
    options: ServeArgs,

    /// Stop when the parent process, which has this number, ends for whatever reason
    #[arg(long, value_name = "PID", hide = true)]
    die_with_parent: Option<i32>,
}

/// Options of `exec`, which starts external servers. Some settings can only be made by the process itself, so `exec`
/// makes them and then replaces itself by the external server.
#[derive(Debug, Args)]
struct Exec {
    /// End when the parent process, which has this number, ends for whatever reason
    #[arg(long, value_name = "PID")]
    die_with_parent: i32,

    /// Run on these CPUs only
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,

    /// Program to run, and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// Runs the command with the arguments of this process, and returns its exit status.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are not errors. Without any argument, the help is printed.
        Err(error) if !error.use_stderr() || std::env::args_os().len() == 1 => error.exit(),
        Err(error) => {
            output::print_error(&one_line(&error));
            return ExitCode::from(2);
        }
    };
    let done = match cli.command {
        Command::List(args) => list::run(&args),
        Command::Serve(args) => serve(&args),
        Command::Drive(args) => drive::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Diff(args) => commands::diff::run(&args),
        Command::Merge(args) => commands::merge::run(&args),
        Command::Capacity(args) => commands::capacity::run(&args),
        Command::Calibrate(args) => commands::calibrate::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::NullServer(args) => null_server::run(&args),
        Command::Exec(args) => exec(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "samewire", &mut script);
            output::print(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        // `#` prints the error and all of its causes in one line.
        output::print_error(&format!("error: {error:#}"));
        if interrupt::caught() {
            ExitCode::from(interrupt::STATUS)
        } else {
            ExitCode::FAILURE
        }
    })
}

fn serve(args: &Serve) -> anyhow::Result<ExitCode> {
    if let Some(parent) = args.die_with_parent {
        die_with(parent, Signal::TERM)?;
    }
    contract::cli::serve(args.model, &args.options).map_err(anyhow::Error::msg)?;
    Ok(ExitCode::SUCCESS)
}

/// Replaces this process by another program. Returns only if that fails.
fn exec(args: &Exec) -> anyhow::Result<ExitCode> {
    // SIGKILL, because an external server may react to SIGTERM by waiting instead of ending.
    die_with(args.die_with_parent, Signal::KILL)?;
    if let Some(cpus) = &args.cpus {
        pin(cpus)?;
    }
    let [program, arguments @ ..] = &args.command[..] else {
        anyhow::bail!("exec needs a program to run");
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(anyhow::Error::new(error).context(format!("cannot start {program}")))
}

/// Asks the kernel to send `signal` to this process when its parent ends, so that no server outlives a comparison, not
/// even a comparison that was killed: PR_SET_PDEATHSIG, prctl(2).
///
/// # Errors
///
/// The kernel refuses the setting, or the parent is not the process `parent` any more.
#[cfg(target_os = "linux")]
fn die_with(parent: i32, signal: Signal) -> anyhow::Result<()> {
    use rustix::process::{Pid, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(signal))?;
    // If the parent ended before the line above took effect, this process has another parent by now.
    if getppid() != Pid::from_raw(parent) {
        anyhow::bail!("process {parent}, which started this server, has already ended");
    }
    Ok(())
}

/// Does nothing: only Linux has this signal.
#[cfg(not(target_os = "linux"))]
fn die_with(_: i32, _: Signal) -> anyhow::Result<()> {
    Ok(())
}
