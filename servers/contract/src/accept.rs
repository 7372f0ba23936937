//! Errors of accept(2), sorted.
//!
//! The three mistakes of teaching servers: to end the whole server on any error, to try again at once (a full
//! descriptor table then burns a CPU, because the connection stays in the queue and the listener stays readable), and
//! to give up listening for good.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::Tally;

/// How long a server without descriptors or memory leaves the queue alone. Long enough to cost nothing, short
/// enough that nobody notices when resources come back.
pub const PAUSE: Duration = Duration::from_millis(100);

/// What to do after an error of accept(2): `Ok(None)`, go on at once (it concerned one connection, which is gone);
/// `Ok(Some(pause))`, go on after a pause; `Err`, end.
///
/// # Errors
///
/// The error itself, if accepting can't ever succeed again: the listener is broken.
pub fn on_error(error: io::Error, tally: &mut Tally) -> io::Result<Option<Duration>> {
    tally.accept_errors += 1;
    match Errno::from_io_error(&error) {
        // The connection died in the queue; accept(2) says to treat the network errors of a
        // pending connection like EAGAIN.
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
        // Of these it can't be known whether they end with the one connection (a firewall may say EPERM): a pause costs
        // one peer a moment, and to go on at once might burn a CPU for good.
        Some(Errno::PERM | Errno::OPNOTSUPP)
        | Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
            tracing::warn!("accept: {error}; new peers wait in the backlog");
            Ok(Some(PAUSE))
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted() {
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
