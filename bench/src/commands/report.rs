//! `samewire report`: prints the tables of an earlier comparison, and writes its files again.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::output;
use crate::report::{csv, markdown, table};
use crate::results::{Results, write_atomically};

/// Options of `report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  samewire report results/2026-01-31T120000Z
  samewire report --schema > results.schema.json")]
pub struct ReportArgs {
    /// Directory that `samewire compare` wrote
    #[arg(value_name = "DIR", required_unless_present = "schema")]
    dir: Option<PathBuf>,

    /// Print the JSON Schema of results.json, and nothing else
    #[arg(long, conflicts_with = "dir")]
    schema: bool,
}

/// Prints the tables of an earlier comparison and writes its `report.md` and `summary.csv` again.
///
/// # Errors
///
/// Returns an error if the directory has no results of this schema, if nothing was measured in them, or if the output
/// cannot be written.
pub fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let Some(dir) = &args.dir else {
        output::print(&Results::json_schema()?)?;
        return Ok(ExitCode::SUCCESS);
    };
    let results = Results::read(dir)?;
    if results.runs.is_empty() {
        bail!(
            "{} contains no measured runs: {}",
            dir.display(),
            if results.complete {
                "the chosen models support none of the chosen workloads"
            } else {
                "the comparison was interrupted before its first run ended"
            }
        );
    }
    output::print(&table::to_text(&results, output::width()))?;
    write_atomically(dir, markdown::NAME, &markdown::to_markdown(&results))?;
    write_atomically(dir, csv::NAME, &csv::to_csv(&results))?;
    Ok(ExitCode::SUCCESS)
}
