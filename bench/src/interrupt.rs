//! Handling of Ctrl-C in the commands that measure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit status of a command that was interrupted: 128 + 2 (SIGINT), as in shells.
pub const STATUS: u8 = 130;

/// Sets the flag at the first SIGINT, SIGTERM or SIGHUP (the terminal was closed), so that the command can keep what it
/// has measured. The second signal ends the process at once.
///
/// # Errors
///
/// The signal handlers could not be installed.
pub fn catch(interrupted: &Arc<AtomicBool>) -> anyhow::Result<()> {
    // `set` fails only at a second call, and a process makes only one.
    let _ = CAUGHT.set(Arc::clone(interrupted));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The order matters: the first signal finds the flag unset and sets it; the second finds it set and ends the
        // process.
        flag::register_conditional_shutdown(signal, STATUS.into(), Arc::clone(interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(interrupted)))
            .context("cannot install the signal handlers")?;
    }
    Ok(())
}

static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Returns true after the first signal. For code that waits for seconds far below the command and has no access to the
/// flag.
pub fn caught() -> bool {
    CAUGHT
        .get()
        .is_some_and(|interrupted| interrupted.load(Ordering::Relaxed))
}
