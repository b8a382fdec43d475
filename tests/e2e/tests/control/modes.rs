//! Who gets in without our mutual TLS, and how soon.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::{Inside, Pod, PodSpec};
use serde_json::Value;

use crate::stage::{PORT, SOON, Stage, at, policy, status_until};
use crate::talk::{Echo, End, Talk, exchange};

const PERMISSIVE: &str = "countersign.dev/mtls: Permissive";
/// What an unknown source is given to offer our mutual TLS.
const PATIENCE: Duration = Duration::from_millis(500);

/// Anybody of the IPv4 link may come in, on these ports.
fn strangers_welcome(to: &str) -> String {
    let rule = format!("from: [{{unauthenticated: true, ipBlocks: [10.77.0.0/24]}}]\n{to}");
    policy("strangers", "Allow", &rule)
}

fn permissive(inside: &Inside) -> Result<Stage> {
    let stage = Stage::new(inside)?;
    stage.mesh.object("strangers.yaml", &strangers_welcome(""))?;
    stage.modes(PERMISSIVE, ["Permissive", "Enforce", "Any"])?;
    status_until(&stage.server, |status| status["policy"]["rules"] == 2)?;
    Ok(stage)
}

/// The account of a connection that came to the server from this address.
fn came_from(stage: &Stage, pod: &Pod) -> Result<Value> {
    let from = format!("{}:", pod.v4());
    stage.server.access_line(|line| line["source_address"].as_str().is_some_and(|source| source.starts_with(&from)))
}

pub fn meshed_source(inside: &Inside) -> Result<()> {
    let stage = permissive(inside)?;
    // Known as meshed; but what it says goes out past any sidecar.
    let unguarded = stage.known(MeshPodSpec::new("unguarded", "unguarded", 35).without_sidecar())?;
    let mut talk = Talk::dial(&unguarded, stage.address())?;
    talk.tell("GET / HTTP/1.1\r\n\r\n")?;
    ensure!(talk.end(SOON)? == End::Reset);
    let line = came_from(&stage, &unguarded)?;
    ensure!(line["result"] == "plaintext_refused" && line["blame"] == "peer", "{line}");
    ensure!(stage.echo.greeted() == 0, "the app was reached");
    Ok(())
}

/// The soonest greeting of a few, each after these first words: one is late on a busy machine, not all.
fn soonest_greeting(from: &Pod, stage: &Stage, words: &str) -> Result<Duration> {
    let mut soonest = Duration::MAX;
    for _ in 0..5 {
        let mut talk = Talk::dial(from, stage.address())?;
        talk.tell(words)?;
        soonest = soonest.min(talk.greeted()?);
        talk.hear(words)?;
        talk.finish()?;
    }
    Ok(soonest)
}

pub fn unmeshed_source(inside: &Inside) -> Result<()> {
    let stage = permissive(inside)?;
    let stranger = stage.stranger(34)?;
    let took = soonest_greeting(&stranger, &stage, "")?;
    ensure!(took < PATIENCE / 2, "{took:?} until the greeting");
    let line = came_from(&stage, &stranger)?;
    ensure!(line["result"] == "ok" && line["security"] == "none" && line["source_id"].is_null(), "{line}");
    ensure!(line["rule"] == "shop/strangers#0", "{line}");
    // Only where rules allow: no block holds its IPv6 address.
    let mut talk = Talk::dial(&stranger, stage.address_v6())?;
    ensure!(talk.end(SOON)? == End::Reset);
    let line = stage.server.access_line(|line| line["result"] == "no_rule_matched")?;
    ensure!(line["security"] == "none" && line["denial_id"].is_string(), "{line}");
    // The meshed client is still asked for its certificate, and gives it.
    exchange(&stage.client, stage.address())?;
    stage.server.access_line(|line| line["security"] == "mutual_tls" && line["result"] == "ok")?;
    Ok(())
}

pub fn unknown_source(inside: &Inside) -> Result<()> {
    let stage = permissive(inside)?;
    // On the link, and in no object.
    let unknown = stage.mesh.net().pod(PodSpec::numbered("unknown", 60))?;
    let took = soonest_greeting(&unknown, &stage, "")?;
    ensure!((PATIENCE..4 * PATIENCE).contains(&took), "{took:?} until the greeting");
    let line = came_from(&stage, &unknown)?;
    ensure!(line["result"] == "ok" && line["security"] == "none" && line["source_id"].is_null(), "{line}");
    // Who speaks at once is not kept waiting.
    let took = soonest_greeting(&unknown, &stage, "first\n")?;
    ensure!(took < PATIENCE / 2, "{took:?} until the greeting of one who spoke");
    Ok(())
}

pub fn opened_port(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let closed = PORT + 1;
    let other = Echo::start(&stage.server, closed)?;
    let stranger = stage.stranger(34)?;
    let unknown = stage.mesh.net().pod(PodSpec::numbered("unknown", 60))?;
    stage.mesh.object("strangers.yaml", &strangers_welcome(&format!("    to: [{{ports: [{PORT}]}}]")))?;
    status_until(&stage.server, |status| status["policy"]["rules"] == 2)?;
    exchange(&stranger, stage.address())?;

    let refusals: [(&Pod, _, _); 3] = [
        (&stranger, at(&stage.server, closed), "another port"),
        (&stranger, stage.address_v6(), "from outside the blocks"),
        (&unknown, stage.address(), "by an unknown address inside the mesh"),
    ];
    for (from, to, what) in refusals {
        let mut talk = Talk::dial(from, to)?;
        talk.tell("let me in\n")?;
        ensure!(talk.end(SOON).context(what)? == End::Reset, "{what}");
    }
    ensure!((stage.echo.greeted(), other.greeted()) == (1, 0), "a refused one reached the app");
    let results =
        |pod: &MeshPod| -> Vec<Value> { pod.access_log().iter().map(|line| line["result"].clone()).collect() };
    stage.server.access_line(|line| line["source_address"].as_str().is_some_and(|s| s.starts_with("10.77.0.60:")))?;
    let results = results(&stage.server);
    ensure!(results == ["ok", "plaintext_refused", "plaintext_under_strict", "plaintext_refused"], "{results:?}");
    Ok(())
}
