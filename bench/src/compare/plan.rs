//! What is measured, and in which order.

use std::fmt;
use std::time::Duration;

use client::{Arrivals, Load};
use contract::{Model, Promise};
use serde::{Deserialize, Serialize};

use super::CompareArgs;

/// Requests per client of `crowd`, and the pause after each reply: the load of the published original.
const MESSAGES: u64 = 10;
const THINK: Duration = Duration::from_millis(100);

/// Asked but not measured: the first requests meet cold caches and threads that are just being started.
const WARM_UP: Duration = Duration::from_millis(200);

/// In `idle`, the time for all exchanges to be over, and the silence in which is measured.
const IDLE_WARM_UP: Duration = Duration::from_millis(150);
const IDLE_WINDOW: Duration = Duration::from_millis(300);

/// Connections of `idle`: enough that what each takes is more than what the allocator rounds to.
pub(super) const IDLE_CONNECTIONS: usize = 1_000;

/// Start and end of a server process, roughly; only for the estimate.
const OVERHEAD: Duration = Duration::from_millis(60);

/// A question that is put to every model.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Many clients come at once and take their time: how long until all are served?
    Crowd,
    /// As fast as the server answers: what is the most, and what does it cost?
    Max,
    /// One rate for all models, below their limits: how long do replies take?
    Steady,
    /// Many connections that are silent: what do they cost?
    Idle,
}

impl Workload {
    /// All, in the order of the tables.
    pub(super) const ALL: [Workload; 4] = [
        Workload::Crowd,
        Workload::Max,
        Workload::Steady,
        Workload::Idle,
    ];

    pub(super) fn connections(self, args: &CompareArgs) -> usize {
        match self {
            Workload::Idle => IDLE_CONNECTIONS,
            _ => args.connections.get(),
        }
    }

    pub(super) fn load(self, args: &CompareArgs) -> Load {
        match self {
            Workload::Crowd => Load::Messages {
                messages: MESSAGES,
                think: THINK,
                rounds: 1,
                limit: Some(args.patience),
            },
            Workload::Max => Load::Closed {
                think: Duration::ZERO,
                warmup: WARM_UP,
                duration: args.duration,
            },
            Workload::Steady => Load::Open {
                rate: args.rate,
                arrivals: Arrivals::Constant,
                warmup: WARM_UP,
                duration: args.duration,
            },
            Workload::Idle => Load::Closed {
                // One exchange, and then silence until the end.
                think: Duration::from_secs(24 * 3600),
                warmup: IDLE_WARM_UP,
                duration: IDLE_WINDOW,
            },
        }
    }

    /// How long a launch takes, roughly.
    fn estimate(self, model: &Model, args: &CompareArgs) -> Duration {
        let one_at_a_time = model
            .deviations
            .iter()
            .any(|deviation| deviation.promise == Promise::ConnectionLimit);
        OVERHEAD
            + match self {
                // Whoever cannot hold all clients at a time lets them wait.
                Workload::Crowd if one_at_a_time => args.patience,
                Workload::Crowd => (THINK * MESSAGES as u32).min(args.patience),
                Workload::Max | Workload::Steady => WARM_UP + args.duration,
                Workload::Idle => IDLE_WARM_UP + IDLE_WINDOW + OVERHEAD,
            }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad`, so that widths work.
        f.pad(match self {
            Workload::Crowd => "crowd",
            Workload::Max => "max",
            Workload::Steady => "steady",
            Workload::Idle => "idle",
        })
    }
}

/// One launch to come: a fresh server process under one load.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    /// From 1.
    pub(super) block: u32,
    pub(super) model: &'static Model,
    pub(super) workload: Workload,
    /// Of the client's requests.
    pub(super) seed: u64,
    pub(super) estimate: Duration,
}

/// All launches, in blocks that hold each model and workload once, in random order. So whatever changes on the machine
/// meanwhile (heat, a backup, a neighbour) meets all models alike, and does not favour the one that was always first.
pub(super) fn cells(
    models: &[&'static Model],
    workloads: &[Workload],
    args: &CompareArgs,
    seed: u64,
) -> Vec<Cell> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cells = Vec::new();
    for block in 1..=args.launches {
        let start = cells.len();
        for &workload in workloads {
            // The same requests for all models.
            let seed = random.u64(..);
            cells.extend(models.iter().map(|&model| Cell {
                block,
                model,
                workload,
                seed,
                estimate: workload.estimate(model, args),
            }));
        }
        random.shuffle(&mut cells[start..]);
    }
    cells
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::compare::tests::args;
    use crate::registry;

    #[test]
    fn every_block_holds_everything_once_and_the_seed_decides_the_order() {
        let models: Vec<_> = registry::models().collect();
        let args = args(&["--launches", "4"]);
        let order = |seed| -> Vec<_> {
            cells(&models, &Workload::ALL, &args, seed)
                .iter()
                .map(|cell| (cell.block, cell.model.name, cell.workload, cell.seed))
                .collect()
        };
        let first = order(7);
        assert_eq!(first, order(7));
        assert_ne!(first, order(8));
        let size = models.len() * Workload::ALL.len();
        let blocks: Vec<Vec<_>> = first
            .chunks(size)
            .map(|block| block.iter().map(|cell| (cell.1, cell.2)).collect())
            .collect();
        assert_eq!(blocks.len(), 4);
        for (block, cells) in first.chunks(size).zip(1..) {
            assert!(block.iter().all(|cell| cell.0 == cells));
            let different: BTreeSet<_> = block.iter().map(|cell| (cell.1, cell.2)).collect();
            assert_eq!(different.len(), size);
            for workload in Workload::ALL {
                let seeds: BTreeSet<_> = block
                    .iter()
                    .filter(|cell| cell.2 == workload)
                    .map(|cell| cell.3)
                    .collect();
                assert_eq!(seeds.len(), 1, "all models are asked the same");
            }
        }
        assert_ne!(
            blocks[0], blocks[1],
            "the order changes from block to block"
        );
    }
}
