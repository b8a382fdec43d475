//! Discovery and rules: what each proxy must know, no more. Who is at an address, and the rules that bind one workload.
//!
//! Read in the order in which a rule travels: `source` (text, strictly; a bad file keeps what it said) -> `index` (one
//! immutable picture) -> `rules` and `answer` (what one workload must know) -> `server` (to its proxy, as it changes). `run`
//! starts it.
//!
//! It must never answer "not meshed" for an address that it does not know, never send a rule to a workload that it does not
//! bind, and never let bad input take away what was in force.

#![cfg_attr(test, allow(clippy::unwrap_used))]

// Read once, then started.
pub mod config;
pub mod run;

// The journey of a rule, in the order in which it passes.
pub mod source;

pub mod model;

pub mod index;

pub mod answer;

pub mod rules;

pub mod server;

// What the controller shows of itself.
pub mod ask;
pub mod drift;
pub mod inside;
pub mod metrics;

// What the rooms above share.
mod digest;

#[cfg(test)]
mod testing;
