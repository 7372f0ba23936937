//! Time line of a load: its course in steps, so that a stall can be seen and told from a slow server.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Shortest step of the time line of a load that is measured as a whole.
pub const TIMELINE_STEP: Duration = Duration::from_millis(100);

/// Largest number of steps: the steps of a long load are longer, so that its time line stays small.
const MOST_STEPS: u64 = 600;

/// Delay of a send, in nanoseconds, from which on it is late.
pub(crate) const LATE: u64 = 100_000;

/// Step of a time line.
#[derive(Debug, Clone)]
pub struct TimelineStep {
    /// Beginning of the step: since the beginning of the window, or in slices, since the beginning of the drive.
    pub start: Duration,
    /// Measured length of the step.
    pub length: Duration,
    /// Number of correct replies whose last byte arrived in the step.
    pub completed: u64,
    /// Number of requests whose planned send time lies in the step.
    pub planned: u64,
    /// Number of these requests that have no correct reply.
    pub unanswered: u64,
    /// Number of these requests that were sent more than 100 µs late although their connection was free.
    pub late_sends: u64,
    /// Response times of these requests, in nanoseconds, with two significant digits.
    pub response_time: Histogram<u64>,
    /// CPU time of the client's threads in the step.
    pub client_cpu: Duration,
}

impl TimelineStep {
    pub(crate) fn new(start: Duration) -> TimelineStep {
        const HOUR: u64 = 3_600_000_000_000;
        TimelineStep {
            start,
            length: Duration::ZERO,
            completed: 0,
            planned: 0,
            unanswered: 0,
            late_sends: 0,
            response_time: Histogram::new_with_bounds(1, HOUR, 2)
                .expect("the bounds are constant and valid"),
            client_cpu: Duration::ZERO,
        }
    }

    /// Adds the part of the same step that another thread measured.
    pub(crate) fn merge(&mut self, other: &TimelineStep) {
        self.length = self.length.max(other.length);
        self.completed += other.completed;
        self.planned += other.planned;
        self.unanswered += other.unanswered;
        self.late_sends += other.late_sends;
        self.response_time
            .add(&other.response_time)
            .expect("all histograms have the same bounds");
        self.client_cpu += other.client_cpu;
    }

    /// Counts a request that is planned in the step and has ended. `age` is its response time, if that is counted.
    pub(crate) fn ended(&mut self, age: Option<u64>, answered: bool) {
        self.planned += 1;
        self.unanswered += u64::from(!answered);
        if let Some(age) = age {
            self.response_time.saturating_record(age);
        }
    }
}

/// Division of the window into steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    begin: u64,
    length: u64,
    count: usize,
}

impl Steps {
    /// Divides a window that begins at `begin`; all times are in nanoseconds.
    pub(crate) fn of_window(begin: u64, window: u64) -> Steps {
        let shortest = TIMELINE_STEP.as_nanos() as u64;
        let length = window.div_ceil(MOST_STEPS).div_ceil(shortest).max(1) * shortest;
        Steps {
            begin,
            length,
            count: window.div_ceil(length) as usize,
        }
    }

    /// Returns the step in which a time of the window lies.
    pub(crate) fn of(&self, time: u64) -> usize {
        let step = (time.saturating_sub(self.begin) / self.length) as usize;
        step.min(self.count.saturating_sub(1))
    }

    /// Returns the time at which a step ends.
    pub(crate) fn end(&self, step: usize) -> u64 {
        self.begin + self.length * (step as u64 + 1)
    }

    /// Shortens the time line to a window that ended earlier than planned.
    pub(crate) fn shorten(&self, timeline: &mut Vec<TimelineStep>, window: u64) {
        timeline.truncate(window.div_ceil(self.length) as usize);
        if let Some(last) = timeline.last_mut() {
            let rest = Duration::from_nanos(window).saturating_sub(last.start);
            last.length = last.length.min(rest);
        }
    }

    /// Returns the empty steps.
    pub(crate) fn timeline(&self, window: u64) -> Vec<TimelineStep> {
        (0..self.count)
            .map(|step| {
                let start = self.length * step as u64;
                TimelineStep {
                    length: Duration::from_nanos(self.length.min(window - start)),
                    ..TimelineStep::new(Duration::from_nanos(start))
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn window_is_divided_into_steps_of_100_ms_and_a_rest() {
        let steps = Steps::of_window(7 * MS, 250 * MS);
        let lengths: Vec<_> = steps
            .timeline(250 * MS)
            .iter()
            .map(|step| (step.start.as_millis(), step.length.as_millis()))
            .collect();
        assert_eq!(lengths, [(0, 100), (100, 100), (200, 50)]);
        assert_eq!(steps.of(7 * MS), 0);
        assert_eq!(steps.of(107 * MS - 1), 0);
        assert_eq!(steps.of(107 * MS), 1);
        assert_eq!(steps.of(256 * MS), 2);
        assert_eq!(steps.end(0), 107 * MS);
    }

    #[test]
    fn long_window_has_longer_steps() {
        let hour = 3_600_000 * MS;
        let steps = Steps::of_window(0, hour);
        assert!(steps.timeline(hour).len() <= 600);
        assert_eq!(steps.of(hour - 1), steps.timeline(hour).len() - 1);
    }

    #[test]
    fn timeline_of_a_shortened_window_ends_with_the_window() {
        let steps = Steps::of_window(7 * MS, 250 * MS);
        let lengths = |window: u64| {
            let mut timeline = steps.timeline(250 * MS);
            steps.shorten(&mut timeline, window * MS);
            let lengths = timeline.iter().map(|step| step.length.as_millis());
            lengths.collect::<Vec<_>>()
        };
        assert_eq!(lengths(250), [100, 100, 50]);
        assert_eq!(lengths(201), [100, 100, 1]);
        assert_eq!(lengths(200), [100, 100]);
        assert_eq!(lengths(30), [30]);
        assert!(lengths(0).is_empty());
    }

    #[test]
    fn merged_step_adds_the_counts_and_keeps_the_length() {
        let mut one = TimelineStep::new(Duration::ZERO);
        one.length = Duration::from_millis(100);
        one.ended(Some(MS), true);
        one.late_sends = 1;
        let mut other = one.clone();
        other.ended(None, false);
        one.merge(&other);
        assert_eq!((one.planned, one.unanswered, one.late_sends), (3, 1, 2));
        assert_eq!(one.response_time.len(), 2);
        assert_eq!(one.length, Duration::from_millis(100));
    }
}
