//! Standard output and standard error, for whoever still reads.

use std::io::{self, Write};

pub use contract::cli::complain;

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
