//! Notifies the async examples of a stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use tokio::sync::watch;

/// Returns a channel whose value changes with the first SIGTERM or SIGINT. The second signal ends the process at once,
/// with status 1.
///
/// # Errors
///
/// The signal handlers could not be set.
pub(crate) fn stop_receiver() -> io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The shutdown is registered before the flag, so that the first signal does not end the process.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&stopping))?;
        flag::register(signal, Arc::clone(&stopping))?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            sender.send_replace(true);
        }
    });
    Ok(receiver)
}
