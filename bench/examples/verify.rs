//! Checks whether the contents of a `results.json` can be true. It reads the file as an external tool would, by its
//! documentation alone. CI runs it on a real comparison: `cargo run --example verify -- results/…/results.json`.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use serde_json::Value;

fn main() -> anyhow::Result<()> {
    let path = std::env::args()
        .nth(1)
        .context("name a results.json on the command line")?;
    let results: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    ensure!(
        results["schema"] == 5,
        "the schema is {} and not 5",
        results["schema"]
    );
    ensure!(
        results["complete"] == true,
        "the comparison was interrupted and is not complete"
    );

    let runs = list(&results["runs"])?;
    let models = list(&results["models"])?;
    let skipped = list(&results["skipped"])?;
    let options = &results["options"];
    let workloads = list(&options["workloads"])?;
    for model in models {
        if let Some(command) = model["command"].as_str() {
            println!(
                "{} is an external server, which may have no tally: {command}",
                model["name"]
            );
        }
        if let Some(reason) = model["unavailable_reason"].as_str() {
            // A model that the kernel or the container refuses is not a fault of the measurement.
            println!("{} could not run here: {reason}", model["name"]);
            continue;
        }
        for workload in workloads {
            let numbers = if workload == "idle" {
                std::slice::from_ref(&options["idle_connections"])
            } else {
                &list(&options["connections"])?[..]
            };
            for connections in numbers {
                let same_case = |one: &&Value| {
                    one["model"] == model["name"]
                        && one["workload"] == *workload
                        && one["connections"] == *connections
                };
                let counted = |one: &&Value| one["role"] == "model" && one["superseded"] == false;
                let count = runs.iter().filter(same_case).filter(counted).count() as u64;
                let skipped = skipped.iter().any(|one| same_case(&one));
                // Without a number of rounds, models that are far worse than the best may have fewer.
                let rounds = options["rounds"].as_u64();
                let enough = rounds.map_or(count > 0, |rounds| count == rounds);
                ensure!(
                    enough || skipped,
                    "{} {workload} with {connections} connections: {count} runs instead of {}",
                    model["name"],
                    options["rounds"]
                );
            }
        }
    }
    let numbers = list(&options["connections"])?.len();
    for run in runs {
        checks(run).with_context(|| format!("{} {}", run["model"], run["workload"]))?;
        // The null server is not one of the models, and a run that was measured once more may have failed.
        if run["role"] == "anchor" || run["superseded"] == true {
            continue;
        }
        let model = models.iter().find(|model| model["name"] == run["model"]);
        let model =
            model.with_context(|| format!("a run has the unknown model {}", run["model"]))?;
        verify(run, model, options, numbers > 1)
            .with_context(|| format!("{} {}", run["model"], run["workload"]))?;
    }
    summary(&results)?;
    let probe = &results["probe"];
    ensure!(
        probe.is_null() || float(&probe["null_requests_per_s"])? > 1e3,
        "the null server is slower than any server can be: {probe}"
    );
    println!(
        "{path}: no contradiction found in {} runs of {} models",
        runs.len(),
        models
            .iter()
            .filter(|model| model["unavailable_reason"].is_null())
            .count()
    );
    Ok(())
}

/// Checks that the verdict of each check of a run agrees with its value and its limit.
fn checks(run: &Value) -> anyhow::Result<()> {
    for check in list(&run["checks"])? {
        let name = check["condition"].as_str().context("a check has no name")?;
        let limit = float(&check["limit"])?;
        let kept = check["value"].as_f64().map(|value| match name {
            "above_floor" | "spread_samples" => value >= limit,
            _ => value <= limit,
        });
        let verdict = match kept {
            Some(true) => "kept",
            Some(false) => "failed",
            None => "unknown",
        };
        ensure!(
            check["verdict"] == verdict,
            "the check {name} has the verdict {} and not {verdict}",
            check["verdict"]
        );
    }
    Ok(())
}

/// Checks the summary of a case: its figures lie within those of its runs, and the best model has the ratio 1.
fn summary(results: &Value) -> anyhow::Result<()> {
    for one in list(&results["summary"])? {
        let figures = one["figures"]
            .as_object()
            .context("a summary has no figures")?;
        for (name, figure) in figures.iter().filter(|(_, figure)| figure["low"].is_f64()) {
            let (low, high) = (float(&figure["low"])?, float(&figure["high"])?);
            ensure!(
                low <= high,
                "{} {name}: the interval {low}–{high} has no inside",
                one["model"]
            );
            let percentile = name.contains("p99") || name.contains("p50") || name.contains("max");
            let value = float(&figure["value"])?;
            ensure!(
                percentile || (low..=high).contains(&value),
                "{} {name}: {value} lies outside of {low}–{high}",
                one["model"]
            );
            let ratio = &figure["ratio_to_best"];
            ensure!(
                ratio.is_null() || float(&ratio["low"])? <= float(&ratio["high"])?,
                "{} {name}: the interval of the ratio has no inside",
                one["model"]
            );
        }
    }
    Ok(())
}

/// Checks one run against its model and the options.
fn verify(run: &Value, model: &Value, options: &Value, sweep: bool) -> anyhow::Result<()> {
    ensure!(
        run["problems"] == Value::Array(Vec::new()),
        "the run has problems: {}",
        run["problems"]
    );
    let (client, server) = (&run["client"], &run["server"]);
    let errors = client["errors"].as_object();
    for (kind, count) in errors.context("the errors of the client are missing")? {
        ensure!(count == 0, "{count} errors of kind {kind}");
    }
    let replies = number(&client["replies"])?;
    let workload = run["workload"]
        .as_str()
        .context("the workload is missing")?;
    // In `idle` all requests are answered before the window.
    let idle = workload == "idle";
    let notes = list(&run["notes"])?;
    let opened = !notes.contains(&"not_all_opened".into());
    ensure!(
        replies > 0 || idle || !opened,
        "the client received no replies"
    );
    // A model that serves fewer connections than there are leaves requests unanswered by design; every other model must
    // answer all of them. A sweep, however, may have more connections than a server can serve.
    let connections = number(&run["connections"])?;
    let max_concurrent = model["max_concurrent"].as_u64().unwrap_or(u64::MAX);
    let unanswered = number(&client["unanswered"])?;
    // The limits of an external server are unknown, and it may have no tally.
    let external = model["command"].is_string();
    // When other programs stop the server for longer than the client waits at the end, the last requests have no reply.
    let stopped =
        notes.contains(&"disturbed".into()) && run["figures"]["connections_without_reply"] == 0.0;
    ensure!(
        unanswered == 0 || max_concurrent < connections || sweep || external || stopped,
        "{unanswered} requests are unanswered, although the model serves {max_concurrent} connections at a time and \
         there were {connections}"
    );

    let completed: Vec<u64> = list(&client["per_connection"])?
        .iter()
        .filter_map(Value::as_u64)
        .collect();
    ensure!(
        completed.iter().sum::<u64>() == number(&client["completed"])?,
        "the sum of per_connection is not completed"
    );

    let times = &client["response_time"];
    let histogram = decode(times)?;
    ensure!(
        histogram.len() == number(&times["count"])?,
        "the histogram of the response time does not have count samples"
    );
    ensure!(
        histogram.len() == replies + unanswered,
        "not every request has a response time"
    );
    let max = (!histogram.is_empty()).then(|| histogram.max());
    ensure!(
        max == times["max_ns"].as_u64(),
        "the maximum of the response time is not that of its histogram"
    );

    // An external server gets a request before the load, to find out whether it serves.
    if !external {
        tally(&server["tally"], client, idle)?;
    }

    if !opened {
        return Ok(());
    }
    figures(run, options)?;
    let cpu = server["cpu_s"]
        .as_f64()
        .context("the server's CPU time could not be read")?;
    let interval = server["interval_s"]
        .as_f64()
        .context("the interval of the CPU time is missing")?;
    let (threads, processes) = (number(&server["threads"])?, number(&server["processes"])?);
    ensure!(
        (1..=threads).contains(&processes),
        "{processes} processes cannot have {threads} threads"
    );
    // The CPU time of ended processes is counted in ticks, so it may exceed the interval a little.
    ensure!(
        cpu >= 0.0 && cpu <= interval * threads as f64 * 1.05 + 0.02,
        "{cpu} s of CPU time in {interval} s with {threads} threads"
    );
    if idle && max_concurrent >= connections && !external {
        let memory = |field: &str| number(&server[field]);
        ensure!(
            memory("memory_after_bytes")? > memory("memory_before_bytes")?,
            "the idle connections took no memory"
        );
    }
    if let Some(per_request) = run["figures"]["cpu_us_per_request"].as_f64() {
        // A request needs two system calls: about a microsecond on the fastest machine, and less than a millisecond on
        // the slowest.
        ensure!(
            (0.2..1e3).contains(&per_request) || sweep,
            "{per_request} µs of CPU time per request are not plausible"
        );
    } else {
        ensure!(
            !["max", "http-13b", "http-13k", "wait", "compute"].contains(&workload)
                || notes.contains(&"edges_missed".into()),
            "the CPU time per request is missing"
        );
    }
    Ok(())
}

/// Checks the tally of the server, which must add up and agree with the measurements of the client.
fn tally(tally: &Value, client: &Value, idle: bool) -> anyhow::Result<()> {
    let ended = ["served", "refused", "timed_out", "reset", "cut", "failed"];
    let ended: u64 = ended.iter().filter_map(|kind| tally[kind].as_u64()).sum();
    let accepted = number(&tally["accepted"])?;
    ensure!(
        accepted == ended,
        "the server's tally does not add up: {tally}"
    );
    ensure!(tally["failed"] == 0, "sessions panicked in the server");
    ensure!(
        idle || accepted <= number(&client["connected"])?,
        "the server accepted more connections than the client opened"
    );
    Ok(())
}

/// Checks the figures against each other, the plan, and the limits that follow from the work.
fn figures(run: &Value, options: &Value) -> anyhow::Result<()> {
    let (client, figures) = (&run["client"], &run["figures"]);
    let workload = run["workload"]
        .as_str()
        .context("the workload is missing")?;
    let ends_by_itself = ["crowd", "http-13m", "bulk"].contains(&workload);
    let connections = number(&run["connections"])? as f64;
    let completed = number(&client["completed"])? as f64;
    let replies = number(&client["replies"])?;
    let window = float(&client["window_s"])?;

    ensure!(
        run["requests"].is_u64() == ends_by_itself,
        "only a load that ends by itself has a number of requests"
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
                "{replies} replies to {requests} requests are not the availability {}",
                figures["availability"]
            );
        }
    }
    if let Some(availability) = figures["availability"].as_f64() {
        ensure!(
            (0.0..=1.0).contains(&availability),
            "the availability {availability} is not a share"
        );
    }

    // The figures must count the content, and not more than the client received.
    let content = ["http-13b", "http-13k", "http-13m", "bulk"].contains(&workload);
    ensure!(
        run["reply_bytes"].is_u64() == content,
        "only a workload with content has reply_bytes"
    );
    if let Some(each) = run["reply_bytes"].as_u64() {
        let bytes = completed * each as f64;
        let counted = float(&figures["mb_per_s"])? * 1e6 * window;
        ensure!(
            close(counted, bytes),
            "mb_per_s means {counted} bytes, but the replies have {bytes}"
        );
        let received = number(&client["received_bytes"])?;
        ensure!(
            received >= replies * each,
            "{received} received bytes are too few for {replies} replies of {each} bytes"
        );
        // The window of a transfer is the whole load.
        if let (true, Some(cost)) = (ends_by_itself, figures["cpu_ms_per_gb"].as_f64()) {
            let counted = cost / 1e3 * bytes / 1e9;
            let cpu = float(&run["server"]["cpu_s"])?;
            ensure!(
                close(counted, cpu),
                "cpu_ms_per_gb means {counted} s of CPU time, but the server used {cpu}"
            );
        }
    }

    match workload {
        // Each reply waits 5 ms, which limits the number of replies for every server.
        "wait" => ensure!(
            completed <= connections * (window / 0.005 + 1.0),
            "{completed} replies in {window} s on {connections} connections are too many if each waits 5 ms"
        ),
        "compute" => {
            if let Some(cost) = figures["cpu_us_per_request"].as_f64() {
                // The cost may be a little low: requests cross the edges of the window, and the CPU time of forked
                // processes is counted in ticks.
                ensure!(
                    cost > 185.0,
                    "{cost} µs of CPU time are too few for 200 µs of work"
                );
            }
        }
        _ => {}
    }

    let (all, bystanders) = (
        number(&client["response_time"]["count"])?,
        number(&client["bystanders"]["count"])?,
    );
    let histogram = decode(&client["bystanders"])?;
    ensure!(
        histogram.len() == bystanders,
        "the histogram of the bystanders does not have count samples"
    );
    if workload.starts_with("block") {
        // About nine requests in ten are bystanders; the exact number is random.
        let share = bystanders as f64 / all as f64;
        ensure!(
            (0.8..0.98).contains(&share),
            "{bystanders} of {all} requests are bystanders, which is not about 90 %"
        );
        let planned = float(&options["block_rate_per_s"])? * window;
        ensure!(
            all as f64 <= planned + connections,
            "{all} requests were sent, but only {planned} were planned"
        );
        let figure = figures["bystanders_p99_ms"].as_f64();
        let expected =
            (bystanders >= 1_000).then(|| histogram.value_at_quantile(0.99) as f64 / 1e6);
        ensure!(
            figure == expected,
            "bystanders_p99_ms is {figure:?}, but its histogram gives {expected:?}"
        );
    } else {
        ensure!(
            bystanders == 0,
            "{bystanders} bystanders in a workload that has none"
        );
    }
    Ok(())
}

/// Returns whether two numbers are equal except for rounding.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
}

fn float(value: &Value) -> anyhow::Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("a number is missing: {value}"))
}

fn decode(times: &Value) -> anyhow::Result<Histogram<u64>> {
    let text = times["histogram"]
        .as_str()
        .context("a histogram is missing")?;
    let bytes = STANDARD.decode(text)?;
    Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| anyhow::anyhow!("a histogram cannot be decoded: {error}"))
}

fn list(value: &Value) -> anyhow::Result<&Vec<Value>> {
    value.as_array().context("a list is missing")
}

fn number(value: &Value) -> anyhow::Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("a number is missing: {value}"))
}
