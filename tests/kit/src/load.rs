//! The load generator: requests at a fixed rate (open loop), as many as go (closed loop), bulk streams, idle connections.
//!
//! Called by the demo, the benches and `countersign bench`, inside the namespace of the client. At a fixed rate latency is counted from
//! when each request was *meant* to be sent: a server that stalls cannot slow the load down, and so hides nothing (no
//! coordinated omission). It must never retry, and never leave a failed request out of the counts.

mod bulk;
mod engine;
mod http;
mod idle;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

pub use bulk::{Bulk, Direction, Moved};
pub use engine::{Opened, Pace, Plan};
pub use idle::{Idle, raise_open_files};

/// No request waits longer than this for its response.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Latencies are counted in microseconds up to a minute, to three digits.
const MAX_MICROS: u64 = 60_000_000;

/// What is asked of whom, how often: kept connections at a fixed rate. [`Plan`] can do more.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where each connection goes.
    pub target: SocketAddr,
    /// Path of a GET over kept HTTP/1.1 connections.
    pub path: String,
    /// Requests a second, over all connections.
    pub rate: u32,
    /// Connections, each with at most one request under way.
    pub connections: usize,
    /// For how long.
    pub length: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Microseconds from the intended time of sending to the last byte of the response; successes only. In a closed loop
    /// (and for a connection that waited for nobody) the intended time is the actual one.
    pub latency: Histogram<u64>,
    /// Microseconds by which requests left late though a connection was free: the generator's own error, which is part of
    /// every latency above, alike for all that is compared.
    pub lateness: Histogram<u64>,
    /// Requests that got a good response (status 2xx, whole).
    pub answered: u64,
    /// Requests that did not.
    pub failed: u64,
    /// The first failure, in words.
    pub failure: Option<String>,
    /// From the first request to the last response, or to the end of the closed loop.
    pub elapsed: Duration,
}

impl Measured {
    fn empty() -> Result<Self> {
        let latency: Histogram<u64> = Histogram::new_with_bounds(1, MAX_MICROS, 3).context("histogram")?;
        let lateness = latency.clone();
        Ok(Self { lateness, latency, answered: 0, failed: 0, failure: None, elapsed: Duration::ZERO })
    }

    /// Adds another round of the same load.
    ///
    /// # Errors
    /// If it was counted with other bounds.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.latency.add(&other.latency).context("histogram")?;
        self.lateness.add(&other.lateness).context("histogram")?;
        self.answered += other.answered;
        self.failed += other.failed;
        self.failure = self.failure.take().or_else(|| other.failure.clone());
        self.elapsed += other.elapsed;
        Ok(())
    }

    /// Latency below which this share of the requests stayed (0.5 is the median).
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_micros(self.latency.value_at_quantile(share))
    }

    /// Good responses a second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        // Counts of one run are far below 2^52.
        self.answered as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl Load {
    /// How many requests are meant to be sent.
    #[must_use]
    pub fn planned(&self) -> u64 {
        self.plan().planned().unwrap_or_default()
    }

    fn plan(&self) -> Plan {
        Plan {
            pace: Pace::Rate(self.rate),
            connections: self.connections,
            length: self.length,
            ..Plan::new(self.target, &self.path)
        }
    }

    /// Opens every connection (not measured: a request each passes before the clock starts), then runs the plan.
    ///
    /// # Errors
    /// If a connection cannot be opened or its first request fails; failures later are counted.
    pub fn run(&self) -> Result<Measured> {
        self.plan().run(&mut |_| true)
    }
}

#[cfg(test)]
mod tests;
