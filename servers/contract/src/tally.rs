//! The account that a server gives at its end.

use std::fmt;
use std::io;
use std::iter::Sum;
use std::ops::AddAssign;

use protocol::CloseReason;
use serde::{Deserialize, Serialize};

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// All that was asked was answered.
    Served,
    /// The peer broke a limit and was told so, or there was no thread to serve it.
    Refused,
    /// No progress for longer than the idle time-out.
    TimedOut,
    /// The peer broke it off.
    Reset,
    /// The server was stopped while the peer was in the middle of a request, or still had to take a reply.
    Cut,
    /// The session panicked, or the process that served it died, or a file became shorter while it was sent.
    Failed,
}

impl Ending {
    /// All of them. Their places are their [codes](Ending::code).
    pub const ALL: [Ending; 6] = [
        Ending::Served,
        Ending::Refused,
        Ending::TimedOut,
        Ending::Reset,
        Ending::Cut,
        Ending::Failed,
    ];

    /// A number for it, by which one process can tell another.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The ending with that code.
    pub fn of_code(code: u8) -> Option<Ending> {
        Ending::ALL.get(usize::from(code)).copied()
    }

    /// The ending that an I/O error on a connection means.
    pub fn of(error: &io::Error) -> Ending {
        match error.kind() {
            // SO_RCVTIMEO and SO_SNDTIMEO report EAGAIN (socket(7)); ETIMEDOUT comes from TCP itself.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ending::TimedOut,
            // Of sockets that is no error. A file ended before what had been promised of it: see `files::shorter`.
            io::ErrorKind::UnexpectedEof => Ending::Failed,
            _ => Ending::Reset,
        }
    }
}

impl From<CloseReason> for Ending {
    fn from(farewell: CloseReason) -> Ending {
        match farewell {
            CloseReason::Done => Ending::Served,
            CloseReason::Refused => Ending::Refused,
            CloseReason::Failed => Ending::Failed,
        }
    }
}

/// Every connection that was accepted, by how it ended. Nothing is lost uncounted: see [`Tally::adds_up`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Connections that accept(2) gave.
    pub accepted: u64,
    /// See [`Ending::Served`]; likewise those below.
    pub served: u64,
    /// See [`Ending::Refused`].
    pub refused: u64,
    /// See [`Ending::TimedOut`].
    pub timed_out: u64,
    /// See [`Ending::Reset`].
    pub reset: u64,
    /// See [`Ending::Cut`].
    pub cut: u64,
    /// See [`Ending::Failed`].
    pub failed: u64,
    /// Errors of accept(2), which gave no connection: these are beside the sum.
    pub accept_errors: u64,
}

impl Tally {
    /// Counts a connection's end.
    pub fn count(&mut self, ending: Ending) {
        tracing::debug!("a peer left: {ending:?}");
        *match ending {
            Ending::Served => &mut self.served,
            Ending::Refused => &mut self.refused,
            Ending::TimedOut => &mut self.timed_out,
            Ending::Reset => &mut self.reset,
            Ending::Cut => &mut self.cut,
            Ending::Failed => &mut self.failed,
        } += 1;
    }

    /// Connections that have ended, however they did.
    pub fn ended(&self) -> u64 {
        self.served + self.refused + self.timed_out + self.reset + self.cut + self.failed
    }

    /// Whether every accepted connection is accounted for.
    pub fn adds_up(&self) -> bool {
        self.accepted == self.ended()
    }

    /// Counts all connections that have not ended as cut. For models that drop what is left at the drain deadline.
    pub fn cut_the_rest(&mut self) {
        self.cut += self.accepted - self.ended();
    }
}

impl AddAssign for Tally {
    /// The account of two who served side by side.
    fn add_assign(&mut self, other: Tally) {
        // Named one by one, so that the compiler asks after a field that is new.
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
    fn every_ending_is_in_the_sum() {
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
    fn sums_have_every_figure() {
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
