//! Install, upgrade, uninstall, as an operator types it.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::{Nobody, Others};
use countersign_cluster_tests::{Cluster, LONGEST, Namespace, Promise, until};
use serde_json::{Value, json};

use crate::mesh::{INJECT, SYSTEM, alone, install, install_with, installed, pair, stranger};

pub const PROMISES: &[Promise] = &[
    ("check_finds_an_installed_mesh_in_order", Nobody, check),
    ("an_upgrade_keeps_the_cas_state_and_the_webhooks_certificate_and_fails_no_request", Nobody, upgrade),
    ("check_names_a_missing_permission_an_ended_certificate_and_a_pod_that_should_be_meshed", Nobody, check_finds),
    ("the_demo_is_applied_by_one_command_and_holds_its_rules", Others, demo),
    ("uninstall_leaves_nothing_and_the_mesh_can_be_installed_again", Nobody, uninstall),
];

fn check(cluster: &Cluster) -> Result<()> {
    let _namespace = pair(cluster, "install-check")?;
    well(cluster).map(drop)
}

/// What `check` says when it finds nothing. What an earlier test left, as a pod whose app has ended, may need some seconds to go.
fn well(cluster: &Cluster) -> Result<String> {
    until(Duration::from_secs(60), "all is well", || cluster.countersign_says(&["check"]))
}

/// Exit code 1, and a line `problem CHECK ...` with these words; with `--output json`, as programs read it.
fn finds(cluster: &Cluster, check: &str, words: &[&str]) -> Result<()> {
    let output = cluster.countersign(&["--output", "json", "check"]).output().context("countersign check")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code() == Some(1),
        "{check}: {:?}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let findings: Vec<Value> = serde_json::from_str(&said).with_context(|| said.clone())?;
    let found = findings.iter().find(|finding| finding["check"] == check).with_context(|| said.clone())?;
    ensure!(found["state"] == "problem" && found["do"].is_string(), "{found}");
    let says = found["says"].as_str().unwrap_or_default();
    ensure!(words.iter().all(|word| says.contains(word)), "{words:?}: {says}");
    Ok(())
}

/// Ended with the year 2000.
const ENDED: &str = "\
-----BEGIN CERTIFICATE-----
MIIBBzCBrgIBATAKBggqhkjOPQQDAjAQMQ4wDAYDVQQDDAVlbmRlZDAeFw0wMDAx
MDEwMDAwMDBaFw0wMTAxMDEwMDAwMDBaMBAxDjAMBgNVBAMMBWVuZGVkMFkwEwYH
KoZIzj0CAQYIKoZIzj0DAQcDQgAEqxm7FpYieIHPCz4eyL18BQ9JDy7y7TYf5hB3
a/f10blEepBXB4M2gCJWutU1RCiNB6SMIevAON1weozq/XTadDAKBggqhkjOPQQD
AgNIADBFAiEAoA4Z4ZpYJeK9utXkT3wa4UeGHzrrXo6Q9Aqu2xZ+dK0CIEceGfwl
SwKKJddd4NGiLUnorLiwA1ncf9qNBwHV9suK
-----END CERTIFICATE-----
";

fn check_finds(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    let said = well(cluster).context("at first")?;
    // Two replicas of each of the three were asked.
    ensure!(said.contains("6 processes have good ones; the first to end: countersign-"), "{said}");

    let late = stranger(cluster, "install-late")?;
    cluster.kubectl(&["label", "namespace", late.name, INJECT])?;
    finds(cluster, "pods to be meshed", &["install-late/client"])?;
    cluster.kubectl(&["label", "namespace", late.name, "countersign.dev/inject-"])?;

    let without = r#"[{"op": "remove", "path": "/rules/1"}]"#;
    cluster.kubectl(&["patch", "clusterrole", "countersign-controller", "--type=json", "--patch", without])?;
    let found = finds(cluster, "permissions", &["countersign-controller", "endpointslices"]);
    install(cluster)?;
    found?;

    // With the injector away, which would put it right at once.
    let scale = |replicas: &str| {
        cluster.kubectl(&["-n", SYSTEM, "scale", "deployment/countersign-injector", &format!("--replicas={replicas}")])
    };
    scale("0")?;
    let found = ended(cluster);
    scale("2")?;
    install(cluster)?;
    found?;
    until(Duration::from_secs(60), "all is well again", || cluster.countersign_says(&["check"])).map(drop)
}

fn ended(cluster: &Cluster) -> Result<()> {
    until(Duration::from_secs(60), "the injector is away", || {
        let pods = ["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/name=countersign-injector", "-o", "name"];
        let pods = cluster.kubectl(&pods)?;
        ensure!(pods.is_empty(), "{pods}");
        Ok(())
    })?;
    let mut encode =
        std::process::Command::new("base64").arg("--wrap=0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    encode.stdin.take().context("its input")?.write_all(ENDED.as_bytes())?;
    let bundle = String::from_utf8(encode.wait_with_output()?.stdout)?;
    let patch = json!([{ "op": "replace", "path": "/webhooks/1/clientConfig/caBundle", "value": bundle }]).to_string();
    cluster.kubectl(&[
        "patch",
        "validatingwebhookconfiguration",
        "countersign-policies",
        "--type=json",
        "--patch",
        &patch,
    ])?;
    finds(cluster, "webhook certificate", &["the caBundle of ephemeral.countersign.dev ended"])?;
    finds(cluster, "injection", &["pods that are labelled in are refused"])
}

fn demo(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/demo");
    let shop = Namespace { cluster, name: "shop" };
    let gone = ["delete", "namespace", shop.name, "--ignore-not-found", "--timeout=120s"];
    cluster.kubectl(&gone)?;
    cluster.kubectl(&["apply", "-k", folder])?;
    for name in ["frontend", "orders", "stock"] {
        shop.rolled_out(&format!("deployment/{name}"))?;
    }
    // No label says otherwise: Strict and Enforce.
    let answer = until(Duration::from_secs(30), "frontend reaches orders", || {
        shop.curl("deployment/frontend", "http://orders/")
    })?;
    ensure!(answer.contains("three left in stock"), "orders asks stock: {answer}");
    shop.refused("deployment/frontend", "http://stock/")?;
    cluster.kubectl(&gone).map(drop)
}

fn upgrade(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "install-upgrade")?;
    long_lived(cluster)?;
    // Not an upgrade of a mesh that has just been made: what is there now was written by a process before.
    let before = kept(cluster)?;
    let load = namespace.load("load", "http://server/", LONGEST, false)?;
    tagged(cluster, "next")?;
    install_with(cluster, &["--set", "image.tag=next"])?;
    same(&before, &kept(cluster)?)?;
    // Those that go are asked for some seconds more, the injector too.
    until(Duration::from_secs(60), "all of our own pods are of the new version", || {
        let pods = ["-n", SYSTEM, "get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}"];
        let images = cluster.kubectl(&pods)?;
        ensure!(images.split(' ').count() == 6 && images.split(' ').all(|image| image.ends_with(":next")), "{images}");
        Ok(())
    })?;
    // A sidecar that is made now is a new one, and is understood by those that were there. `check` names these.
    alone(&namespace)?;
    let pod = namespace.object(&["get", "pod", "alone"])?;
    ensure!(pod["spec"]["initContainers"][1]["image"] == "localhost/countersign-proxy:next", "{pod}");
    until(Duration::from_secs(20), "it is understood", || namespace.curl("pod/alone", "http://server/"))?;
    let said = well(cluster)?;
    ensure!(said.contains("do not run localhost/countersign-proxy:next: "), "{said}");
    load.end()?;
    load.nothing_failed()?;
    install(cluster)?;
    same(&before, &kept(cluster)?)
}

/// Our images by a further tag on each node: another version, as far as a cluster sees.
fn tagged(cluster: &Cluster, tag: &str) -> Result<()> {
    for node in ["node0", "node1"] {
        for program in ["ca", "controller", "injector", "proxy"] {
            let image = |tag: &str| format!("localhost/countersign-{program}:{tag}");
            let (from, to) = (image(env!("CARGO_PKG_VERSION")), image(tag));
            cluster.on(node, &["ctr", "--namespace", "k8s.io", "images", "tag", "--force", &from, &to])?;
        }
    }
    Ok(())
}

/// What a restart of the CA must keep, each by a name: the roots, its state, and the key that seals it.
pub fn kept_by_ca(cluster: &Cluster) -> Result<Vec<(String, Value)>> {
    let objects =
        [("configmap", "countersign-bundle"), ("secret", "countersign-ca-state"), ("secret", "countersign-ca-key")];
    let kept = objects.into_iter().map(|(kind, name)| object(cluster, kind, name));
    Ok(kept.collect::<Result<Vec<_>>>()?.concat())
}

/// What an object of ours holds, and which one it is.
fn object(cluster: &Cluster, kind: &str, name: &str) -> Result<[(String, Value); 2]> {
    let mut object = cluster.object(&["-n", SYSTEM, "get", kind, name])?;
    if let Some(data) = object["data"].as_object_mut() {
        // Which processes sign now: another one after each restart.
        data.remove("ca.replicas");
    }
    ensure!(object["data"].as_object().is_some_and(|data| !data.is_empty()), "{name} is empty");
    let (data, uid) = (object["data"].clone(), object["metadata"]["uid"].clone());
    Ok([(format!("{kind} {name}"), data), (format!("uid of {kind} {name}"), uid)])
}

/// What an upgrade must keep: what `kept_by_ca` names, the injector's certificates, and whom the API server believes to be the injector, in each of its
/// webhooks.
pub fn kept(cluster: &Cluster) -> Result<Vec<(String, Value)>> {
    let mut kept = kept_by_ca(cluster)?;
    kept.extend(object(cluster, "secret", "countersign-injector-tls")?);
    for (kind, name) in [
        ("mutatingwebhookconfiguration", "countersign-injector"),
        ("validatingwebhookconfiguration", "countersign-policies"),
    ] {
        let object = cluster.object(&["get", kind, name])?;
        let webhooks = object["webhooks"].as_array().context("webhooks")?;
        ensure!(webhooks.len() == 2, "{object}");
        for webhook in webhooks {
            let bundle = &webhook["clientConfig"]["caBundle"];
            ensure!(bundle.as_str().is_some_and(|bundle| bundle.len() > 100), "no caBundle: {webhook}");
            kept.push((format!("caBundle of {}", webhook["name"]), bundle.clone()));
        }
    }
    Ok(kept)
}

/// Waits until none of the injector's certificates ends soon: those of a promise that made them live for a minute are dropped as they end.
fn long_lived(cluster: &Cluster) -> Result<()> {
    let ring = r#"go-template={{index .data "ring.json" | base64decode}}"#;
    until(Duration::from_secs(90), "the injector's certificates live for long", || {
        // Its keys are in there too: of what is read, only the ends may be said.
        let ring = cluster.kubectl(&["-n", SYSTEM, "get", "secret", "countersign-injector-tls", "-o", ring])?;
        let ring: Value = serde_json::from_str(&ring).ok().context("the ring is no JSON")?;
        let ends: Vec<_> = ring["pairs"].as_array().into_iter().flatten().map(|pair| pair["ends"].as_u64()).collect();
        let soon = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 600;
        ensure!(!ends.is_empty() && ends.iter().all(|end| *end > Some(soon)), "{ends:?}");
        Ok(())
    })
}

/// Names what is another.
pub fn same(before: &[(String, Value)], after: &[(String, Value)]) -> Result<()> {
    let other: Vec<_> = before.iter().filter(|kept| !after.contains(kept)).map(|(name, _)| name).collect();
    ensure!(other.is_empty() && before.len() == after.len(), "not what it was: {other:?}");
    Ok(())
}

fn uninstall(cluster: &Cluster) -> Result<()> {
    let _namespace = pair(cluster, "install-gone")?;
    let uninstall = ["uninstall", "--yes", "--ca-state", "remove"];
    let Err(refusal) = cluster.countersign_says(&uninstall) else {
        anyhow::bail!("it went on although pods have a sidecar");
    };
    let why = format!("{refusal:#}");
    ensure!(why.contains("has a sidecar: "), "{why}");
    // Nothing was taken away by the one that refused.
    kept(cluster)?;
    let forced: Vec<_> = uninstall.iter().copied().chain(["--force"]).collect();
    cluster.countersign_says(&forced).context("uninstall")?;
    let everything = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<_> = everything.lines().filter(|kind| !kind.starts_with("events")).collect();
    let left = cluster.kubectl(&["get", &kinds.join(","), "-A", "-o", "name", "--ignore-not-found"])?;
    let left: Vec<_> = left.lines().filter(|name| name.contains("countersign")).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    install(cluster).context("installing it again")
}
