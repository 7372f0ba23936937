//! `samewire list`: the models, the protocols and the kinds of misbehaving clients.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use client::misbehave::MISBEHAVIOURS;
use contract::{Capacity, Model, Offload};
use protocol::PROTOCOLS;
use serde_json::json;

use crate::{output, registry};

/// Options of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the models, the protocols and the kinds of misbehaving clients.
///
/// # Errors
///
/// Standard output can't be written.
pub fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    if args.json {
        let models: Vec<_> = registry::models()
            .map(|model| {
                let unavailable_reason = (model.available)().err();
                let deviations: Vec<_> = model
                    .deviations
                    .iter()
                    .map(|deviation| {
                        json!({
                            "guarantee": deviation.guarantee.name(),
                            "reason": deviation.reason,
                        })
                    })
                    .collect();
                json!({
                    "name": model.name,
                    "summary": model.summary,
                    "lineage": model.lineage,
                    "source": model.source,
                    "available": unavailable_reason.is_none(),
                    "unavailable_reason": unavailable_reason,
                    "capacity": name_of(model.capacity),
                    "default_workers": model.capacity.workers(),
                    "offload": {
                        "kind": match model.offload {
                            Offload::To(_) => "to",
                            Offload::Needless(_) => "needless",
                            Offload::Nowhere(_) => "nowhere",
                        },
                        "what": match model.offload {
                            Offload::To(what) | Offload::Needless(what) | Offload::Nowhere(what) => what,
                        },
                    },
                    "deviations": deviations,
                })
            })
            .collect();
        let protocols: Vec<_> = PROTOCOLS
            .iter()
            .map(|protocol| json!({ "name": protocol.name, "summary": protocol.summary }))
            .collect();
        let misbehaviours: Vec<_> = MISBEHAVIOURS
            .iter()
            .map(|kind| json!({ "name": kind.name, "summary": kind.summary, "clients": kind.clients }))
            .collect();
        let text = format!(
            "{:#}\n",
            json!({ "models": models, "protocols": protocols, "misbehaviours": misbehaviours })
        );
        output::print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }

    let width = output::width();
    let mut text = String::from(
        "Models (samewire serve MODEL). \"by design\" marks a guarantee that the model does not keep, with the\n\
         reason (the guarantees: docs/src/architecture.md):\n",
    );
    for model in registry::models() {
        let _ = writeln!(text, "  {:<12} {}", model.name, model.summary);
        let mut entry = |head: &str, content: &str| {
            let mut begin = format!("{:15}{head}", "");
            for line in output::wrap(content, "", width - 28).lines() {
                let _ = writeln!(text, "{begin:<28}{line}");
                begin.clear();
            }
        };
        entry("origin", model.lineage);
        entry("source", model.source);
        entry("capacity", &capacity(model));
        entry("offload", &offload(model));
        for deviation in model.deviations {
            let name = deviation.guarantee.name();
            entry(
                "by design",
                &format!("does not keep `{name}`: {}", deviation.reason),
            );
        }
        if let Err(why) = (model.available)() {
            entry("unavailable", &format!("cannot run here: {why}"));
        }
    }
    text.push_str("\nProtocols (--protocol NAME; the first is the default):\n");
    for protocol in PROTOCOLS {
        let _ = writeln!(text, "  {:<12} {}", protocol.name, protocol.summary);
    }
    text.push_str("\nMisbehaving clients (samewire drive ADDR --misbehave KIND; \"harmless\" is allowed behaviour):\n");
    for kind in MISBEHAVIOURS {
        let _ = writeln!(text, "  {:<15} {}", kind.name, kind.summary);
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the name of a capacity in JSON: what bounds the connections that a model serves at a time.
pub(crate) fn name_of(capacity: Capacity) -> &'static str {
    match capacity {
        Capacity::Limit => "limit",
        Capacity::Descriptors(_) => "descriptors",
        Capacity::Shares => "shares",
        Capacity::Workers => "workers",
        Capacity::One => "one",
    }
}

/// Returns the capacity of a model as text.
fn capacity(model: &Model) -> String {
    match model.capacity {
        Capacity::Limit => "up to --max-connections connections at a time".to_string(),
        Capacity::Descriptors(most) => format!(
            "up to --max-connections connections at a time, but fewer than {most} open descriptors in the process"
        ),
        Capacity::Shares => {
            "up to --max-connections connections at a time, of which each worker has its share"
                .to_string()
        }
        Capacity::Workers => format!(
            "one connection at a time per worker; --workers is {} by default",
            model.capacity.workers()
        ),
        Capacity::One => "one connection at a time".to_string(),
    }
}

/// Returns as text what `--offload` does in a model.
fn offload(model: &Model) -> String {
    match model.offload {
        Offload::To(there) => format!("moves blocking calls and computations to {there}"),
        Offload::Needless(why) => format!("not needed, has no effect: {why}"),
        Offload::Nowhere(why) => format!("not supported: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `serve --offload` refuses exactly these models.
    #[test]
    fn model_that_refuses_offload_is_listed_as_not_supporting_it() {
        for model in registry::models() {
            let refuses = matches!(model.offload, Offload::Nowhere(_));
            let text = offload(model);
            assert_eq!(text.contains("not supported"), refuses, "{text}");
        }
    }
}
