//! The CA and the controller, by what a cluster shows of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::{Nobody, Others};
use countersign_cluster_tests::{Cluster, Namespace, Promise, until};

use crate::mesh::{INJECT, SYSTEM, installed};

pub const PROMISES: &[Promise] = &[
    ("the_roots_are_in_every_meshed_namespace_and_are_put_right_when_edited", Others, roots),
    ("a_restarted_ca_goes_on_with_its_state", Nobody, restarted_ca),
    ("a_rule_says_in_its_status_that_it_is_accepted", Others, status),
    ("our_own_pods_hold_the_restricted_profile", Others, restricted),
];

const LIMIT: Duration = Duration::from_secs(20);

fn roots(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    let namespace = Namespace::new(cluster, "plane-roots", &[INJECT])?;
    let own = bundle(cluster, SYSTEM)?;
    ensure!(own.contains("BEGIN CERTIFICATE"), "{own}");
    let in_step = || {
        let theirs = bundle(cluster, namespace.name)?;
        ensure!(theirs == own, "{theirs}");
        Ok(())
    };
    until(LIMIT, "the roots come", in_step)?;
    let edit = r#"{"data": {"bundle.pem": "something else"}}"#;
    namespace.kubectl(&["patch", "configmap", "countersign-bundle", "--patch", edit])?;
    until(LIMIT, "the roots are put right", in_step)?;
    namespace.kubectl(&["delete", "configmap", "countersign-bundle"])?;
    until(LIMIT, "the roots are put back", in_step)
}

/// The roots as a namespace's pods would get them.
fn bundle(cluster: &Cluster, namespace: &str) -> Result<String> {
    let args = ["-n", namespace, "get", "configmap", "countersign-bundle", "-o", r"jsonpath={.data.bundle\.pem}"];
    cluster.kubectl(&args)
}

fn restarted_ca(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    let before = bundle(cluster, SYSTEM)?;
    cluster.kubectl(&["-n", SYSTEM, "delete", "pods", "-l", "app.kubernetes.io/name=countersign-ca"])?;
    cluster.kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/countersign-ca", "--timeout=120s"])?;
    ensure!(bundle(cluster, SYSTEM)? == before, "another root");
    // It signs again: a controller that starts gets its SVID before it is ready.
    cluster.kubectl(&["-n", SYSTEM, "rollout", "restart", "deployment/countersign-controller"])?;
    cluster.kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/countersign-controller", "--timeout=120s"])?;
    Ok(())
}

const RULE: &str = r"
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: rule}
spec: {action: Allow, rules: [{from: [{namespaces: [plane-status]}], to: [{ports: [8080]}]}]}
";

fn status(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    let namespace = Namespace::new(cluster, "plane-status", &[])?;
    namespace.apply(RULE)?;
    let wait = ["wait", "--for=condition=Accepted", "--timeout=20s", "azp/rule"];
    namespace.kubectl(&wait).context("by its short name")?;
    let columns = namespace.kubectl(&["get", "azp"])?;
    ensure!(columns.contains("ACTION") && columns.contains("Allow") && columns.contains("True"), "{columns}");
    Ok(())
}

fn restricted(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    let label = "pod-security.kubernetes.io/enforce=restricted";
    // The API server names each pod that is there and does not hold it.
    let mut command =
        cluster.kubectl_command(&["label", "namespace", SYSTEM, label, "--overwrite", "--dry-run=server"]);
    let output = command.output().context("kubectl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && !said.contains("violate"), "{said}");
    Ok(())
}
