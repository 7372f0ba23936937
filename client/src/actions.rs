//! What a peer can be told to do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use protocol::Script;

/// One thing that a peer does. It goes on to the next when this one is done; what comes unasked for, or does not come,
/// ends it.
#[derive(Clone)]
pub enum Action {
    /// Sends all of it, and reads nothing meanwhile.
    Send(Arc<[u8]>, Cut),
    /// Sends all of it, reads meanwhile, and hears exactly that.
    Ask {
        /// What is sent.
        request: Arc<[u8]>,
        /// How it is cut.
        cut: Cut,
        /// What must come. What comes after it is the next act's.
        reply: Arc<[u8]>,
    },
    /// Holds a conversation as a well-behaved client does: asks, checks the reply, asks again.
    Converse {
        /// Whose script it is.
        script: ScriptFactory,
        /// So many requests.
        requests: u64,
        /// How what it sends is cut.
        cut: Cut,
    },
    /// Asks once, and reads nothing until the kernel has taken nothing more for so long: because the server has stopped
    /// reading, or because all is sent. Then it goes on as a well-behaved client does. So the server has to send what it
    /// owes in many pieces, if that is more than the buffers on the way hold.
    Overfill {
        /// Whose script it is. Only its first request is asked.
        script: ScriptFactory,
        /// For how long nothing must have been taken.
        still: Duration,
        /// Ends its own side (FIN) as soon as all is sent, whatever is still owed.
        finish: bool,
    },
    /// Sends this again and again and reads nothing, until the kernel has taken nothing more for a while or `most` bytes
    /// are sent.
    Flood {
        /// What is sent.
        bytes: Arc<[u8]>,
        /// Bytes in all.
        most: u64,
        /// For how long nothing must have been taken.
        stuck: Duration,
    },
    /// Reads one byte and pauses for so long, again and again, until the end.
    ReadSlowly(Duration),
    /// Reads on, whatever comes, until so many bytes came in all in this act.
    ReadBytes(u64),
    /// Ends its own side: FIN.
    HalfClose,
    /// Hears the end of the server's side (FIN) and nothing before it.
    ExpectFin,
    /// Hears whatever comes, to the end or to the reset.
    ReadToEnd,
    /// Hears that the connection is broken off (RST), whatever comes before that.
    ExpectReset,
    /// Breaks the connection off: RST.
    Reset,
    /// Closes the connection: FIN, or RST if something that came was not read.
    Close,
    /// Does nothing for so long.
    Pause(Duration),
    /// Does nothing, and reads nothing, until its signal.
    WaitForSignal,
    /// Does nothing, and reads nothing, for as long as it may.
    StayIdle,
}

/// ScriptFactory a script: once for every time that its peer connects. Of each time the number is told.
pub type ScriptFactory = Arc<dyn Fn(u64) -> Box<dyn Script> + Send + Sync>;

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Action {
    /// What it is called in transcripts.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Send(..) => "send",
            Action::Ask { .. } => "ask",
            Action::Converse { .. } => "converse",
            Action::Overfill { .. } => "overfill",
            Action::Flood { .. } => "flood",
            Action::ReadSlowly(_) => "read slowly",
            Action::ReadBytes(_) => "read",
            Action::HalfClose => "half-close",
            Action::ExpectFin => "expect FIN",
            Action::ReadToEnd => "read to the end",
            Action::ExpectReset => "expect a reset",
            Action::Reset => "reset",
            Action::Close => "close",
            Action::Pause(_) => "pause",
            Action::WaitForSignal => "wait for the signal",
            Action::StayIdle => "stay idle",
        }
    }

    /// Sends it in one piece.
    pub fn send(bytes: impl Into<Arc<[u8]>>) -> Action {
        Action::Send(bytes.into(), Cut::Whole)
    }

    /// Sends it in one piece, and hears that.
    pub fn ask(request: impl Into<Arc<[u8]>>, reply: impl Into<Arc<[u8]>>) -> Action {
        Action::Ask {
            request: request.into(),
            cut: Cut::Whole,
            reply: reply.into(),
        }
    }

    /// Hears exactly that.
    pub fn expect(reply: impl Into<Arc<[u8]>>) -> Action {
        Action::ask([], reply)
    }
}

/// Where what is sent is cut. Every piece is a write of its own, and TCP_NODELAY makes it a segment of its own; the pause
/// lets the server read it before the next is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Not at all.
    Whole,
    /// Behind every so many bytes.
    Every(usize, Duration),
    /// Once, behind so many bytes.
    At(usize, Duration),
}

impl Cut {
    /// How long the next piece is, of what is left after `done` bytes of `all`; and the pause after it.
    pub(crate) fn next(self, done: usize, all: usize) -> (usize, Duration) {
        let left = all - done;
        match self {
            Cut::Every(size, pause) => {
                let size = size.max(1);
                // The socket may have taken less than a piece.
                let rest = size - done % size;
                if left > rest {
                    (rest, pause)
                } else {
                    (left, Duration::ZERO)
                }
            }
            Cut::At(at, pause) if done < at && at < all => (at - done, pause),
            _ => (left, Duration::ZERO),
        }
    }
}

/// What one peer does, from its connect to its close.
#[derive(Debug, Clone)]
pub struct PeerScript {
    /// After the connect; after the last of them the connection is closed.
    pub actions: Vec<Action>,
    /// Begins anew at the end, with a new connection.
    pub again: bool,
    /// SO_RCVBUF and SO_SNDBUF, where its own should be small: bytes that the kernel keeps are bytes that no server has.
    pub small_buffers: bool,
}

impl PeerScript {
    /// That, once.
    pub fn new(actions: Vec<Action>) -> PeerScript {
        PeerScript {
            actions,
            again: false,
            small_buffers: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces that a socket is offered which takes so many bytes at once, and the sum of the pauses.
    fn pieces(cut: Cut, all: usize, takes: usize) -> (Vec<usize>, Duration) {
        let (mut pieces, mut pauses, mut done) = (Vec::new(), Duration::ZERO, 0);
        while done < all {
            let (size, pause) = cut.next(done, all);
            pieces.push(size);
            let taken = size.min(takes);
            done += taken;
            if taken == size {
                pauses += pause;
            }
        }
        (pieces, pauses)
    }

    #[test]
    fn cuts_are_where_they_should_be_and_nothing_follows_the_last_piece() {
        let ms = Duration::from_millis;
        for (cut, sizes, pauses) in [
            (Cut::Whole, vec![10], 0),
            (Cut::Every(1, ms(1)), vec![1; 10], 9),
            (Cut::Every(0, ms(1)), vec![1; 10], 9),
            (Cut::Every(4, ms(1)), vec![4, 4, 2], 2),
            (Cut::Every(5, ms(1)), vec![5, 5], 1),
            (Cut::Every(10, ms(1)), vec![10], 0),
            (Cut::Every(11, ms(1)), vec![10], 0),
            (Cut::At(0, ms(1)), vec![10], 0),
            (Cut::At(3, ms(1)), vec![3, 7], 1),
            (Cut::At(9, ms(1)), vec![9, 1], 1),
            (Cut::At(10, ms(1)), vec![10], 0),
            (Cut::At(99, ms(1)), vec![10], 0),
        ] {
            assert_eq!(pieces(cut, 10, 10), (sizes, ms(pauses)), "{cut:?}");
        }
    }

    #[test]
    fn cuts_stay_where_they_are_if_the_socket_takes_less_than_a_piece() {
        let ms = Duration::from_millis;
        let (sizes, pauses) = pieces(Cut::Every(4, ms(1)), 10, 3);
        assert_eq!((sizes, pauses), (vec![4, 1, 4, 1, 2], ms(2)));
        let (sizes, pauses) = pieces(Cut::At(5, ms(1)), 10, 3);
        assert_eq!((sizes, pauses), (vec![5, 2, 5, 2], ms(1)));
    }
}
