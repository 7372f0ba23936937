//! Measures one batch of runs as a whole: starts a fresh server process for each, applies its load, and collects the
//! measurements of client and server. In all workloads except `idle`, such a batch is a single run.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use client::{Load, Plan, Report, Snapshot, Watch};
use contract::Capacity;
use protocol::{Bulk, SessionOptions};

use crate::child::{ChildServer, DRAIN, ServerExit};
use crate::measure::contest::Batch;
use crate::measure::evaluate;
use crate::measure::plan::{Case, Settings};
use crate::placement::Placement;
use crate::resources::{self, Counters, CpuReading, HostCounters, ProcessTree, YieldPolicy};
use crate::results::{ClientSide, Host, Method, Note, Run, ServerSide, TimelineEntry};
use crate::target::{self, Target};
use crate::workloads::Workload;
use crate::{format, null_server};

/// Longest time that a server may take, after it listens, until all its processes and threads exist.
const STEADY_LIMIT: Duration = Duration::from_secs(5);

/// Longest time from the moment at which an external server listens to its first reply.
const FIRST_REPLY: Duration = Duration::from_secs(20);

/// Measures the runs of a comparison. It holds everything that the runs have in common.
pub(crate) struct Runner<'a> {
    /// Options of the comparison.
    pub(crate) settings: &'a Settings,
    /// CPUs of client and server.
    pub(crate) placement: &'a Placement,
    /// Start of the comparison.
    pub(crate) began: Instant,
    /// Set when the comparison is interrupted.
    pub(crate) interrupted: &'a AtomicBool,
}

/// Returns the time after which a missing reply is an error. It is longer than the load: requests that a server leaves
/// unanswered by design are therefore counted as unanswered, with their age, and not as errors, but a dead server still
/// ends the run.
fn timeout(settings: &Settings, workload: Workload) -> Duration {
    let longest = if workload.ends_by_itself() {
        settings.limit(workload)
    } else {
        settings.duration(workload)
    };
    longest + Duration::from_secs(15)
}

/// Idle time-out of our servers. It is long because no server may close a connection that is idle during a measurement.
const IDLE_TIMEOUT: &str = "1h";

/// Idle time-out of external servers; see [`IDLE_TIMEOUT`].
const EXTERNAL_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Returns the connection limit of every server. It is twice the largest number of connections, because the kernel does
/// not distribute connections evenly in models where each event loop has its share of the limit.
fn connection_limit(settings: &Settings) -> usize {
    (2 * settings.most_connections()).max(10_000)
}

/// Returns the arguments with which every server is started, after the name of the model. The number of workers and the
/// arguments of the workload are not among them.
pub(crate) fn server_arguments(settings: &Settings, placement: &Placement) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--listen",
        "127.0.0.1:0",
        "--max-connections",
        &connection_limit(settings).to_string(),
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

/// Result of a load.
pub(super) struct LoadResult {
    pub(super) report: Report,
    pub(super) timeline: Vec<TimelineEntry>,
    /// True if all connections could be opened in time.
    pub(super) opened: bool,
}

impl Runner<'_> {
    /// Measures the runs of one batch; returns `None` if the comparison was interrupted. Errors are added to the
    /// problems of a run, and the comparison continues.
    pub(crate) fn measure(&self, batch: &Batch, order: usize) -> Option<Vec<Run>> {
        if batch.in_slices() {
            self.measure_slices(batch, order)
        } else {
            self.measure_whole(batch, order)
        }
    }

    fn measure_whole(&self, batch: &Batch, order: usize) -> Option<Vec<Run>> {
        let started_s = self.began.elapsed().as_secs_f64();
        // Started from this thread, which must exist longer than the servers: the kernel ends a server together with
        // the thread that started it.
        let servers: Vec<anyhow::Result<ChildServer>> =
            (batch.cases.iter().map(|case| self.start(case))).collect();
        let loads: Vec<_> = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (case, server) in batch.cases.iter().zip(&servers) {
                let running = server.as_ref().ok();
                let running = running.map(|server| (self.tree(case, server), server.address));
                threads.push(running.map(|(tree, address)| {
                    let drive = move || {
                        let mut server = ServerSide::default();
                        let together = batch.cases.len();
                        let load = self.drive(case, together, tree, address, &mut server);
                        (load, server)
                    };
                    let thread =
                        thread::Builder::new().name(format!("drive {}", case.target.name()));
                    thread.spawn_scoped(scope, drive)
                }));
            }
            let join = |thread: Option<io::Result<thread::ScopedJoinHandle<'_, _>>>| {
                Some(thread?.map(|thread| match thread.join() {
                    Ok(load) => load,
                    Err(panic) => std::panic::resume_unwind(panic),
                }))
            };
            threads.into_iter().map(join).collect()
        });
        let mut runs = Vec::new();
        for (((case, server), load), order) in
            batch.cases.iter().zip(servers).zip(loads).zip(order..)
        {
            // The server is stopped gracefully and prints its tally even if the load failed.
            let exit = server.map(ChildServer::stop);
            let mut run = self.empty(batch, case, order, started_s);
            let (load, server) = match load {
                Some(Ok((load, server))) => (load, server),
                Some(Err(error)) => (
                    Err(error).context("cannot start the thread of the client"),
                    ServerSide::default(),
                ),
                None => (
                    Err(anyhow!("the server received no load")),
                    ServerSide::default(),
                ),
            };
            if let Err(error) = fill(&mut run, case, exit, server, load) {
                run.problems.push(format!("{error:#}"));
            }
            if !run.notes.contains(&Note::NotAllOpened) {
                evaluate::evaluate(&mut run, case, self.settings, self.placement);
            }
            runs.push(run);
        }
        // An interrupted run is incomplete and has no result.
        (!self.interrupted.load(Ordering::Relaxed)).then_some(runs)
    }

    /// Starts the server of a case.
    pub(super) fn start(&self, case: &Case) -> anyhow::Result<ChildServer> {
        let Some(model) = case.target.model() else {
            return self.start_external(case);
        };
        let workers = self.placement.workers_of(model).to_string();
        let mut arguments = vec![model.name.to_string(), "--workers".to_string(), workers];
        arguments.extend(server_arguments(self.settings, self.placement));
        arguments.extend(self.workload_arguments(case));
        if let Some(burn) = case.burn {
            arguments.extend(["--burn".to_string(), format!("{}ns", burn.as_nanos())]);
        }
        match &case.target {
            Target::OtherBuild(build) => {
                ChildServer::start_build(build.program.clone(), &arguments)
            }
            _ => ChildServer::start(&arguments),
        }
    }

    /// Waits until a server that listens also serves: until all its processes and threads exist, and for an external
    /// server, until it has answered a request.
    pub(super) fn wait_until_ready(
        &self,
        case: &Case,
        plan: &Plan,
        tree: &mut ProcessTree,
    ) -> anyhow::Result<()> {
        if matches!(case.target, Target::ExternalServer(_)) {
            wait_for_first_reply(plan, self.interrupted)?;
        }
        // A model whose workers are held by one peer each starts all of them at once.
        let workers = case.target.model().map_or(1, |model| match model.capacity {
            Capacity::Workers => self.placement.workers_of(model) as u64,
            _ => 1,
        });
        tree.wait_until_steady(workers, STEADY_LIMIT);
        Ok(())
    }

    /// Returns the processes of the server of a case.
    pub(super) fn tree(&self, case: &Case, server: &ChildServer) -> ProcessTree {
        server.tree(case.target.may_fork())
    }

    /// Starts an external server. Only the settings for which its command has placeholders apply.
    fn start_external(&self, case: &Case) -> anyhow::Result<ChildServer> {
        if matches!(case.target, Target::Null) {
            let protocol = case.workload.protocol(self.settings.protocol);
            return null_server::start(protocol, &self.placement.server);
        }
        let settings = target::TargetSettings {
            idle_timeout: Some(EXTERNAL_IDLE_TIMEOUT),
            max_connections: Some(connection_limit(self.settings)),
            ..target::TargetSettings::default()
        };
        let protocol = case.workload.protocol(self.settings.protocol);
        let running = case.target.start(protocol, &settings, self.placement)?;
        running
            .into_server()
            .context("a server that was not started by this program cannot be measured; start it with --with")
    }

    /// Returns the arguments of the workload for the server of this case; none for an external server.
    fn workload_arguments(&self, case: &Case) -> Vec<String> {
        if case.target.model().is_none() {
            return Vec::new();
        }
        let small = self.settings.protocol;
        case.workload.server_arguments(small, case.seed)
    }

    /// Returns the load of a case. `together` is the number of servers in the batch.
    pub(super) fn plan(&self, case: &Case, together: usize, address: SocketAddr) -> Plan {
        let in_slices = case.method == Method::Slices;
        Plan {
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
            // One event loop reads the CPU clocks of all servers of a round.
            threads: if in_slices {
                1
            } else {
                self.placement.client_threads()
            },
            cpus: self.placement.client.clone(),
        }
    }

    fn drive(
        &self,
        case: &Case,
        together: usize,
        mut tree: ProcessTree,
        address: SocketAddr,
        server: &mut ServerSide,
    ) -> anyhow::Result<LoadResult> {
        let plan = self.plan(case, together, address);
        self.wait_until_ready(case, &plan, &mut tree)?;
        if case.workload == Workload::Idle {
            // The very first exchanges load code and tables; this memory does not belong to the measured connections.
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
        let watcher = Watcher::new(tree, address, case, self.placement, self.interrupted);
        let report = client::drive(&plan, &watcher, &watcher.stop)?;
        let readings = watcher.readings();
        readings.write_to(server);
        server.owns_listener = readings.tree.owns_listener(address.port());
        Ok(LoadResult {
            timeline: report.timeline.iter().map(TimelineEntry::of).collect(),
            report,
            opened: !readings.gave_up,
        })
    }

    /// Returns a run without any measurements yet.
    pub(super) fn empty(&self, batch: &Batch, case: &Case, order: usize, started_s: f64) -> Run {
        let name = case.target.name();
        // In slices, the other servers are alive but rest.
        let others = if batch.in_slices() {
            &[]
        } else {
            &batch.cases[..]
        };
        let beside = others.iter().map(|case| case.target.name());
        Run {
            order,
            round: batch.round,
            attempt: batch.attempt,
            superseded: false,
            role: case.role,
            method: case.method,
            workload: case.workload,
            connections: case.connections,
            requests: case.requests(),
            reply_bytes: case.workload.reply_bytes(),
            server_arguments: self.workload_arguments(case),
            beside: beside.filter(|one| *one != name).collect(),
            model: name,
            seed: case.seed.to_string(),
            started_s,
            problems: Vec::new(),
            client_limited: false,
            notes: Vec::new(),
            figures: Default::default(),
            lower_bounds: Vec::new(),
            checks: Vec::new(),
            client: None,
            server: None,
        }
    }
}

/// Waits until a server that listens answers a request: some servers listen long before they serve.
fn wait_for_first_reply(plan: &Plan, interrupted: &AtomicBool) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(20);
    let first = Plan {
        connections: 1,
        threads: 1,
        load: Load::Messages {
            messages: 1,
            think: Duration::ZERO,
            rounds: 1,
            limit: Some(FIRST_REPLY),
        },
        ..plan.clone()
    };
    let deadline = Instant::now() + FIRST_REPLY;
    loop {
        let report = client::drive(&first, &(), interrupted)?;
        if report.replies > 0 || interrupted.load(Ordering::Relaxed) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let why = report.examples.first().map_or("no reply", String::as_str);
            bail!(
                "the server listened, but did not answer a request within {FIRST_REPLY:?}: {why}"
            );
        }
        thread::sleep(PAUSE);
    }
}

/// Adds the measurements of client and server to a run.
pub(super) fn fill(
    run: &mut Run,
    case: &Case,
    exit: anyhow::Result<ServerExit>,
    server: ServerSide,
    load: anyhow::Result<LoadResult>,
) -> anyhow::Result<()> {
    let exit = exit?;
    // An external server that does not handle SIGTERM is ended by the signal, which is not a problem of the
    // measurement.
    if case.target.model().is_some() || !exit.ended_by_sigterm() {
        run.problems.extend(exit.problems);
    }
    run.server = Some(ServerSide {
        exit: Some(exit.exit),
        tally: exit.tally,
        ..server
    });
    let LoadResult {
        report,
        timeline,
        opened,
    } = load?;
    if !opened {
        run.notes.push(Note::NotAllOpened);
        if !case.exceeds_max_concurrent() {
            run.problems.push(format!(
                "only {} of {} connections could be opened in time",
                format::count(report.connected),
                format::count(case.connections as u64)
            ));
        }
    }
    run.client = Some(ClientSide {
        timeline,
        ..ClientSide::of(&report)?
    });
    Ok(())
}

/// Reads the counters of the server before the window, at its edges, and after it.
///
/// The readings run on a CPU of the client, so none takes place within the window. At the edges of the window only the
/// CPU clock is read, which is quick. The other counters are read once before the window (in the warm-up, when all
/// clients are connected) and once after it, while the connections are still open: when a thread or a process ends, its
/// counters are lost.
struct Watcher<'a> {
    case: &'a Case,
    /// Address of the server.
    address: SocketAddr,
    /// CPUs of client and server.
    cpus: Vec<usize>,
    interrupted: &'a AtomicBool,
    /// Stops the load of this run alone.
    stop: AtomicBool,
    readings: Mutex<Readings>,
}

/// Readings of a [`Watcher`].
struct Readings {
    tree: ProcessTree,
    /// Counters before the load.
    before: Sample,
    memory_before: Option<u64>,
    /// First counters that were read when all clients were connected.
    connected: Option<Sample>,
    /// CPU clock at the beginning of the window.
    begin: Option<CpuReading>,
    /// CPU clock at the end of the window.
    end: Option<CpuReading>,
    /// Counters after the window.
    last: Option<Sample>,
    memory_after: Option<u64>,
    /// Number of connections that the server had open at the end of `idle`.
    open: Option<u64>,
    /// Largest number of processes of all readings. If the clients leave one by one, fewer are left at the end.
    processes: u64,
    /// Largest number of threads of all readings.
    threads: Option<u64>,
    /// True if not all connections could be opened in time.
    gave_up: bool,
}

/// Counters of the server and of the machine at one moment.
#[derive(Clone)]
pub(super) struct Sample {
    pub(super) server: Counters,
    pub(super) host: Option<HostCounters>,
}

impl Sample {
    pub(super) fn take(tree: &ProcessTree, cpus: &[usize], yield_policy: YieldPolicy) -> Sample {
        Sample {
            server: tree.counters(yield_policy),
            host: HostCounters::take(cpus),
        }
    }
}

impl<'a> Watcher<'a> {
    fn new(
        tree: ProcessTree,
        address: SocketAddr,
        case: &'a Case,
        placement: &Placement,
        interrupted: &'a AtomicBool,
    ) -> Watcher<'a> {
        let cpus = placement.all();
        let before = Sample::take(&tree, &cpus, YieldPolicy::None);
        let idle = case.workload == Workload::Idle;
        Watcher {
            case,
            address,
            cpus,
            interrupted,
            stop: AtomicBool::new(false),
            readings: Mutex::new(Readings {
                memory_before: idle.then(|| tree.memory()).flatten(),
                before,
                connected: None,
                // The cost of a transfer is the cost of the whole load, so its interval begins here.
                begin: case.workload.is_transfer().then(|| tree.cpu()),
                end: None,
                last: None,
                memory_after: None,
                open: None,
                processes: 0,
                threads: None,
                gave_up: false,
                tree,
            }),
        }
    }

    fn readings(&self) -> MutexGuard<'_, Readings> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the counters, including those of newly forked processes.
    fn sample(&self, readings: &mut Readings, yield_policy: YieldPolicy) -> Sample {
        readings.tree.look();
        let sample = Sample::take(&readings.tree, &self.cpus, yield_policy);
        readings.processes = readings.processes.max(sample.server.processes);
        readings.threads = readings.threads.max(sample.server.threads);
        sample
    }
}

impl Watch for Watcher<'_> {
    fn measuring(&self) {
        let mut readings = self.readings();
        // The processes that were forked for the last clients must count from the beginning.
        readings.tree.look();
        if readings.begin.is_none() {
            readings.begin = Some(readings.tree.cpu());
        }
        if self.case.workload == Workload::Idle {
            // No request is under way, and the first exchanges of the other servers are over. To read the counters of a
            // thousand threads takes long, but disturbs no server.
            readings.connected = Some(self.sample(&mut readings, YieldPolicy::None));
        }
    }

    fn measured(&self) {
        let mut readings = self.readings();
        readings.end = Some(readings.tree.cpu_with_newcomers());
        // The last replies of an open loop still arrive, and their times count.
        let yield_policy = if self.case.workload.is_open_loop() {
            YieldPolicy::Yield
        } else {
            YieldPolicy::None
        };
        readings.last = Some(self.sample(&mut readings, yield_policy));
        if self.case.workload == Workload::Idle {
            readings.memory_after = readings.tree.memory();
            readings.open = resources::established(self.address).map(|open| open as u64);
        }
    }

    fn progress(&self, now: Snapshot) {
        let mut readings = self.readings();
        let all = now.open == self.case.connections as u64;
        let opening = self.case.opening();
        if readings.begin.is_none() && !all && opening.is_some_and(|limit| now.elapsed > limit) {
            readings.gave_up = true;
        }
        if readings.gave_up || self.interrupted.load(Ordering::Relaxed) {
            self.stop.store(true, Ordering::Relaxed);
        }
        // A load that ends by itself has no warm-up. In `crowd` the counters are read when the first replies have
        // arrived long ago and the clients pause. In a transfer, clients leave when they are served, so all of them may
        // never be connected at the same time.
        let ends_by_itself = self.case.workload.ends_by_itself();
        let connected = all || self.case.workload.is_transfer();
        let before_window = readings.begin.is_none() || ends_by_itself;
        if connected
            && before_window
            && readings.connected.is_none()
            && self.case.workload != Workload::Idle
        {
            readings.connected = Some(self.sample(&mut readings, YieldPolicy::None));
        }
    }
}

impl Sample {
    /// Computes the changes of the counters since an earlier sample.
    pub(super) fn write_since(&self, first: &Sample, server: &mut ServerSide) {
        let between = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        let elapsed = |from: Option<Duration>, to: Option<Duration>| {
            Some(to?.saturating_sub(from?).as_secs_f64())
        };
        let (begin, end) = (&first.server, &self.server);
        server.counters_interval_s = Some((end.at - begin.at).as_secs_f64());
        server.user_s = elapsed(begin.user, end.user);
        server.system_s = elapsed(begin.system, end.system);
        server.voluntary_switches = between(begin.voluntary_switches, end.voluntary_switches);
        server.involuntary_switches = between(begin.involuntary_switches, end.involuntary_switches);
        server.processes = Some(end.processes);
        server.threads = end.threads;
        server.peak_rss_bytes = end.peak_rss;
    }
}

impl Readings {
    /// Computes the measurements of the server from the readings.
    fn write_to(&self, server: &mut ServerSide) {
        server.memory_before_bytes = self.memory_before;
        server.memory_after_bytes = self.memory_after;
        server.peak_rss_before_bytes = self.before.server.peak_rss;
        server.cpus = self.tree.cpus().unwrap_or_default();
        server.open_connections = self.open;
        if let (Some(begin), Some(end)) = (&self.begin, &self.end) {
            server.interval_s = Some((end.at - begin.at).as_secs_f64());
            let used = begin.used.zip(end.used);
            server.cpu_s = used.map(|(begin, end)| end.saturating_sub(begin).as_secs_f64());
        }
        // A load without a warm-up lies completely in the window, so its counters begin before the load.
        let first = self
            .connected
            .as_ref()
            .filter(|sample| {
                let before = |begin: CpuReading| sample.server.at < begin.at;
                self.memory_before.is_some() || self.begin.is_some_and(before)
            })
            .unwrap_or(&self.before);
        let Some(last) = &self.last else {
            return;
        };
        last.write_since(first, server);
        server.processes = Some(self.processes);
        server.threads = self.threads;
        if let (Some(before), Some(after)) = (&first.host, &last.host) {
            let used = first.server.cpu.zip(last.server.cpu);
            let used = used.map(|(before, after)| after.saturating_sub(before));
            server.host = Host::of(&after.since(before));
            server.others_cpu = used.and_then(|used| after.others(before, used));
        }
    }
}
