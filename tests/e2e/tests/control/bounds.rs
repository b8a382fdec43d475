//! What a sidecar does at its bounds.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::{Inside, wait_until};

use crate::stage::{SOON, Stage, metric};
use crate::talk::{Talk, exchange};

/// `--max-connections` of both sidecars.
const MOST: usize = 4;
/// Far less than any time limit of a sidecar: what is queued would wait for longer.
const AT_ONCE: Duration = Duration::from_secs(2);

fn shed(stage: &Stage, pod: &MeshPod) -> Result<f64> {
    metric(stage, pod, "countersign_connections_shed_total", ("reason", "connections"))
}

/// As many as may be.
fn fill(stage: &Stage, from: &MeshPod) -> Result<Vec<Talk>> {
    // A sidecar that proves its own redirect takes a place of its outbound ones for a moment; what ended just now may still have one.
    (0..MOST).map(|_| wait_until(SOON, || Talk::open(from, stage.address()))).collect()
}

/// One more than may be; its own end.
fn beyond(stage: &Stage, from: &MeshPod) -> Result<std::net::SocketAddr> {
    let began = Instant::now();
    let mut talk = Talk::dial(from, stage.address())?;
    let error = talk.greeted().err().context("one more than may be was served")?;
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error} instead of a reset");
    ensure!(began.elapsed() < AT_ONCE, "refused after {:?}", began.elapsed());
    Ok(talk.local)
}

/// The bound is each direction's own. The server side is filled by a client whose sidecar has none of that kind.
pub fn connections(inside: &Inside) -> Result<()> {
    let stage = Stage::with_args(inside, &["--max-connections", &MOST.to_string()])?;
    let many = stage.mesh.pod(MeshPodSpec::new("client-2", "client", 32))?;
    for (from, full) in [(&many, &stage.server), (&stage.client, &stage.client)] {
        let mut held = fill(&stage, from)?;
        let (before, greeted) = (shed(&stage, full)?, stage.echo.greeted());
        let local = beyond(&stage, from)?;
        let now = shed(&stage, full)?;
        ensure!(now - before == 1.0, "{before} were shed, then {now}");
        ensure!(stage.echo.greeted() == greeted, "the app was reached");
        let of_it = |line: &serde_json::Value| line["source_address"] == local.to_string();
        ensure!(!full.access_log().iter().any(of_it), "a line for one that was shed");
        for talk in &mut held {
            talk.say("still here\n").context("held, while another was shed")?;
        }
        held.swap_remove(0).abort()?;
        wait_until(SOON, || exchange(from, stage.address())).context("a place was given back")?;
        // With it go the links that it keeps: each has a place at the server, though no app uses it.
        from.stop_sidecar();
    }
    Ok(())
}
