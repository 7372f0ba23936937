//! What came of the checks: as a matrix to look at, as JSON, as Markdown.

use std::fmt::Write;
use std::time::Duration;

use console::{Alignment, Style, measure_text_width, pad_str};
use serde::Serialize;

use crate::output;

/// The version of the JSON. What is added does not change it.
const SCHEMA: u32 = 2;

/// What came of one check.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MatrixCell {
    pub(super) target: String,
    /// The name of its check.
    pub(super) guarantee: &'static str,
    #[serde(flatten)]
    pub(super) status: CellStatus,
    /// How long the check took.
    pub(super) seconds: f64,
}

/// The verdict.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub(super) enum CellStatus {
    Keeps {
        figure: Option<String>,
        details: Vec<String>,
    },
    ByDesign {
        /// What the model declares.
        reason: String,
        /// What was seen of it.
        seen: String,
        figure: Option<String>,
        details: Vec<String>,
    },
    Broken {
        expected: String,
        seen: String,
        /// What was said, byte by byte.
        transcript: Option<String>,
        /// The command that does this check again.
        reproduce: String,
    },
    NotApplicable {
        why: String,
    },
    /// The check could not be done.
    Unchecked {
        why: String,
    },
}

impl CellStatus {
    /// In a cell.
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

/// A column.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
}

/// All of them.
#[derive(Debug, Serialize)]
pub(super) struct Matrix {
    pub(super) schema: u32,
    pub(super) version: &'static str,
    /// The command that checks all this again.
    pub(super) command: String,
    /// Where, and how.
    pub(super) conditions: String,
    pub(super) protocol: &'static str,
    pub(super) quick: bool,
    /// As text: not every program that reads JSON has 64 bits for a number.
    pub(super) seed: String,
    pub(super) seconds: f64,
    /// Ctrl-C came before the end.
    pub(super) interrupted: bool,
    pub(super) guarantees: Vec<Column>,
    pub(super) targets: Vec<String>,
    /// In the order of targets, then guarantees. One that is not there was not checked, because of Ctrl-C.
    pub(super) cells: Vec<MatrixCell>,
}

impl Matrix {
    pub(super) const SCHEMA: u32 = SCHEMA;

    /// Puts the cells in the order of the matrix: they came as they were done.
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

    /// Whether nothing is broken, and everything was checked.
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

    /// The columns that fit beside each other, and the cells in them.
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
        // Two spaces between them, or one where that is too wide.
        let wide = 2 + first + widths.iter().map(|width| width + 2).sum::<usize>();
        let gap = if wide <= columns { 2 } else { 1 };
        let mut text = String::new();
        let lines = heads.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..lines {
            let mut row = " ".repeat(2 + first);
            for (head, width) in heads.iter().zip(&widths) {
                // The last part of each stands on the last line.
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
                // Padded before it is coloured.
                let padded = pad_str(&shown, *width, Alignment::Right, None).into_owned();
                let _ = write!(text, "{}{}", " ".repeat(gap), style.apply_to(padded));
            }
            text.push('\n');
        }
        text
    }

    /// For a terminal. `details`: with all that was measured.
    pub(super) fn text(&self, details: bool) -> String {
        let columns = output::width();
        let mut text = format!("{}\n\n", self.conditions);
        text.push_str(&self.grid(columns));
        text.push('\n');
        text.push_str(&output::wrap(LEGEND, "", columns));
        for column in &self.guarantees {
            let name = format!("{:<10} ", column.name);
            hang(&mut text, &name, column.summary, columns);
        }
        for (title, says) in SECTIONS {
            self.section(&mut text, title, columns, says);
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
            if let Some(complaint) = complaint(cell, columns) {
                text.push('\n');
                text.push_str(&complaint);
            }
        }
        let _ = write!(text, "\n{}", self.verdict());
        text
    }

    /// What the same is said of, once.
    fn section(&self, text: &mut String, title: &str, columns: usize, says: Says) {
        let mut said: Vec<(&str, String, Vec<&str>)> = Vec::new();
        for cell in &self.cells {
            let Some(what) = says(cell) else { continue };
            let known = said
                .iter_mut()
                .find(|(guarantee, other, _)| *guarantee == cell.guarantee && *other == what);
            match known {
                Some((_, _, targets)) => targets.push(&cell.target),
                None => said.push((cell.guarantee, what, vec![&cell.target])),
            }
        }
        if said.is_empty() {
            return;
        }
        let _ = write!(text, "\n{title}:\n");
        for (guarantee, what, targets) in said {
            let who = if targets.len() == self.targets.len() && targets.len() > 1 {
                "all".to_string()
            } else {
                targets.join(", ")
            };
            let line = format!("{who}, {guarantee}: {what}");
            text.push_str("  ");
            text.push_str(&output::wrap(&line, "    ", columns.saturating_sub(2)));
        }
    }

    /// How many of each, in a line.
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
            took(self.seconds),
        );
        if unchecked > 0 {
            let _ = write!(line, ", {unchecked} not checked");
        }
        line.push('\n');
        line
    }

    /// For a decision record.
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
                    CellStatus::ByDesign { .. } => "*design*".to_string(),
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
        let mut rest = String::new();
        for (title, says) in SECTIONS {
            let mut section = String::new();
            self.section(&mut section, title, usize::MAX, says);
            for (place, line) in section.trim().lines().enumerate() {
                let line = escape(line.trim_start());
                let _ = match place {
                    0 => write!(rest, "\n{line}\n\n"),
                    _ => writeln!(rest, "- {line}"),
                };
            }
        }
        text.push_str(&rest);
        for cell in &self.cells {
            if let Some(complaint) = complaint(cell, usize::MAX) {
                let _ = write!(
                    text,
                    "\n```text\n{}```\n",
                    console::strip_ansi_codes(&complaint)
                );
            }
        }
        let _ = write!(text, "\n{}\nAgain: `{}`\n", self.verdict(), self.command);
        text
    }

    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// What is told of cells, below the matrix.
type Says = fn(&MatrixCell) -> Option<String>;

const SECTIONS: [(&str, Says); 3] = [
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

const LEGEND: &str = "keeps, or a figure: the guarantee is kept (idle: how late the time-out came; memory: growth per peer \
that never reads; isolation: the worst p99 of well-behaved clients beside misbehaving ones, as a multiple of the undisturbed \
one, with a ? if the clients themselves were late; leaks: growth of memory). design: \
not kept, by design; that is declared, and was seen to be exactly so. BROKEN: not kept. n/a: can't be checked here. \
?: the check itself failed.";

/// What was expected and seen where something is broken, and what was said.
fn complaint(cell: &MatrixCell, columns: usize) -> Option<String> {
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
    let mut say = |what: &str, that: &str| {
        hang(&mut text, &format!("  {what:<10} "), that, columns);
    };
    say("expected", expected);
    say("saw", seen);
    if !reproduce.is_empty() {
        // In one line, to be copied.
        let _ = writeln!(text, "  {:<10} {reproduce}", "again by");
    }
    if let Some(transcript) = transcript {
        text.push_str("  what was said (seconds; > by the client, < by the server):\n");
        for line in transcript.lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
    Some(text)
}

/// A text behind a name, its further lines below its first.
fn hang(out: &mut String, name: &str, text: &str, columns: usize) {
    let width = measure_text_width(name);
    out.push_str(name);
    let indent = " ".repeat(width);
    out.push_str(&output::wrap(text, &indent, columns.saturating_sub(width)));
}

/// What Markdown would take for its own.
fn escape(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('*', "\\*")
}

/// As people say it.
pub(super) fn took(seconds: f64) -> String {
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
            summary: "what it is about",
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
                        why: "it can't".to_string(),
                    },
                ),
                cell(
                    "another",
                    "half-close",
                    CellStatus::ByDesign {
                        reason: "that is how it is".to_string(),
                        seen: "just that".to_string(),
                        figure: None,
                        details: Vec::new(),
                    },
                ),
            ],
        }
    }

    #[test]
    fn the_matrix_is_drawn_in_columns() {
        let grid = matrix().grid(100);
        let plain = console::strip_ansi_codes(&grid).into_owned();
        assert_eq!(
            plain,
            "                   half-\n           exact   close   idle\n  one      keeps  BROKEN  +4 ms\n  another    n/a  design       \n"
        );
    }

    #[test]
    fn what_is_broken_is_told_with_all_that_was_seen() {
        let text = matrix().text(false);
        let text = console::strip_ansi_codes(&text);
        for part in [
            "BROKEN: one, half-close\n  expected   this\n  saw        that\n  again by   samewire check one\n",
            "    0.0001 - connected\n",
            "another, half-close: that is how it is (seen: just that)",
            "another, exact: it can't",
            "5 checks in 2 min 31 s: 2 kept, 1 by design, 1 broken, 1 n/a\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("a detail"));
        assert!(matrix().text(true).contains("a detail"));
        assert!(!matrix().good());
    }

    #[test]
    fn as_markdown_it_is_a_table_with_its_reasons() {
        let text = matrix().markdown();
        for part in [
            "| | exact | half-close | idle |\n| --- | --- | --- | --- |\n",
            "| `one` | keeps | **BROKEN** | +4 ms |\n",
            "| `another` | n/a | *design* |  |\n",
            "- another, half-close: that is how it is (seen: just that)\n",
            "Again: `samewire check --seed 1`",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn programs_read_all_of_it() {
        let json: serde_json::Value = serde_json::from_str(&matrix().json().unwrap()).unwrap();
        assert_eq!(json["schema"], SCHEMA);
        assert_eq!(json["cells"][0]["verdict"], "keeps");
        assert_eq!(json["cells"][1]["verdict"], "broken");
        assert_eq!(json["cells"][1]["reproduce"], "samewire check one");
        assert_eq!(json["cells"][3]["verdict"], "not-applicable");
        assert_eq!(json["guarantees"][2]["name"], "idle");
    }

    #[test]
    fn cells_are_put_in_order() {
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
