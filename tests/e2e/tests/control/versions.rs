//! Versions N-1 and N of proxy and controller together. The kit speaks for the other version (`countersign_kit::versions`): with one feature
//! fewer than the built programs know, or with one more. What is not known admits nobody, and is told.

use anyhow::{Context as _, Result, ensure};
use countersign_api::controller::{Action, Rule};
use countersign_kit::mesh::{MeshPodSpec, binary};
use countersign_kit::versions::{OtherController, Proxy};
use countersign_kit::{Inside, wait_until};
use serde_json::{Value, json};

use crate::stage::{CLIENT_ID, SERVER_ID, SOON, Stage, controller_until, policy, status_until, text};
use crate::talk::{End, Talk, account, exchange, refused};

/// The feature that the rule of the stage needs, as the built controller says it.
fn feature(rules: &[Rule]) -> Result<u32> {
    let rule = rules.iter().find(|rule| rule.name == "client-to-server").context("no rule came")?;
    Ok(rule.feature)
}

pub fn older_proxy(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    // The rule binds all that bear the server's label.
    let spec = MeshPodSpec { account: "older".into(), ..MeshPodSpec::new("older", "server", 36) };
    let pod = stage.known(spec.without_sidecar())?;
    let of_older = |status: &Value| {
        let all = status["proxies"].as_array()?;
        all.iter().find(|proxy| proxy["pod_uid"] == pod.spec().uid().as_str()).cloned()
    };
    let current = |status: &Value, unknown: &Value| {
        of_older(status).is_some_and(|proxy| {
            proxy["unknown_rules"] == *unknown
                && proxy["sent_revision"].is_string()
                && proxy["sent_revision"] == proxy["acked_revision"]
        })
    };
    let newest = {
        let same = Proxy::start(&stage.mesh, &pod, u32::MAX)?;
        let newest = feature(&same.rules(|rules| !rules.is_empty())?)?;
        controller_until(&stage.mesh, |status| current(status, &json!([])))?;
        newest
    };
    ensure!(newest > 0, "a rule without a feature is read by everybody");

    // With one feature fewer it gets the same rule, marked as beyond it, and not a lesser one in its place; the controller knows whom it lacks.
    let older = Proxy::start(&stage.mesh, &pod, newest - 1)?;
    let rules = older.rules(|rules| !rules.is_empty())?;
    ensure!(rules.len() == 1 && rules[0].feature == newest && rules[0].action() == Action::Allow, "{rules:?}");
    controller_until(&stage.mesh, |status| current(status, &json!(["shop/client-to-server"])))?;
    // Rules go on coming, and nobody else notices.
    stage.mesh.object("deny.yaml", &policy("nobody", "Deny", "from: [{namespaces: [elsewhere]}]"))?;
    let rules = older.rules(|rules| rules.len() == 2)?;
    ensure!(rules.iter().any(|rule| rule.name == "nobody" && rule.action() == Action::Deny && rule.feature == newest));
    controller_until(&stage.mesh, |status| current(status, &json!(["shop/client-to-server", "shop/nobody"])))?;
    exchange(&stage.client, stage.address())?;
    Ok(())
}

/// A rule as a controller of another version sends it.
fn rule(name: &str, action: Action, feature: u32, account: &str) -> Rule {
    let word = if action == Action::Allow { "Allow" } else { "Deny" };
    let from = json!([{ "serviceAccounts": [{ "namespace": "shop", "name": account }] }]);
    let policy = json!({
        "apiVersion": "policy.countersign.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": "shop" }, "spec": { "action": word, "rules": [{ "from": from }] },
    });
    Rule {
        namespace: "shop".into(),
        name: name.into(),
        action: action.into(),
        feature,
        policy_json: policy.to_string(),
    }
}

/// The stage under a controller of another version, at the address of its own; and the newest feature that its sidecars know.
fn other_controller(stage: &Stage, further: &countersign_kit::mesh::MeshPod) -> Result<(OtherController, u32)> {
    stage.mesh.stop_controller();
    let other = OtherController::start(&stage.mesh, &[&stage.client, &stage.server, further])?;
    let hellos = [&stage.client, &stage.server, further].map(|pod| other.hello(pod));
    let levels = hellos.into_iter().map(|hello| Ok(hello?.feature_level)).collect::<Result<Vec<_>>>()?;
    ensure!(levels.iter().all(|level| *level == levels[0] && *level > 0), "{levels:?}");
    Ok((other, levels[0]))
}

pub fn older_controller(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let stranger = stage.pod("other", 32)?;
    let mut open = Talk::open(&stage.client, stage.address())?;
    let (older, newest) = other_controller(&stage, &stranger)?;
    // It has no word for modes, nodes or the newest feature: absent is the strictest.
    let allow = rule("client-to-server", Action::Allow, newest - 1, "client");
    let ack = older.rules(&stage.server, "older-1", vec![allow.clone()])?;
    ensure!(ack.problem.is_empty() && ack.unknown_rules.is_empty(), "{ack:?}");
    let status = status_until(&stage.server, |status| status["policy"]["revision"] == "older-1")?;
    ensure!(
        status["policy"]["modes"] == json!({ "mtls": "Strict", "posture": "Enforce", "egress": "MeshOnly" }),
        "{status}"
    );
    wait_until(SOON, || exchange(&stage.client, stage.address()))?;
    ensure!(refused(&stranger, stage.address())?["result"] == "denied_by_peer");
    // Rules bind what is open as well.
    let mut again = Talk::open(&stage.client, stage.address())?;
    older.rules(&stage.server, "older-2", vec![allow, rule("nobody", Action::Deny, newest - 1, "client")])?;
    ensure!(again.end(SOON)? == End::Reset);
    let _ = open.end(SOON);
    // And back to the newer one.
    drop(older);
    stage.mesh.start_controller()?;
    wait_until(SOON, || exchange(&stage.client, stage.address()))?;
    Ok(())
}

pub fn newer_controller(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let other = stage.pod("other", 32)?;
    let (newer, knows) = other_controller(&stage, &other)?;
    let known = rule("client-to-server", Action::Allow, knows, "client");
    // An Allow that the sidecar does not know, for somebody whom it would admit if the feature were passed over.
    let allow = rule("newer", Action::Allow, knows + 1, "other");
    let ack = newer.rules(&stage.server, "newer-1", vec![known.clone(), allow])?;
    ensure!(ack.unknown_rules == ["shop/newer"] && ack.problem.is_empty(), "{ack:?}");
    wait_until(SOON, || exchange(&stage.client, stage.address()))?;
    let line = refused(&other, stage.address())?;
    ensure!(line["result"] == "denied_by_peer", "{line}");
    let said = explained(&stage, &line)?;
    ensure!(said.contains("denied: no_rule_matched") && said.contains("spec asks feature"), "{said}");

    // A Deny that it does not know concerns everybody, until it is updated; what is open ends.
    let mut open = Talk::open(&stage.client, stage.address())?;
    let deny = rule("newer", Action::Deny, knows + 1, "other");
    let ack = newer.rules(&stage.server, "newer-2", vec![known.clone(), deny])?;
    ensure!(ack.unknown_rules == ["shop/newer"], "{ack:?}");
    ensure!(open.end(SOON)? == End::Reset);
    let line = refused(&stage.client, stage.address())?;
    let said = explained(&stage, &line)?;
    ensure!(said.contains("denied: denied_by_unknown_rule (shop/newer)") && said.contains(CLIENT_ID), "{said}");
    ensure!(said.contains("change    update this proxy: it cannot read the Deny shop/newer"), "{said}");

    newer.rules(&stage.server, "newer-3", vec![known])?;
    wait_until(SOON, || exchange(&stage.client, stage.address()))?;
    Ok(())
}

/// The played controller errs about who is at an address, once: the connection that finds out asks again, and is carried.
pub fn mistaken(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    stage.mesh.stop_controller();
    let other = OtherController::start(&stage.mesh, &[&stage.client, &stage.server])?;
    let knows = other.hello(&stage.server)?.feature_level;
    other.rules(&stage.server, "other-1", vec![rule("client-to-server", Action::Allow, knows, "client")])?;
    other.rules(&stage.client, "other-1", Vec::new())?;
    other.mistakes(&stage.server, "treasurer");
    let local = exchange(&stage.client, stage.address())?;
    let line = account(&stage.client, local)?;
    ensure!(line["result"] == "ok" && line["destination_id"] == SERVER_ID, "{line}");
    let asked = other.asked(stage.address().ip());
    ensure!(asked == 2, "it was asked {asked} times");
    Ok(())
}

/// What `countersign explain` says of a refusal.
fn explained(stage: &Stage, line: &Value) -> Result<String> {
    let command = stage.mesh.system().command(binary("countersign")?).args(["explain", &text(line, "/denial_id")?]);
    command.arg("--dir").arg(stage.mesh.folder()).succeed()
}
