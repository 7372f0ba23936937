//! Actions of scripted peers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use protocol::Script;

/// Step of a peer's script. The peer goes on to the next action when this one is complete. Bytes that the action does
/// not expect, or expected bytes that do not arrive, end the script with a fault.
#[derive(Clone)]
pub enum Action {
    /// Sends all of the bytes, and reads nothing meanwhile.
    Send(Arc<[u8]>, Cut),
    /// Sends a request, reads meanwhile, and expects exactly the given reply.
    Ask {
        /// Bytes to send.
        request: Arc<[u8]>,
        /// Positions at which the request is cut.
        cut: Cut,
        /// Bytes that must arrive. Bytes after them are left to the next action.
        reply: Arc<[u8]>,
    },
    /// Holds a conversation as a well-behaved client does: sends a request, checks the reply, sends the next request.
    Converse {
        /// Factory of the script that gives the requests and checks the replies.
        script: ScriptFactory,
        /// Number of requests.
        requests: u64,
        /// Positions at which the sent bytes are cut.
        cut: Cut,
    },
    /// Sends one request, and reads nothing until the kernel has accepted no more bytes for the time `still`: because
    /// the server has stopped reading, or because all is sent. Then the peer goes on as a well-behaved client does. So
    /// the server has to send its reply in many pieces, if the reply is larger than the buffers on the way.
    Overfill {
        /// Factory of the script. Only its first request is sent.
        script: ScriptFactory,
        /// Time without progress after which the peer begins to read.
        still: Duration,
        /// Whether the peer half-closes the connection (FIN) as soon as all is sent, even if replies are still owed.
        finish: bool,
    },
    /// Sends the bytes again and again and reads nothing, until the kernel has accepted no more bytes for the time
    /// `stuck`, or `most` bytes are sent.
    Flood {
        /// Bytes to send.
        bytes: Arc<[u8]>,
        /// Number of bytes to send at most.
        most: u64,
        /// Time without progress after which the action is complete.
        stuck: Duration,
    },
    /// Reads one byte and pauses for the given time, again and again, until the end of the connection.
    ReadSlowly(Duration),
    /// Reads whatever arrives, until this action has read the given number of bytes.
    ReadBytes(u64),
    /// Half-closes the connection: sends FIN.
    HalfClose,
    /// Expects FIN from the server, and no bytes before it.
    ExpectFin,
    /// Reads whatever arrives, up to the server's FIN or RST.
    ReadToEnd,
    /// Expects RST from the server; any bytes may arrive before it.
    ExpectReset,
    /// Resets the connection: sends RST.
    Reset,
    /// Closes the connection: sends FIN, or RST if received bytes were not read.
    Close,
    /// Does nothing for the given time.
    Pause(Duration),
    /// Does nothing, and reads nothing, until the peer gets its signal.
    WaitForSignal,
    /// Does nothing, and reads nothing, until the peer leaves.
    StayIdle,
}

/// Factory of scripts. It is called once for each connection of its peer, with the number of the connection, from 0.
pub type ScriptFactory = Arc<dyn Fn(u64) -> Box<dyn Script> + Send + Sync>;

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Action {
    /// Returns the name of the action, as faults print it.
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

    /// Returns an action that sends the bytes in one piece.
    pub fn send(bytes: impl Into<Arc<[u8]>>) -> Action {
        Action::Send(bytes.into(), Cut::Whole)
    }

    /// Returns an action that sends the request in one piece and expects exactly the reply.
    pub fn ask(request: impl Into<Arc<[u8]>>, reply: impl Into<Arc<[u8]>>) -> Action {
        Action::Ask {
            request: request.into(),
            cut: Cut::Whole,
            reply: reply.into(),
        }
    }

    /// Returns an action that sends nothing and expects exactly the reply.
    pub fn expect(reply: impl Into<Arc<[u8]>>) -> Action {
        Action::ask([], reply)
    }
}

/// Positions at which sent bytes are cut. Every piece is a write of its own, and TCP_NODELAY makes it a segment of its
/// own; the pause gives the server time to read it before the next piece arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// No cut.
    Whole,
    /// A cut after every given number of bytes, with a pause at each.
    Every(usize, Duration),
    /// One cut after the given number of bytes, with a pause.
    At(usize, Duration),
}

impl Cut {
    /// Returns the length of the next piece, if `done` of `all` bytes are sent, and the pause after it.
    pub(crate) fn next(self, done: usize, all: usize) -> (usize, Duration) {
        let left = all - done;
        match self {
            Cut::Every(size, pause) => {
                let size = size.max(1);
                // The socket may have accepted less than a piece.
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

/// Actions of one peer, from its connect to its close.
#[derive(Debug, Clone)]
pub struct PeerScript {
    /// Actions after the connect. After the last one the connection is closed.
    pub actions: Vec<Action>,
    /// Whether the peer begins again with a new connection after its last action.
    pub again: bool,
    /// Whether the peer's SO_RCVBUF and SO_SNDBUF are small: the server does not hold the bytes that the kernel
    /// buffers.
    pub small_buffers: bool,
}

impl PeerScript {
    /// Creates a script that runs the actions once, with the system's default buffers.
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

    /// Returns the pieces that are offered to a socket that accepts at most `max_write` bytes per write, and the sum of
    /// the pauses.
    fn pieces(cut: Cut, all: usize, max_write: usize) -> (Vec<usize>, Duration) {
        let (mut pieces, mut pauses, mut done) = (Vec::new(), Duration::ZERO, 0);
        while done < all {
            let (size, pause) = cut.next(done, all);
            pieces.push(size);
            let accepted = size.min(max_write);
            done += accepted;
            if accepted == size {
                pauses += pause;
            }
        }
        (pieces, pauses)
    }

    #[test]
    fn cut_yields_its_pieces_and_no_pause_after_the_last() {
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
    fn cut_positions_stay_if_the_socket_accepts_less_than_a_piece() {
        let ms = Duration::from_millis;
        let (sizes, pauses) = pieces(Cut::Every(4, ms(1)), 10, 3);
        assert_eq!((sizes, pauses), (vec![4, 1, 4, 1, 2], ms(2)));
        let (sizes, pauses) = pieces(Cut::At(5, ms(1)), 10, 3);
        assert_eq!((sizes, pauses), (vec![5, 2, 5, 2], ms(1)));
    }
}
