//! Tokens that the CA takes from nobody: of a pod that is gone, for somebody else, bound to no pod. Each is a real one, of the API server's making, in
//! a pod that is otherwise as it should be.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Others;
use countersign_cluster_tests::{Cluster, Namespace, Promise, until};
use serde_json::{Value, json};

use crate::guard::by_hand;
use crate::mesh::{SYSTEM, alone, meshed};

pub const PROMISES: &[Promise] = &[
    ("the_ca_refuses_the_token_of_a_pod_that_was_deleted", Others, deleted_pods_token),
    ("the_ca_refuses_a_token_for_another_audience_and_one_that_is_bound_to_no_pod", Others, others_tokens),
];

/// A pod `name` as the injector made it, whose sidecar has this token in the place of its own.
fn with_token(namespace: &Namespace<'_>, name: &str, token: &str) -> Result<()> {
    let mut pod = by_hand(namespace, "alone", name)?;
    for volume in pod["spec"]["volumes"].as_array_mut().context("volumes")? {
        if volume["name"] == "countersign-token" {
            *volume = json!({ "name": "countersign-token", "secret": { "secretName": name, "defaultMode": 0o644 } });
        }
    }
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": { "countersign-token": token },
    });
    namespace.apply(&secret.to_string())?;
    namespace.apply(&pod.to_string()).map(drop)
}

/// Waits for a line of the sidecar's log with all these words.
fn says(namespace: &Namespace<'_>, pod: &str, words: &[&str]) -> Result<String> {
    until(Duration::from_secs(60), &format!("{pod} says {words:?}"), || {
        let log = namespace.kubectl(&["logs", pod, "-c", "countersign-proxy"])?;
        let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
        line.map(str::to_owned).with_context(|| log.clone())
    })
    .map_err(|error| namespace.explained(error))
}

/// It is told that it is not believed, and gets nothing.
fn gets_nothing(namespace: &Namespace<'_>, pod: &str, token: &str) -> Result<()> {
    let refusal = says(namespace, pod, &["no new SVID", "nauthenticated"])?;
    ensure!(!refusal.contains(token.trim()), "the token is in the log");
    let log = namespace.kubectl(&["logs", pod, "-c", "countersign-proxy"])?;
    ensure!(!log.contains("new SVID in force"), "{log}");
    Ok(())
}

fn deleted_pods_token(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "tokens-deleted")?;
    alone(&namespace)?;
    // The owner shows it to a container of its own making; the thief gets it by a Secret.
    let mut owner = by_hand(&namespace, "alone", "owner")?;
    owner["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "countersign-token", "mountPath": "/stolen" }]);
    namespace.apply(&owner.to_string())?;
    namespace.ready("pod/owner")?;
    let token = namespace.exec("pod/owner", &["cat", "/stolen/countersign-token"])?;
    // While its pod is there the token is good, whoever holds it: what refuses it later is that its pod is gone.
    with_token(&namespace, "early", &token)?;
    says(&namespace, "early", &["new SVID in force"])?;
    namespace.kubectl(&["delete", "pod", "owner", "early", "--wait=true"])?;
    // The API server itself remembers good ones for up to 10 s.
    until(Duration::from_secs(30), "the API server knows", || {
        let status = reviewed(cluster, &token)?;
        ensure!(status["authenticated"] != true, "{status}");
        Ok(())
    })?;
    with_token(&namespace, "late", &token)?;
    gets_nothing(&namespace, "late", &token)?;
    namespace.kubectl(&["delete", "pod", "late", "--wait=false"]).map(drop)
}

/// What the API server says of a token when it is asked as the CA asks.
fn reviewed(cluster: &Cluster, token: &str) -> Result<Value> {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token, "audiences": ["countersign-ca"] },
    });
    let answer = cluster.kubectl_with(&["create", "-f", "-", "-o", "json"], &review.to_string())?;
    Ok(serde_json::from_str::<Value>(&answer)?["status"].clone())
}

/// Both are tokens of the pod's own account, as anybody gets them who may ask for one.
fn others_tokens(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "tokens-others")?;
    alone(&namespace)?;
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=alone"];
    let token = |audience: &str, more: &[&str]| {
        let audience = format!("--audience={audience}");
        namespace.kubectl(&[&["create", "token", "default", &audience], more].concat())
    };
    let (elsewhere, unbound) = (token("vault", &bound)?, token("countersign-ca", &[])?);
    // The one is not for us, in the API server's own word; the other is good, and not enough.
    ensure!(reviewed(cluster, elsewhere.trim())?["authenticated"] != true);
    ensure!(reviewed(cluster, unbound.trim())?["authenticated"] == true);
    // Nothing else speaks against them: a bound one for us is taken.
    with_token(&namespace, "good", token("countersign-ca", &bound)?.trim())?;
    says(&namespace, "good", &["new SVID in force"])?;
    for (name, token, word, detail) in
        [("elsewhere", &elsewhere, "token_refused", "audience"), ("unbound", &unbound, "token_unbound", "pod/")]
    {
        with_token(&namespace, name, token.trim())?;
        gets_nothing(&namespace, name, token)?;
        let address = namespace.address(name)?;
        let record = until(Duration::from_secs(20), "the CA's audit log has it", || audited(cluster, &address, word))?;
        ensure!(record["serial"].is_null(), "{name}: {record}");
        ensure!(record["detail"].as_str().is_some_and(|said| said.contains(detail)), "{name}: {record}");
        ensure!(!record.to_string().contains(token.trim()), "the token is in the audit log");
    }
    namespace.kubectl(&["delete", "pod", "good", "elsewhere", "unbound", "--wait=false"]).map(drop)
}

/// A record of either replica of what this address asked for, with that outcome. (Who had the address before may have records of another.)
fn audited(cluster: &Cluster, address: &str, outcome: &str) -> Result<Value> {
    let ours = ["-n", SYSTEM, "logs", "--selector=app.kubernetes.io/name=countersign-ca", "--tail=-1"];
    let log = cluster.kubectl(&ours)?;
    let mut records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is = |record: &Value| record["event"] == "leaf" && record["source"] == address && record["outcome"] == outcome;
    records.find(is).with_context(|| format!("no record of {address} with {outcome}"))
}
