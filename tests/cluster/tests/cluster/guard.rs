//! What nobody gets past: by an account that was taken over, by a container that comes later, by a pod that the injector refuses. (By a token of another:
//! `tokens`.)

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use countersign_cluster_tests::Beside::Others;
use countersign_cluster_tests::{Cluster, Namespace, Promise, until};
use serde_json::{Value, json};

use crate::mesh::{ALONE, INJECT, SYSTEM, installed, meshed, pair};

pub const PROMISES: &[Promise] = &[
    ("a_taken_over_injector_can_make_no_secret", Others, taken_over),
    ("where_pod_security_forbids_the_sidecar_admission_says_so_clearly", Others, pod_security),
    ("kubectl_debug_works_but_not_as_the_sidecars_user", Others, debug),
    ("what_the_injector_warns_of_and_refuses_reaches_who_applies_it", Others, answers),
];

/// The injector's golden pods, shown to the API server (`--dry-run=server`).
fn answers(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "guard-answers")?;
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../injector/tests/golden");
    let read = |name: &str| std::fs::read_to_string(format!("{golden}/{name}")).with_context(|| name.to_owned());
    let show = |name: &str| {
        let file = format!("{golden}/{name}.in.yaml");
        let args = ["-n", namespace.name, "create", "--dry-run=server", "-o", "json", "-f", &file];
        let output = cluster.kubectl_command(&args).output().context("kubectl")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok::<_, anyhow::Error>((output.status.success().then_some(output.stdout), said))
    };
    for (name, sidecar) in [("warnings", true), ("warnings-host-pid", true), ("host-network", false)] {
        let (made, said) = show(name)?;
        let pod: Value = serde_json::from_slice(&made.with_context(|| format!("{name}: {said}"))?)?;
        let out = read(&format!("{name}.out.yaml"))?;
        let warnings: Vec<_> = out.lines().filter_map(|line| line.strip_prefix("# warning: ")).collect();
        ensure!(!warnings.is_empty() && warnings.iter().all(|warning| said.contains(warning)), "{name}: {said}");
        let inits = pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
        ensure!(inits == if sidecar { 2 } else { 0 }, "{name}: {pod}");
    }
    for name in ["refused-annotation", "refused-annotation-of-ours", "refused-uid", "refused-pod-uid", "refused-port"] {
        let (made, said) = show(name)?;
        ensure!(made.is_none(), "{name} came in");
        let refusal = read(&format!("{name}.refused.txt"))?;
        ensure!(refusal.lines().all(|line| said.contains(line.trim())), "{name}: {said}");
    }
    Ok(())
}

/// A pod as the injector made it, to be changed by hand: left out of injection, on no node yet.
pub fn by_hand(namespace: &Namespace<'_>, of: &str, name: &str) -> Result<Value> {
    let mut pod = namespace.object(&["get", "pod", of])?;
    pod["metadata"] = json!({ "name": name, "labels": { "app": name, "countersign.dev/inject": "disabled" } });
    pod["spec"].as_object_mut().context("spec")?.remove("nodeName");
    pod.as_object_mut().context("pod")?.remove("status");
    Ok(pod)
}

/// What the injector's account may do to Secrets, by the API server's own word, and by trying it.
fn taken_over(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    let account = format!("system:serviceaccount:{SYSTEM}:countersign-injector");
    let may = |verb: &str, what: &str| -> Result<bool> {
        let args = ["-n", SYSTEM, "--as", &account, "auth", "can-i", verb, what];
        let output = cluster.kubectl_command(&args).output().context("kubectl")?;
        match String::from_utf8_lossy(&output.stdout).trim() {
            "yes" => Ok(true),
            "no" => Ok(false),
            other => bail!("{verb} {what}: {other} {}", String::from_utf8_lossy(&output.stderr)),
        }
    };
    ensure!(may("update", "secrets/countersign-injector-tls")?, "it must keep its certificate");
    for (verb, what) in [
        ("create", "secrets"),
        ("create", "secrets/countersign-injector-tls"),
        ("delete", "secrets/countersign-injector-tls"),
        ("get", "secrets/countersign-ca-state"),
        ("get", "secrets/countersign-ca-key"),
        ("update", "secrets/countersign-ca-key"),
        ("list", "secrets"),
        ("create", "pods"),
    ] {
        ensure!(!may(verb, what)?, "it may {verb} {what}");
    }
    // The token of the CA's account, by a Secret of the type that holds one: neither a new one nor what is there made into one.
    let secret = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": { "name": name, "namespace": SYSTEM, "annotations": { "kubernetes.io/service-account.name": "countersign-ca" } },
        })
        .to_string()
    };
    let tried = |verb: &str, name: &str, why: &str| {
        let Err(error) = cluster.kubectl_with(&["--as", &account, verb, "-f", "-"], &secret(name)) else {
            bail!("{verb} {name} went through");
        };
        let said = format!("{error:#}");
        ensure!(said.contains(why), "{said}");
        Ok(())
    };
    tried("create", "mine", "orbidden")?;
    tried("create", "countersign-injector-tls", "orbidden")?;
    tried("replace", "countersign-injector-tls", "field is immutable")
}

fn pod_security(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    for level in ["baseline", "restricted"] {
        let name = if level == "baseline" { "guard-baseline" } else { "guard-restricted" };
        let label = format!("pod-security.kubernetes.io/enforce={level}");
        let namespace = Namespace::new(cluster, name, &[INJECT, &label])?;
        let Err(error) = namespace.apply(ALONE) else { bail!("it was let in under {level}") };
        let said = format!("{error:#}");
        for words in [
            "no sidecar can be put into this pod",
            &format!("{level:?} forbids the init container that sets the redirect rules"),
            "pod-security.kubernetes.io/enforce=privileged",
            "countersign.dev/inject=disabled",
        ] {
            ensure!(said.contains(words), "{words:?} is not said: {said}");
        }
    }
    Ok(())
}

fn debug(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "guard-debug")?;
    let mut pod = namespace.object(&["get", "pod", "client"])?;
    pod["metadata"].as_object_mut().context("metadata")?.remove("resourceVersion");
    let with = |name: &str, user: u64| {
        let mut changed = pod.clone();
        changed["spec"]["ephemeralContainers"] = json!([{
            "name": name, "image": "localhost/app:1", "command": ["/app", "wait"], "securityContext": { "runAsUser": user },
        }]);
        let path = format!("/api/v1/namespaces/{}/pods/client/ephemeralcontainers", namespace.name);
        cluster.kubectl_with(&["replace", "--raw", &path, "-f", "-"], &changed.to_string())
    };
    let Err(error) = with("around", 1337) else { bail!("it would pass by the redirect") };
    let said = format!("{error:#}");
    ensure!(
        said.contains("spec.ephemeralContainers[0].securityContext.runAsUser: 1337 is the sidecar's user"),
        "{said}"
    );
    // As people do it.
    let debug = [
        "debug",
        "client",
        "--image=localhost/app:1",
        "--container=looking",
        "--image-pull-policy=Never",
        "--",
        "/app",
        "wait",
    ];
    namespace.kubectl(&debug)?;
    until(Duration::from_secs(30), "it runs", || {
        let status = namespace.object(&["get", "pod", "client"])?["status"]["ephemeralContainerStatuses"][0].clone();
        ensure!(status["name"] == "looking" && !status["state"]["running"].is_null(), "{status}");
        Ok(())
    })?;
    // What it says goes through the sidecar, as the app's does.
    let curl = ["curl", "-sS", "--fail", "--max-time", "8", "http://server/"];
    ensure!(namespace.exec_in("pod/client", "looking", &curl)?.starts_with("hello from server"));
    Ok(())
}
