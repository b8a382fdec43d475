//! Claim 3: who is not allowed is refused, with a reason; so is plaintext from a pod without a sidecar.
//!
//! Called by `demo`. That the application never saw the request is told by the application's own log; that it is the
//! rules and not a broken server, by `frontend`, which is served at the same moment.

use anyhow::{Result, ensure};
use countersign_kit::Namespace;
use serde_json::Value;

use super::{text, unseen, wait_for_lines};
use crate::demo::apps;
use crate::demo::say::Say;
use crate::demo::stage::Stage;

/// Shows and checks it.
pub fn check(stage: &Stage, say: &mut Say) -> Result<()> {
    intruder(stage, say)?;
    stranger(stage, say)?;
    let marker = stage.marker();
    let served = apps::curl(&stage.frontend, &stage.service_url("/"), &marker)?;
    ensure!(served.text().contains(&marker), "frontend is not served either: {}", served.errors().trim());
    say.fact("frontend, asking at the same moment, was served");
    Ok(())
}

/// Has an identity of the mesh, but no rule that allows it.
fn intruder(stage: &Stage, say: &mut Say) -> Result<()> {
    attempt(stage, say, "intruder", &stage.intruder, &stage.service_url("/intruder"))?;
    let backends: Vec<_> = stage.backends.iter().collect();
    let denied = |line: &Value| text(line, "direction") == "inbound" && text(line, "source_id") == stage.intruder_id;
    let lines = wait_for_lines(&backends, 1, "the server side's refusal of intruder", denied)?;
    let id = text(&lines[0], "denial_id").to_owned();
    ensure!(!id.is_empty() && text(&lines[0], "blame") == "policy", "the server side gives no denial: {}", lines[0]);
    told(say, "the server side", &lines[0]);
    let same = |line: &Value| text(line, "direction") == "outbound" && text(line, "denial_id") == id;
    let own = wait_for_lines(&[&stage.intruder], 1, "the same denial at intruder's own sidecar", same)?;
    told(say, "intruder's own sidecar", &own[0]);
    unseen(stage, "/intruder")
}

/// Has no sidecar and no identity: dials the pod itself, in the clear.
fn stranger(stage: &Stage, say: &mut Say) -> Result<()> {
    attempt(stage, say, "stranger", &stage.stranger, &stage.pod_url(&stage.backends[0], "/stranger"))?;
    let address = stage.stranger.v4().to_string();
    let from = |line: &Value| {
        text(line, "source_address").starts_with(&format!("{address}:")) && text(line, "result") == "plaintext_refused"
    };
    let lines = wait_for_lines(&[&stage.backends[0]], 1, "the refusal of stranger's plaintext", from)?;
    told(say, "the server side", &lines[0]);
    unseen(stage, "/stranger")
}

fn attempt(stage: &Stage, say: &mut Say, who: &str, place: &Namespace, url: &str) -> Result<()> {
    let marker = stage.marker();
    say.command(who, &apps::curl_line(url, &marker));
    let done = apps::curl(place, url, &marker)?;
    ensure!(!done.status.success() && done.stdout.is_empty(), "{who} was served: {}", done.text().trim());
    say.fact(done.errors().trim().to_owned());
    Ok(())
}

/// What a sidecar logged about a refusal, in its own words.
fn told(say: &mut Say, who: &str, line: &Value) {
    let from = match text(line, "source_id") {
        "" => text(line, "source_address"),
        id => id,
    };
    let mut words = vec![format!("{from} to {}: {}", text(line, "destination_address"), text(line, "result"))];
    words.extend(Some(text(line, "detail")).filter(|detail| !detail.is_empty()).map(str::to_owned));
    words.extend(Some(text(line, "denial_id")).filter(|id| !id.is_empty()).map(|id| format!("denial {id}")));
    say.fact(format!("{who} logged: {}", words.join("; ")));
}
