//! Work that a server does before a reply, in three kinds: a wait needs nothing meanwhile, a blocking call keeps a
//! thread, and a computation uses a CPU.

use std::hash::{DefaultHasher, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Work that the driver must do before the conversation continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Waits for this time for something else that is slow (a database, another service), as for a socket. The wait
    /// needs no thread and no CPU, so no other connection has to wait.
    Wait(Duration),
    /// Makes a call that returns after this time and keeps its thread meanwhile, such as a library without an
    /// asynchronous interface, or a file on a slow disk.
    Block(Duration),
    /// Uses this amount of CPU time. Nothing makes it shorter; a model can only choose where it is used.
    Compute(Duration),
}

/// Kind of [`Work`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// The kind of [`Work::Wait`].
    Wait,
    /// The kind of [`Work::Block`].
    Block,
    /// The kind of [`Work::Compute`].
    Compute,
}

impl WorkKind {
    /// Returns work of this kind that takes `time`.
    pub fn of(self, time: Duration) -> Work {
        match self {
            WorkKind::Wait => Work::Wait(time),
            WorkKind::Block => Work::Block(time),
            WorkKind::Compute => Work::Compute(time),
        }
    }
}

/// Rule that decides which requests cost work, and how much.
///
/// The bytes of a request and the seed alone decide whether the request costs work. So a client with the same plan can
/// decide it too, and can separate the latency of requests that wait for their own work from the latency of requests
/// that wait for the work of others. If the time is a range, the time of each request is drawn from it at random.
#[derive(Debug, Clone)]
pub struct WorkPlan {
    kind: WorkKind,
    time: RangeInclusive<Duration>,
    percent: u8,
    seed: u64,
    /// Number of the next session that is opened. Each session draws different times.
    next_session: Arc<AtomicU64>,
}

impl WorkPlan {
    /// Makes a plan: work of this kind before the replies to `percent` % of the requests. The time is drawn uniformly
    /// from the range `time`.
    pub fn new(kind: WorkKind, time: RangeInclusive<Duration>, percent: u8, seed: u64) -> WorkPlan {
        WorkPlan {
            kind,
            time,
            percent,
            seed,
            next_session: Arc::default(),
        }
    }

    /// Returns the same plan with another seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> WorkPlan {
        self.seed = seed;
        self
    }

    /// Returns the kind of the work.
    pub fn kind(&self) -> WorkKind {
        self.kind
    }

    /// Returns the shortest and the longest time of the work.
    pub fn time(&self) -> &RangeInclusive<Duration> {
        &self.time
    }

    /// Returns the share of requests that cost work, in percent.
    pub fn percent(&self) -> u8 {
        self.percent
    }

    /// Returns whether this request costs work. The result is the same on both sides of a conversation if both are of
    /// the same build.
    pub fn chooses(&self, request: &[u8]) -> bool {
        if self.percent >= 100 {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write(request);
        hasher.finish() % 100 < u64::from(self.percent)
    }

    /// Sets the number of the next session that is opened; later sessions count on from it. A forked process has a
    /// counter of its own, and without a different start its sessions would draw the same times as those of its
    /// siblings.
    pub fn number_from(&self, number: u64) {
        self.next_session.store(number, Ordering::Relaxed);
    }
}

/// State of a [`WorkPlan`] in one session: the work before the next reply of this session.
#[derive(Debug, Default)]
pub(crate) struct PendingWork {
    /// Plan, and the random numbers of this session; `None`: no work.
    plan: Option<(WorkPlan, fastrand::Rng)>,
    next: NextReply,
}

/// State of the work before the next reply.
#[derive(Debug, Default)]
enum NextReply {
    /// The request was not checked yet.
    #[default]
    Undecided,
    /// This work must be done first.
    Due(Work),
    /// The work is done, or there is none.
    Done,
}

impl PendingWork {
    /// Opens the state of one session; without a plan there is never work.
    pub(crate) fn of(plan: Option<&WorkPlan>) -> PendingWork {
        PendingWork {
            plan: plan.map(|plan| {
                let number = plan.next_session.fetch_add(1, Ordering::Relaxed);
                // The multiplication gives neighbouring numbers unrelated seeds.
                let seed = plan.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (plan.clone(), fastrand::Rng::with_seed(seed))
            }),
            next: NextReply::Undecided,
        }
    }

    /// Returns the work before the reply to this request. Later calls return the same work until it is
    /// [done](Self::worked), and then `None` until the [reply is made](Self::replied).
    pub(crate) fn due(&mut self, request: &[u8]) -> Option<Work> {
        if let Some((plan, random)) = &mut self.plan
            && matches!(self.next, NextReply::Undecided)
        {
            self.next = NextReply::Done;
            if plan.chooses(request) {
                let (shortest, longest) = (nanos(*plan.time.start()), nanos(*plan.time.end()));
                let time = random.u64(shortest..=longest.max(shortest));
                self.next = NextReply::Due(plan.kind.of(Duration::from_nanos(time)));
            }
        }
        self.pending()
    }

    /// Returns the work that is due, if [`due`](Self::due) was called for this request.
    pub(crate) fn pending(&self) -> Option<Work> {
        match self.next {
            NextReply::Due(work) => Some(work),
            NextReply::Undecided | NextReply::Done => None,
        }
    }

    /// Notes that the work is done.
    pub(crate) fn worked(&mut self) {
        debug_assert!(self.pending().is_some(), "no work was due");
        self.next = NextReply::Done;
    }

    /// Notes that the reply is made: the next call of [`due`](Self::due) is for the next request.
    pub(crate) fn replied(&mut self) {
        self.next = NextReply::Undecided;
    }
}

/// Returns a time in nanoseconds, at most `u64::MAX`.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(percent: u8) -> WorkPlan {
        let range = Duration::from_millis(1)..=Duration::from_millis(9);
        WorkPlan::new(WorkKind::Wait, range, percent, 7)
    }

    #[test]
    fn plan_chooses_its_share_and_both_sides_agree() {
        let (server, client) = (plan(10), plan(10));
        let requests: Vec<_> = (0..10_000).map(|n| format!("request {n}\n")).collect();
        let chosen = requests
            .iter()
            .filter(|request| server.chooses(request.as_bytes()));
        let count = chosen.count();
        assert!(
            (900..1100).contains(&count),
            "{count} of 10,000 requests chosen"
        );
        for request in &requests {
            let mut pending_work = PendingWork::of(Some(&server));
            assert_eq!(
                pending_work.due(request.as_bytes()).is_some(),
                client.chooses(request.as_bytes())
            );
        }
        let other = plan(10).with_seed(8);
        assert!(requests.iter().any(|request| {
            let request = request.as_bytes();
            other.chooses(request) != server.chooses(request)
        }));
        assert!(plan(100).chooses(b"") && plan(100).chooses(b"x"));
    }

    #[test]
    fn due_work_is_returned_until_it_is_done_and_not_again_before_the_reply() {
        let plan = plan(100);
        let mut pending_work = PendingWork::of(Some(&plan));
        let first = pending_work.due(b"a").unwrap();
        assert_eq!(pending_work.due(b"a"), Some(first));
        pending_work.worked();
        assert_eq!(pending_work.due(b"a"), None);
        pending_work.replied();
        assert!(pending_work.due(b"b").is_some());
    }

    #[test]
    fn times_are_uniform_and_differ_between_sessions() {
        let plan = plan(100);
        let draw = |plan: &WorkPlan| {
            let mut pending_work = PendingWork::of(Some(plan));
            (0..500)
                .map(|_| {
                    let Some(Work::Wait(time)) = pending_work.due(b"x") else {
                        panic!("no wait is due")
                    };
                    pending_work.worked();
                    pending_work.replied();
                    time
                })
                .collect::<Vec<_>>()
        };
        let times = draw(&plan);
        assert!(times.iter().all(|time| plan.time().contains(time)));
        let mean = times.iter().sum::<Duration>().as_secs_f64() / 500.0;
        assert!((mean - 0.005).abs() < 0.0005, "mean {mean} s");
        let second = draw(&plan);
        assert_ne!(times, second);
        plan.number_from(0);
        assert_eq!(draw(&plan), times, "the same session number and seed");
        plan.number_from(1);
        assert_eq!(draw(&plan), second);
    }

    #[test]
    fn pending_work_without_a_plan_is_never_due() {
        let mut pending_work = PendingWork::of(None);
        assert_eq!(pending_work.due(b"x"), None);
        pending_work.replied();
        assert_eq!(pending_work.due(b"x"), None);
    }
}
