//! The results of the checks: as a matrix for a terminal, as JSON, and as Markdown.

use std::fmt::Write;
use std::time::Duration;

use console::{Alignment, Style, measure_text_width, pad_str};
use serde::Serialize;

use crate::output;

/// Version of the JSON format. Added fields do not change it.
const SCHEMA: u32 = 2;

/// Result of one check.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MatrixCell {
    pub(super) target: String,
    /// Short name of the guarantee.
    pub(super) guarantee: &'static str,
    #[serde(flatten)]
    pub(super) status: CellStatus,
    /// Duration of the check, in seconds.
    pub(super) seconds: f64,
}

/// Verdict of a check.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub(super) enum CellStatus {
    Keeps {
        figure: Option<String>,
        details: Vec<String>,
    },
    ByDesign {
        /// Deviation that the model declares.
        reason: String,
        /// Behaviour that was seen.
        seen: String,
        figure: Option<String>,
        details: Vec<String>,
    },
    Broken {
        expected: String,
        seen: String,
        /// Conversation of the peer that saw it, byte by byte.
        transcript: Option<String>,
        /// Command that repeats this check.
        reproduce: String,
    },
    NotApplicable {
        why: String,
    },
    /// The check itself failed.
    Unchecked {
        why: String,
    },
}

impl CellStatus {
    /// Returns the text of the cell.
    fn text(&self) -> String {
        match self {
            CellStatus::Keeps { figure, .. } => figure.clone().unwrap_or("keeps".to_string()),
            CellStatus::ByDesign { .. } => "design".to_string(),
            CellStatus::Broken { .. } => "BROKEN".to_string(),
            CellStatus::NotApplicable { .. } => "n/a".to_string(),
            CellStatus::Unchecked { .. } => "?".to_string(),
        }
    }

    fn style(&self) -> Style {
        match self {
            CellStatus::Keeps { .. } => Style::new().green(),
            CellStatus::ByDesign { .. } => Style::new().yellow(),
            CellStatus::Broken { .. } => Style::new().red().bold(),
            CellStatus::NotApplicable { .. } => Style::new().dim(),
            CellStatus::Unchecked { .. } => Style::new().magenta().bold(),
        }
    }

    fn details(&self) -> &[String] {
        match self {
            CellStatus::Keeps { details, .. } | CellStatus::ByDesign { details, .. } => details,
            _ => &[],
        }
    }
}

/// Column of the matrix: a guarantee.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
}

/// Results of all checks.
#[derive(Debug, Serialize)]
pub(super) struct Matrix {
    pub(super) schema: u32,
    pub(super) version: &'static str,
    /// Command that repeats all checks.
    pub(super) command: String,
    /// Sentence that says what was checked, and where.
    pub(super) conditions: String,
    pub(super) protocol: &'static str,
    pub(super) quick: bool,
    /// Seed of the requests, as text: not every program that reads JSON has 64-bit numbers.
    pub(super) seed: String,
    pub(super) seconds: f64,
    /// Whether Ctrl-C was pressed before all checks were done.
    pub(super) interrupted: bool,
    pub(super) guarantees: Vec<Column>,
    pub(super) targets: Vec<String>,
    /// Cells in the order of targets, then of guarantees. A cell is missing if Ctrl-C came before its check was done.
    pub(super) cells: Vec<MatrixCell>,
}

impl Matrix {
    pub(super) const SCHEMA: u32 = SCHEMA;

    /// Sorts the cells into the order of the matrix. Before, they are in the order in which the checks ended.
    pub(super) fn sort(&mut self) {
        let targets = &self.targets;
        let guarantees = &self.guarantees;
        self.cells.sort_by_key(|cell| {
            (
                targets.iter().position(|name| *name == cell.target),
                guarantees.iter().position(|one| one.name == cell.guarantee),
            )
        });
    }

    /// Returns whether no guarantee is broken and every check was done.
    pub(super) fn good(&self) -> bool {
        let bad = |cell: &MatrixCell| {
            matches!(
                cell.status,
                CellStatus::Broken { .. } | CellStatus::Unchecked { .. }
            )
        };
        !self.interrupted && !self.cells.iter().any(bad)
    }

    fn cell(&self, target: &str, guarantee: &str) -> Option<&MatrixCell> {
        let mut cells = self.cells.iter();
        cells.find(|cell| cell.target == target && cell.guarantee == guarantee)
    }

    /// Draws the heads of the columns and the cells, for a terminal of this width.
    fn grid(&self, columns: usize) -> String {
        let heads: Vec<Vec<&str>> = (self.guarantees.iter())
            .map(|column| column.name.split_inclusive('-').collect())
            .collect();
        let first = self.targets.iter().map(|name| measure_text_width(name));
        let first = first.max().unwrap_or(0).max(5);
        let mut widths = Vec::new();
        for (column, head) in self.guarantees.iter().zip(&heads) {
            let cells = self
                .cells
                .iter()
                .filter(|cell| cell.guarantee == column.name);
            let cells = cells.map(|cell| measure_text_width(&cell.status.text()));
            let heads = head.iter().map(|part| measure_text_width(part));
            widths.push(cells.chain(heads).max().unwrap_or(0));
        }
        // Two spaces between columns, or one if two are too wide.
        let wide = 2 + first + widths.iter().map(|width| width + 2).sum::<usize>();
        let gap = if wide <= columns { 2 } else { 1 };
        let mut text = String::new();
        let lines = heads.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..lines {
            let mut row = " ".repeat(2 + first);
            for (head, width) in heads.iter().zip(&widths) {
                // The last part of each head is on the last line.
                let part = (line + head.len()).checked_sub(lines);
                let part = part.and_then(|part| head.get(part)).copied();
                row.push_str(&" ".repeat(gap));
                row.push_str(&pad_str(part.unwrap_or(""), *width, Alignment::Right, None));
            }
            let _ = writeln!(text, "{}", row.trim_end());
        }
        for target in &self.targets {
            let _ = write!(text, "  {}", pad_str(target, first, Alignment::Left, None));
            for (column, width) in self.guarantees.iter().zip(&widths) {
                let cell = self.cell(target, column.name);
                let shown = cell.map_or(String::new(), |cell| cell.status.text());
                let style = cell.map_or(Style::new(), |cell| cell.status.style());
                // Padded before it is coloured: colours have no width.
                let padded = pad_str(&shown, *width, Alignment::Right, None).into_owned();
                let _ = write!(text, "{}{}", " ".repeat(gap), style.apply_to(padded));
            }
            text.push('\n');
        }
        text
    }

    /// Formats the matrix for a terminal. With `details`, everything that was measured is included.
    pub(super) fn text(&self, details: bool) -> String {
        let columns = output::width();
        let mut text = format!("{}\n\n", self.conditions);
        text.push_str(&self.grid(columns));
        text.push('\n');
        text.push_str(&output::wrap(LEGEND, "", columns));
        for column in &self.guarantees {
            let name = format!("{:<10} ", column.name);
            hanging_paragraph(&mut text, &name, column.summary, columns);
        }
        for (title, describe) in SECTIONS {
            self.section(&mut text, title, columns, describe);
        }
        if details {
            for cell in &self.cells {
                let lines = cell.status.details();
                if !lines.is_empty() {
                    let _ = write!(text, "\n{}, {}:\n", cell.target, cell.guarantee);
                }
                for line in lines {
                    let _ = writeln!(text, "  {line}");
                }
            }
        }
        for cell in &self.cells {
            if let Some(report) = broken_report(cell, columns) {
                text.push('\n');
                text.push_str(&report);
            }
        }
        let _ = write!(text, "\n{}", self.verdict());
        text
    }

    /// Appends a section with one line for each text that `describe` returns. Cells with the same text share a line.
    fn section(&self, text: &mut String, title: &str, columns: usize, describe: Describe) {
        let mut groups: Vec<(&str, String, Vec<&str>)> = Vec::new();
        for cell in &self.cells {
            let Some(what) = describe(cell) else { continue };
            let known = groups
                .iter_mut()
                .find(|(guarantee, other, _)| *guarantee == cell.guarantee && *other == what);
            match known {
                Some((_, _, targets)) => targets.push(&cell.target),
                None => groups.push((cell.guarantee, what, vec![&cell.target])),
            }
        }
        if groups.is_empty() {
            return;
        }
        let _ = write!(text, "\n{title}:\n");
        for (guarantee, what, targets) in groups {
            let names = if targets.len() == self.targets.len() && targets.len() > 1 {
                "all".to_string()
            } else {
                targets.join(", ")
            };
            let line = format!("{names}, {guarantee}: {what}");
            text.push_str("  ");
            text.push_str(&output::wrap(&line, "    ", columns.saturating_sub(2)));
        }
    }

    /// Returns a line with the number of cells of each verdict.
    fn verdict(&self) -> String {
        let mut counts = [0; 5];
        for cell in &self.cells {
            counts[match cell.status {
                CellStatus::Keeps { .. } => 0,
                CellStatus::ByDesign { .. } => 1,
                CellStatus::Broken { .. } => 2,
                CellStatus::NotApplicable { .. } => 3,
                CellStatus::Unchecked { .. } => 4,
            }] += 1;
        }
        let [keeps, design, broken, not_applicable, unchecked] = counts;
        let mut line = format!(
            "{} check{} in {}: {keeps} kept, {design} by design, {broken} broken, {not_applicable} n/a",
            self.cells.len(),
            if self.cells.len() == 1 { "" } else { "s" },
            duration_text(self.seconds),
        );
        if unchecked > 0 {
            let _ = write!(line, ", {unchecked} not checked");
        }
        line.push('\n');
        line
    }

    /// Formats the matrix as Markdown, for a decision record.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!("{}\n\n| |", self.conditions);
        for column in &self.guarantees {
            let _ = write!(text, " {} |", column.name);
        }
        text.push_str("\n| --- |");
        text.push_str(&" --- |".repeat(self.guarantees.len()));
        text.push('\n');
        for target in &self.targets {
            let _ = write!(text, "| `{target}` |");
            for column in &self.guarantees {
                let cell = self.cell(target, column.name);
                let shown = cell.map_or(String::new(), |cell| match cell.status {
                    CellStatus::Broken { .. } => "**BROKEN**".to_string(),
                    CellStatus::ByDesign { .. } => "*by design*".to_string(),
                    _ => cell.status.text(),
                });
                let _ = write!(text, " {shown} |");
            }
            text.push('\n');
        }
        let _ = write!(text, "\n{LEGEND}\n\n");
        for column in &self.guarantees {
            let _ = writeln!(text, "- **{}**: {}", column.name, column.summary);
        }
        let mut sections = String::new();
        for (title, describe) in SECTIONS {
            let mut section = String::new();
            self.section(&mut section, title, usize::MAX, describe);
            for (index, line) in section.trim().lines().enumerate() {
                let line = escape(line.trim_start());
                let _ = match index {
                    0 => write!(sections, "\n{line}\n\n"),
                    _ => writeln!(sections, "- {line}"),
                };
            }
        }
        text.push_str(&sections);
        for cell in &self.cells {
            if let Some(report) = broken_report(cell, usize::MAX) {
                let _ = write!(
                    text,
                    "\n```text\n{}```\n",
                    console::strip_ansi_codes(&report)
                );
            }
        }
        let _ = write!(
            text,
            "\n{}\nTo repeat: `{}`\n",
            self.verdict(),
            self.command
        );
        text
    }

    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// Function that returns the text of a cell in a section below the matrix; `None` if the section does not list the
/// cell.
type Describe = fn(&MatrixCell) -> Option<String>;

/// Sections below the matrix.
const SECTIONS: [(&str, Describe); 3] = [
    ("By design", |cell| match &cell.status {
        CellStatus::ByDesign { reason, seen, .. } => Some(format!("{reason} (seen: {seen})")),
        _ => None,
    }),
    ("Not applicable", |cell| match &cell.status {
        CellStatus::NotApplicable { why } => Some(why.clone()),
        _ => None,
    }),
    ("Not checked", |cell| match &cell.status {
        CellStatus::Unchecked { why } => Some(why.clone()),
        _ => None,
    }),
];

/// Explanation of the cells, printed below the matrix.
const LEGEND: &str = "keeps, or a figure: the guarantee is kept; the figure is what was measured. idle: how late the \
time-out came. memory: growth of the server's memory per peer that never reads. isolation: 30× means that the p99 of \
well-behaved clients beside the worst kind of misbehaving clients is 30 times that without misbehaving clients; a ~ before \
the figure means that the clients themselves were late. leaks: growth of the server's memory. design, by design: not \
kept; the model declares this, and the check saw exactly the declared behaviour. BROKEN: the guarantee \
is not kept. n/a: the guarantee can't be checked here. ?: the check itself failed.";

/// Describes a BROKEN cell: the expected and the observed behaviour, the command that repeats the check, and the
/// transcript. `None` if the cell is not BROKEN.
fn broken_report(cell: &MatrixCell, columns: usize) -> Option<String> {
    let CellStatus::Broken {
        expected,
        seen,
        transcript,
        reproduce,
    } = &cell.status
    else {
        return None;
    };
    let head = format!("BROKEN: {}, {}", cell.target, cell.guarantee);
    let mut text = format!("{}\n", cell.status.style().apply_to(head));
    let mut line = |what: &str, that: &str| {
        hanging_paragraph(&mut text, &format!("  {what:<10} "), that, columns);
    };
    line("expected", expected);
    line("saw", seen);
    if !reproduce.is_empty() {
        // On one line, so that it can be copied.
        let _ = writeln!(text, "  {:<10} {reproduce}", "reproduce");
    }
    if let Some(transcript) = transcript {
        text.push_str("  transcript (seconds; > sent by the client, < sent by the server):\n");
        for line in transcript.lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
    Some(text)
}

/// Appends a name and a text; the further lines of the text are indented to the first.
fn hanging_paragraph(out: &mut String, name: &str, text: &str, columns: usize) {
    let width = measure_text_width(name);
    out.push_str(name);
    let indent = " ".repeat(width);
    out.push_str(&output::wrap(text, &indent, columns.saturating_sub(width)));
}

/// Escapes the characters that have a meaning in Markdown.
fn escape(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('*', "\\*")
}

/// Formats a duration, given in seconds, for readers.
pub(super) fn duration_text(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 60.0 => format!("{s:.0} s"),
        s => {
            let whole = Duration::from_secs_f64(s.max(0.0)).as_secs();
            format!("{} min {} s", whole / 60, whole % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> Matrix {
        let column = |name| Column {
            name,
            summary: "a summary",
        };
        let cell = |target: &str, guarantee, status| MatrixCell {
            target: target.to_string(),
            guarantee,
            status,
            seconds: 0.5,
        };
        let keeps = |figure: Option<&str>| CellStatus::Keeps {
            figure: figure.map(ToString::to_string),
            details: vec!["a detail".to_string()],
        };
        Matrix {
            schema: SCHEMA,
            version: "0",
            command: "samewire check --seed 1".to_string(),
            conditions: "Checked somewhere.".to_string(),
            protocol: "pair",
            quick: false,
            seed: "1".to_string(),
            seconds: 151.4,
            interrupted: false,
            guarantees: vec![column("exact"), column("half-close"), column("idle")],
            targets: vec!["one".to_string(), "another".to_string()],
            cells: vec![
                cell("one", "exact", keeps(None)),
                cell(
                    "one",
                    "half-close",
                    CellStatus::Broken {
                        expected: "this".to_string(),
                        seen: "that".to_string(),
                        transcript: Some("   0.0001 - connected\n".to_string()),
                        reproduce: "samewire check one".to_string(),
                    },
                ),
                cell("one", "idle", keeps(Some("+4 ms"))),
                cell(
                    "another",
                    "exact",
                    CellStatus::NotApplicable {
                        why: "no such option".to_string(),
                    },
                ),
                cell(
                    "another",
                    "half-close",
                    CellStatus::ByDesign {
                        reason: "the reason".to_string(),
                        seen: "the behaviour".to_string(),
                        figure: None,
                        details: Vec::new(),
                    },
                ),
            ],
        }
    }

    #[test]
    fn matrix_text_is_aligned_in_columns() {
        let grid = matrix().grid(100);
        let plain = console::strip_ansi_codes(&grid).into_owned();
        assert_eq!(
            plain,
            "                   half-\n           exact   close   idle\n  one      keeps  BROKEN  +4 ms\n  another    n/a  design       \n"
        );
    }

    #[test]
    fn broken_cell_is_reported_with_expectation_observation_and_command() {
        let text = matrix().text(false);
        let text = console::strip_ansi_codes(&text);
        for part in [
            "BROKEN: one, half-close\n  expected   this\n  saw        that\n  reproduce  samewire check one\n",
            "    0.0001 - connected\n",
            "another, half-close: the reason (seen: the behaviour)",
            "another, exact: no such option",
            "5 checks in 2 min 31 s: 2 kept, 1 by design, 1 broken, 1 n/a\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("a detail"));
        assert!(matrix().text(true).contains("a detail"));
        assert!(!matrix().good());
    }

    #[test]
    fn markdown_is_a_table_followed_by_reasons() {
        let text = matrix().markdown();
        for part in [
            "| | exact | half-close | idle |\n| --- | --- | --- | --- |\n",
            "| `one` | keeps | **BROKEN** | +4 ms |\n",
            "| `another` | n/a | *by design* |  |\n",
            "- another, half-close: the reason (seen: the behaviour)\n",
            "To repeat: `samewire check --seed 1`",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn json_contains_schema_verdicts_and_command() {
        let json: serde_json::Value = serde_json::from_str(&matrix().json().unwrap()).unwrap();
        assert_eq!(json["schema"], SCHEMA);
        assert_eq!(json["cells"][0]["verdict"], "keeps");
        assert_eq!(json["cells"][1]["verdict"], "broken");
        assert_eq!(json["cells"][1]["reproduce"], "samewire check one");
        assert_eq!(json["cells"][3]["verdict"], "not-applicable");
        assert_eq!(json["guarantees"][2]["name"], "idle");
    }

    #[test]
    fn cells_are_sorted_by_target_and_guarantee() {
        let mut shuffled = matrix();
        shuffled.cells.reverse();
        shuffled.sort();
        let order = |matrix: &Matrix| -> Vec<(String, &str)> {
            let cells = matrix.cells.iter();
            cells
                .map(|cell| (cell.target.clone(), cell.guarantee))
                .collect()
        };
        assert_eq!(order(&shuffled), order(&matrix()));
    }
}
