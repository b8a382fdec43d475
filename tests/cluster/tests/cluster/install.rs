//! Install, upgrade, uninstall, as an operator types it.

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Nobody;
use countersign_cluster_tests::{Cluster, Promise};
use serde_json::Value;

use crate::mesh::{SYSTEM, install, install_with, pair};

pub const PROMISES: &[Promise] = &[
    ("check_finds_an_installed_mesh_in_order", Nobody, check),
    ("an_upgrade_keeps_the_cas_state_and_the_webhooks_certificate_and_fails_no_request", Nobody, upgrade),
    ("uninstall_leaves_nothing_and_the_mesh_can_be_installed_again", Nobody, uninstall),
];

fn check(cluster: &Cluster) -> Result<()> {
    let _namespace = pair(cluster, "install-check")?;
    cluster.countersign_says(&["check"]).map(drop)
}

fn upgrade(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "install-upgrade")?;
    let before = kept(cluster)?;
    let load = namespace.load("load", "http://server/", 60, false)?;
    install_with(cluster, &["--set", "log=debug"])?;
    let after = kept(cluster)?;
    ensure!(before == after, "an upgrade changed what it must keep");
    load.nothing_failed()?;
    install(cluster)
}

/// The roots, the key of the CA's state, and whom the API server believes to be the injector.
fn kept(cluster: &Cluster) -> Result<[Value; 3]> {
    let bundle = cluster.object(&["-n", SYSTEM, "get", "configmap", "countersign-bundle"])?;
    let key = cluster.object(&["-n", SYSTEM, "get", "secret", "countersign-ca-key"])?;
    let webhooks = cluster.object(&["get", "mutatingwebhookconfiguration", "countersign-injector"])?;
    let kept =
        [bundle["data"].clone(), key["data"].clone(), webhooks["webhooks"][0]["clientConfig"]["caBundle"].clone()];
    ensure!(kept.iter().all(|value| !value.is_null()), "something is not there");
    Ok(kept)
}

fn uninstall(cluster: &Cluster) -> Result<()> {
    let _namespace = pair(cluster, "install-gone")?;
    let uninstall = ["uninstall", "--yes", "--ca-state", "remove"];
    ensure!(cluster.countersign_says(&uninstall).is_err(), "it went on although pods have a sidecar");
    let forced: Vec<_> = uninstall.iter().copied().chain(["--force"]).collect();
    cluster.countersign_says(&forced).context("uninstall")?;
    let everything = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<_> = everything.lines().filter(|kind| !kind.starts_with("events")).collect();
    let left = cluster.kubectl(&["get", &kinds.join(","), "-A", "-o", "name", "--ignore-not-found"])?;
    let left: Vec<_> = left.lines().filter(|name| name.contains("countersign")).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    install(cluster).context("installing it again")
}
