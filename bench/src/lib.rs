//! Who measures: the `samewire` command, as a library so that benches and tests measure in the same way.

pub mod check;
mod child;
pub mod compare;
pub mod drive;
pub mod format;
pub mod interrupt;
pub mod list;
mod misbehave;
pub mod output;
mod placement;
pub mod registry;
mod resources;
pub mod target;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use contract::cli::{ServeArgs, one_line};
use contract::{CpuList, Model, pin};
use rustix::process::Signal;

/// One protocol, one client, many concurrency models, side by side
#[derive(Debug, Parser)]
#[command(
    version,
    about = "One protocol, one client, many concurrency models, side by side",
    max_term_width = 100,
    after_help = "Examples:
  samewire compare                        all models on all workloads, within four minutes
  samewire serve mio                      one server, on 127.0.0.1:7000
  samewire drive 127.0.0.1:7000           ask it, and check every reply

Each command has a --help of its own."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The models and protocols, and whether they can run here
    List(list::ListArgs),
    /// Serve with one model until Ctrl-C
    #[command(after_help = "Examples:
  samewire serve threads
  samewire serve tokio --workers 4 --protocol echo --listen 127.0.0.1:0
  samewire serve mio --cpus 1 --idle-timeout 5s --max-connections 10000

Ctrl-C stops it gracefully; a second one ends it at once.")]
    Serve(Serve),
    /// Ask a server, and check every reply
    Drive(drive::DriveArgs),
    /// The contract as a matrix: which model keeps which guarantee
    Check(check::CheckArgs),
    /// Run models on workloads, and compare: the main job
    Compare(compare::CompareArgs),
    /// Draw the report of an earlier comparison again
    Report(compare::ReportArgs),
    /// Become another program, which ends when this one's parent does
    #[command(hide = true)]
    Exec(Exec),
    /// Print completions for a shell
    #[command(after_help = "Example:
  samewire completions bash > ~/.local/share/bash-completion/completions/samewire")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The model (see `samewire list`)
    #[arg(value_parser = registry::find)]
    model: &'static Model,

    #[command(flatten)]
    options: ServeArgs,

    /// Stop when this process, which started this one, ends, however it ends
    #[arg(long, value_name = "PID", hide = true)]
    die_with_parent: Option<i32>,
}

/// How servers that are not ours are started: what can only be set by the process itself is set before it becomes
/// another.
#[derive(Debug, Args)]
struct Exec {
    /// Stop when this process, which started this one, ends, however it ends
    #[arg(long, value_name = "PID")]
    die_with_parent: i32,

    /// Run on these CPUs only
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    words: Vec<String>,
}

/// The command: reads its arguments from the process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are no errors, and a missing command is answered with the help.
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
        Command::Compare(args) => compare::run(&args),
        Command::Exec(args) => exec(&args),
        Command::Report(args) => compare::report(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "samewire", &mut script);
            output::print(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        // In one line, whatever the depth of its causes.
        output::print_error(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

fn serve(args: &Serve) -> anyhow::Result<ExitCode> {
    if let Some(parent) = args.die_with_parent {
        die_with(parent, Signal::TERM)?;
    }
    contract::cli::serve(args.model, &args.options).map_err(anyhow::Error::msg)?;
    Ok(ExitCode::SUCCESS)
}

/// Becomes another program; comes back only if that fails.
fn exec(args: &Exec) -> anyhow::Result<ExitCode> {
    // Whoever is not ours may take SIGTERM for a reason to wait.
    die_with(args.die_with_parent, Signal::KILL)?;
    if let Some(cpus) = &args.cpus {
        pin(cpus)?;
    }
    let [program, arguments @ ..] = &args.words[..] else {
        anyhow::bail!("there is no program");
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(anyhow::Error::new(error).context(format!("cannot start {program}")))
}

/// So that no server outlives a comparison, not even one that was killed.
#[cfg(target_os = "linux")]
fn die_with(parent: i32, signal: Signal) -> anyhow::Result<()> {
    use rustix::process::{Pid, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(signal))?;
    // If the parent ended before the line above took effect, this process has another one by now.
    if getppid() != Pid::from_raw(parent) {
        anyhow::bail!("process {parent}, which started this server, has ended already");
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn die_with(_: i32, _: Signal) -> anyhow::Result<()> {
    Ok(())
}
