//! The sidecar: the data path of the mesh. Modules stand in the order a byte meets them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod discovery;
pub mod outcome;

pub mod access_log;
pub mod metrics;

pub mod drain;
pub mod logging;
