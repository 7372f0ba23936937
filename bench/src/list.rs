//! `samewire list`: what there is.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use protocol::PROTOCOLS;
use serde_json::json;

use crate::{output, registry};

/// Options of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the models and the protocols.
///
/// # Errors
///
/// Standard output can't be written.
pub fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    if args.json {
        let models: Vec<_> = registry::models()
            .map(|model| {
                let obstacle = (model.available)().err();
                let deviations: Vec<_> = model
                    .deviations
                    .iter()
                    .map(|deviation| {
                        json!({ "promise": deviation.promise as u8, "reason": deviation.reason })
                    })
                    .collect();
                json!({
                    "name": model.name,
                    "summary": model.summary,
                    "lineage": model.lineage,
                    "source": model.source,
                    "available": obstacle.is_none(),
                    "obstacle": obstacle,
                    "deviations": deviations,
                })
            })
            .collect();
        let protocols: Vec<_> = PROTOCOLS
            .iter()
            .map(|protocol| json!({ "name": protocol.name, "summary": protocol.summary }))
            .collect();
        let text = format!(
            "{:#}\n",
            json!({ "models": models, "protocols": protocols })
        );
        output::print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }

    let mut text = String::from("Models (samewire serve MODEL):\n");
    for model in registry::models() {
        let _ = writeln!(text, "  {:<12} {}", model.name, model.summary);
        let _ = writeln!(text, "  {:<12}   from: {}", "", model.lineage);
        let _ = match (model.available)() {
            Ok(()) => writeln!(text, "  {:<12}   read: {}", "", model.source),
            Err(why) => writeln!(text, "  {:<12}   cannot run here: {why}", ""),
        };
    }
    text.push_str("\nProtocols (--protocol NAME; the first is the default):\n");
    for protocol in PROTOCOLS {
        let _ = writeln!(text, "  {:<12} {}", protocol.name, protocol.summary);
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
