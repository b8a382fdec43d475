//! The sidecar: the data path of the mesh. Modules stand in the order a byte meets them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod run;

pub mod listen;

pub mod inbound;
pub mod outbound;
pub mod route;

pub mod first_bytes;
pub mod tls;
pub mod wire;

pub mod denials;
pub mod on_wake;
pub mod permit;
pub mod pick;
pub mod pool;
pub mod reauth;
pub mod relay;
pub mod turns;

pub mod account;
pub mod outcome;
pub mod proxy;

pub mod discovery;

pub mod access_log;
pub mod metrics;

pub mod admin;
pub mod ask;
pub mod drain;
pub mod health;
pub mod probes;
pub mod ready;

pub mod intercept;
pub mod proof;

#[cfg(test)]
mod testing;

#[cfg(test)]
mod costs_tests;
