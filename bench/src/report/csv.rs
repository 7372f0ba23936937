//! Writes `summary.csv`: one line per model, workload and figure, for spreadsheets and scripts.

use std::fmt::Write;

use crate::results::Results;

/// Name of the file, in the directory of `results.json`.
pub(crate) const NAME: &str = "summary.csv";

/// Returns the summary as CSV (RFC 4180), with a header. An empty field means that the value is unknown.
pub(crate) fn to_csv(results: &Results) -> String {
    let mut text = String::from(
        "workload,connections,model,figure,value,low,high,mark,ratio_to_best,ratio_low,ratio_high,runs,valid\r\n",
    );
    for summary in &results.summary {
        for (metric, figure) in &summary.figures {
            let number =
                |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
            let ratio = figure.and_then(|figure| figure.ratio_to_best);
            let _ = write!(
                text,
                "{},{},{},{},{},{},{},{},{},{},{},{},{}\r\n",
                summary.workload,
                summary.connections,
                quoted(&summary.model),
                name(metric),
                number(figure.map(|figure| figure.value)),
                number(figure.and_then(|figure| figure.low)),
                number(figure.and_then(|figure| figure.high)),
                figure
                    .and_then(|figure| figure.mark)
                    .map_or(String::new(), |mark| name(&mark)),
                number(ratio.map(|ratio| ratio.value)),
                number(ratio.map(|ratio| ratio.low)),
                number(ratio.map(|ratio| ratio.high)),
                summary.runs,
                summary.valid,
            );
        }
    }
    text
}

/// Returns the name that results.json uses.
fn name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::full;

    #[test]
    fn csv_has_one_line_per_figure_with_the_same_number_of_fields() {
        let results = full();
        let text = to_csv(&results);
        let figures: usize = results.summary.iter().map(|one| one.figures.len()).sum();
        assert!(figures > 20);
        assert_eq!(text.matches("\r\n").count(), figures + 1);
        for line in text.split_terminator("\r\n") {
            assert_eq!(line.split(',').count(), 13, "{line}");
        }
        assert!(
            text.contains("max,100,mio,cpu_us_per_request,1.5,"),
            "{text}"
        );
    }

    #[test]
    fn name_with_a_comma_is_quoted() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
