//! The commands of `samewire`, one module for each. (Some older commands are still modules of the crate itself.)

pub mod compare;
pub mod report;
