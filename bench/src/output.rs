//! Standard output and standard error, for whoever still reads.

use std::io::{self, Write};

pub use contract::cli::print_error;

/// Prints `text`. A reader that has left (`samewire list | head -1`) is no error and no reason to panic, as it is for
/// `println!`.
///
/// # Errors
///
/// The output could not be written for another reason, such as a full disk behind a redirection.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to standard output"))
        }
        _ => Ok(()),
    }
}

/// What is laid out for a terminal fits this many columns at least,
pub const NARROWEST: usize = 80;

/// and never takes more: longer lines are hard to read.
pub const WIDEST: usize = 120;

/// Columns of standard output: the terminal's; 100 in a pipe or a file, which have none.
pub fn width() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) => usize::from(size.ws_col).clamp(NARROWEST, WIDEST),
        Err(_) => 100,
    }
}

/// Breaks a text into lines that fit, and ends the last; those after the first are indented.
pub fn wrap(text: &str, indent: &str, columns: usize) -> String {
    let mut wrapped = String::new();
    let mut width = 0;
    for word in text.split(' ') {
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
    fn lines_are_broken_between_words() {
        let wrapped = wrap(&"word ".repeat(60), "  ", 100);
        assert!(wrapped.lines().count() > 2);
        assert!(wrapped.lines().skip(1).all(|line| line.starts_with("  ")));
        assert!(wrapped.lines().all(|line| line.chars().count() <= 100));
        assert_eq!(wrapped.split_whitespace().count(), 60);
    }
}
