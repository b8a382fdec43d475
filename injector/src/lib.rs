//! The admission webhook. A pod comes in, the same pod with its sidecar goes out, or a refusal that names the field.
//!
//! Read in the order in which a pod travels: `review` (the journey) -> `admission` (what the API server sends and gets) -> `pod`,
//! `membership`, `restore`, `settings`, `refuse`, `probes`, `containers`, `patch`. That half is pure: no I/O, no clock, no cluster;
//! `offline` does the same to files (`countersign inject`).
//!
//! It must never lose a field of a pod, known to us or not; never inject less than whole; never let a pod pass that it
//! cannot make right.

#![cfg_attr(test, allow(clippy::unwrap_used))]

// The journey of a pod, in the order in which it passes.
pub mod review;

pub mod admission;

pub mod pod;

pub mod membership;

pub mod restore;

pub mod settings;

pub mod refuse;

pub mod probes;

pub mod containers;

pub mod patch;

// The same for files.
pub mod offline;
mod yaml;

// What the operator chose.
pub mod mesh;
pub mod quantity;
