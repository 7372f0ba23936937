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
    ensure!(results["schema"] == 4, "another schema");
    ensure!(results["complete"] == true, "not complete");

    let runs = list(&results["runs"])?;
    let models = list(&results["models"])?;
    let skipped = list(&results["skipped"])?;
    let options = &results["options"];
    let workloads = list(&options["workloads"])?;
    for model in models {
        if let Some(command) = model["command"].as_str() {
            println!(
                "{} is an external server, and need not give a tally: {command}",
                model["name"]
            );
        }
        if let Some(obstacle) = model["obstacle"].as_str() {
            // That a kernel or a container refuses something is no fault of what was measured.
            println!("{} could not run here: {obstacle}", model["name"]);
            continue;
        }
        for workload in workloads {
            let idle = workload == "idle";
            let (each, numbers) = if idle {
                let number = std::slice::from_ref(&options["idle_connections"]);
                (&options["idle_runs"], number)
            } else {
                (&options["runs"], &list(&options["connections"])?[..])
            };
            for connections in numbers {
                let this = |one: &&Value| {
                    one["model"] == model["name"]
                        && one["workload"] == *workload
                        && one["connections"] == *connections
                };
                let count = runs.iter().filter(this).count() as u64;
                let skipped = skipped.iter().any(|one| this(&one));
                ensure!(
                    count == number(each)? || skipped,
                    "{} {workload} at {connections}: {count} runs and not {each}",
                    model["name"]
                );
            }
        }
    }
    let numbers = list(&options["connections"])?.len();
    for run in runs {
        let model = models.iter().find(|model| model["name"] == run["model"]);
        let model = model.context("a run of an unknown model")?;
        verify(run, model, options, numbers > 1)
            .with_context(|| format!("{} {}", run["model"], run["workload"]))?;
    }
    println!(
        "{path}: {} runs of {} models can be true",
        runs.len(),
        models
            .iter()
            .filter(|model| model["obstacle"].is_null())
            .count()
    );
    Ok(())
}

fn verify(run: &Value, model: &Value, options: &Value, sweep: bool) -> anyhow::Result<()> {
    ensure!(
        run["problems"] == Value::Array(Vec::new()),
        "{}",
        run["problems"]
    );
    let (client, server) = (&run["client"], &run["server"]);
    for (kind, count) in client["errors"].as_object().context("no errors counted")? {
        ensure!(count == 0, "{count} {kind}");
    }
    let replies = number(&client["replies"])?;
    let workload = run["workload"].as_str().context("no workload")?;
    // In `idle` all is said before the window.
    let idle = workload == "idle";
    let notes = list(&run["notes"])?;
    let opened = !notes.contains(&"not_all_opened".into());
    ensure!(replies > 0 || idle || !opened, "no replies");
    // Who max_concurrent fewer leaves the others without an answer; everybody else owes one to all. (But a sweep may go beyond
    // what a server can do.)
    let connections = number(&run["connections"])?;
    let max_concurrent = model["max_concurrent"].as_u64().unwrap_or(u64::MAX);
    let unanswered = number(&client["unanswered"])?;
    // Of an external server nobody says what it can do, and it need not give an account of itself.
    let external = model["command"].is_string();
    ensure!(
        unanswered == 0 || max_concurrent < connections || sweep || external,
        "{unanswered} unanswered, and it max_concurrent {max_concurrent} of {connections}"
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

    if !(external && server["tally"].is_null()) {
        tally(&server["tally"], client, idle)?;
    }

    if !opened {
        return Ok(());
    }
    figures(run, options)?;
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
    if idle && max_concurrent >= connections && !external {
        let memory = |field: &str| number(&server[field]);
        ensure!(
            memory("memory_after_bytes")? > memory("memory_before_bytes")?,
            "a thousand connections took no memory"
        );
    }
    if let Some(per_request) = run["figures"]["cpu_us_per_request"].as_f64() {
        // Two system calls cost a microsecond on the fastest machine, and not a millisecond on the slowest.
        ensure!(
            (0.2..1e3).contains(&per_request) || sweep,
            "{per_request} µs of CPU per request"
        );
    } else {
        ensure!(
            !["max", "http-13b", "http-13k", "wait", "compute"].contains(&workload)
                || notes.contains(&"edges_missed".into()),
            "what a request costs is not told"
        );
    }
    Ok(())
}

/// The server's account, which must add up, and fit the client's.
fn tally(tally: &Value, client: &Value, idle: bool) -> anyhow::Result<()> {
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
    Ok(())
}

/// What the figures say of each other, of the plan and of nature.
fn figures(run: &Value, options: &Value) -> anyhow::Result<()> {
    let (client, figures) = (&run["client"], &run["figures"]);
    let workload = run["workload"].as_str().context("no workload")?;
    let has_an_end = ["crowd", "http-13m", "bulk"].contains(&workload);
    let connections = number(&run["connections"])? as f64;
    let completed = number(&client["completed"])? as f64;
    let replies = number(&client["replies"])?;
    let window = float(&client["window_s"])?;

    ensure!(
        run["requests"].is_u64() == has_an_end,
        "it has no end, or should have"
    );
    if let Some(requests) = run["requests"].as_u64() {
        ensure!(
            replies <= requests,
            "{replies} replies to {requests} requests"
        );
        if workload != "crowd" {
            let share = replies as f64 / requests as f64;
            ensure!(
                close(float(&figures["availability"])?, share),
                "{replies} of {requests} are not {}",
                figures["availability"]
            );
        }
    }
    if let Some(availability) = figures["availability"].as_f64() {
        ensure!(
            (0.0..=1.0).contains(&availability),
            "{availability} answered"
        );
    }

    // The content, and no more than the client received.
    let content = ["http-13b", "http-13k", "http-13m", "bulk"].contains(&workload);
    ensure!(
        run["reply_bytes"].is_u64() == content,
        "it has content, or should not have"
    );
    if let Some(each) = run["reply_bytes"].as_u64() {
        let bytes = completed * each as f64;
        let told = float(&figures["mb_per_s"])? * 1e6 * window;
        ensure!(close(told, bytes), "{told} bytes told, and {bytes} came");
        let received = number(&client["received_bytes"])?;
        ensure!(
            received >= replies * each,
            "{received} bytes for {replies} replies of {each}"
        );
        // Of a transfer all is counted, and not a window of it.
        if let (true, Some(cost)) = (has_an_end, figures["cpu_ms_per_gb"].as_f64()) {
            let told = cost / 1e3 * bytes / 1e9;
            let cpu = float(&run["server"]["cpu_s"])?;
            ensure!(close(told, cpu), "{told} s of CPU told, and {cpu} used");
        }
    }

    match workload {
        // Whoever waits for 5 ms can't be answered more often, whatever the server.
        "wait" => ensure!(
            completed <= connections * (window / 0.005 + 1.0),
            "{completed} replies in {window} s on {connections} connections, each after 5 ms"
        ),
        "compute" => {
            if let Some(cost) = figures["cpu_us_per_request"].as_f64() {
                // The window has edges, and forked processes are counted in ticks.
                ensure!(cost > 185.0, "{cost} µs for 200 µs of work");
            }
        }
        _ => {}
    }

    let (all, others) = (
        number(&client["response_time"]["count"])?,
        number(&client["others"]["count"])?,
    );
    let histogram = decode(&client["others"])?;
    ensure!(histogram.len() == others, "a histogram lost samples");
    if workload.starts_with("block") {
        // Nine in ten, and by chance a few more or less.
        let share = others as f64 / all as f64;
        ensure!((0.8..0.98).contains(&share), "{others} of {all} are others");
        let planned = float(&options["block_rate_per_s"])? * window;
        ensure!(
            all as f64 <= planned + connections,
            "{all} requests, and {planned} were planned"
        );
        let told = figures["bystanders_p99_ms"].as_f64();
        let right = (others >= 1_000).then(|| histogram.value_at_quantile(0.99) as f64 / 1e6);
        ensure!(
            told == right,
            "the others' 99th percentile is {right:?} ms and not {told:?}"
        );
    } else {
        ensure!(others == 0, "{others} others, where all are the same");
    }
    Ok(())
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
}

fn float(value: &Value) -> anyhow::Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("a number is missing: {value}"))
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
