//! Our generator beside wrk: the same closed loop on the same targets, so that one can say how far its figures can be trusted.
//!
//! Called once a run, in turn with our own.

use std::time::Duration;

use anyhow::{Context, Result};
use countersign_kit::load::Plan;
use serde::Serialize;

use crate::peers::Up;
use crate::work::Sizes;

/// One comparison: medians of three turns.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// On whom.
    pub peer: String,
    /// Requests a second by ours.
    pub ours: f64,
    /// Requests a second by wrk, one thread.
    pub wrk: f64,
    /// Median latency in milliseconds, ours.
    pub ours_p50_ms: f64,
    /// Median latency in milliseconds, wrk's.
    pub wrk_p50_ms: f64,
}

const TURNS: usize = 3;

/// Compares them.
///
/// # Errors
/// If wrk is not installed or says something unknown.
pub fn check(name: &str, up: &Up<'_>, sizes: &Sizes) -> Result<Check> {
    let wrk = countersign_kit::programs::find("wrk").context("wrk is not installed (apt-get install wrk)")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let length = Duration::from_secs(2);
    for _ in 0..TURNS {
        let plan = Plan { connections: sizes.full, length, ..Plan::new(up.target, &format!("/{}", sizes.payload)) };
        let measured = up.place.inside(|| plan.run(&mut |_| true))?;
        ours.push((measured.throughput(), measured.quantile(0.5).as_secs_f64() * 1e3));
        let url = format!("http://{}/{}", up.target, sizes.payload);
        let words = ["-t1", &format!("-c{}", sizes.full), "-d2s", "--latency", &url].map(str::to_owned);
        theirs.push(read(&up.place.command(&wrk).args(words).succeed()?).context("wrk said something unknown")?);
    }
    let middle = |mut list: Vec<(f64, f64)>| {
        list.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        list[list.len() / 2]
    };
    let ((ours, ours_p50_ms), (wrk, wrk_p50_ms)) = (middle(ours), middle(theirs));
    Ok(Check { peer: name.to_owned(), ours, wrk, ours_p50_ms, wrk_p50_ms })
}

/// Requests a second, and the median latency in milliseconds.
fn read(text: &str) -> Option<(f64, f64)> {
    let value = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    Some((value("Requests/sec:")?.parse().ok()?, millis(value("50%")?)?))
}

fn millis(text: &str) -> Option<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let text = "  Latency Distribution\n     50%  612.00us\n     75%    1.10ms\n  10 requests in 2.00s, 1MB read\nRequests/sec:  38451.20\nTransfer/sec: 1MB\n";
        assert_eq!(read(text), Some((38451.2, 0.612)));
        assert_eq!(millis("1.5s"), Some(1500.0));
        assert_eq!(read("unable to connect"), None);
    }
}
