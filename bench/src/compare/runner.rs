//! One batch: fresh server processes, a load for each, and the account of both. Of all workloads but `idle` it is one
//! run.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use client::{Load, Plan, Report, Snapshot, Watch};
use protocol::{Bulk, SessionOptions};

use super::evaluate;
use super::plan::{Batch, Case, Settings};
use super::results::{ClientSide, Note, Run, ServerSide};
use super::workload::Workload;
use crate::child::{ChildServer, DRAIN, ServerExit};
use crate::format;
use crate::placement::Placement;
use crate::resources::{Counters, CpuReading, HostReading, ProcessTree, YieldPolicy};
use crate::target;

/// What all runs of a comparison have in common.
pub(super) struct Runner<'a> {
    pub(super) settings: &'a Settings,
    pub(super) placement: &'a Placement,
    pub(super) began: Instant,
    pub(super) interrupted: &'a AtomicBool,
}

/// A reply that takes longer is an error. Loads end by themselves before, so that what a server starves on purpose is
/// counted as unanswered, with its age, and a server that is dead ends the run all the same.
fn timeout(settings: &Settings, workload: Workload) -> Duration {
    let longest = if workload.has_an_end() {
        settings.limit(workload)
    } else {
        settings.duration(workload)
    };
    longest + Duration::from_secs(15)
}

/// No load here is about idle clients: none may be closed in the middle of a long comparison.
const IDLE_TIMEOUT: &str = "1h";

/// The same for an external server.
const IDLE_TIMEOUT_OUTSIDE: Duration = Duration::from_secs(3600);

/// How many peers every server is to have room for. Twice as many as there will be: where each event loop has its share,
/// the kernel does not deal them out evenly.
fn most_peers(settings: &Settings) -> usize {
    (2 * settings.most_connections()).max(10_000)
}

/// The arguments of every server, after the model's name; beside the number of workers, and what its workload is about.
pub(super) fn server_arguments(settings: &Settings, placement: &Placement) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--listen",
        "127.0.0.1:0",
        "--max-connections",
        &most_peers(settings).to_string(),
        "--idle-timeout",
        IDLE_TIMEOUT,
        "--drain",
        DRAIN,
        "--max-line",
        &settings
            .size
            .max(SessionOptions::default().max_line)
            .to_string(),
        "--json",
    ]
    .map(String::from)
    .into();
    if !placement.server.is_empty() {
        arguments.push("--cpus".into());
        arguments.push(contract::CpuList(placement.server.clone()).to_string());
    }
    arguments
}

/// What came of a load.
struct Driven {
    report: Report,
    /// Whether all connections could be opened in time.
    opened: bool,
}

impl Runner<'_> {
    /// Measures the runs of one batch; `None` if it was interrupted. What goes wrong is in the runs' problems:
    /// the comparison goes on.
    pub(super) fn measure(&self, batch: &Batch, order: usize) -> Option<Vec<Run>> {
        let started_s = self.began.elapsed().as_secs_f64();
        // All on this thread, which lives longer than they do.
        let servers: Vec<anyhow::Result<ChildServer>> =
            (batch.cases.iter().map(|case| self.start(case))).collect();
        let driven: Vec<_> = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (case, server) in batch.cases.iter().zip(&servers) {
                let running = server.as_ref().ok().map(|one| (one.pid(), one.address));
                threads.push(running.map(|(pid, address)| {
                    let drive = move || {
                        let mut account = ServerSide::default();
                        let beside = batch.cases.len();
                        let driven = self.drive(case, beside, pid, address, &mut account);
                        (driven, account)
                    };
                    let thread =
                        thread::Builder::new().name(format!("drive {}", case.target.name()));
                    thread.spawn_scoped(scope, drive)
                }));
            }
            let join = |thread: Option<io::Result<thread::ScopedJoinHandle<'_, _>>>| {
                Some(thread?.map(|thread| match thread.join() {
                    Ok(driven) => driven,
                    Err(panic) => std::panic::resume_unwind(panic),
                }))
            };
            threads.into_iter().map(join).collect()
        });
        let mut runs = Vec::new();
        for (((case, server), driven), order) in
            batch.cases.iter().zip(servers).zip(driven).zip(order..)
        {
            // Whatever came of the load, the server is ended in order and gives its account.
            let ended = server.map(ChildServer::stop);
            let mut run = self.empty(batch, case, order, started_s);
            if let Err(error) = fill(&mut run, case, ended, driven) {
                run.problems.push(format!("{error:#}"));
            }
            if !run.notes.contains(&Note::NotAllOpened) {
                evaluate::evaluate(&mut run, case, self.settings, self.placement);
            }
            runs.push(run);
        }
        // Half a run is no result.
        (!self.interrupted.load(Ordering::Relaxed)).then_some(runs)
    }

    fn start(&self, case: &Case) -> anyhow::Result<ChildServer> {
        let Some(model) = case.target.model() else {
            return self.start_external(case);
        };
        let workers = self.placement.workers_of(model).to_string();
        let mut arguments = vec![model.name.to_string(), "--workers".to_string(), workers];
        arguments.extend(server_arguments(self.settings, self.placement));
        arguments.extend(self.told(case));
        ChildServer::start(&arguments)
    }

    /// Somebody else's, which is told of this what its command has placeholders for.
    fn start_external(&self, case: &Case) -> anyhow::Result<ChildServer> {
        let settings = target::TargetSettings {
            idle_timeout: Some(IDLE_TIMEOUT_OUTSIDE),
            max_connections: Some(most_peers(self.settings)),
            ..target::TargetSettings::default()
        };
        let protocol = case.workload.protocol(self.settings.protocol);
        let running = case.target.start(protocol, &settings, self.placement)?;
        running
            .into_server()
            .context("nobody can measure a server that somebody else has started")
    }

    /// What this server is told beside that.
    fn told(&self, case: &Case) -> Vec<String> {
        if case.target.model().is_none() {
            return Vec::new();
        }
        let small = self.settings.protocol;
        case.workload.server_arguments(small, case.seed)
    }

    fn drive(
        &self,
        case: &Case,
        together: usize,
        pid: i32,
        address: SocketAddr,
        account: &mut ServerSide,
    ) -> anyhow::Result<Driven> {
        let plan = Plan {
            address,
            protocol: case.workload.protocol(self.settings.protocol),
            connections: case.connections,
            size: Some(self.settings.size),
            bulk: Bulk::default(),
            page: case.workload.page(address.to_string()),
            work: case.workload.work_plan(case.seed),
            load: case.load(self.settings, together),
            connect_first: false,
            ramp: case.ramp(),
            timeout: timeout(self.settings, case.workload),
            seed: case.seed,
            threads: self.placement.client_threads(),
            cpus: self.placement.client.clone(),
        };
        if case.workload == Workload::Idle {
            // The first exchanges touch code and tables that no connection pays for again.
            let first = Plan {
                connections: 8,
                load: Load::Messages {
                    messages: 1,
                    think: Duration::ZERO,
                    rounds: 1,
                    limit: Some(Duration::from_secs(1)),
                },
                ..plan.clone()
            };
            client::drive(&first, &(), self.interrupted)?;
        }
        let watcher = Watcher::new(pid, case, self.placement, self.interrupted);
        let report = client::drive(&plan, &watcher, &watcher.stop)?;
        let seen = watcher.seen();
        seen.account(account, watcher.cpus.len());
        Ok(Driven {
            report,
            opened: !seen.gave_up,
        })
    }

    /// A run of which nothing is known yet.
    fn empty(&self, batch: &Batch, case: &Case, order: usize, started_s: f64) -> Run {
        let name = case.target.name();
        let beside = batch.cases.iter().map(|case| case.target.name());
        Run {
            order,
            block: batch.block,
            workload: case.workload,
            connections: case.connections,
            requests: case.requests(),
            reply_bytes: case.workload.reply_bytes(),
            server_arguments: self.told(case),
            beside: beside.filter(|one| *one != name).collect(),
            model: name,
            seed: case.seed.to_string(),
            started_s,
            problems: Vec::new(),
            client_limited: false,
            notes: Vec::new(),
            figures: Default::default(),
            lower_bounds: Vec::new(),
            client: None,
            server: None,
        }
    }
}

/// Takes down what both sides say.
fn fill(
    run: &mut Run,
    case: &Case,
    ended: anyhow::Result<ServerExit>,
    driven: Option<io::Result<(anyhow::Result<Driven>, ServerSide)>>,
) -> anyhow::Result<()> {
    let end = ended?;
    // That a signal ends whoever has not learned to stop is no fault of what was measured.
    if case.target.model().is_some() || !end.by_the_signal() {
        run.problems.extend(end.problems);
    }
    let (driven, account) = driven
        .context("nobody drove it")?
        .context("cannot start a thread that drives it")?;
    run.server = Some(ServerSide {
        exit: Some(end.exit),
        tally: end.tally,
        ..account
    });
    let Driven { report, opened } = driven?;
    if !opened {
        run.notes.push(Note::NotAllOpened);
        if !case.is_short() {
            run.problems.push(format!(
                "only {} of {} connections could be opened in time",
                format::count(report.connected),
                format::count(case.connections as u64)
            ));
        }
    }
    run.client = Some(ClientSide::of(&report)?);
    Ok(())
}

/// Reads the server's counters before, in and after the window.
///
/// All this runs on a CPU of the client's, so nothing is read in the window. At its edges the CPU clock is, which is
/// quick. The rest is read once before it (in the warm-up, when all clients are connected) and once after it, while the
/// connections are still there: a thread or a process that ends takes its counters with it.
struct Watcher<'a> {
    case: &'a Case,
    /// Where client and server run.
    cpus: Vec<usize>,
    interrupted: &'a AtomicBool,
    /// Ends this drive alone.
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

/// What it read, and when.
struct Seen {
    tree: ProcessTree,
    /// Before the load.
    before: Sample,
    memory_before: Option<u64>,
    /// The first in which all were connected.
    settled: Option<Sample>,
    begin: Option<CpuReading>,
    end: Option<CpuReading>,
    last: Option<Sample>,
    memory_after: Option<u64>,
    /// The most that was met. Where the clients leave one by one, there are fewer at the end.
    processes: u64,
    threads: Option<u64>,
    /// The connections were not to be opened.
    gave_up: bool,
}

/// The server's counters and the machine's, at a moment.
#[derive(Clone, Copy)]
struct Sample {
    server: Counters,
    host: Option<HostReading>,
}

impl Sample {
    fn take(tree: &ProcessTree, cpus: &[usize], yield_policy: YieldPolicy) -> Sample {
        Sample {
            server: tree.counters(yield_policy),
            host: HostReading::take(cpus),
        }
    }
}

impl<'a> Watcher<'a> {
    fn new(
        root: i32,
        case: &'a Case,
        placement: &Placement,
        interrupted: &'a AtomicBool,
    ) -> Watcher<'a> {
        let cpus = placement.all();
        let tree = ProcessTree::new(root, case.target.may_fork());
        let before = Sample::take(&tree, &cpus, YieldPolicy::None);
        let idle = case.workload == Workload::Idle;
        Watcher {
            case,
            cpus,
            interrupted,
            stop: AtomicBool::new(false),
            seen: Mutex::new(Seen {
                memory_before: idle.then(|| tree.memory()).flatten(),
                before,
                settled: None,
                // Its costs are all that the load costs; it has no time to lose at an edge.
                begin: case.workload.is_transfer().then(|| tree.cpu()),
                end: None,
                last: None,
                memory_after: None,
                processes: 0,
                threads: None,
                gave_up: false,
                tree,
            }),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, seen: &mut Seen, yield_policy: YieldPolicy) -> Sample {
        seen.tree.look();
        let look = Sample::take(&seen.tree, &self.cpus, yield_policy);
        seen.processes = seen.processes.max(look.server.processes);
        seen.threads = seen.threads.max(look.server.threads);
        look
    }
}

impl Watch for Watcher<'_> {
    fn measuring(&self) {
        let mut seen = self.seen();
        if self.case.workload == Workload::Idle {
            // Nobody is disturbed, and the others' first exchanges are over.
            seen.settled = Some(self.look(&mut seen, YieldPolicy::None));
        } else {
            // What it forked for the last clients to come counts from the beginning.
            seen.tree.look();
        }
        if seen.begin.is_none() {
            seen.begin = Some(seen.tree.cpu());
        }
    }

    fn measured(&self) {
        let mut seen = self.seen();
        seen.end = Some(seen.tree.cpu_with_newcomers());
        // The last replies of an open loop are on their way, and their times count.
        let yield_policy = if self.case.workload.is_open_loop() {
            YieldPolicy::Yield
        } else {
            YieldPolicy::None
        };
        seen.last = Some(self.look(&mut seen, yield_policy));
        if self.case.workload == Workload::Idle {
            seen.memory_after = seen.tree.memory();
        }
    }

    fn progress(&self, now: Snapshot) {
        let mut seen = self.seen();
        let all = now.open == self.case.connections as u64;
        let opening = self.case.opening();
        if seen.begin.is_none() && !all && opening.is_some_and(|limit| now.elapsed > limit) {
            seen.gave_up = true;
        }
        if seen.gave_up || self.interrupted.load(Ordering::Relaxed) {
            self.stop.store(true, Ordering::Relaxed);
        }
        // A load that has an end has no warm-up. The first look at a crowd comes when the first replies are long there,
        // and it thinks. In the others who is done leaves, and all may never be there at a time.
        let with_end = self.case.workload.has_an_end();
        let settled = all || self.case.workload.is_transfer();
        let before_window = seen.begin.is_none() || with_end;
        if settled
            && before_window
            && seen.settled.is_none()
            && self.case.workload != Workload::Idle
        {
            seen.settled = Some(self.look(&mut seen, YieldPolicy::None));
        }
    }
}

impl Seen {
    fn account(&self, account: &mut ServerSide, cpus: usize) {
        let between = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        let elapsed =
            |from: Option<Duration>, to: Option<Duration>| Some(to?.saturating_sub(from?));
        account.memory_before_bytes = self.memory_before;
        account.memory_after_bytes = self.memory_after;
        account.peak_rss_before_bytes = self.before.server.peak_rss;
        if let (Some(begin), Some(end)) = (&self.begin, &self.end) {
            account.interval_s = Some((end.at - begin.at).as_secs_f64());
            account.cpu_s = elapsed(begin.used, end.used).map(|time| time.as_secs_f64());
        }
        // A load without a warm-up is all in the window.
        let first = self
            .settled
            .filter(|settled| self.begin.is_some_and(|begin| settled.server.at < begin.at));
        let Sample {
            server: begin,
            host: before,
        } = first.unwrap_or(self.before);
        let Some(Sample {
            server: end,
            host: after,
        }) = &self.last
        else {
            return;
        };
        let user = elapsed(begin.user, end.user);
        let system = elapsed(begin.system, end.system);
        account.counters_interval_s = Some((end.at - begin.at).as_secs_f64());
        account.user_s = user.map(|time| time.as_secs_f64());
        account.system_s = system.map(|time| time.as_secs_f64());
        account.voluntary_switches = between(begin.voluntary_switches, end.voluntary_switches);
        account.involuntary_switches =
            between(begin.involuntary_switches, end.involuntary_switches);
        let used = user.zip(system).map(|(user, system)| user + system);
        account.others_cpu = before
            .zip(*after)
            .zip(used)
            .and_then(|((before, after), used)| after.others(&before, used, cpus));
        account.processes = Some(self.processes);
        account.threads = self.threads;
        account.peak_rss_bytes = end.peak_rss;
    }
}
