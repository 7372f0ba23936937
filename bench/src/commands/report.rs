//! `samewire report`: prints the tables of an earlier comparison, and writes its report again.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::output;
use crate::report::{markdown, table};
use crate::results::{Results, write_atomically};

/// Options of `report`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  samewire report results/2026-01-31T120000Z")]
pub struct ReportArgs {
    /// Directory that `samewire compare` wrote
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Prints the tables of an earlier comparison and writes its `report.md` again.
///
/// # Errors
///
/// Returns an error if the directory has no results of this schema, if nothing was measured in them, or if the output
/// cannot be written.
pub fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let results = Results::read(&args.dir)?;
    if results.runs.is_empty() {
        bail!(
            "{} contains no measured runs: {}",
            args.dir.display(),
            if results.complete {
                "the chosen models support none of the chosen workloads"
            } else {
                "the comparison was interrupted before its first run ended"
            }
        );
    }
    output::print(&table::to_text(&results, output::width()))?;
    write_atomically(&args.dir, markdown::NAME, &markdown::to_markdown(&results))?;
    Ok(ExitCode::SUCCESS)
}
