//! Claim 7: while the CA is away all goes on with the SVIDs in hand, over new connections too; when it is back, all are renewed.
//!
//! Called by `demo`. It is away until a sidecar has asked it for a new SVID in vain: before that nobody would have missed it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_kit::mesh::MeshPod;
use countersign_kit::wait_until;

use super::traffic;
use crate::demo::say::{Say, seconds};
use crate::demo::stage::Stage;

/// At least so long it is away.
const AWAY: Duration = Duration::from_secs(3);
/// A leaf is renewed within its life.
const RENEWED: Duration = Duration::from_secs(30);

/// Shows and checks it.
pub fn check(stage: &Stage, say: &mut Say) -> Result<()> {
    traffic::meanwhile(stage, say, |say| {
        let before = serials(stage)?;
        stage.mesh.stop_ca();
        let began = Instant::now();
        say.fact("the CA is killed (kill -9)");
        let missed = missed(stage)?;
        std::thread::sleep(AWAY.saturating_sub(began.elapsed()));
        say.fact(format!(
            "after {}: {missed} could not renew its SVID, and goes on with the one in hand",
            seconds(began.elapsed())
        ));
        say.figure("away_s", began.elapsed().as_secs_f64());
        stage.mesh.start_ca()?;
        let back = Instant::now();
        wait_until(RENEWED, || {
            let now = serials(stage)?;
            for (pod, (old, new)) in stage.meshed().into_iter().zip(before.iter().zip(&now)) {
                ensure!(old != new, "{} has its old SVID", pod.name());
            }
            Ok(())
        })
        .context("the CA is back")?;
        say.fact(format!("the CA is back; {} later every sidecar had a new SVID", seconds(back.elapsed())));
        Ok(())
    })
}

/// Of the SVID that each sidecar has in force.
fn serials(stage: &Stage) -> Result<Vec<String>> {
    let serial = |pod: &MeshPod| {
        let status = pod.admin("/status")?;
        status["credentials"]["serial"]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("{} has no SVID", pod.name()))
    };
    stage.meshed().into_iter().map(serial).collect()
}

/// The first sidecar that asked in vain.
fn missed(stage: &Stage) -> Result<String> {
    wait_until(RENEWED, || {
        for pod in stage.meshed() {
            if pod.admin("/status")?["ca"]["failures_in_a_row"].as_u64() > Some(0) {
                return Ok(pod.name().to_owned());
            }
        }
        Err(anyhow::anyhow!("nobody missed it"))
    })
}
