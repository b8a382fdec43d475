//! The signer. Attests callers, signs their CSRs, keeps root and issuer, publishes the trust bundle.
//!
//! Read in the order in which a CSR travels: `server` (TLS and gRPC) -> `issue` (the journey) -> `attest`, `csr`, `grant`, `sign`,
//! `audit` -> `state` (what signs). `watch` sends the bundle; `own` and `upkeep` are what the CA does for itself; `run` starts it.
//!
//! It must never sign what a CSR asks for, never sign without a record, and never let a key out but sealed.

#![cfg_attr(test, allow(clippy::unwrap_used))]

// Read once, then started.
pub mod config;
pub mod run;

// Asked from beside.
pub mod ask;

// The journey of a CSR, in the order in which it passes.
pub mod server;

pub mod issue;

pub mod attest;

pub mod csr;

pub mod grant;

pub mod sign;

pub mod audit;

pub mod state;

// The cluster, where there is one: it attests, keeps the state, carries the roots to pods.
pub mod kubernetes;

// One root takes another's place.
pub mod holders;
pub mod rotation;
pub mod siblings;

// What the CA does beside.
pub mod own;
pub mod upkeep;
pub mod watch;

// What it shows of itself.
pub mod inside;
pub mod metrics;

// What the rooms above share.
pub mod clock;
pub mod limits;

#[cfg(test)]
mod testing;
