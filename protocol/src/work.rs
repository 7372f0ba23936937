//! Work before a reply: what a server does besides talking, in three kinds that differ in what they need meanwhile.

use std::hash::{DefaultHasher, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Something to be done before the conversation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Something else is slow (a database, another service), and can be waited for as a socket can: nothing is needed
    /// meanwhile, so nobody else need wait.
    Wait(Duration),
    /// A call that does not return for so long, and keeps its thread: a library without an asynchronous interface, a
    /// file on a slow disk.
    Block(Duration),
    /// So much CPU time is used. Nothing makes that shorter; only where it is used can be chosen.
    Compute(Duration),
}

/// The kinds of [`Work`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// See [`Work::Wait`].
    Wait,
    /// See [`Work::Block`].
    Block,
    /// See [`Work::Compute`].
    Compute,
}

impl WorkKind {
    /// So much of it.
    pub fn of(self, time: Duration) -> Work {
        match self {
            WorkKind::Wait => Work::Wait(time),
            WorkKind::Block => Work::Block(time),
            WorkKind::Compute => Work::Compute(time),
        }
    }
}

/// Which requests cost work, and how much.
///
/// Which ones is decided by their bytes and the seed alone. So a client that has the same plan knows it too, and can tell
/// the latency of the requests that wait for their own work from that of those that wait for somebody else's. How much,
/// where that is a range, is drawn anew for each.
#[derive(Debug, Clone)]
pub struct WorkPlan {
    kind: WorkKind,
    time: RangeInclusive<Duration>,
    percent: u8,
    seed: u64,
    /// The number of the session that is opened next: each draws other times.
    next: Arc<AtomicU64>,
}

impl WorkPlan {
    /// Work of this kind, of a time that is drawn evenly from the range, before the replies to so many percent of the
    /// requests.
    pub fn new(kind: WorkKind, time: RangeInclusive<Duration>, percent: u8, seed: u64) -> WorkPlan {
        WorkPlan {
            kind,
            time,
            percent,
            seed,
            next: Arc::default(),
        }
    }

    /// The same, with another seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> WorkPlan {
        self.seed = seed;
        self
    }

    /// Its kind.
    pub fn kind(&self) -> WorkKind {
        self.kind
    }

    /// The shortest and the longest.
    pub fn time(&self) -> &RangeInclusive<Duration> {
        &self.time
    }

    /// Of a hundred requests, how many cost work.
    pub fn percent(&self) -> u8 {
        self.percent
    }

    /// Whether this request costs work. Both sides of a conversation agree on it if they are of the same build.
    pub fn chooses(&self, request: &[u8]) -> bool {
        if self.percent >= 100 {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write(request);
        hasher.finish() % 100 < u64::from(self.percent)
    }

    /// Sessions that are opened from now on are numbered from there. A process that was forked has a counter of its own,
    /// and must not draw what its siblings draw.
    pub fn number_from(&self, number: u64) {
        self.next.store(number, Ordering::Relaxed);
    }
}

/// One session's share of a [`WorkPlan`]: what is to be done before its next reply.
#[derive(Debug, Default)]
pub(crate) struct PendingWork {
    plan: Option<(WorkPlan, fastrand::Rng)>,
    next: Next,
}

/// What is known of the next reply.
#[derive(Debug, Default)]
enum Next {
    #[default]
    NotAsked,
    Due(Work),
    Done,
}

impl PendingWork {
    pub(crate) fn of(plan: Option<&WorkPlan>) -> PendingWork {
        PendingWork {
            plan: plan.map(|plan| {
                let number = plan.next.fetch_add(1, Ordering::Relaxed);
                // Neighbouring numbers get seeds that have nothing in common.
                let seed = plan.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (plan.clone(), fastrand::Rng::with_seed(seed))
            }),
            next: Next::NotAsked,
        }
    }

    /// What is to be done before the reply to this request. Asked again, it says the same until it is
    /// [done](Self::worked), and nothing from then on until that [reply is given](Self::replied).
    pub(crate) fn due(&mut self, request: &[u8]) -> Option<Work> {
        if let Some((plan, random)) = &mut self.plan
            && matches!(self.next, Next::NotAsked)
        {
            self.next = Next::Done;
            if plan.chooses(request) {
                let (least, most) = (nanos(*plan.time.start()), nanos(*plan.time.end()));
                let time = random.u64(least..=most.max(least));
                self.next = Next::Due(plan.kind.of(Duration::from_nanos(time)));
            }
        }
        self.pending()
    }

    /// What is to be done, if the request was asked about already.
    pub(crate) fn pending(&self) -> Option<Work> {
        match self.next {
            Next::Due(work) => Some(work),
            Next::NotAsked | Next::Done => None,
        }
    }

    pub(crate) fn worked(&mut self) {
        debug_assert!(self.pending().is_some(), "nothing was to be done");
        self.next = Next::Done;
    }

    pub(crate) fn replied(&mut self) {
        self.next = Next::NotAsked;
    }
}

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
    fn the_share_is_kept_and_both_sides_agree() {
        let (server, client) = (plan(10), plan(10));
        let requests: Vec<_> = (0..10_000).map(|n| format!("request {n}\n")).collect();
        let chosen = requests.iter().filter(|one| server.chooses(one.as_bytes()));
        let count = chosen.count();
        assert!((900..1100).contains(&count), "{count} of 10,000");
        for request in &requests {
            let mut pending_work = PendingWork::of(Some(&server));
            assert_eq!(
                pending_work.due(request.as_bytes()).is_some(),
                client.chooses(request.as_bytes())
            );
        }
        let other = plan(10).with_seed(8);
        assert!(requests.iter().any(|one| {
            let one = one.as_bytes();
            other.chooses(one) != server.chooses(one)
        }));
        assert!(plan(100).chooses(b"") && plan(100).chooses(b"x"));
    }

    #[test]
    fn each_request_is_asked_about_once() {
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
    fn times_are_drawn_evenly_and_each_session_draws_others() {
        let plan = plan(100);
        let draw = |plan: &WorkPlan| {
            let mut pending_work = PendingWork::of(Some(plan));
            (0..500)
                .map(|_| {
                    let Some(Work::Wait(time)) = pending_work.due(b"x") else {
                        panic!("no wait")
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
        assert_eq!(draw(&plan), times, "seeded");
        plan.number_from(1);
        assert_eq!(draw(&plan), second);
    }

    #[test]
    fn without_a_plan_nothing_is_due() {
        let mut pending_work = PendingWork::of(None);
        assert_eq!(pending_work.due(b"x"), None);
        pending_work.replied();
        assert_eq!(pending_work.due(b"x"), None);
    }
}
