//! Commands of `samewire`, one module for each. The commands that are not here yet are modules of the crate itself:
//! `check`, `drive` and `list`.

pub mod calibrate;
pub mod capacity;
pub mod compare;
pub mod diff;
pub mod merge;
pub mod report;
