//! Claim 6: the root certificate is replaced by the operators' own command, under load, and the CA signs a report of it.
//!
//! Called by `demo`. That nothing failed is told by the clients; that nothing of the old root is left, by the report and by the bundle.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_kit::{Running, wait_until};
use serde_json::Value;

use super::{answered, traffic, typed};
use crate::demo::say::Say;
use crate::demo::stage::Stage;

/// Two times 10 s that the CA waits by itself, a renewal of everybody, and a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// Shows and checks it.
pub fn check(stage: &Stage, say: &mut Say) -> Result<()> {
    let (processes, before) = (stage.processes()?, stage.mesh.roots()?);
    let report = stage.scratch("rotation.json");
    traffic::meanwhile(stage, say, |say| rotate(stage, say, &report))?;
    let after = stage.mesh.roots()?;
    ensure!(before.len() == 1 && after.len() == 1 && before != after, "the bundle is not the new root alone");
    ensure!(stage.processes()? == processes, "a process was started anew");
    say.fact("no sidecar was started anew; the bundle holds the new root alone");
    verified(stage, say, &report)
}

fn rotate(stage: &Stage, say: &mut Say, report: &Path) -> Result<()> {
    let (socket, file) = (stage.mesh.ca_socket().display().to_string(), report.display().to_string());
    let mut command = typed(stage, say, &["ca", "rotate", "--socket", &socket, "--report", &file])?.spawn()?;
    let mut told = 0;
    let ended = wait_until(LIMIT, || {
        let ended = command.ended();
        tell(say, &command, &mut told);
        if ended { Ok(()) } else { Err("it is still under way") }
    });
    ended.with_context(|| command.log().join("; "))?;
    let status = command.wait(LIMIT)?;
    let log = command.log_to_its_end(LIMIT);
    tell(say, &command, &mut told);
    ensure!(status.success(), "countersign ca rotate ended with {status}: {}", log.join("; "));
    Ok(())
}

/// What the command has said since the last look: each step, and what it waits for. Who is missing, line by line, is left to those who type it themselves.
fn tell(say: &mut Say, command: &Running, told: &mut usize) {
    let log = command.log();
    for line in log[*told..].iter().filter(|line| !line.starts_with(' ') || line.trim_start().starts_with("waits ")) {
        say.fact(line.clone());
    }
    *told = log.len();
}

fn verified(stage: &Stage, say: &mut Say, report: &Path) -> Result<()> {
    let (file, bundle) = (report.display().to_string(), stage.mesh.bundle().display().to_string());
    answered(stage, say, &["ca", "report", "verify", &file, "--bundle", &bundle])?;
    let report: Value = serde_json::from_slice(&std::fs::read(report)?).context("the report")?;
    let totals = &report["report"]["totals"];
    // The sidecars and the controller.
    let holders = stage.meshed().len() + 1;
    ensure!(
        totals["holders"] == holders && totals["leaves_of_the_new_root"] == holders,
        "not all leaves are new: {totals}"
    );
    ensure!(totals["all_holders_known"] == true && totals["connections_failed"] == 0, "{totals}");
    say.figure("holders", holders);
    say.figure("connections_good", totals["connections_good"].clone());
    Ok(())
}
