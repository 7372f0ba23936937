//! Ctrl-C, for the commands that measure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// The exit status of a command that was interrupted: what shells give for SIGINT.
pub const STATUS: u8 = 130;

/// Sets the flag at the first SIGINT, SIGTERM or SIGHUP (the terminal was closed), so that what was measured can be kept;
/// the second ends the process at once.
///
/// # Errors
///
/// The handlers could not be set.
pub fn catch(interrupted: &Arc<AtomicBool>) -> anyhow::Result<()> {
    // (A process catches them once.)
    let _ = CAUGHT.set(Arc::clone(interrupted));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal finds the flag unset, and sets it for the second.
        flag::register_conditional_shutdown(signal, STATUS.into(), Arc::clone(interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(interrupted)))
            .context("cannot handle signals")?;
    }
    Ok(())
}

static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Whether the first signal has come. For what waits deep inside, for seconds.
pub fn caught() -> bool {
    CAUGHT
        .get()
        .is_some_and(|interrupted| interrupted.load(Ordering::Relaxed))
}
