//! Commands of `samewire`, one module for each. The commands that are not here yet are modules of the crate itself:
//! `check`, `drive` and `list`.

pub mod compare;
pub mod report;
