//! `report.md`: the comparison for those who were not there, such as the readers of a decision record.

use std::fmt::Write;

use super::metric::Metric;
use super::results::{Environment, FILE, Results};
use super::table::{ResultTable, legend, notes, result_tables};
use crate::format;

/// The file's name beside `results.json`.
pub(super) const NAME: &str = "report.md";

/// The whole report.
pub(super) fn to_markdown(results: &Results) -> String {
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
        false => format!("; in {} what its name says", own.join(", ")),
    };
    let _ = writeln!(text, "# Comparison of {}\n", names.join(", "));
    let _ = writeln!(
        text,
        "One protocol (`{}`, {} bytes per request{own}), one client, every reply checked byte by byte; for each of {} \
         runs{} a fresh server process, in random order. Measured {} by samewire {}.\n",
        options.protocol,
        options.size_bytes,
        options.runs,
        if options.idle_runs == options.runs {
            String::new()
        } else {
            format!(" ({} of idle)", options.idle_runs)
        },
        results.environment.date,
        results.environment.samewire_version,
    );
    text.push_str("## Before you believe it\n\n");
    for warning in &results.environment.warnings {
        let _ = writeln!(text, "- {}", escape(warning));
    }
    for note in notes(results) {
        let _ = writeln!(text, "- {}", escape(&note));
    }
    text.push('\n');
    for sheet in result_tables(results) {
        text.push_str(&of_sheet(&sheet));
    }
    let _ = writeln!(text, "{}\n", escape(&legend(results)));
    text.push_str(&validity(results));
    text.push_str(
        "## What was compared\n\n\
         | model | who answers | from | max_concurrent at a time | workers | read it |\n\
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
        "\n## To repeat it\n\n```console\n$ {}\n```\n\nThe seed gives the same order and the same requests. All raw figures and \
         histograms are in `{FILE}`; `samewire report DIR` draws this page from it.\n",
        results.command
    );
    text
}

fn of_sheet(sheet: &ResultTable) -> String {
    let mut text = format!("## {}\n\n{}\n\n", sheet.title, escape(&sheet.about));
    let headings: Vec<_> = sheet
        .headings
        .iter()
        .map(|heading| heading.replace("/\n", "/").replace('\n', " "))
        .collect();
    let _ = writeln!(text, "| {} |", headings.join(" | "));
    let _ = writeln!(text, "| --- |{}", " ---: |".repeat(headings.len() - 1));
    for row in &sheet.rows {
        let cases: Vec<_> = row.iter().map(|case| escape(case)).collect();
        let _ = writeln!(text, "| {} |", cases.join(" | "));
    }
    text.push('\n');
    text
}

/// What shows that the server was measured and not the client.
fn validity(results: &Results) -> String {
    let mut text = "## Validity\n\n\
        Medians over the runs. The client must have CPU time to spare where the server is to be the limit; it must \
        send on time (lag); nobody else should have had the CPUs in use; and in \
        `max` (and whatever else is a closed loop) as many requests must be under way as there are connections \
        (Little's law).\n\n\
        | model | workload | connections | runs used | client busy % | server busy % | others had % | client lag p99 ms | under way on average | peak MiB |\n\
        | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
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
            if_measured(Metric::MeanInFlight, 1.0, 1),
            if_measured(Metric::PeakMemoryMib, 1.0, 1),
        );
    }
    text.push('\n');
    text
}

fn machine(environment: &Environment) -> String {
    fn or_unknown<T: ToString>(value: Option<&T>) -> String {
        value.map_or("unknown".to_string(), T::to_string)
    }
    let yes_no = |value: Option<bool>| match value {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
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
            or_unknown(environment.governor.as_ref()),
        ),
        ("load average at the start", or_unknown(load.as_ref())),
        (
            "CPUs of the client",
            format!(
                "{} ({} event loops)",
                list(&environment.client_cpus),
                environment.client_threads
            ),
        ),
        ("CPUs of the server", list(&environment.server_cpus)),
        (
            "on threads of one core",
            yes_no(environment.share_a_core).to_string(),
        ),
        (
            "every server",
            format!(
                "samewire serve MODEL --workers N {} (and what its workload is about, such as --protocol)",
                environment.server_arguments.join(" ")
            ),
        ),
    ];
    let mut text = "\n## On what\n\n| | |\n| --- | --- |\n".to_string();
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {} |", escape(&value));
    }
    text
}

/// Keeps Markdown from reading more into a text than is there.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for sign in text.trim_end().chars() {
        if matches!(sign, '|' | '*' | '<' | '_') {
            escaped.push('\\');
        }
        escaped.push(if sign == '\n' { ' ' } else { sign });
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::full;

    #[test]
    fn the_report_says_what_on_what_and_how_to_repeat_it() {
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
        // A table whose rows differ in their number of cases is drawn as text.
        let cases = |line: &str| line.replace("\\|", "").matches('|').count();
        let mut before: Option<&str> = None;
        for line in text.lines() {
            if let Some(before) =
                before.filter(|before| before.starts_with('|') && line.starts_with('|'))
            {
                assert_eq!(cases(before), cases(line), "{before}\n{line}");
            }
            before = Some(line);
        }
    }
}
