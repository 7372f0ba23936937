//! Time-outs for event loops that serve many peers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// The times at which keys are to be checked. Keys are small numbers, such as those of a slab.
///
/// The deadlines are lazy: progress of a connection does not change its entry. Only when the entry is due, the loop
/// compares it with the time of the last progress, and arms the key again if it was too early. So a time-out costs
/// nothing per request, where a timer that is set again for every read costs more than the read. An entry belongs to a
/// key and not to a connection: the next connection with that key uses it too, so connections that come and go leave no
/// entries behind.
#[derive(Debug, Default)]
pub struct Deadlines {
    pub(crate) queue: BinaryHeap<Reverse<(Instant, usize)>>,
    /// For each key: the time of its valid entry in the queue. Other entries of the key are stale, and are skipped when
    /// they are due.
    armed: Vec<Option<Instant>>,
    /// Number of keys that have a valid entry.
    count: usize,
}

/// A compaction of the queue is not worth its cost until the stale entries outnumber the valid ones by more than this
/// number.
const MIN_STALE: usize = 64;

impl Deadlines {
    /// Arms `key`, so that it is due no later than `at`. Keys should be small numbers: memory is used for each number
    /// up to the largest key.
    pub fn arm(&mut self, key: usize, at: Instant) {
        if self.armed.len() <= key {
            self.armed.resize(key + 1, None);
        }
        match self.armed[key] {
            Some(armed) if armed <= at => return,
            // The earlier entry of the key stays in the queue, and is stale from now on.
            Some(_) => {}
            None => self.count += 1,
        }
        self.armed[key] = Some(at);
        self.queue.push(Reverse((at, key)));
        // A connection with many short waits leaves a stale entry after each, until the time-out of that entry.
        if self.queue.len() > MIN_STALE + 2 * self.count {
            let Deadlines { queue, armed, .. } = self;
            queue.retain(|Reverse((at, key))| armed[*key] == Some(*at));
        }
    }

    /// Returns the earliest time at which [`pop_due`](Self::pop_due) can return a key, or `None` if there is no entry.
    pub fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// Removes and returns the next key that is due at `now`. A caller that finds that the connection has made progress
    /// since arms the key again.
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
    fn due_keys_are_popped_in_order_and_once() {
        let mut deadlines = Deadlines::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        deadlines.arm(7, at(3));
        deadlines.arm(1, at(2));
        deadlines.arm(7, at(9)); // later than the armed time: no effect
        deadlines.arm(7, at(1)); // earlier than the armed time: replaces it
        assert_eq!(deadlines.next(), Some(at(1)));
        assert_eq!(deadlines.pop_due(at(0)), None);
        assert_eq!(deadlines.pop_due(at(5)), Some(7));
        assert_eq!(deadlines.pop_due(at(5)), Some(1));
        assert_eq!(deadlines.pop_due(at(5)), None); // the stale entry of key 7
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn repeated_short_waits_leave_few_stale_entries() {
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
            assert!(deadlines.queue.len() <= MIN_STALE + 2 * 10);
        }
        // Every valid entry is still there.
        let mut left: Vec<_> = std::iter::from_fn(|| deadlines.pop_due(at(31_000))).collect();
        left.sort_unstable();
        assert_eq!(left, (0..10).collect::<Vec<_>>());
    }
}
