//! Claim 2: where the server speaks first, nothing stalls.
//!
//! Called by `demo`. A proxy that waits for the client's first bytes shows itself as its own timeout in every connection,
//! so the medians are compared; the longest is shown.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::demo::apps::{self, BANNER};
use crate::demo::say::{Say, millis};
use crate::demo::stage::Stage;

const TRIES: usize = 21;
/// Far below any detection timeout (100 ms and more), far above what two handshakes cost.
const STALL: Duration = Duration::from_millis(60);

/// Shows and checks it.
pub fn check(stage: &Stage, say: &mut Say) -> Result<()> {
    let direct = SocketAddr::new(stage.plain.server.v4().into(), BANNER);
    let service = stage.banner_service();
    say.fact(format!("time from connect to the server's first byte, {TRIES} connections each:"));
    let (mut plain, mut mesh) = (Vec::new(), Vec::new());
    for _ in 0..TRIES {
        plain.push(apps::first_byte(&stage.plain.client, direct)?);
        mesh.push(apps::first_byte(&stage.frontend, service)?);
    }
    let (plain, mesh) = (spread(plain), spread(mesh));
    say.fact(format!("directly      median {}, longest {}", millis(plain.0), millis(plain.1)));
    say.fact(format!("in the mesh   median {}, longest {}", millis(mesh.0), millis(mesh.1)));
    say.figure("direct_median_ms", plain.0.as_secs_f64() * 1e3);
    say.figure("mesh_median_ms", mesh.0.as_secs_f64() * 1e3);
    ensure!(
        mesh.0 < plain.0 + STALL,
        "the mesh's median is {} above the direct one: a stall",
        millis(mesh.0 - plain.0)
    );
    Ok(())
}

/// Median and longest.
fn spread(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() - 1])
}
