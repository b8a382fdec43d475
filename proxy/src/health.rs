//! What `/readyz` and `/metrics` show, on a TCP port of their own, which the redirect leaves alone.
//!
//! `run` binds and starts it; `countersign_admin` serves it, within an accept budget of its own, and through a drain too: that
//! is when readiness is asked most.

use std::fmt;

use countersign_admin::health::{Check, Health};

use crate::metrics::Metrics;
use crate::ready::Readiness;

/// What is shown; clones share it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/metrics`.
    pub metrics: Metrics,
}

impl Health for Shown {
    fn checks(&self) -> Vec<Check> {
        self.readiness.checks().into()
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        Ok(self.metrics.encode())
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
