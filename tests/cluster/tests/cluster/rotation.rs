//! The root is replaced: by what both replicas of the CA are told, and while one is lost.
//!
//! It runs alone: there is one root, and all who are meshed follow it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Nobody;
use countersign_cluster_tests::{Cluster, Promise, until};
use serde_json::Value;

use crate::mesh::{ALONE, SYSTEM, install, pair, system_said};
use crate::outage::under_load;
use crate::plane::staying;

pub const PROMISES: &[Promise] = &[
    ("a_rotation_whose_leading_replica_is_lost_is_resumed_and_ends_and_fails_no_request", Nobody, leader_lost),
    ("a_root_is_replaced_by_what_two_replicas_are_told_and_no_request_fails", Nobody, replaced),
];

const A_WHILE: Duration = Duration::from_secs(60);

fn leader_lost(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "rotation-leader")?;
    under_load(&namespace, || {
        let done = lost_in_mid_rotation(cluster);
        // Whatever became of it: all others live under this root.
        let under_way = status(cluster).is_ok_and(|status| status["under_way"] == true);
        if under_way && done.is_err() {
            let _ = countersign(cluster, &["ca", "abort", "--kubectl"]);
        }
        done.map_err(|error| system_said(cluster, error))
    })
}

fn lost_in_mid_rotation(cluster: &Cluster) -> Result<()> {
    let (before, first) = until(A_WHILE, "two replicas tell each other whom they know", || {
        let (before, first) = (replicas(cluster)?, status(cluster)?);
        ensure!(before.len() == 2, "{before:?}");
        for (pod, address) in &before {
            ensure!(told(&first, address) == Some(true), "{pod} at {address} was not asked, or did not tell: {first}");
        }
        Ok((before, first))
    })?;
    ensure!(first["under_way"] == false, "{first}");
    let (good, said) = countersign(cluster, &["ca", "prepare", "--kubectl", "-o", "json"])?;
    ensure!(good, "{said}");
    let id = said["rotation"]["id"].as_str().context("no rotation")?.to_owned();

    // Whoever took the step has said so.
    let led = before
        .iter()
        .find(|(pod, _)| cluster.kubectl(&["-n", SYSTEM, "logs", pod, "--tail=-1"]).is_ok_and(|log| log.contains(&id)));
    let (leader, address) = led.context("nobody took the step")?;
    // At once, as when a node is lost: nobody is told that it goes.
    cluster.kubectl(&["-n", SYSTEM, "delete", "pod", leader, "--force", "--grace-period=0"])?;

    let seen = until(A_WHILE, "another replica has the rotation, and says who does not answer", || {
        let seen = status(cluster)?;
        ensure!(seen["rotation"]["id"] == id.as_str() && seen["under_way"] == true, "{seen}");
        ensure!(told(&seen, address) == Some(false), "{seen}");
        Ok(seen)
    })?;
    // `distributed` where all had reported before it was lost: what was known of all stays so.
    if seen["rotation"]["stage"] == "prepared" {
        ensure!(seen["gate"]["open"] == false, "{seen}");
        // Asked again where it was the pod that starts that was asked.
        let (good, refusal) = until(A_WHILE, "a replica answers", || {
            countersign(cluster, &["ca", "activate", "--kubectl", "-o", "json"])
        })?;
        let why = refusal["refused"].as_str().unwrap_or_default();
        ensure!(!good && why.contains("activate is too early") && why.contains("does not answer"), "{refusal}");
    }
    cluster.kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/countersign-ca", "--timeout=120s"])?;
    // The one that took its place is asked as well.
    let now = replicas(cluster)?;
    until(A_WHILE, "both replicas that are there tell whom they know", || {
        let seen = status(cluster)?;
        ensure!(now.iter().all(|(_, address)| told(&seen, address) == Some(true)), "{now:?}: {seen}");
        Ok(())
    })?;
    let (good, said) = countersign(cluster, &["ca", "abort", "--kubectl", "-o", "json"])?;
    ensure!(good && said["rotation"]["stage"] == "aborted", "{said}");
    ensure!(said["rotation"]["id"] == id.as_str() && said["signing_root"] == first["signing_root"], "{said}");
    until(A_WHILE, "sidecars hold the bundle without the new root", || {
        let held = cluster.kubectl(&["-n", SYSTEM, "get", "configmap", "countersign-bundle", "-o", "yaml"])?;
        ensure!(held.matches("BEGIN CERTIFICATE").count() == 1, "{held}");
        Ok(())
    })
}

/// Leaves live an hour: whoever waited for their ends, and not for what holders report, would take longer by far.
const BY_REPORTS: Duration = Duration::from_secs(6 * 60);

fn replaced(cluster: &Cluster) -> Result<()> {
    // Other tests have ended replicas, and whom those had signed for is waited for. A CA that begins anew has none of that.
    let anew = || {
        cluster.countersign_says(&["uninstall", "--yes", "--force", "--ca-state", "remove"])?;
        install(cluster)
    };
    anew()?;
    let done = replaced_under_load(cluster).map_err(|error| system_said(cluster, error));
    if done.is_err() {
        anew()?;
    }
    done
}

fn replaced_under_load(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "rotation-reports")?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| Ok::<_, anyhow::Error>(folder.path().join(name).to_str().context("a path")?.to_owned());
    let (report, bundle) = (path("report.json")?, path("bundle.pem")?);
    let roots = || {
        let data = "jsonpath={.data.bundle\\.pem}";
        cluster.kubectl(&["-n", SYSTEM, "get", "configmap", "countersign-bundle", "-o", data])
    };
    let before = roots()?;
    under_load(&namespace, || {
        let rotate = ["ca", "rotate", "--kubectl", "--report", &report, "-o", "json"];
        let rotated = parsed(cluster.countersign_for(BY_REPORTS, &rotate), &rotate);
        // Who is waited for.
        let (good, said) = rotated.with_context(|| format!("{:?}", status(cluster)))?;
        ensure!(good && said["rotation"]["stage"] == "retired", "{said}");
        Ok(())
    })?;
    let said: Value = serde_json::from_str(&std::fs::read_to_string(&report)?)?;
    let (said, totals) = (&said["report"], &said["report"]["totals"]);
    // The client, two servers, two loads and two controllers.
    ensure!(totals["holders"].as_u64() >= Some(7) && totals["all_holders_known"] == true, "{totals}");
    ensure!(totals["holding_the_bundle"] == totals["holders"], "{totals}");
    ensure!(totals["leaves_of_the_new_root"] == totals["holders"], "{totals}");
    ensure!(totals["connections_failed"] == 0 && totals["connections_good"].as_u64() > Some(100), "{totals}");
    let stages = said["rotation"]["stages"].as_array().context("no stages")?;
    ensure!(stages.len() == 4 && stages.iter().all(|passed| passed["forced"] == false), "{stages:?}");
    for (pod, address) in replicas(cluster)? {
        ensure!(told(said, &address) == Some(true), "{pod} at {address} did not tell: {said}");
    }
    let after = roots()?;
    ensure!(after.matches("BEGIN CERTIFICATE").count() == 1 && after != before, "{after}");
    std::fs::write(&bundle, &after)?;
    let verified = cluster.countersign_says(&["ca", "report", "verify", &report, "--bundle", &bundle])?;
    ensure!(verified.contains("has signed it"), "{verified}");
    // A pod that starts now needs nothing of the old root.
    namespace.apply(&ALONE.replace("app: alone", "app: client"))?;
    namespace.ready("pod/alone")?;
    namespace.curl("pod/alone", "http://server/").map(drop)
}

/// Name and address of each pod of the CA that runs.
fn replicas(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    staying(cluster, "countersign-ca")?
        .iter()
        .map(|pod| Some((text(&pod["metadata"]["name"])?, text(&pod["status"]["podIP"])?)))
        .collect::<Option<_>>()
        .context("a pod without an address")
}

/// Whether the newest replica at that address told whom it knows; none if nobody there was asked.
fn told(status: &Value, address: &str) -> Option<bool> {
    let at =
        |one: &&Value| one["address"].as_str().is_some_and(|it| it.rsplit_once(':').is_some_and(|it| it.0 == address));
    status["replicas"].as_array()?.iter().rfind(at)?["told"].as_bool()
}

fn status(cluster: &Cluster) -> Result<Value> {
    let (good, said) = countersign(cluster, &["ca", "status", "--kubectl", "-o", "json"])?;
    ensure!(good, "{said}");
    Ok(said)
}

/// Whether it ended well, and what it printed.
fn countersign(cluster: &Cluster, args: &[&str]) -> Result<(bool, Value)> {
    parsed(cluster.countersign(args), args)
}

fn parsed(mut command: Command, args: &[&str]) -> Result<(bool, Value)> {
    let output = command.output().context("countersign")?;
    let said = serde_json::from_slice(&output.stdout);
    let said = said.with_context(|| format!("countersign {}: {output:?}", args.join(" ")))?;
    Ok((output.status.success(), said))
}
