//! Writes to standard output and standard error, and fits text to the width of the terminal.

use std::io::{self, Write};

pub use contract::cli::print_error;

/// Prints `text` to standard output. A closed pipe (`samewire list | head -1`) is not an error here; `println!` would
/// panic on it.
///
/// # Errors
///
/// Returns an error if the output cannot be written for another reason, such as a full disk behind a redirection.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to standard output"))
        }
        _ => Ok(()),
    }
}

/// Smallest width in columns for which output is laid out; a narrower terminal breaks the lines.
pub const NARROWEST: usize = 80;

/// Largest width in columns that output uses, because longer lines are hard to read.
pub const WIDEST: usize = 120;

/// Returns the width of standard output in columns: that of the terminal, from [`NARROWEST`] to [`WIDEST`]; 100 if
/// standard output is a pipe or a file.
pub fn width() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) => usize::from(size.ws_col).clamp(NARROWEST, WIDEST),
        Err(_) => 100,
    }
}

/// Units that stay on the line of their number.
const UNITS: [&str; 8] = ["s", "ms", "µs", "%", "B", "KiB", "MiB", "min"];

/// Breaks a text into lines of at most `columns` columns. Lines after the first begin with `indent`, and the last line
/// ends with a line break. A number and its unit stay together.
pub fn wrap(text: &str, indent: &str, columns: usize) -> String {
    let mut wrapped = String::new();
    let mut width = 0;
    let mut words = text.split(' ').peekable();
    while let Some(word) = words.next() {
        let is_number = word.ends_with(|c: char| c.is_ascii_digit());
        let is_unit =
            |next: &&str| UNITS.contains(&next.trim_end_matches(['.', ',', ':', ';', ')', '?']));
        let word = match words.next_if(|next| is_number && is_unit(next)) {
            Some(unit) => &format!("{word} {unit}"),
            None => word,
        };
        let length = word.chars().count();
        if width > 0 && width + 1 + length > columns {
            wrapped.push('\n');
            wrapped.push_str(indent);
            width = indent.len();
        } else if width > 0 {
            wrapped.push(' ');
            width += 1;
        }
        wrapped.push_str(word);
        width += length;
    }
    wrapped.push('\n');
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_wrapped_between_words() {
        let wrapped = wrap(&"word ".repeat(60), "  ", 100);
        assert!(wrapped.lines().count() > 2);
        assert!(wrapped.lines().skip(1).all(|line| line.starts_with("  ")));
        assert!(wrapped.lines().all(|line| line.chars().count() <= 100));
        assert_eq!(wrapped.split_whitespace().count(), 60);
    }

    #[test]
    fn number_and_unit_stay_on_one_line() {
        assert_eq!(
            wrap("waits for 0.8 s. Then", "", 13),
            "waits for\n0.8 s. Then\n"
        );
        assert_eq!(wrap("up to 10 % (of 3)", "", 9), "up to\n10 % (of\n3)\n");
        assert_eq!(wrap("one 2 peers", "", 6), "one 2\npeers\n");
    }
}
