//! How examples hear of a stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use tokio::sync::watch;

/// Changes with the first SIGTERM or SIGINT; the second ends the program at once.
///
/// # Errors
///
/// The handlers could not be set.
pub(crate) fn told() -> io::Result<watch::Receiver<bool>> {
    let (tell, told) = watch::channel(false);
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order, so that the first does not end it.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&stopping))?;
        flag::register(signal, Arc::clone(&stopping))?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            tell.send_replace(true);
        }
    });
    Ok(told)
}
