//! Discovery and rules: what each proxy must know, no more. Who is at an address, and the rules that bind one workload.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod answer;
mod digest;
pub mod index;
pub mod model;
pub mod rules;
pub mod source;

#[cfg(test)]
mod testing;
