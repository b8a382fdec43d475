//! Claim 2: where the server speaks first, nothing stalls.
//!
//! Called by `demo`. A proxy that waits for the client's first bytes shows itself as its own timeout in every connection,
//! so the medians are compared; the longest is shown.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_kit::Here as _;

use crate::demo::apps::{self, BANNER};
use crate::demo::say::{Say, millis};
use crate::demo::stage::Stage;

const TRIES: usize = 21;
/// Far below any detection timeout (100 ms and more), far above what two handshakes cost.
const STALL: Duration = Duration::from_millis(60);
/// For the first, with lookup and handshakes: below the detection timeouts of other meshes (1 s to 10 s).
const FRESH_STALL: Duration = Duration::from_secs(1);

/// Shows and checks it.
pub fn check(stage: &Stage, say: &mut Say) -> Result<()> {
    let direct = SocketAddr::new(stage.plain.server.v4().into(), BANNER);
    let service = stage.banner_service();
    say.fact(format!("time from connect to the server's first byte, {TRIES} connections each:"));
    let (mut plain, mut mesh) = (Vec::new(), Vec::new());
    for _ in 0..TRIES {
        plain.push(apps::first_byte(&stage.plain.client, direct).context("between two pods without sidecars").here()?);
        mesh.push(apps::first_byte(&stage.frontend, service)?);
    }
    let (plain, mesh) = (Spread::of(plain)?, Spread::of(mesh)?);
    say.fact(format!("directly      {plain}"));
    say.fact(format!("in the mesh   {mesh} (the first needs TLS handshakes, later ones use kept connections)"));
    say.figure("direct_median_ms", plain.median.as_secs_f64() * 1e3);
    say.figure("mesh_median_ms", mesh.median.as_secs_f64() * 1e3);
    let added = mesh.median.saturating_sub(plain.median);
    ensure!(added < STALL, "the mesh's median is {} above the direct one: a stall", millis(added));
    ensure!(mesh.first < FRESH_STALL, "the first connection, on fresh links, took {}: a stall", millis(mesh.first));
    Ok(())
}

struct Spread {
    first: Duration,
    median: Duration,
    longest: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Result<Self> {
        let first = *times.first().context("nothing was measured")?;
        times.sort_unstable();
        Ok(Self { first, median: times[times.len() / 2], longest: times[times.len() - 1] })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "first {}, median {}, longest {}", millis(self.first), millis(self.median), millis(self.longest))
    }
}
