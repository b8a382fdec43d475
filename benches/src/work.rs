//! The workloads: what is asked of every peer, and what is counted while it is done.
//!
//! Called by `run` and `growth`. It must never count the opening of kept connections as part of their use.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_kit::load::{Bulk, Direction, Measured, Pace, Plan};

use crate::peers::Up;
use crate::proc::{Noise, Usage, tree, usage};

/// Sizes of one run. The full ones take seconds each; the short ones show that all of it works.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Sizes {
    /// Requests a second at the fixed rate.
    pub rate: u32,
    /// Connections at the fixed rate.
    pub connections: usize,
    /// Connections at full load.
    pub full: usize,
    /// Connections being opened at the same time.
    pub opening: usize,
    /// Bytes of a response's body.
    pub payload: usize,
    /// Seconds at the fixed rate.
    pub rate_s: f64,
    /// Seconds at full load, and of new connections.
    pub full_s: f64,
    /// Seconds of one connection back to back, and of each bulk transfer.
    pub short_s: f64,
}

impl Sizes {
    /// Those of the table.
    pub const FULL: Self = Self {
        rate: 1000,
        connections: 16,
        full: 64,
        opening: 16,
        payload: 1024,
        rate_s: 5.0,
        full_s: 3.0,
        short_s: 1.2,
    };
    /// For correctness alone.
    pub const SHORT: Self =
        Self { rate: 200, connections: 4, full: 8, opening: 4, payload: 1024, rate_s: 0.3, full_s: 0.3, short_s: 0.2 };
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Open loop at a fixed rate.
    Rate,
    /// Closed loop, as many as go.
    Full,
    /// One connection, back to back.
    Single,
    /// A new connection for each request.
    Fresh,
    /// As many bytes as go.
    Bulk(Direction, usize),
}

impl Work {
    /// In the order in which they are done.
    pub const ALL: [Self; 8] = [
        Self::Rate,
        Self::Full,
        Self::Single,
        Self::Fresh,
        Self::Bulk(Direction::Down, 1),
        Self::Bulk(Direction::Up, 1),
        Self::Bulk(Direction::Down, 4),
        Self::Bulk(Direction::Up, 4),
    ];

    /// The first part of its figures' names.
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Self::Rate => "rate".into(),
            Self::Full => "full".into(),
            Self::Single => "single".into(),
            Self::Fresh => "fresh".into(),
            Self::Bulk(Direction::Down, streams) => format!("down{streams}"),
            Self::Bulk(Direction::Up, streams) => format!("up{streams}"),
        }
    }
}

/// One run of one workload on one peer.
pub struct Outcome {
    /// Figures by name, without the workload's.
    pub figures: BTreeMap<&'static str, f64>,
    /// Every latency, for requests.
    pub measured: Option<Measured>,
    /// Processors that others kept busy meanwhile, on average.
    pub foreign: f64,
}

/// What a run cost.
struct Spent {
    client: Usage,
    server: Usage,
    foreign: f64,
}

/// Does it once.
///
/// # Errors
/// If a request failed: a figure of a run with failures means nothing.
pub fn once(work: Work, up: &Up<'_>, sizes: &Sizes) -> Result<Outcome> {
    match work {
        Work::Bulk(direction, streams) => bulk(up, sizes, direction, streams),
        _ => requests(work, up, &plan(work, up, sizes)),
    }
    .with_context(|| work.key())
}

fn plan(work: Work, up: &Up<'_>, sizes: &Sizes) -> Plan {
    let plan = Plan::new(up.target, &format!("/{}", sizes.payload));
    let (full, short) = (Duration::from_secs_f64(sizes.full_s), Duration::from_secs_f64(sizes.short_s));
    match work {
        Work::Rate => Plan {
            pace: Pace::Rate(sizes.rate),
            connections: sizes.connections,
            length: Duration::from_secs_f64(sizes.rate_s),
            ..plan
        },
        Work::Full => Plan { connections: sizes.full, length: full, ..plan },
        Work::Fresh => Plan { connections: sizes.opening, fresh: true, length: full, ..plan },
        Work::Single | Work::Bulk(..) => Plan { length: short, ..plan },
    }
}

/// Any load of requests; used by the growth runs too.
///
/// # Errors
/// If a request failed.
pub fn requests(work: Work, up: &Up<'_>, plan: &Plan) -> Result<Outcome> {
    let (client, server) = (tree(&up.client)?, tree(&up.server)?);
    let (measured, spent) = up.place.inside(|| -> Result<_> {
        let opened = plan.open()?;
        spending(&client, &server, || opened.run(&mut |_| true))
    })?;
    let reason = measured.failure.as_deref().unwrap_or("no reason");
    ensure!(
        measured.failed == 0,
        "{} of {} requests failed: {reason}",
        measured.failed,
        measured.answered + measured.failed
    );
    ensure!(measured.answered > 0, "no request was answered");
    let mut figures = spent.per(measured.answered as f64 / 10_000.0);
    let ms = |share| measured.quantile(share).as_secs_f64() * 1e3;
    figures.insert("per_s", measured.throughput());
    figures.extend([("p50_ms", ms(0.5)), ("p90_ms", ms(0.9)), ("p99_ms", ms(0.99)), ("max_ms", ms(1.0))]);
    if work == Work::Rate {
        figures.insert("late_ms", measured.lateness.value_at_quantile(0.5) as f64 / 1e3);
    }
    let switches = (spent.client.switches + spent.server.switches) as f64;
    figures.insert("switches", switches / measured.answered as f64);
    Ok(Outcome { figures, measured: Some(measured), foreign: spent.foreign })
}

fn bulk(up: &Up<'_>, sizes: &Sizes, direction: Direction, streams: usize) -> Result<Outcome> {
    let (client, server) = (tree(&up.client)?, tree(&up.server)?);
    let load = Bulk { target: up.target, direction, streams, length: Duration::from_secs_f64(sizes.short_s) };
    let (moved, spent) = up.place.inside(|| spending(&client, &server, || load.run()))?;
    let mut figures = spent.per(moved.bytes as f64 / 1e9);
    figures.insert("gb_per_s", moved.bytes as f64 / 1e9 / moved.elapsed.as_secs_f64());
    Ok(Outcome { figures, measured: None, foreign: spent.foreign })
}

/// Does something, and tells how many processors others kept busy meanwhile.
///
/// # Errors
/// If /proc cannot be read, or it fails.
pub fn beside_others<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let (noise, start) = (Noise::now()?, Instant::now());
    let done = work()?;
    Ok((done, Noise::now()?.foreign_since(noise, start.elapsed().as_secs_f64())))
}

fn spending<T>(client: &[u32], server: &[u32], work: impl FnOnce() -> Result<T>) -> Result<(T, Spent)> {
    let (client_before, server_before) = (usage(client)?, usage(server)?);
    let (done, foreign) = beside_others(work)?;
    let spent =
        Spent { client: usage(client)?.since(client_before), server: usage(server)?.since(server_before), foreign };
    Ok((done, spent))
}

impl Spent {
    /// Processor seconds for each of `units`.
    fn per(&self, units: f64) -> BTreeMap<&'static str, f64> {
        let units = units.max(f64::MIN_POSITIVE);
        BTreeMap::from([
            ("cpu", (self.client.total() + self.server.total()) / units),
            ("cpu_client_user", self.client.user / units),
            ("cpu_client_system", self.client.system / units),
            ("cpu_server_user", self.server.user / units),
            ("cpu_server_system", self.server.system / units),
        ])
    }
}
