//! Claim 5: a rule that goes ends what it alone allowed, at once and nothing else; who asks again is refused, and the denial says why.
//!
//! Called by `demo`. Both clients are curl in the middle of an answer: what ends and what goes on is told by them, why by the sidecar.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_kit::mesh::MeshPod;
use serde_json::Value;

use super::{answered, text, wait_for_lines};
use crate::demo::apps::{self, Download, LONG_PATH};
use crate::demo::say::{Say, millis};
use crate::demo::stage::Stage;

/// From the moment that the rule is gone from the controller's folder: reading it, telling the sidecar, ending the connection.
const ENDS: Duration = Duration::from_secs(5);

/// Shows and checks it.
pub fn check(stage: &Stage, say: &mut Say) -> Result<()> {
    stage.admit_intruder()?;
    say.fact(
        "a further rule, shop/visit, lets intruder in; frontend and intruder both read a long answer of backend-1",
    );
    let url = stage.pod_url(&stage.backends[0], LONG_PATH);
    let mut stays = open(stage, say, &stage.frontend, &url).context("frontend")?;
    let mut goes = open(stage, say, &stage.intruder, &url).context("intruder, which a rule lets in")?;
    stage.expel_intruder()?;
    let began = Instant::now();
    let last_words = goes.ends(ENDS).context("the rule is gone, and intruder's connection")?;
    let took = began.elapsed();
    say.fact(format!("the rule is taken away: {} later intruder's curl says: {last_words}", millis(took)));
    say.figure("ended_after_ms", took.as_secs_f64() * 1e3);
    stays.goes_on().context("frontend, whose rule is still there")?;
    say.fact(format!("frontend reads on ({} KiB so far)", stays.received() / 1024));
    explained(stage, say)
}

fn open(stage: &Stage, say: &Say, pod: &MeshPod, url: &str) -> Result<Download> {
    let download = Download::start(pod, url, stage.scratch(&format!("{}.out", pod.name())))?;
    say.command(pod.name(), download.line());
    Ok(download)
}

/// The next attempt is refused; the operator asks why.
fn explained(stage: &Stage, say: &mut Say) -> Result<()> {
    let url = stage.pod_url(&stage.backends[0], "/again");
    let marker = stage.marker();
    say.command("intruder", &apps::curl_line(&url, &marker));
    let done = apps::curl(&stage.intruder, &url, &marker)?;
    ensure!(!done.status.success() && done.stdout.is_empty(), "intruder was served: {}", done.text().trim());
    let denied = |line: &Value| text(line, "source_id") == stage.intruder_id && !text(line, "denial_id").is_empty();
    let lines = wait_for_lines(&[&stage.backends[0]], 1, "intruder's denial", denied)?;
    let id = lines.last().map(|line| text(line, "denial_id").to_owned()).unwrap_or_default();
    let sockets = stage.sockets().display().to_string();
    let explained = answered(stage, say, &["explain", &id, "--dir", &sockets])?;
    for part in [id.as_str(), &stage.intruder_id, "shop/frontend-to-backend", "add shop/intruder to"] {
        ensure!(explained.contains(part), "the explanation does not say {part:?}");
    }
    Ok(())
}
