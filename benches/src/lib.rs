//! The side-by-side latency harness: what the data path costs, beside others in the same places, in one run.
//!
//! Called by `cargo xtask bench mesh` (through the program `countersign-bench`), by its own short test, and for its plots by
//! `countersign bench`. It must never give a figure that was not measured in this run, nor leave out that one could not be.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod app;
pub mod bars;
pub mod collect;
pub mod decision;
pub mod growth;
pub mod machine;
pub mod peers;
pub mod plot;
pub mod proc;
pub mod relay;
pub mod report;
pub mod run;
pub mod signing;
pub mod stage;
pub mod syscalls;
pub mod work;
pub mod wrk;
