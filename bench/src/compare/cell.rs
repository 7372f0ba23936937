//! One launch: a fresh server process, one load, and the account of both.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use client::{Load, Plan, Report, Snapshot, Watch};

use protocol::SessionOptions;

use super::CompareArgs;
use super::judge;
use super::placement::Placement;
use super::plan::{Cell, Workload};
use super::process::{Counters, Courtesy, CpuReading, HostReading, Tree};
use super::results::{ClientSide, Launch, ServerSide};
use super::server::{DRAIN, Server};

/// What all launches of a comparison have in common.
pub(super) struct Bench<'a> {
    pub(super) args: &'a CompareArgs,
    pub(super) placement: &'a Placement,
    pub(super) began: Instant,
    pub(super) interrupted: &'a AtomicBool,
}

/// A reply that takes longer is an error. Loads end by themselves before, so that what a server starves on purpose is
/// counted as unanswered, with its age, and a server that is dead ends the launch all the same.
fn timeout(args: &CompareArgs) -> Duration {
    args.duration.max(args.patience) + Duration::from_secs(10)
}

/// The arguments of every server, after the model's name.
pub(super) fn server_arguments(args: &CompareArgs, placement: &Placement) -> Vec<String> {
    let most = args.connections.get().max(10_000);
    let mut arguments: Vec<String> = [
        "--listen",
        "127.0.0.1:0",
        "--protocol",
        args.protocol.name,
        "--max-connections",
        &most.to_string(),
        "--workers",
        &placement.workers().to_string(),
        // No load here is about idle clients: none may be closed in the middle of a long comparison.
        "--idle-timeout",
        "1h",
        "--drain",
        DRAIN,
        "--max-line",
        &args
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

impl Bench<'_> {
    /// Measures one cell; `None` if it was interrupted. What goes wrong is in the launch's problems: the comparison
    /// goes on.
    pub(super) fn measure(&self, cell: &Cell, order: usize) -> Option<Launch> {
        let mut launch = Launch {
            order,
            block: cell.block,
            model: cell.model.name.to_string(),
            workload: cell.workload,
            seed: cell.seed.to_string(),
            started_s: self.began.elapsed().as_secs_f64(),
            problems: Vec::new(),
            client_limited: false,
            notes: Vec::new(),
            figures: Default::default(),
            lower_bounds: Vec::new(),
            client: None,
            server: None,
        };
        if let Err(error) = self.fill(cell, &mut launch) {
            launch.problems.push(format!("{error:#}"));
        }
        judge::judge(&mut launch, self.args, self.placement);
        // Half a launch is no result.
        (!self.interrupted.load(Ordering::Relaxed)).then_some(launch)
    }

    fn fill(&self, cell: &Cell, launch: &mut Launch) -> anyhow::Result<()> {
        let mut arguments = vec![cell.model.name.to_string()];
        arguments.extend(server_arguments(self.args, self.placement));
        let server = Server::start(&arguments)?;
        let mut account = ServerSide::default();
        // Whatever comes of the load, the server is ended in order and gives its account.
        let driven = self.drive(cell, &server, &mut account);
        let end = server.stop();
        account.exit = Some(end.exit);
        account.tally = end.tally;
        launch.server = Some(account);
        match driven {
            Ok(report) => launch.client = Some(ClientSide::of(&report)?),
            Err(error) => launch.problems.push(format!("{error:#}")),
        }
        launch.problems.extend(end.problems);
        Ok(())
    }

    fn drive(
        &self,
        cell: &Cell,
        server: &Server,
        account: &mut ServerSide,
    ) -> anyhow::Result<Report> {
        let plan = self.plan(cell, server);
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
        let watcher = Watcher::new(server.pid(), cell.workload, self.args, self.placement);
        let report = client::drive(&plan, &watcher, self.interrupted)?;
        watcher.seen().account(account, watcher.cpus.len());
        Ok(report)
    }

    fn plan(&self, cell: &Cell, server: &Server) -> Plan {
        Plan {
            address: server.address,
            protocol: self.args.protocol,
            connections: cell.workload.connections(self.args),
            size: Some(self.args.size),
            load: cell.workload.load(self.args),
            connect_first: false,
            ramp: Duration::ZERO,
            timeout: timeout(self.args),
            seed: cell.seed,
            threads: self.placement.client_threads(),
            cpus: self.placement.client.clone(),
        }
    }
}

/// Reads the server's counters before, in and after the window.
///
/// All this runs on a CPU of the client's, so the least is read while it counts. At the edges that is the CPU clock
/// alone. The rest is read once in the warm-up, when all clients are connected, and once shortly before the end: after
/// it the clients leave, and a thread that ends takes its counters with it.
struct Watcher {
    root: i32,
    workload: Workload,
    connections: u64,
    duration: Duration,
    /// Where client and server run.
    cpus: Vec<usize>,
    seen: Mutex<Seen>,
}

/// What it read, and when.
struct Seen {
    tree: Tree,
    /// Before the load.
    before: Look,
    /// Once all are connected.
    settled: Option<Look>,
    begin: Option<CpuReading>,
    end: Option<CpuReading>,
    last: Option<Look>,
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

/// The last progress that is told in a window comes at most so long before its end.
const LAST_PROGRESS: Duration = Duration::from_millis(110);

impl Watcher {
    fn new(root: i32, workload: Workload, args: &CompareArgs, placement: &Placement) -> Self {
        let cpus = placement.all();
        let tree = Tree::of(root);
        let before = Look::take(&tree, &cpus, Courtesy::None);
        Watcher {
            root,
            workload,
            connections: workload.connections(args) as u64,
            duration: args.duration,
            cpus,
            seen: Mutex::new(Seen {
                tree,
                before,
                settled: None,
                begin: None,
                end: None,
                last: None,
            }),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Watcher {
    fn measuring(&self) {
        let mut seen = self.seen();
        seen.begin = Some(seen.tree.cpu());
    }

    fn measured(&self) {
        let mut seen = self.seen();
        // The silence of `idle` ended when the clients began to leave, and that was before this.
        if self.workload != Workload::Idle || seen.end.is_none() {
            seen.end = Some(seen.tree.cpu());
        }
        if seen.last.is_none() {
            seen.last = Some(Look::take(&seen.tree, &self.cpus, Courtesy::None));
        }
    }

    fn progress(&self, now: Snapshot) {
        let courtesy = match self.workload {
            Workload::Steady => Courtesy::Yield,
            _ => Courtesy::None,
        };
        let mut seen = self.seen();
        let measuring = seen.begin.map(|begin| begin.at.elapsed());
        match self.workload {
            Workload::Idle if measuring.is_some() => {
                seen.end = Some(seen.tree.cpu());
                seen.last = Some(Look::take(&seen.tree, &self.cpus, courtesy));
            }
            Workload::Max | Workload::Steady if measuring.is_some() => {
                if seen.last.is_none()
                    && measuring.is_some_and(|time| time + LAST_PROGRESS >= self.duration)
                {
                    seen.last = Some(Look::take(&seen.tree, &self.cpus, courtesy));
                }
            }
            _ => {
                if seen.settled.is_none() && now.open == self.connections {
                    // What it forks, it has forked by now.
                    seen.tree = Tree::of(self.root);
                    seen.settled = Some(Look::take(&seen.tree, &self.cpus, courtesy));
                }
            }
        }
    }
}

impl Seen {
    fn account(&self, account: &mut ServerSide, cpus: usize) {
        let between = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        let elapsed =
            |from: Option<Duration>, to: Option<Duration>| Some(to?.saturating_sub(from?));
        account.rss_before_bytes = self.before.server.rss;
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
        if let Some(Look {
            server: end,
            host: after,
        }) = &self.last
        {
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
        }
        if let Some(Look { server: end, .. }) = &self.last {
            account.processes = Some(end.processes);
            // Of a load whose clients leave one by one, there were more while it lasted.
            let settled = self.settled.and_then(|settled| settled.server.threads);
            account.threads = end.threads.max(settled);
            account.rss_after_bytes = end.rss;
            account.peak_rss_bytes = end.peak_rss;
        }
    }
}
