//! Time-outs for loops that look after many peers themselves.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// When things that have a number are to be looked at.
///
/// Lazy: an entry is not touched when there is progress. Only when it is due is it compared with what happened since,
/// and put back if that was too early. So a time-out costs nothing per request, where a timer that is set anew for every
/// read costs more than the reading. And an entry belongs to a number, not to a connection: it serves the next one too,
/// so that connections that come and go leave nothing behind.
#[derive(Debug, Default)]
pub struct Deadlines {
    pub(crate) queue: BinaryHeap<Reverse<(Instant, usize)>>,
    /// By number: the earliest entry in the queue that counts. Others of that number are passed over when due.
    armed: Vec<Option<Instant>>,
}

impl Deadlines {
    /// Sees to it that `key` is looked at no later than `at`. Keys are small numbers, such as those of a slab: there is
    /// an entry for each up to the largest.
    pub fn arm(&mut self, key: usize, at: Instant) {
        if self.armed.len() <= key {
            self.armed.resize(key + 1, None);
        }
        if self.armed[key].is_none_or(|armed| at < armed) {
            self.armed[key] = Some(at);
            self.queue.push(Reverse((at, key)));
        }
    }

    /// When [`pop_due`](Self::pop_due) will have something, at the earliest.
    pub fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// The next that is to be looked at by now. Whoever finds that its time is not over arms it again.
    pub fn pop_due(&mut self, now: Instant) -> Option<usize> {
        while self.next().is_some_and(|at| at <= now) {
            if let Some(Reverse((at, key))) = self.queue.pop()
                && self.armed[key] == Some(at)
            {
                self.armed[key] = None;
                return Some(key);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn they_come_in_order_and_once() {
        let mut deadlines = Deadlines::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        deadlines.arm(7, at(3));
        deadlines.arm(1, at(2));
        deadlines.arm(7, at(9)); // later than armed: nothing to do
        deadlines.arm(7, at(1)); // earlier: replaces
        assert_eq!(deadlines.next(), Some(at(1)));
        assert_eq!(deadlines.pop_due(at(0)), None);
        assert_eq!(deadlines.pop_due(at(5)), Some(7));
        assert_eq!(deadlines.pop_due(at(5)), Some(1));
        assert_eq!(deadlines.pop_due(at(5)), None); // the replaced entry of 7
        assert_eq!(deadlines.next(), None);
    }
}
