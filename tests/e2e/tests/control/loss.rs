//! What an operator has lost: the key of the CA's state, or a root that has ended. As docs/operations.md says, on processes: the
//! CA does not start and says why, what was there stays, and a new root brings the mesh back with no sidecar restarted.

use std::time::Duration;

use anyhow::{Result, ensure};
use countersign_kit::mesh::{Mesh, Settings};
use countersign_kit::{Inside, wait_until};
use serde_json::Value;

use crate::stage::{Stage, status_until};
use crate::talk::exchange;

/// Leaves of ten seconds: whoever renews is seen soon.
const SHORT: &[&str] = &["--leaf-ttl", "10s", "--max-leaf-ttl", "10s", "--issuer-ttl", "30s"];
/// Until every process has lost its SVID, read its bootstrap file, and got another: on a busy machine.
const BACK: Duration = Duration::from_secs(120);

fn stage(inside: &Inside, more: &[&str]) -> Result<Stage> {
    let ca_args = SHORT.iter().chain(more).map(ToString::to_string).collect();
    let stage = Stage::with(inside, Settings { ca_args, ..Settings::default() }, &[])?;
    exchange(&stage.client, stage.address())?;
    Ok(stage)
}

pub fn key(inside: &Inside) -> Result<()> {
    let stage = stage(inside, &[])?;
    let folder = stage.mesh.folder().join("ca");
    stage.mesh.stop_ca();
    let state = std::fs::read(folder.join("state/ca.state"))?;
    // The key is lost: another one is made in its place.
    std::fs::remove_file(folder.join("state.key"))?;
    does_not_start(&stage.mesh, "wrong state key")?;
    ensure!(std::fs::read(folder.join("state/ca.state"))? == state, "the state was touched");
    new_root(&stage)
}

pub fn root(inside: &Inside) -> Result<()> {
    let stage = stage(inside, &["--root-ttl", "60s"])?;
    // The CA goes on, and signs nothing that would outlive its root; then the SVIDs end, and nothing passes any more.
    let ended = |status: &Value| status["credentials"]["expired"] == true;
    wait_until(BACK, || match stage.client.admin("/status") {
        Ok(status) if ended(&status) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let refused = exchange(&stage.client, stage.address());
    ensure!(refused.is_err(), "it passes with an SVID that has ended");
    stage.mesh.stop_ca();
    // Leaves end with the second in which the root does; in that second it is the issuer that has no time left.
    wait_until(BACK, || does_not_start(&stage.mesh, "the root makes no trust bundle"))?;
    // The new one lives longer: its flags are those of the mesh's later starts as well, and a minute is enough to be back.
    new_root(&stage)
}

fn does_not_start(mesh: &Mesh, why: &str) -> Result<()> {
    match mesh.start_ca() {
        Ok(()) => anyhow::bail!("it started all the same"),
        Err(error) => ensure!(format!("{error:#}").contains(why), "{error:#}"),
    }
    Ok(())
}

/// What the page says: the state and the sign of it are removed, and the CA is started. Nothing else is touched.
fn new_root(stage: &Stage) -> Result<()> {
    let state = stage.mesh.folder().join("ca/state");
    let before = std::fs::read(stage.mesh.bundle())?;
    std::fs::rename(state.join("ca.state"), state.join("lost.state"))?;
    // Not before both are gone: a CA never makes a root where there are signs of another.
    does_not_start(&stage.mesh, "the state was lost")?;
    std::fs::remove_file(state.join("bundle.pem"))?;
    stage.mesh.start_ca()?;
    ensure!(std::fs::read(stage.mesh.bundle())? != before, "the same root");
    for pod in [&stage.client, &stage.server] {
        wait_until(BACK, || match pod.admin("/status") {
            Ok(status) if status["credentials"]["expired"] == false && status["controller"]["connected"] == true => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        })?;
    }
    wait_until(BACK, || exchange(&stage.client, stage.address()))?;
    // All of it by themselves: they are the processes that were there before.
    status_until(&stage.client, |status| status["ca"]["failures"].as_u64() > Some(0))?;
    Ok(())
}
