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
    ensure!(results["schema"] == 1, "another schema");
    ensure!(results["complete"] == true, "not complete");

    let launches = list(&results["launches"])?;
    let models = list(&results["models"])?;
    let workloads = list(&results["options"]["workloads"])?;
    let each = results["options"]["launches"]
        .as_u64()
        .context("no number of launches")?;
    for model in models {
        ensure!(
            model["obstacle"].is_null(),
            "{} could not run",
            model["name"]
        );
        for workload in workloads {
            let count = launches
                .iter()
                .filter(|launch| {
                    launch["model"] == model["name"] && launch["workload"] == *workload
                })
                .count();
            ensure!(
                count as u64 >= 1 && count as u64 <= each,
                "{} {workload}: {count} launches",
                model["name"]
            );
        }
    }
    for launch in launches {
        verify(launch).with_context(|| format!("{} {}", launch["model"], launch["workload"]))?;
    }
    println!(
        "{path}: {} launches of {} models can be true",
        launches.len(),
        models.len()
    );
    Ok(())
}

fn verify(launch: &Value) -> anyhow::Result<()> {
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
    ensure!(replies > 0 || idle, "no replies");
    // One at a time is what `serial` is; everybody else owes an answer to all.
    let unanswered = number(&client["unanswered"])?;
    ensure!(
        unanswered == 0 || launch["model"] == "serial",
        "{unanswered} unanswered"
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

    let cpu = server["cpu_s"]
        .as_f64()
        .context("the server's CPU time could not be read")?;
    let interval = server["interval_s"].as_f64().context("no interval")?;
    let threads = number(&server["threads"])?;
    ensure!(
        cpu >= 0.0 && cpu <= interval * threads as f64 * 1.05,
        "{cpu} s of CPU in {interval} s"
    );
    if launch["workload"] == "max" {
        let per_request = cpu / number(&client["completed"])? as f64;
        // Two system calls cost a microsecond on the fastest machine, and not a millisecond on the slowest.
        ensure!(
            (2e-7..1e-3).contains(&per_request),
            "{per_request} s of CPU per request"
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
