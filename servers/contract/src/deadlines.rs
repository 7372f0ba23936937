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
    /// How many numbers have one.
    count: usize,
}

/// So many entries that do not count are nothing to be swept out for.
const FEW: usize = 64;

impl Deadlines {
    /// Sees to it that `key` is looked at no later than `at`. Keys are small numbers, such as those of a slab: there is
    /// an entry for each up to the largest.
    pub fn arm(&mut self, key: usize, at: Instant) {
        if self.armed.len() <= key {
            self.armed.resize(key + 1, None);
        }
        match self.armed[key] {
            Some(armed) if armed <= at => return,
            // What it had stays in the queue, and does not count any more.
            Some(_) => {}
            None => self.count += 1,
        }
        self.armed[key] = Some(at);
        self.queue.push(Reverse((at, key)));
        // Whoever waits for something short again and again leaves an entry each time, for as long as its time-out takes.
        if self.queue.len() > FEW + 2 * self.count {
            let Deadlines { queue, armed, .. } = self;
            queue.retain(|Reverse((at, key))| armed[*key] == Some(*at));
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
                self.count -= 1;
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

    #[test]
    fn short_waits_leave_no_entries_behind() {
        let mut deadlines = Deadlines::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for key in 0..10 {
            deadlines.arm(key, at(30_000));
        }
        for round in 1..=1_000 {
            for key in 0..10 {
                deadlines.arm(key, at(round));
            }
            for key in 0..10 {
                assert_eq!(deadlines.pop_due(at(round)), Some(key));
                deadlines.arm(key, at(30_000 + round));
            }
            assert_eq!(deadlines.pop_due(at(round)), None);
            assert!(deadlines.queue.len() <= FEW + 2 * 10);
        }
        // And none that counts is gone.
        let mut left: Vec<_> = std::iter::from_fn(|| deadlines.pop_due(at(31_000))).collect();
        left.sort_unstable();
        assert_eq!(left, (0..10).collect::<Vec<_>>());
    }
}
