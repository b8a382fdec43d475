//! The admission webhook. A pod comes in, the same pod with its sidecar goes out, or a refusal that names the field.
//!
//! Read in the order in which a pod travels: `server` (TLS and HTTP) -> `admission` (what the API server sends and gets) -> `review`
//! (the journey) -> `pod`, `membership`, `restore`, `settings`, `refuse`, `probes`, `containers`, `patch`. From `admission` on it is pure:
//! no I/O, no clock, no cluster; `offline` does the same to files (`countersign inject`), `validate` judges rules.
//!
//! Beside it: `certificate`, `keeper` and `upkeep` keep the serving certificate, `kubernetes` is the cluster, `run` starts all.
//!
//! It must never lose a field of a pod, known to us or not; never inject less than whole; never let a pod pass that it
//! cannot make right.

#![cfg_attr(test, allow(clippy::unwrap_used))]

// Read once, then started.
pub mod config;
pub mod run;

// The journey of a pod, in the order in which it passes.
pub mod server;

pub mod admission;

pub mod review;

pub mod pod;

pub mod membership;

pub mod restore;

pub mod settings;

pub mod refuse;

pub mod probes;

pub mod containers;

pub mod patch;

// A rule's, and an ephemeral container's.
pub mod validate;

pub mod ephemeral;

// The same as the pod's, for files.
pub mod offline;
mod yaml;

// What the operator chose.
pub mod mesh;
pub mod quantity;

// The serving certificate, and the cluster that has to know it.
pub mod certificate;
pub mod keeper;
pub mod kubernetes;
pub mod tls;
pub mod upkeep;

// What it shows of itself.
pub mod inside;
pub mod metrics;

#[cfg(test)]
#[path = "../tests/apiserver/mod.rs"]
mod apiserver;
