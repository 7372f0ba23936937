//! Measures a comparison: `plan` is the amount and the order of the runs, `environment` describes the machine, `run`
//! measures one batch of runs, and `evaluate` computes the figures of a run and checks whether they may be used.

pub(crate) mod environment;
pub(crate) mod evaluate;
pub(crate) mod plan;
pub(crate) mod progress;
pub(crate) mod run;
