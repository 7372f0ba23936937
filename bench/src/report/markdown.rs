//! Writes `report.md`: the comparison for readers that did not run it, such as those of a decision record.

use std::fmt::Write;

use crate::format;
use crate::probe;
use crate::report::table::{ResultTable, builds, legend, notes, result_tables, twins};
use crate::results::certificate::Check;
use crate::results::metric::Metric;
use crate::results::summary::Summary;
use crate::results::{Environment, FILE, Results};

/// Name of the report file, in the directory of `results.json`.
pub(crate) const NAME: &str = "report.md";

/// Returns the report as Markdown.
pub(crate) fn to_markdown(results: &Results) -> String {
    let mut text = String::new();
    let names: Vec<_> = results
        .options
        .models
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    let options = &results.options;
    let own: Vec<_> = (options.workloads.iter())
        .filter(|workload| workload.own_protocol().is_some())
        .map(|workload| workload.name())
        .collect();
    let own = match own.is_empty() {
        true => String::new(),
        false => format!("; in {} the protocol of that workload", own.join(", ")),
    };
    let _ = writeln!(text, "# Comparison of {}\n", names.join(", "));
    let _ = writeln!(
        text,
        "All models speak one protocol (`{}`, {} bytes per request{own}) with the same client, which checks every reply \
         byte by byte. Each round starts fresh server processes of all of them; figures are compared round by round. \
         Measured {} by samewire {}.\n",
        options.protocol,
        options.size_bytes,
        results.environment.date,
        results.environment.samewire_version,
    );
    text.push_str("## Before you use the figures\n\n");
    for warning in &results.environment.warnings {
        let _ = writeln!(text, "- {}", escape(warning));
    }
    for note in notes(results) {
        let _ = writeln!(text, "- {}", escape(&note));
    }
    text.push('\n');
    for table in result_tables(results) {
        text.push_str(&table_to_markdown(&table));
    }
    for line in legend(results) {
        let _ = writeln!(text, "- {}", escape(&line));
    }
    text.push('\n');
    for (title, lines) in [
        ("Conclusions", results.conclusions.clone()),
        ("The same server twice", twins(results)),
        ("Against the other build", builds(results)),
    ] {
        if !lines.is_empty() {
            let _ = writeln!(text, "## {title}\n");
            for line in lines {
                let _ = writeln!(text, "- {}", escape(&line));
            }
            text.push('\n');
        }
    }
    if let Some(probe) = &results.probe {
        let _ = writeln!(text, "## This machine, before the first round\n");
        for line in probe::to_text(probe).lines() {
            let _ = writeln!(text, "- {}", escape(line));
        }
        text.push('\n');
    }
    text.push_str(&validity(results));
    text.push_str(
        "## Models\n\n\
         | model | description | origin | peers served at a time | workers | source |\n\
         | --- | --- | --- | ---: | ---: | --- |\n",
    );
    for model in &results.models {
        let left_out = model
            .unavailable_reason
            .as_ref()
            .map(|why| format!(" (left out: {why})"));
        if let Some(command) = &model.command {
            let _ = writeln!(
                text,
                "| {} | {}: {} | – | unknown | – | – |",
                model.name,
                escape(&model.summary),
                escape(command),
            );
            continue;
        }
        let max_concurrent = model.max_concurrent.map(|most| format::count(most as u64));
        let workers = model.workers.map(|workers| workers.to_string());
        let _ = writeln!(
            text,
            "| {} | {}{} | {} | {} | {} | `{}` |",
            model.name,
            escape(&model.summary),
            escape(&left_out.unwrap_or_default()),
            escape(&model.lineage),
            max_concurrent.unwrap_or("all".to_string()),
            workers.unwrap_or("–".to_string()),
            model.source
        );
    }
    text.push_str(&machine(&results.environment));
    let _ = write!(
        text,
        "\n## How to repeat the comparison\n\n```console\n$ {}\n```\n\nThe seed repeats the order of the runs and the \
         requests. All raw figures and histograms are in `{FILE}`, from which `samewire report DIR` writes this page \
         again.\n",
        results.command
    );
    text
}

fn table_to_markdown(table: &ResultTable) -> String {
    let mut text = format!("## {}\n\n{}\n\n", table.title, escape(&table.about));
    let headings: Vec<_> = table
        .headings
        .iter()
        .map(|heading| heading.replace("/\n", "/").replace('\n', " "))
        .collect();
    let _ = writeln!(text, "| {} |", headings.join(" | "));
    let _ = writeln!(text, "| --- |{}", " ---: |".repeat(headings.len() - 1));
    for row in &table.rows {
        let cells: Vec<_> = row.iter().map(|cell| escape(cell)).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
    text
}

/// Returns the section that shows whether the server was measured and not the client.
fn validity(results: &Results) -> String {
    let mut text = "## Validity\n\n\
        Each figure is the median of the rounds; the client lag is the percentile over all runs together. For the server to \
        be the limit, the client must have CPU time to spare. The client must send on time (lag). Other programs should \
        not use the CPUs.\n\n\
        | model | workload | connections | runs used | client busy (%) | server busy (%) | other programs (%) | client lag p99 (ms) | peak memory (MiB) | failed checks |\n\
        | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
        .to_string();
    for summary in &results.summary {
        let figure = |metric, scale: f64, digits: usize| {
            let figure = summary.figures.get(&metric).copied().flatten();
            figure.map_or("n/a".to_string(), |figure| {
                format!("{:.digits$}", figure.value * scale)
            })
        };
        let if_measured = |metric, scale, digits| {
            if summary.figures.contains_key(&metric) {
                figure(metric, scale, digits)
            } else {
                String::new()
            }
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} of {} | {} | {} | {} | {} | {} | {} |",
            summary.model,
            summary.workload,
            format::count(summary.connections as u64),
            summary.valid,
            summary.runs,
            if_measured(Metric::ClientBusy, 100.0, 0),
            if_measured(Metric::ServerBusy, 100.0, 0),
            if_measured(Metric::OtherProgramsBusy, 100.0, 0),
            if_measured(Metric::LagP99Ms, 1.0, 3),
            if_measured(Metric::PeakMemoryMib, 1.0, 1),
            failed_checks(summary),
        );
    }
    text.push('\n');
    text
}

/// Returns the conditions that did not hold, with their values and limits.
fn failed_checks(summary: &Summary) -> String {
    let failed = summary.checks.iter().filter(|check| check.failed());
    let text = |check: &Check| {
        let name = serde_json::to_value(check.condition).unwrap_or_default();
        let name = name.as_str().unwrap_or_default().replace('_', " ");
        let value = check.value.unwrap_or(f64::NAN);
        format!("{name} {} (limit {})", short(value), short(check.limit))
    };
    failed.map(text).collect::<Vec<_>>().join(", ")
}

/// Formats a value of a check, which may be very small.
fn short(value: f64) -> String {
    if value == 0.0 || value >= 1.0 {
        format::digits(value)
    } else {
        format!("{value:.4}")
    }
}

fn machine(environment: &Environment) -> String {
    fn or_unknown<T: ToString>(value: Option<&T>) -> String {
        value.map_or("unknown".to_string(), T::to_string)
    }
    // A hypervisor hides the topology and the frequency of its CPUs.
    let unknown = match environment.virtual_machine {
        Some(true) => "unknown (virtual)",
        _ => "unknown",
    };
    let yes_no = |value: Option<bool>| match value {
        Some(true) => "yes",
        Some(false) => "no",
        None => unknown,
    };
    let list = |cpus: &[usize]| {
        if cpus.is_empty() {
            "any".to_string()
        } else {
            contract::CpuList(cpus.to_vec()).to_string()
        }
    };
    let load = environment
        .load_average
        .map(|[one, five, fifteen]| format!("{one:.2}, {five:.2}, {fifteen:.2}"));
    let rows = [
        (
            "build",
            if environment.debug_build {
                "debug"
            } else {
                "release"
            }
            .to_string(),
        ),
        ("source revision", or_unknown(environment.commit.as_ref())),
        (
            "system",
            format!(
                "{} {}, {}",
                environment.os,
                or_unknown(environment.kernel.as_ref()),
                environment.architecture
            ),
        ),
        (
            "CPU",
            format!(
                "{} × {}",
                or_unknown(environment.cpus.as_ref()),
                or_unknown(environment.cpu_model.as_ref())
            ),
        ),
        (
            "virtual machine",
            yes_no(environment.virtual_machine).to_string(),
        ),
        (
            "frequency governor",
            environment.governor.clone().unwrap_or(unknown.to_string()),
        ),
        (
            "CPU quota",
            environment
                .cpu_quota
                .map_or("none".to_string(), |quota| format!("{quota:.2} CPUs")),
        ),
        (
            "transparent huge pages",
            or_unknown(environment.transparent_huge_pages.as_ref()),
        ),
        (
            "address randomisation",
            or_unknown(environment.address_randomisation.as_ref()),
        ),
        (
            "multithreading of the cores",
            or_unknown(environment.multithreading.as_ref()),
        ),
        (
            "clock source",
            or_unknown(environment.clock_source.as_ref()),
        ),
        (
            "SHA-256 of the program",
            or_unknown(environment.binary_sha256.as_ref()),
        ),
        ("load average at the start", or_unknown(load.as_ref())),
        (
            "CPUs of the client",
            format!(
                "{} (event loops: {})",
                list(&environment.client_cpus),
                environment.client_threads
            ),
        ),
        ("CPUs of the server", list(&environment.server_cpus)),
        (
            "client and server share a core",
            yes_no(environment.share_a_core).to_string(),
        ),
        (
            "command of every server",
            format!(
                "samewire serve MODEL --workers N {} (and the arguments of the workload, such as --protocol)",
                environment.server_arguments.join(" ")
            ),
        ),
    ];
    let mut text = "\n## Machine\n\n| | |\n| --- | --- |\n".to_string();
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {} |", escape(&value));
    }
    text
}

/// Escapes the characters that have a meaning in Markdown, and replaces line breaks with spaces.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        if matches!(c, '|' | '*' | '<' | '_') {
            escaped.push('\\');
        }
        escaped.push(if c == '\n' { ' ' } else { c });
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::full;

    #[test]
    fn report_contains_tables_validity_models_and_command() {
        let mut results = full();
        results.command = "samewire compare --seed 42".to_string();
        results.environment.warnings = vec!["a | b".to_string()];
        let text = to_markdown(&results);
        for part in [
            "# Comparison of",
            "a \\| b",
            "## max",
            "## Validity",
            "servers/mio/src/lib.rs",
            "$ samewire compare --seed 42",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        // Markdown shows a table as plain text if its rows differ in their number of cells.
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        let mut before: Option<&str> = None;
        for line in text.lines() {
            if let Some(before) =
                before.filter(|before| before.starts_with('|') && line.starts_with('|'))
            {
                assert_eq!(cells(before), cells(line), "{before}\n{line}");
            }
            before = Some(line);
        }
    }
}
