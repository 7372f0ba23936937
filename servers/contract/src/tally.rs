//! The tally of a server's connections, by how they ended.

use std::fmt;
use std::io;
use std::iter::Sum;
use std::ops::AddAssign;

use protocol::CloseReason;
use serde::{Deserialize, Serialize};

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Every request was answered.
    Served,
    /// The peer exceeded a limit and was sent an error reply, or there was no thread to serve the connection.
    Refused,
    /// The connection made no progress for longer than the idle time-out.
    TimedOut,
    /// The peer broke the connection off.
    Reset,
    /// The server was stopped while the peer was in the middle of a request, or had not taken the whole reply.
    Cut,
    /// The session panicked, or the process that served the connection died, or a file became shorter while it was
    /// sent.
    Failed,
}

impl Ending {
    /// All endings. The index of each is its [code](Ending::code).
    pub const ALL: [Ending; 6] = [
        Ending::Served,
        Ending::Refused,
        Ending::TimedOut,
        Ending::Reset,
        Ending::Cut,
        Ending::Failed,
    ];

    /// Returns the number of the ending, which one process can send to another.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Returns the ending with this code, or `None` if no ending has it.
    pub fn of_code(code: u8) -> Option<Ending> {
        Ending::ALL.get(usize::from(code)).copied()
    }

    /// Returns the ending that an I/O error on a connection means.
    pub fn of(error: &io::Error) -> Ending {
        match error.kind() {
            // SO_RCVTIMEO and SO_SNDTIMEO report EAGAIN (socket(7)); ETIMEDOUT comes from TCP itself.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ending::TimedOut,
            // Sockets never report this kind. A file ended before the length that was announced: see `files::shorter`.
            io::ErrorKind::UnexpectedEof => Ending::Failed,
            _ => Ending::Reset,
        }
    }
}

impl From<CloseReason> for Ending {
    fn from(reason: CloseReason) -> Ending {
        match reason {
            CloseReason::Done => Ending::Served,
            CloseReason::Refused => Ending::Refused,
            CloseReason::Failed => Ending::Failed,
        }
    }
}

/// Number of accepted connections, by how they ended. No connection is left uncounted: see [`Tally::adds_up`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Number of connections that accept(2) returned.
    pub accepted: u64,
    /// Number of connections that ended as [`Ending::Served`].
    pub served: u64,
    /// Number of connections that ended as [`Ending::Refused`].
    pub refused: u64,
    /// Number of connections that ended as [`Ending::TimedOut`].
    pub timed_out: u64,
    /// Number of connections that ended as [`Ending::Reset`].
    pub reset: u64,
    /// Number of connections that ended as [`Ending::Cut`].
    pub cut: u64,
    /// Number of connections that ended as [`Ending::Failed`].
    pub failed: u64,
    /// Number of errors of accept(2). An error gives no connection, so this number is not part of the sum.
    pub accept_errors: u64,
}

impl Tally {
    /// Counts the end of a connection.
    pub fn count(&mut self, ending: Ending) {
        tracing::debug!("connection ended: {ending:?}");
        *match ending {
            Ending::Served => &mut self.served,
            Ending::Refused => &mut self.refused,
            Ending::TimedOut => &mut self.timed_out,
            Ending::Reset => &mut self.reset,
            Ending::Cut => &mut self.cut,
            Ending::Failed => &mut self.failed,
        } += 1;
    }

    /// Returns the number of connections that have ended, in any way.
    pub fn ended(&self) -> u64 {
        self.served + self.refused + self.timed_out + self.reset + self.cut + self.failed
    }

    /// Returns true if every accepted connection has ended and is counted.
    pub fn adds_up(&self) -> bool {
        self.accepted == self.ended()
    }

    /// Counts all connections that have not ended yet as [cut](Ending::Cut). For models that drop the remaining
    /// connections at the drain deadline.
    pub fn cut_the_rest(&mut self) {
        self.cut += self.accepted - self.ended();
    }
}

impl AddAssign for Tally {
    /// Adds the tally of another thread or process that served side by side with this one.
    fn add_assign(&mut self, other: Tally) {
        // The fields are named one by one, so that the compiler reports a new field that is missing here.
        let Tally {
            accepted,
            served,
            refused,
            timed_out,
            reset,
            cut,
            failed,
            accept_errors,
        } = other;
        self.accepted += accepted;
        self.served += served;
        self.refused += refused;
        self.timed_out += timed_out;
        self.reset += reset;
        self.cut += cut;
        self.failed += failed;
        self.accept_errors += accept_errors;
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Tally>>(tallies: I) -> Tally {
        tallies.fold(Tally::default(), |mut sum, tally| {
            sum += tally;
            sum
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "accepted {}: served {}, refused {}, timed out {}, reset {}, cut {}, failed {}; accept errors {}",
            self.accepted,
            self.served,
            self.refused,
            self.timed_out,
            self.reset,
            self.cut,
            self.failed,
            self.accept_errors
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tally_with_every_ending_adds_up() {
        let mut tally = Tally::default();
        for ending in Ending::ALL {
            assert_eq!(Ending::of_code(ending.code()), Some(ending));
            tally.accepted += 1;
            assert!(!tally.adds_up());
            tally.count(ending);
            assert!(tally.adds_up(), "{ending:?}");
        }
    }
    #[test]
    fn tally_sum_adds_every_field() {
        let one = Tally {
            accepted: 1,
            served: 2,
            refused: 3,
            timed_out: 4,
            reset: 5,
            cut: 6,
            failed: 7,
            accept_errors: 8,
        };
        let three = Tally {
            accepted: 3,
            served: 6,
            refused: 9,
            timed_out: 12,
            reset: 15,
            cut: 18,
            failed: 21,
            accept_errors: 24,
        };
        assert_eq!([one, one, one].into_iter().sum::<Tally>(), three);
    }
}
