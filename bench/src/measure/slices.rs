//! Measures a round in slices: the servers are all alive, and the client loads one after the other for some
//! milliseconds, again and again, in a new random order in each pass.
//!
//! A disturbance of the machine that lasts longer than a slice then disturbs all servers alike, and their ratio hardly
//! changes.
//! The event loop of the client reads the CPU clocks of a server itself at the edges of its slice.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use client::{Edge, EdgeKind, Report, Slice, SliceReport, SlicedLoad, SlicedReport};

use crate::child::ChildServer;
use crate::measure::contest::{Batch, spins};
use crate::measure::evaluate;
use crate::measure::plan::{Case, SliceLength};
use crate::measure::run::{LoadResult, Runner, Sample, fill};
use crate::resources::{CpuClocks, HostCounters, ProcessTree, StoppedTree, YieldPolicy};
use crate::results::certificate::{Check, Condition};
use crate::results::{Host, Run, ServerSide, TimelineEntry};

/// Number of processes from which on the slices are twice as long: to read so many CPU clocks takes longer.
const MANY_CLOCKS: usize = 32;

/// Largest CPU time of a server while the client loads other servers, as a share of that time.
const REST: f64 = 0.001;

/// Server of a round, and the readings of its CPU clocks.
struct Watched {
    tree: ProcessTree,
    clocks: Option<CpuClocks>,
    /// True if the server never sleeps, so that it is stopped while the client loads other servers.
    spins: bool,
    stopped: Option<StoppedTree>,
    before: Sample,
    connected: Option<Sample>,
    last: Option<Sample>,
    begin: Option<Reading>,
    rest: Option<Reading>,
    /// CPU time and length of the counted part of each slice of this server, in order; `None` if a clock could not be
    /// read.
    slices: Vec<Option<(Duration, Duration)>>,
    rest_cpu: Duration,
    rest_time: Duration,
}

/// Measurements of one server of a round.
struct Loaded {
    server: ServerSide,
    load: InSlices,
}

/// Measurements of the client.
struct InSlices {
    result: LoadResult,
    replies_in_all: u64,
}

/// CPU time of a server until a moment.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    used: Option<Duration>,
}

impl Watched {
    fn read(&self) -> Reading {
        Reading {
            at: Instant::now(),
            used: self.clocks.as_ref().and_then(CpuClocks::read),
        }
    }

    /// Looks for all processes of the server, after its connections were opened and before the first slice.
    fn connected(&mut self, cpus: &[usize]) {
        self.tree.look();
        self.clocks = CpuClocks::of(&self.tree);
        self.connected = Some(Sample::take(&self.tree, cpus, YieldPolicy::None));
        self.rests();
    }

    /// Stops a server that never sleeps. The others rest by themselves.
    fn rests(&mut self) {
        if self.spins {
            self.stopped = StoppedTree::stop(&self.tree).ok();
        }
    }

    /// Begins to watch the rest. That is not when the last reply arrives: the server still ends its turn then.
    fn watch_rest(&mut self) {
        self.rest = Some(self.read());
    }

    fn wakes(&mut self) {
        // Read before the server goes on.
        let (now, rest) = (self.read(), self.rest.take());
        if let Some((rest, (before, used))) =
            rest.and_then(|rest| Some((rest, rest.used.zip(now.used)?)))
        {
            self.rest_cpu += used.saturating_sub(before);
            self.rest_time += now.at - rest.at;
        }
        self.stopped = None;
    }

    fn ends(&mut self) {
        let now = self.read();
        let slice = self.begin.take().and_then(|begin| {
            let (before, used) = begin.used.zip(now.used)?;
            Some((used.saturating_sub(before), now.at - begin.at))
        });
        self.slices.push(slice);
    }

    /// Returns the CPU time of the server from its first slice to its last.
    fn used(&self) -> Option<Duration> {
        let (first, last) = (self.connected.as_ref()?, self.last.as_ref()?);
        Some(last.server.cpu?.saturating_sub(first.server.cpu?))
    }

    /// Returns the time line of the client with the CPU time of the server.
    fn timeline(&self, report: &Report, own: &[&SliceReport]) -> Vec<TimelineEntry> {
        let mut steps: Vec<TimelineEntry> = report.timeline.iter().map(TimelineEntry::of).collect();
        for (number, step) in steps.iter_mut().enumerate() {
            let slices = own.iter().zip(&self.slices);
            let of_step = slices.filter(|(slice, _)| slice.step == number);
            let cpu: Option<Duration> = of_step.map(|(_, read)| Some((*read)?.0)).sum();
            step.server_cpu_s = cpu.map(|cpu| cpu.as_secs_f64());
        }
        steps
    }

    /// Returns the measurements of the server in the whole round.
    fn server_side(&self) -> ServerSide {
        let mut server = ServerSide {
            cpus: self.tree.cpus().unwrap_or_default(),
            ..ServerSide::default()
        };
        if let Some(slices) = self.slices.iter().copied().collect::<Option<Vec<_>>>() {
            let sum = |part: fn(&(Duration, Duration)) -> Duration| -> f64 {
                slices.iter().map(part).sum::<Duration>().as_secs_f64()
            };
            server.cpu_s = Some(sum(|slice| slice.0));
            server.interval_s = Some(sum(|slice| slice.1));
        }
        if !self.rest_time.is_zero() {
            let share = self.rest_cpu.as_secs_f64() / self.rest_time.as_secs_f64();
            server.rest_cpu = Some(share);
        }
        let first = self.connected.as_ref().unwrap_or(&self.before);
        if let Some(last) = &self.last {
            last.write_since(first, &mut server);
        }
        server.peak_rss_before_bytes = self.before.server.peak_rss;
        server
    }
}

impl Runner<'_> {
    /// Measures all cases of a batch in one round of slices. Returns `None` if the comparison was interrupted.
    pub(crate) fn measure_slices(&self, batch: &Batch, order: usize) -> Option<Vec<Run>> {
        let started_s = self.began.elapsed().as_secs_f64();
        let servers: Vec<anyhow::Result<ChildServer>> = batch
            .cases
            .iter()
            .map(|case| {
                let server = self.start(case)?;
                let plan = self.plan(case, 1, server.address);
                self.wait_until_ready(case, &plan, &mut self.tree(case, &server))?;
                Ok(server)
            })
            .collect();
        let running: Vec<(&Case, &ChildServer)> = batch
            .cases
            .iter()
            .zip(&servers)
            .filter_map(|(case, server)| Some((case, server.as_ref().ok()?)))
            .collect();
        let loaded = self.load(&running);
        let mut runs = Vec::new();
        let (mut loaded, problem) = match loaded {
            Ok(loaded) => (loaded, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        loaded.reverse();
        for ((case, server), order) in batch.cases.iter().zip(servers).zip(order..) {
            let loaded = server.as_ref().ok().and_then(|_| loaded.pop());
            let exit = server.map(ChildServer::stop);
            let mut run = self.empty(batch, case, order, started_s);
            let (load, server) = match loaded {
                Some(Loaded { load, server }) => (Ok(load), server),
                None => {
                    let why = problem.as_deref().unwrap_or("the server received no load");
                    (Err(anyhow!("{why}")), ServerSide::default())
                }
            };
            let replies_in_all = load.as_ref().ok().map(|load| load.replies_in_all);
            let load = load.map(|load| load.result);
            if let Err(error) = fill(&mut run, case, exit, server, load) {
                run.problems.push(format!("{error:#}"));
            }
            if let Some(client) = &mut run.client {
                client.replies_in_all = replies_in_all;
            }
            evaluate::evaluate(&mut run, case, self.settings, self.placement);
            if let Some(server) = &run.server {
                let check = Check::at_most(Condition::Rested, server.rest_cpu, REST);
                run.checks.push(check);
            }
            runs.push(run);
        }
        (!self.interrupted.load(Ordering::Relaxed)).then_some(runs)
    }

    /// Loads the servers in slices. Returns the measurements of each, in the same order.
    fn load(&self, running: &[(&Case, &ChildServer)]) -> anyhow::Result<Vec<Loaded>> {
        let cpus = self.placement.all();
        let mut watched: Vec<Watched> = running
            .iter()
            .map(|(case, server)| {
                let tree = self.tree(case, server);
                Watched {
                    before: Sample::take(&tree, &cpus, YieldPolicy::None),
                    spins: case.target.model().is_some_and(spins),
                    tree,
                    clocks: None,
                    stopped: None,
                    connected: None,
                    last: None,
                    begin: None,
                    rest: None,
                    slices: Vec::new(),
                    rest_cpu: Duration::ZERO,
                    rest_time: Duration::ZERO,
                }
            })
            .collect();
        let lengths: Vec<SliceLength> = running
            .iter()
            .map(|(case, server)| self.slice_length(case, server))
            .collect();
        let seed = running.first().map_or(0, |(case, _)| case.seed);
        let window = running
            .first()
            .map_or(Duration::ZERO, |(case, _)| case.window(self.settings));
        let slices = slices(&lengths, window, seed);
        let last = slices.len().saturating_sub(1);
        let load = SlicedLoad {
            plans: running
                .iter()
                .map(|(case, server)| self.plan(case, 1, server.address))
                .collect(),
            slices,
        };
        let mut before = None;
        let mut after = None;
        let mut resting = None;
        let mut at_edge = |edge: Edge| {
            let first = edge.kind == EdgeKind::Wake && edge.slice == 0;
            if first {
                for one in &mut watched {
                    one.connected(&cpus);
                }
                before = HostCounters::take(&cpus);
            }
            if edge.kind == EdgeKind::Begin
                && let Some(server) = resting.take()
                && server != edge.server
            {
                let one: &mut Watched = &mut watched[server];
                one.watch_rest();
            }
            if edge.kind == EdgeKind::Rest {
                resting = Some(edge.server);
            }
            let one = &mut watched[edge.server];
            match edge.kind {
                EdgeKind::Wake => one.wakes(),
                EdgeKind::Begin => one.begin = Some(one.read()),
                EdgeKind::End => one.ends(),
                EdgeKind::Rest => one.rests(),
            }
            if edge.kind == EdgeKind::Rest && edge.slice == last {
                after = HostCounters::take(&cpus);
                // The connections are still open: when a thread or a process ends, its counters are lost.
                for one in &mut watched {
                    one.last = Some(Sample::take(&one.tree, &cpus, YieldPolicy::None));
                }
            }
        };
        let report = client::drive_slices(&load, &mut at_edge, self.interrupted)?;
        // A server that is stopped must go on before it can end.
        for one in &mut watched {
            one.stopped = None;
        }
        let used: Option<Duration> = watched.iter().map(Watched::used).sum();
        let machine = before.zip(after).map(|(before, after)| {
            let others = used.and_then(|used| after.others(&before, used));
            (Host::of(&after.since(&before)), others)
        });
        let SlicedReport {
            slices: parts,
            servers,
        } = report;
        let mut loaded = Vec::new();
        for (number, (one, report)) in watched.iter().zip(servers).enumerate() {
            let own: Vec<&SliceReport> =
                parts.iter().filter(|part| part.server == number).collect();
            let (host, others_cpu) = machine.unwrap_or_default();
            let (case, running) = running[number];
            loaded.push(Loaded {
                server: ServerSide {
                    host,
                    others_cpu,
                    owns_listener: one.tree.owns_listener(running.address.port()),
                    ..one.server_side()
                },
                load: InSlices {
                    replies_in_all: own.iter().map(|slice| slice.replies_in_all).sum(),
                    result: LoadResult {
                        timeline: one.timeline(&report, &own),
                        opened: report.connected >= case.connections as u64,
                        report,
                    },
                },
            });
        }
        Ok(loaded)
    }

    /// Returns the slices for a server: longer ones if it has so many processes that reading their clocks takes long.
    fn slice_length(&self, case: &Case, server: &ChildServer) -> SliceLength {
        let slice = case.slice(self.settings);
        let per_connection = case
            .target
            .model()
            .is_some_and(|model| model.needs.own_process);
        let processes = self.tree(case, server).numbers().len();
        if per_connection && processes.max(case.connections) > MANY_CLOCKS {
            SliceLength {
                lead: slice.lead * 2,
                length: slice.length * 2,
            }
        } else {
            slice
        }
    }
}

/// Returns the slices of a round: passes over all servers, each in a random order, until each server has a window of
/// this length. All servers of a pass get the same seed.
fn slices(lengths: &[SliceLength], window: Duration, seed: u64) -> Vec<Slice> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    let mut left: Vec<Duration> = vec![window; lengths.len()];
    let mut slices = Vec::new();
    while left.iter().any(|left| !left.is_zero()) {
        random.shuffle(&mut order);
        let seed = random.u64(..);
        for &server in &order {
            if left[server].is_zero() {
                continue;
            }
            let SliceLength { lead, length } = lengths[server];
            slices.push(Slice {
                server,
                lead,
                length,
                seed,
            });
            left[server] = left[server].saturating_sub(length);
        }
    }
    slices
}
