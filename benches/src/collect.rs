//! What came of a run, as it is written to JSON and read by the report and the plots.
//!
//! Filled by `run`. It must never hold a figure without the rounds that it is the median of.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use countersign_kit::load::Measured;
use serde::Serialize;

use crate::decision::Decision;
use crate::machine::Machine;
use crate::proc::Memory;
use crate::signing::Signing;
use crate::work::Sizes;
use crate::wrk::Check;

/// p99.9 is told only from so many samples on.
pub const ENOUGH: u64 = 10_000;
/// Bytes of a MiB, as memory is told.
pub(crate) const MIB: f64 = 1024.0 * 1024.0;

/// A whole run.
#[derive(Serialize)]
pub struct Results {
    /// On what.
    pub machine: Machine,
    /// RFC 3339.
    pub began: String,
    /// Seconds.
    pub took: f64,
    /// Interleaved rounds.
    pub rounds: usize,
    /// Turns in a round of those that bars compare.
    pub turns: usize,
    /// What a round was.
    pub sizes: Sizes,
    /// Side by side.
    pub peers: Vec<PeerResults>,
    /// Our generator beside wrk.
    pub generator: Vec<Check>,
    /// Why it was not checked.
    pub generator_unchecked: Option<String>,
    /// SVIDs that the CA signs, for each kind of token.
    pub signing: Vec<Signing>,
    /// Time of a decision.
    pub decision: Option<Decision>,
    /// How quiet it was.
    pub noise: NoiseReport,
}

/// How quiet the machine was.
#[derive(Default, Serialize)]
pub struct NoiseReport {
    /// Every run in its order, also those that were thrown away because of others, and repeated.
    pub runs: Vec<RunNoise>,
    /// A run is noisy from so many processors on.
    pub limit: f64,
}

/// How quiet it was during one run.
#[derive(Serialize)]
pub struct RunNoise {
    /// Whose turn it was.
    pub peer: String,
    /// At what.
    pub work: String,
    /// Processors that others kept busy meanwhile, on average.
    pub foreign: f64,
    /// Whether it counts. One counts though it is noisy where repeating did not help, or where nothing is repeated (the curve, signing).
    pub counts: bool,
}

impl NoiseReport {
    /// Runs that were thrown away.
    #[must_use]
    pub fn thrown_away(&self) -> usize {
        self.runs.iter().filter(|run| !run.counts).count()
    }
}

/// One peer.
#[derive(Default, Serialize)]
pub struct PeerResults {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// In its own words.
    pub version: String,
    /// It claims mutual TLS.
    pub claims_mtls: bool,
    /// How a client without a certificate was refused.
    pub refused: Option<String>,
    /// Why it was not measured.
    pub not_run: Option<String>,
    /// Size of the program on each side.
    pub binary_bytes: Option<u64>,
    /// By name: `rate.p50_ms`, `full.per_s`, `down1.cpu`, ...
    pub figures: BTreeMap<String, Figure>,
    /// Share of requests, milliseconds: of all rounds at the fixed rate.
    pub percentiles: Vec<(f64, f64)>,
    /// Samples behind them.
    pub samples: u64,
    /// 99.9th percentile, if there were enough samples.
    pub p999_ms: Option<f64>,
    /// Requests a second achieved, p99 and p50 in milliseconds, at rising rates.
    pub curve: Vec<Point>,
    /// One process of each side, after its first request.
    pub idle: Option<Sides>,
    /// After all rounds.
    pub after: Option<Sides>,
    /// Idle connections, and the memory of both sides with them.
    pub held: Vec<(usize, Memory)>,
    /// System calls a request.
    pub calls: Option<crate::syscalls::Calls>,
    /// Why they were not counted.
    pub calls_uncounted: Option<String>,
    /// Every latency at the fixed rate.
    #[serde(skip)]
    pub merged: Option<Measured>,
}

/// Memory of each side.
#[derive(Clone, Copy, Serialize)]
pub struct Sides {
    /// The client's.
    pub client: Memory,
    /// The server's.
    pub server: Memory,
}

/// One point of throughput against latency.
#[derive(Clone, Copy, Serialize)]
pub struct Point {
    /// Wanted a second.
    pub offered: f64,
    /// Answered a second.
    pub per_s: f64,
    /// Milliseconds.
    pub p50_ms: f64,
    /// Milliseconds.
    pub p99_ms: f64,
}

/// A figure and its spread.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figure {
    /// Of the rounds that count.
    pub median: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
    /// In the order of the rounds.
    pub rounds: Vec<f64>,
}

impl Figure {
    /// Of no round yet.
    pub const NONE: Self = Self { median: 0.0, low: 0.0, high: 0.0, rounds: Vec::new() };

    /// The median, and the spread in brackets where there were several rounds.
    #[must_use]
    pub fn told(&self, digits: usize) -> String {
        match self.rounds.len() {
            0 => "-".to_owned(),
            1 => format!("{:.digits$}", self.median),
            _ => format!("{:.digits$} [{:.digits$}-{:.digits$}]", self.median, self.low, self.high),
        }
    }

    /// Adds a round.
    pub fn add(&mut self, value: f64) {
        self.rounds.push(value);
        let mut sorted = self.rounds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        self.median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        (self.low, self.high) = (sorted[0], sorted[sorted.len() - 1]);
    }
}

impl PeerResults {
    /// The median of a figure.
    #[must_use]
    pub fn median(&self, name: &str) -> Option<f64> {
        self.figures.get(name).map(|figure| figure.median)
    }

    /// Processor seconds of a workload: client's user and system, server's user and system. The kernel's ticks tell the parts apart, so they
    /// vary against each other from round to round: scaled to add up to the median of the whole.
    #[must_use]
    pub fn cpu_parts(&self, work: &str) -> Option<[f64; 4]> {
        let whole = self.median(&format!("{work}.cpu"))?;
        let part = |name: &str| self.median(&format!("{work}.cpu_{name}")).unwrap_or(0.0);
        let parts = ["client_user", "client_system", "server_user", "server_system"].map(part);
        let sum: f64 = parts.iter().sum();
        (sum > 0.0).then(|| parts.map(|part| part * whole / sum))
    }

    /// Adds one run.
    ///
    /// # Errors
    /// If latencies cannot be merged.
    pub fn add(&mut self, work: crate::work::Work, outcome: crate::work::Outcome) -> Result<()> {
        for (name, value) in outcome.figures {
            self.figures.entry(format!("{}.{name}", work.key())).or_default().add(value);
        }
        if let (crate::work::Work::Rate, Some(measured)) = (work, outcome.measured) {
            match &mut self.merged {
                Some(merged) => merged.add(&measured)?,
                none => *none = Some(measured),
            }
            self.read_percentiles().context("percentiles")?;
        }
        Ok(())
    }

    fn read_percentiles(&mut self) -> Result<()> {
        let merged = self.merged.as_ref().context("nothing measured")?;
        let ms = |share| merged.quantile(share).as_secs_f64() * 1e3;
        self.samples = merged.latency.len();
        // Evenly spread by nines, up to what the samples can tell.
        let most = (self.samples as f64 / 10.0).max(1.0).log10().min(4.0);
        let steps = 40;
        let shares = (0..=steps).map(|step| 1.0 - 10_f64.powf(-most * f64::from(step) / f64::from(steps)));
        self.percentiles = shares.map(|share| (share, ms(share))).collect();
        self.p999_ms = (self.samples >= ENOUGH).then(|| ms(0.999));
        Ok(())
    }

    /// Bytes of memory of both sides for one idle connection.
    #[must_use]
    pub fn per_connection(&self, of: fn(&Memory) -> u64) -> Option<f64> {
        let (&(few, before), &(many, after)) = (self.held.first()?, self.held.last()?);
        (many > few).then(|| (of(&after) as f64 - of(&before) as f64) / (many - few) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_spread_are_those_of_the_rounds() {
        let mut figure = Figure::default();
        for (value, median) in [(3.0, 3.0), (1.0, 2.0), (9.0, 3.0)] {
            figure.add(value);
            assert!((figure.median - median).abs() < 1e-12);
        }
        assert_eq!((figure.low, figure.high, figure.rounds.len()), (1.0, 9.0, 3));
    }

    #[test]
    fn the_parts_of_the_processor_time_add_up_to_it() {
        let mut results = PeerResults::default();
        assert_eq!(results.cpu_parts("rate"), None);
        // In two rounds the ticks fell to one side or to the other.
        for (user, system) in [(0.0, 1.0), (1.0, 0.2), (0.8, 0.2)] {
            let mut add = |name: &str, value| results.figures.entry(name.into()).or_default().add(value);
            add("rate.cpu", user + system);
            add("rate.cpu_client_user", user);
            add("rate.cpu_client_system", system);
        }
        let parts = results.cpu_parts("rate").unwrap();
        assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{parts:?}");
        assert!((parts[0] - 0.8).abs() < 1e-12 && (parts[1] - 0.2).abs() < 1e-12, "{parts:?}");
    }

    #[test]
    fn an_idle_connection_costs_what_came_with_it() {
        let at = |pss| Memory { rss: 0, pss };
        let results =
            PeerResults { held: vec![(0, at(1000)), (10, at(9000)), (100, at(101_000))], ..PeerResults::default() };
        assert_eq!(results.per_connection(|memory| memory.pss), Some(1000.0));
        assert_eq!(PeerResults::default().per_connection(|memory| memory.pss), None);
    }
}
