//! Reads a `results.json` as a stranger would, by its documentation alone, and says whether what it tells can be true.
//! CI runs it on a real comparison: `cargo run --example verify -- results/…/results.json`.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use serde_json::Value;

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).context("which results.json?")?;
    let results: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    ensure!(results["schema"] == 2, "another schema");
    ensure!(results["complete"] == true, "not complete");

    let launches = list(&results["launches"])?;
    let models = list(&results["models"])?;
    let skipped = list(&results["skipped"])?;
    let options = &results["options"];
    let workloads = list(&options["workloads"])?;
    for model in models {
        if let Some(obstacle) = model["obstacle"].as_str() {
            // That a kernel or a container refuses something is no fault of what was measured.
            println!("{} could not run here: {obstacle}", model["name"]);
            continue;
        }
        for workload in workloads {
            let idle = workload == "idle";
            let (each, numbers) = if idle {
                let number = std::slice::from_ref(&options["idle_connections"]);
                (&options["idle_launches"], number)
            } else {
                (&options["launches"], &list(&options["connections"])?[..])
            };
            for connections in numbers {
                let this = |one: &&Value| {
                    one["model"] == model["name"]
                        && one["workload"] == *workload
                        && one["connections"] == *connections
                };
                let count = launches.iter().filter(this).count() as u64;
                let skipped = skipped.iter().any(|one| this(&one));
                ensure!(
                    count == number(each)? || skipped,
                    "{} {workload} at {connections}: {count} launches and not {each}",
                    model["name"]
                );
            }
        }
    }
    let numbers = list(&options["connections"])?.len();
    for launch in launches {
        let model = models.iter().find(|model| model["name"] == launch["model"]);
        let model = model.context("a launch of an unknown model")?;
        verify(launch, model, numbers > 1)
            .with_context(|| format!("{} {}", launch["model"], launch["workload"]))?;
    }
    println!(
        "{path}: {} launches of {} models can be true",
        launches.len(),
        models
            .iter()
            .filter(|model| model["obstacle"].is_null())
            .count()
    );
    Ok(())
}

fn verify(launch: &Value, model: &Value, sweep: bool) -> anyhow::Result<()> {
    ensure!(
        launch["problems"] == Value::Array(Vec::new()),
        "{}",
        launch["problems"]
    );
    let (client, server) = (&launch["client"], &launch["server"]);
    for (kind, count) in client["errors"].as_object().context("no errors counted")? {
        ensure!(count == 0, "{count} {kind}");
    }
    let replies = number(&client["replies"])?;
    // In `idle` all is said before the window.
    let idle = launch["workload"] == "idle";
    let notes = list(&launch["notes"])?;
    let opened = !notes.contains(&"not_all_opened".into());
    ensure!(replies > 0 || idle || !opened, "no replies");
    // Who holds fewer leaves the others without an answer; everybody else owes one to all. (But a sweep may go beyond
    // what a server can do.)
    let connections = number(&launch["connections"])?;
    let holds = model["holds"].as_u64().unwrap_or(u64::MAX);
    let unanswered = number(&client["unanswered"])?;
    ensure!(
        unanswered == 0 || holds < connections || sweep,
        "{unanswered} unanswered, and it holds {holds} of {connections}"
    );

    let completed: Vec<u64> = list(&client["per_connection"])?
        .iter()
        .filter_map(Value::as_u64)
        .collect();
    ensure!(
        completed.iter().sum::<u64>() == number(&client["completed"])?,
        "replies by client do not add up"
    );

    let times = &client["response_time"];
    let histogram = decode(times)?;
    ensure!(
        histogram.len() == number(&times["count"])?,
        "a histogram lost samples"
    );
    ensure!(
        histogram.len() == replies + unanswered,
        "not every request has a response time"
    );
    let max = (!histogram.is_empty()).then(|| histogram.max());
    ensure!(
        max == times["max_ns"].as_u64(),
        "a histogram has another maximum"
    );

    let tally = &server["tally"];
    let ended = ["served", "refused", "timed_out", "reset", "cut", "failed"];
    let ended: u64 = ended.iter().filter_map(|kind| tally[kind].as_u64()).sum();
    let accepted = number(&tally["accepted"])?;
    ensure!(
        accepted == ended,
        "the server's tally does not add up: {tally}"
    );
    ensure!(tally["failed"] == 0, "sessions panicked");
    ensure!(
        idle || accepted <= number(&client["connected"])?,
        "more connections accepted than opened"
    );

    if !opened {
        return Ok(());
    }
    let cpu = server["cpu_s"]
        .as_f64()
        .context("the server's CPU time could not be read")?;
    let interval = server["interval_s"].as_f64().context("no interval")?;
    let (threads, processes) = (number(&server["threads"])?, number(&server["processes"])?);
    ensure!(
        (1..=threads).contains(&processes),
        "{processes} processes of {threads} threads"
    );
    // Of processes that have ended, the time comes in ticks.
    ensure!(
        cpu >= 0.0 && cpu <= interval * threads as f64 * 1.05 + 0.02,
        "{cpu} s of CPU in {interval} s"
    );
    if idle && holds >= connections {
        let memory = |field: &str| number(&server[field]);
        ensure!(
            memory("memory_after_bytes")? > memory("memory_before_bytes")?,
            "a thousand connections took no memory"
        );
    }
    if let Some(per_request) = launch["figures"]["cpu_us_per_request"].as_f64() {
        // Two system calls cost a microsecond on the fastest machine, and not a millisecond on the slowest.
        ensure!(
            (0.2..1e3).contains(&per_request) || sweep,
            "{per_request} µs of CPU per request"
        );
    } else {
        ensure!(
            launch["workload"] != "max" || notes.contains(&"edges_missed".into()),
            "what a request costs is not told"
        );
    }
    Ok(())
}

fn decode(times: &Value) -> anyhow::Result<Histogram<u64>> {
    let text = times["histogram"].as_str().context("no histogram")?;
    let bytes = STANDARD.decode(text)?;
    Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| anyhow::anyhow!("a histogram can't be decoded: {error}"))
}

fn list(value: &Value) -> anyhow::Result<&Vec<Value>> {
    value.as_array().context("a list is missing")
}

fn number(value: &Value) -> anyhow::Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("a number is missing: {value}"))
}
