//! `samewire list`: what there is.

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
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the models, the protocols and the kinds of clients that misbehave.
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
    let mut text = String::from("Models (samewire serve MODEL):\n");
    for model in registry::models() {
        let _ = writeln!(text, "  {:<12} {}", model.name, model.summary);
        let mut say = |what: &str, how: &str| {
            let mut begin = format!("{:17}{what}: ", "");
            for line in output::wrap(how, "", width - 25).lines() {
                let _ = writeln!(text, "{begin:<25}{line}");
                begin.clear();
            }
        };
        say("from", model.lineage);
        say("read", model.source);
        say("serves", &at_a_time(model));
        say("moves", &moves(model));
        for deviation in model.deviations {
            let name = deviation.guarantee.name();
            say("breaks", &format!("{name}: {}", deviation.reason));
        }
        if let Err(why) = (model.available)() {
            say("but", &format!("it cannot run here: {why}"));
        }
    }
    text.push_str("\nWhat a model breaks of the guarantees that all servers keep, it breaks by design (docs/src/architecture.md).\n");
    text.push_str("\nProtocols (--protocol NAME; the first is the default):\n");
    for protocol in PROTOCOLS {
        let _ = writeln!(text, "  {:<12} {}", protocol.name, protocol.summary);
    }
    text.push_str("\nClients that misbehave (samewire drive ADDR --misbehave KIND):\n");
    for kind in MISBEHAVIOURS {
        let _ = writeln!(text, "  {:<15} {}", kind.name, kind.summary);
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What bounds the peers that a model converses with at a time, in a word for programs.
pub(crate) fn name_of(capacity: Capacity) -> &'static str {
    match capacity {
        Capacity::Limit => "limit",
        Capacity::Descriptors(_) => "descriptors",
        Capacity::Shares => "shares",
        Capacity::Workers => "workers",
        Capacity::One => "one",
    }
}

/// The same for people.
fn at_a_time(model: &Model) -> String {
    match model.capacity {
        Capacity::Limit => "as many at a time as --max-connections allows".to_string(),
        Capacity::Descriptors(most) => format!(
            "as many at a time as --max-connections allows, and as fit into {most} descriptors with all else that is open"
        ),
        Capacity::Shares => {
            "as many at a time as --max-connections allows, of which each worker has its share"
                .to_string()
        }
        Capacity::Workers => format!(
            "one at a time with each of --workers, {} by default",
            model.capacity.workers()
        ),
        Capacity::One => "one at a time".to_string(),
    }
}

/// What `--offload` does.
fn moves(model: &Model) -> String {
    match model.offload {
        Offload::To(there) => format!("blocking calls and computations with --offload, to {there}"),
        Offload::Needless(why) => format!("nothing with --offload, which it does not need: {why}"),
        Offload::Nowhere(why) => format!("nothing, and refuses --offload: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is listed is what a server says if it is told to do it.
    #[test]
    fn who_refuses_to_move_work_is_listed_as_that() {
        for model in registry::models() {
            let refuses = matches!(model.offload, Offload::Nowhere(_));
            let told = moves(model);
            assert_eq!(told.contains("refuses --offload"), refuses, "{told}");
        }
    }
}
