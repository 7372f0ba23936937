//! One turn: fresh server processes, a load for each, and the account of both. Of all workloads but `idle` it is one
//! launch.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use client::{Load, Plan, Report, Snapshot, Watch};
use protocol::{Bulk, SessionOptions};

use super::judge;
use super::plan::{Cell, Settings, Turn};
use super::results::{ClientSide, Launch, Note, ServerSide};
use super::workload::Workload;
use crate::figures;
use crate::placement::Placement;
use crate::process::{Counters, Courtesy, CpuReading, HostReading, Tree};
use crate::server::{DRAIN, End, Server};
use crate::subject;

/// What all launches of a comparison have in common.
pub(super) struct Bench<'a> {
    pub(super) settings: &'a Settings,
    pub(super) placement: &'a Placement,
    pub(super) began: Instant,
    pub(super) interrupted: &'a AtomicBool,
}

/// A reply that takes longer is an error. Loads end by themselves before, so that what a server starves on purpose is
/// counted as unanswered, with its age, and a server that is dead ends the launch all the same.
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

/// The same for a server from outside.
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

impl Bench<'_> {
    /// Measures the launches of one turn; `None` if it was interrupted. What goes wrong is in the launches' problems:
    /// the comparison goes on.
    pub(super) fn measure(&self, turn: &Turn, order: usize) -> Option<Vec<Launch>> {
        let started_s = self.began.elapsed().as_secs_f64();
        // All on this thread, which lives longer than they do.
        let servers: Vec<anyhow::Result<Server>> =
            (turn.cells.iter().map(|cell| self.start(cell))).collect();
        let driven: Vec<_> = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (cell, server) in turn.cells.iter().zip(&servers) {
                let running = server.as_ref().ok().map(|one| (one.pid(), one.address));
                threads.push(running.map(|(pid, address)| {
                    let drive = move || {
                        let mut account = ServerSide::default();
                        let beside = turn.cells.len();
                        let driven = self.drive(cell, beside, pid, address, &mut account);
                        (driven, account)
                    };
                    let thread =
                        thread::Builder::new().name(format!("drive {}", cell.subject.name()));
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
        let mut launches = Vec::new();
        for (((cell, server), driven), order) in
            turn.cells.iter().zip(servers).zip(driven).zip(order..)
        {
            // Whatever came of the load, the server is ended in order and gives its account.
            let ended = server.map(Server::stop);
            let mut launch = self.empty(turn, cell, order, started_s);
            if let Err(error) = fill(&mut launch, cell, ended, driven) {
                launch.problems.push(format!("{error:#}"));
            }
            if !launch.notes.contains(&Note::NotAllOpened) {
                judge::judge(&mut launch, cell, self.settings, self.placement);
            }
            launches.push(launch);
        }
        // Half a launch is no result.
        (!self.interrupted.load(Ordering::Relaxed)).then_some(launches)
    }

    fn start(&self, cell: &Cell) -> anyhow::Result<Server> {
        let Some(model) = cell.subject.model() else {
            return self.start_outside(cell);
        };
        let workers = self.placement.workers_of(model).to_string();
        let mut arguments = vec![model.name.to_string(), "--workers".to_string(), workers];
        arguments.extend(server_arguments(self.settings, self.placement));
        arguments.extend(self.told(cell));
        Server::start(&arguments)
    }

    /// Somebody else's, which is told of this what its command has placeholders for.
    fn start_outside(&self, cell: &Cell) -> anyhow::Result<Server> {
        let settings = subject::Settings {
            idle_timeout: Some(IDLE_TIMEOUT_OUTSIDE),
            max_connections: Some(most_peers(self.settings)),
            ..subject::Settings::default()
        };
        let protocol = cell.workload.protocol(self.settings.protocol);
        let running = cell.subject.start(protocol, &settings, self.placement)?;
        running
            .into_server()
            .context("nobody can measure a server that somebody else has started")
    }

    /// What this server is told beside that.
    fn told(&self, cell: &Cell) -> Vec<String> {
        if cell.subject.model().is_none() {
            return Vec::new();
        }
        let small = self.settings.protocol;
        cell.workload.server_arguments(small, cell.seed)
    }

    fn drive(
        &self,
        cell: &Cell,
        together: usize,
        pid: i32,
        address: SocketAddr,
        account: &mut ServerSide,
    ) -> anyhow::Result<Driven> {
        let plan = Plan {
            address,
            protocol: cell.workload.protocol(self.settings.protocol),
            connections: cell.connections,
            size: Some(self.settings.size),
            bulk: Bulk::default(),
            page: cell.workload.page(address.to_string()),
            work: cell.workload.work_plan(cell.seed),
            load: cell.load(self.settings, together),
            connect_first: false,
            ramp: cell.ramp(),
            timeout: timeout(self.settings, cell.workload),
            seed: cell.seed,
            threads: self.placement.client_threads(),
            cpus: self.placement.client.clone(),
        };
        if cell.workload == Workload::Idle {
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
        let watcher = Watcher::new(pid, cell, self.placement, self.interrupted);
        let report = client::drive(&plan, &watcher, &watcher.stop)?;
        let seen = watcher.seen();
        seen.account(account, watcher.cpus.len());
        Ok(Driven {
            report,
            opened: !seen.gave_up,
        })
    }

    /// A launch of which nothing is known yet.
    fn empty(&self, turn: &Turn, cell: &Cell, order: usize, started_s: f64) -> Launch {
        let name = cell.subject.name();
        let beside = turn.cells.iter().map(|cell| cell.subject.name());
        Launch {
            order,
            block: turn.block,
            workload: cell.workload,
            connections: cell.connections,
            requests: cell.requests(),
            reply_bytes: cell.workload.reply_bytes(),
            server_arguments: self.told(cell),
            beside: beside.filter(|one| *one != name).collect(),
            model: name,
            seed: cell.seed.to_string(),
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
    launch: &mut Launch,
    cell: &Cell,
    ended: anyhow::Result<End>,
    driven: Option<io::Result<(anyhow::Result<Driven>, ServerSide)>>,
) -> anyhow::Result<()> {
    let end = ended?;
    // That a signal ends whoever has not learned to stop is no fault of what was measured.
    if cell.subject.model().is_some() || !end.by_the_signal() {
        launch.problems.extend(end.problems);
    }
    let (driven, account) = driven
        .context("nobody drove it")?
        .context("cannot start a thread that drives it")?;
    launch.server = Some(ServerSide {
        exit: Some(end.exit),
        tally: end.tally,
        ..account
    });
    let Driven { report, opened } = driven?;
    if !opened {
        launch.notes.push(Note::NotAllOpened);
        if !cell.is_short() {
            launch.problems.push(format!(
                "only {} of {} connections could be opened in time",
                figures::count(report.connected),
                figures::count(cell.connections as u64)
            ));
        }
    }
    launch.client = Some(ClientSide::of(&report)?);
    Ok(())
}

/// Reads the server's counters before, in and after the window.
///
/// All this runs on a CPU of the client's, so nothing is read in the window. At its edges the CPU clock is, which is
/// quick. The rest is read once before it (in the warm-up, when all clients are connected) and once after it, while the
/// connections are still there: a thread or a process that ends takes its counters with it.
struct Watcher<'a> {
    cell: &'a Cell,
    /// Where client and server run.
    cpus: Vec<usize>,
    interrupted: &'a AtomicBool,
    /// Ends this drive alone.
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

/// What it read, and when.
struct Seen {
    tree: Tree,
    /// Before the load.
    before: Look,
    memory_before: Option<u64>,
    /// The first in which all were connected.
    settled: Option<Look>,
    begin: Option<CpuReading>,
    end: Option<CpuReading>,
    last: Option<Look>,
    memory_after: Option<u64>,
    /// The most that was met. Where the clients leave one by one, there are fewer at the end.
    processes: u64,
    threads: Option<u64>,
    /// The connections were not to be opened.
    gave_up: bool,
}

/// The server's counters and the machine's, at a moment.
#[derive(Clone, Copy)]
struct Look {
    server: Counters,
    host: Option<HostReading>,
}

impl Look {
    fn take(tree: &Tree, cpus: &[usize], courtesy: Courtesy) -> Look {
        Look {
            server: tree.counters(courtesy),
            host: HostReading::take(cpus),
        }
    }
}

impl<'a> Watcher<'a> {
    fn new(
        root: i32,
        cell: &'a Cell,
        placement: &Placement,
        interrupted: &'a AtomicBool,
    ) -> Watcher<'a> {
        let cpus = placement.all();
        let tree = Tree::new(root, cell.subject.may_fork());
        let before = Look::take(&tree, &cpus, Courtesy::None);
        let idle = cell.workload == Workload::Idle;
        Watcher {
            cell,
            cpus,
            interrupted,
            stop: AtomicBool::new(false),
            seen: Mutex::new(Seen {
                memory_before: idle.then(|| tree.memory()).flatten(),
                before,
                settled: None,
                // Its costs are all that the load costs; it has no time to lose at an edge.
                begin: cell.workload.is_transfer().then(|| tree.cpu()),
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

    fn look(&self, seen: &mut Seen, courtesy: Courtesy) -> Look {
        seen.tree.look();
        let look = Look::take(&seen.tree, &self.cpus, courtesy);
        seen.processes = seen.processes.max(look.server.processes);
        seen.threads = seen.threads.max(look.server.threads);
        look
    }
}

impl Watch for Watcher<'_> {
    fn measuring(&self) {
        let mut seen = self.seen();
        if self.cell.workload == Workload::Idle {
            // Nobody is disturbed, and the others' first exchanges are over.
            seen.settled = Some(self.look(&mut seen, Courtesy::None));
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
        let courtesy = if self.cell.workload.is_open_loop() {
            Courtesy::Yield
        } else {
            Courtesy::None
        };
        seen.last = Some(self.look(&mut seen, courtesy));
        if self.cell.workload == Workload::Idle {
            seen.memory_after = seen.tree.memory();
        }
    }

    fn progress(&self, now: Snapshot) {
        let mut seen = self.seen();
        let all = now.open == self.cell.connections as u64;
        let opening = self.cell.opening();
        if seen.begin.is_none() && !all && opening.is_some_and(|limit| now.elapsed > limit) {
            seen.gave_up = true;
        }
        if seen.gave_up || self.interrupted.load(Ordering::Relaxed) {
            self.stop.store(true, Ordering::Relaxed);
        }
        // A load that has an end has no warm-up. The first look at a crowd comes when the first replies are long there,
        // and it thinks. In the others who is done leaves, and all may never be there at a time.
        let with_end = self.cell.workload.has_an_end();
        let settled = all || self.cell.workload.is_transfer();
        let before_window = seen.begin.is_none() || with_end;
        if settled
            && before_window
            && seen.settled.is_none()
            && self.cell.workload != Workload::Idle
        {
            seen.settled = Some(self.look(&mut seen, Courtesy::None));
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
        let Look {
            server: begin,
            host: before,
        } = first.unwrap_or(self.before);
        let Some(Look {
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
