//! Rules by kubectl: how fast they bite, and what becomes of a bad one.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use countersign_cluster_tests::Beside::{Nobody, Others};
use countersign_cluster_tests::{Cluster, Promise};

use crate::mesh::{meshed, pair};

pub const PROMISES: &[Promise] = &[
    // It measures: three others beside it are not what it is about.
    ("a_rule_that_kubectl_applies_bites_within_two_seconds", Nobody, bites),
    ("a_bad_rule_is_refused_with_its_fields_name", Others, refused),
];

/// By its full name: a cluster may have another of this name.
const KIND: &str = "authorizationpolicies.policy.countersign.dev";

const DENY: &str = r"
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  selector: {matchLabels: {app: server}}
  action: Deny
  rules: [{to: [{ports: [8080]}]}]
";

fn bites(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "rules-bite")?;
    let url = "http://server/";
    for round in 0..3 {
        namespace.curl("pod/client", url)?;
        // From when it is typed until a refused request has come back: kubectl's own time is in it, and that of `exec`.
        let typed = Instant::now();
        namespace.apply(DENY)?;
        let bitten = loop {
            match namespace.refused("pod/client", url) {
                Ok(()) => break typed.elapsed(),
                Err(error) => ensure!(format!("{error:#}").contains("was answered"), "round {round}: {error:#}"),
            }
            ensure!(typed.elapsed() < Duration::from_secs(10), "round {round}: it does not bite");
        };
        ensure!(bitten < Duration::from_secs(2), "round {round}: it bit after {bitten:?}");
        namespace.kubectl(&["delete", KIND, "nobody"])?;
        let opened = countersign_cluster_tests::until(Duration::from_secs(10), "it bites no more", || {
            namespace.curl("pod/client", url)
        });
        opened?;
    }
    Ok(())
}

fn refused(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "rules-bad")?;
    let bad = [
        ("ports: [8080]", "ports: [70000]", "spec.rules[0].to[0].ports"),
        ("action: Deny", "action: Perhaps", "spec.action"),
        ("to:", "too:", "spec.rules[0].too"),
        ("matchLabels: {app: server}", "matchLabels: {}", "spec.selector.matchLabels"),
    ];
    for (good, bad, field) in bad {
        let answer = namespace.apply(&DENY.replace(good, bad));
        let Err(error) = answer else { anyhow::bail!("{bad} was taken") };
        let text = format!("{error:#}");
        ensure!(text.contains(field), "{bad}: the field {field} is not named: {text}");
    }
    ensure!(namespace.kubectl(&["get", KIND, "-o", "name"])?.is_empty(), "a bad one was kept");
    namespace.apply(DENY).map(drop)
}
