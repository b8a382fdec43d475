//! Rules and modes change under open connections.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::MeshPod;
use countersign_kit::{Inside, wait_until};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::stage::{CLIENT, PORT, RULES, SOON, Stage, at, controller_until, policy, status_until, text};
use crate::talk::{Echo, End, Talk, account, exchange, refused};

/// Within this a change is to be everywhere.
const BITE: Duration = Duration::from_secs(2);
/// Within this of the sidecar's receiving the change, what it no longer allows has ended at the other end of the mesh.
const ENDED: time::Duration = time::Duration::SECOND;
const OTHER: &str = "from: [{serviceAccounts: [{namespace: shop, name: other}]}]";
const ITSELF: &str = "from: [{serviceAccounts: [{namespace: shop, name: server}]}]";
const EVERYBODY: &str = "from: [{namespaces: [shop]}]";

/// When a sidecar put this revision in force, by its own log. The same rules have the same revision: they may have been in force before the
/// change was written, too.
fn received(pod: &MeshPod, revision: &str, written: OffsetDateTime) -> Result<OffsetDateTime> {
    let of_it = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let told = line["message"] == "controller: rules in force" && line["revision"] == revision;
        let at = OffsetDateTime::parse(line["timestamp"].as_str()?, &Rfc3339).ok()?;
        (told && at >= written).then_some(at)
    };
    let line = pod.with_sidecar(|sidecar| sidecar.wait_for_line(SOON, |line| of_it(line).is_some()))?;
    of_it(&line).context("it was one just now")
}

/// What a change has ended, by the line of the side that decided: soon after that sidecar received the change.
pub fn in_time(pod: &MeshPod, line: &Value, written: OffsetDateTime, ended: OffsetDateTime) -> Result<()> {
    let took = ended - received(pod, &text(line, "/policy_revision")?, written)?;
    ensure!(took >= time::Duration::ZERO && took < ENDED, "it ended {took} after the sidecar received the change");
    Ok(())
}

pub fn new_allow(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let other = stage.pod("other", 32)?;
    let line = refused(&other, stage.address())?;
    ensure!(line["result"] == "denied_by_peer" && line["denial_id"].is_string(), "{line}");

    let written = Instant::now();
    stage.mesh.object("other.yaml", &policy("other-to-server", "Allow", OTHER))?;
    wait_until(BITE, || exchange(&other, stage.address()))?;
    ensure!(written.elapsed() < BITE, "{:?}", written.elapsed());
    let line = stage.server.access_line(|line| line["rule"] == "shop/other-to-server#0")?;
    ensure!(line["result"] == "ok", "{line}");
    Ok(())
}

pub fn removed_rule(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    stage.mesh.object("other.yaml", &policy("other-to-server", "Allow", OTHER))?;
    let other = stage.pod("other", 32)?;
    let mut theirs = wait_until(SOON, || Talk::open(&other, stage.address()))?;
    let mut ours = Talk::open(&stage.client, stage.address()).context("opening ours")?;

    let written = OffsetDateTime::now_utc();
    stage.mesh.remove_object("other.yaml")?;
    ensure!(theirs.end(BITE)? == End::Reset);
    let ended = OffsetDateTime::now_utc();
    let line = stage.server.access_line(|line| line["result"] == "no_rule_matched" && line["bytes_received"] != 0)?;
    in_time(&stage.server, &line, written, ended)?;
    ensure!(line["denial_id"].is_string() && line["blame"] == "policy", "{line}");
    ensure!(line["source_id"] == "spiffe://cluster.local/ns/shop/sa/other", "{line}");
    ensure!(refused(&other, stage.address())?["result"] == "denied_by_peer");
    removed_for_itself(&stage)?;

    let local = ours.local;
    if let Err(error) = ours.say("still here\n") {
        anyhow::bail!("{error}: {}, {:#?}", account(&stage.client, local)?, stage.server.access_log());
    }
    ours.finish()?;
    ensure!(account(&stage.client, local)?["result"] == "ok");
    Ok(())
}

/// A pod that calls itself crosses no network, and its own rules bind it all the same.
fn removed_for_itself(stage: &Stage) -> Result<()> {
    stage.mesh.object("itself.yaml", &policy("server-to-itself", "Allow", ITSELF))?;
    let mut own = wait_until(SOON, || Talk::open(&stage.server, stage.address()))?;
    let written = OffsetDateTime::now_utc();
    stage.mesh.remove_object("itself.yaml")?;
    ensure!(own.end(BITE)? == End::Reset);
    let ended = OffsetDateTime::now_utc();
    let line = account(&stage.server, own.local)?;
    ensure!(line["result"] == "no_rule_matched" && line["blame"] == "policy", "{line}");
    ensure!(line["security"] == "local" && line["denial_id"].is_string(), "{line}");
    in_time(&stage.server, &line, written, ended)
}

pub fn bad_file(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let mut open = Talk::open(&stage.client, stage.address())?;
    let good = policy("client-to-server", "Allow", CLIENT);
    stage.mesh.object(RULES, &format!("{good}    to: [{{ports: [70000]}}]\n"))?;

    let problem = |status: &Value| status["source"]["problems"].as_array().and_then(|all| all.first()).cloned();
    let status = controller_until(&stage.mesh, |status| problem(status).is_some())?;
    let problem_now = problem(&status).context("seen just now")?;
    ensure!(problem_now["file"] == RULES, "{problem_now}");
    let line = good.lines().count() + 1;
    ensure!(problem_now["line"] == line, "line {line}: {problem_now}");
    ensure!(problem_now["field"] == "spec.rules[0].to[0].ports[0]", "{problem_now}");
    ensure!(text(&problem_now, "/message")?.contains("70000"), "{problem_now}");
    ensure!(status["ready"] == true, "{status}");
    open.say("still here\n")?;
    exchange(&stage.client, stage.address())?;

    stage.mesh.object(RULES, &good)?;
    controller_until(&stage.mesh, |status| problem(status).is_none())?;
    open.say("still here\n")?;
    Ok(())
}

pub fn deny_and_back(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let mut open = Talk::open(&stage.client, stage.address())?;
    stage.mesh.object("deny.yaml", &policy("nobody", "Deny", EVERYBODY))?;
    ensure!(open.end(BITE)? == End::Reset);
    let line = stage.server.access_line(|line| line["result"] == "denied_by_rule")?;
    ensure!(line["rule"] == "shop/nobody#0" && line["denial_id"].is_string(), "{line}");
    let told = refused(&stage.client, stage.address())?;
    let same = stage.server.access_line(|line| line["denial_id"] == told["denial_id"])?;
    ensure!(told["denial_id"].is_string() && same["rule"] == "shop/nobody#0", "{told} and {same}");

    stage.mesh.remove_object("deny.yaml")?;
    wait_until(BITE, || exchange(&stage.client, stage.address()))?;
    Ok(())
}

pub fn audit_rule(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    stage.mesh.object("deny.yaml", &policy("watched", "Deny\n  mode: Audit", EVERYBODY))?;
    stage.mesh.object("allow.yaml", &policy("tried", "Allow\n  mode: Audit", OTHER))?;
    let other = stage.pod("other", 32)?;
    stage.mesh.settle(&[&stage.server])?;
    status_until(&stage.server, |status| status["policy"]["rules"] == 3)?;

    exchange(&stage.client, stage.address())?;
    let line = stage.server.access_line(|line| line["would_deny"].is_string())?;
    ensure!(line["result"] == "ok" && line["would_deny"] == "shop/watched#0", "{line}");
    ensure!(line["rule"] == "shop/client-to-server#0", "{line}");
    // An Allow that only watches admits nobody.
    ensure!(refused(&other, stage.address())?["result"] == "denied_by_peer");
    Ok(())
}

pub fn audit_posture(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let other = stage.pod("other", 32)?;
    ensure!(refused(&other, stage.address())?["result"] == "denied_by_peer");
    stage.modes("countersign.dev/posture: Audit", ["Strict", "Audit", "Any"])?;
    let mut open = Talk::open(&other, stage.address())?;
    exchange(&other, stage.address())?;
    let line = stage.server.access_line(|line| line["would_deny"].is_string())?;
    ensure!(line["result"] == "ok" && line["would_deny"] == "no_rule_matched", "{line}");

    // Enforced again, it ends what only the posture had let in.
    stage.modes("countersign.dev/posture: Enforce", ["Strict", "Enforce", "Any"])?;
    ensure!(open.end(BITE)? == End::Reset);
    Ok(())
}

pub fn bad_labels(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let stranger = stage.stranger(34)?;
    stage
        .mesh
        .object("open.yaml", &policy("open", "Allow", "from: [{unauthenticated: true, ipBlocks: [10.77.0.0/24]}]"))?;
    stage.mesh.remove_object(RULES)?;
    let strangers = Echo::start(&stranger, PORT)?;
    let good = "countersign.dev/mtls: Permissive, countersign.dev/posture: Audit, countersign.dev/egress: Any";
    stage.modes(good, ["Permissive", "Audit", "Any"])?;
    exchange(&stage.client, at(&stranger, PORT))?;
    exchange(&stage.client, stage.address())?;

    let bad = "countersign.dev/mtls: permissive, countersign.dev/posture: off, countersign.dev/egress: all";
    stage.modes(bad, ["Strict", "Enforce", "MeshOnly"])?;
    let status = stage.mesh.controller_status()?;
    let warnings = status["source"]["warnings"].to_string();
    for label in ["countersign.dev/mtls", "countersign.dev/posture", "countersign.dev/egress"] {
        ensure!(warnings.contains(label), "{label} is not named: {warnings}");
    }
    let line = refused(&stage.client, at(&stranger, PORT))?;
    ensure!(line["result"] == "egress_mesh_only", "{line}");
    let line = refused(&stage.client, stage.address())?;
    ensure!(line["result"] == "denied_by_peer", "{line}");
    ensure!(strangers.greeted() == 1, "the stranger was reached again");
    Ok(())
}
