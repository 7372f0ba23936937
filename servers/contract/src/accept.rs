//! Errors of accept(2), sorted by what a server must do next.
//!
//! Teaching servers make three mistakes: they end the whole server on any error, they try again at once (a full
//! descriptor table then burns a CPU, because the connection stays in the queue and the listener stays readable), or
//! they give up listening for good.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::Tally;

/// How long a server that lacks descriptors or memory waits before it calls accept(2) again. Long enough to cost
/// nothing, and short enough that users do not notice the delay when resources come back.
pub const PAUSE: Duration = Duration::from_millis(100);

/// Beginning of the log message about an error of accept(2). The test suite waits for a line with this text.
pub(crate) const FAILED: &str = "accept(2) failed";

/// Counts an error of accept(2) in the tally, and returns what to do next: `Ok(None)`: continue at once, because the
/// error concerned one connection, which is gone; `Ok(Some(pause))`: continue after the pause.
///
/// # Errors
///
/// Returns the error itself if accept(2) can never succeed again, because the listener is broken. The server must end.
pub fn on_error(error: io::Error, tally: &mut Tally) -> io::Result<Option<Duration>> {
    tally.accept_errors += 1;
    match Errno::from_io_error(&error) {
        // The connection died in the queue. The man page accept(2) says to treat network errors of a pending connection
        // like EAGAIN.
        Some(
            Errno::CONNABORTED
            | Errno::INTR
            | Errno::AGAIN
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::TIMEDOUT,
        ) => Ok(None),
        // Whether EPERM and EOPNOTSUPP concern one connection alone can't be known (a firewall may cause EPERM). A
        // pause delays one peer for a moment; to continue at once might burn a CPU for good.
        Some(Errno::PERM | Errno::OPNOTSUPP)
        | Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
            tracing::warn!(
                "{FAILED}: {error}; new peers wait in the backlog until resources are free"
            );
            Ok(Some(PAUSE))
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_errors_are_sorted_into_continue_pause_and_end() {
        let mut tally = Tally::default();
        let mut sort = |errno: Errno| on_error(errno.into(), &mut tally);
        assert!(matches!(sort(Errno::CONNABORTED), Ok(None)));
        assert!(matches!(sort(Errno::MFILE), Ok(Some(PAUSE))));
        assert!(matches!(sort(Errno::NFILE), Ok(Some(PAUSE))));
        assert!(sort(Errno::BADF).is_err());
        assert!(sort(Errno::INVAL).is_err());
        assert_eq!(tally.accept_errors, 5);
        assert!(on_error(io::Error::other("unknown"), &mut tally).is_err());
    }
}
