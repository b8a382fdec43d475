//! The CA and the controller, by what a cluster shows of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::{Nobody, Others};
use countersign_cluster_tests::{Cluster, LONGEST, Namespace, Promise, throughout, until};
use serde_json::Value;

use crate::install::{kept, kept_by_ca, same};
use crate::mesh::{INJECT, SYSTEM, install, install_with, installed, meshed, pair};

pub const PROMISES: &[Promise] = &[
    ("the_roots_are_in_every_meshed_namespace_and_are_put_right_when_edited", Others, roots),
    ("a_restarted_ca_goes_on_with_its_state", Nobody, restarted_ca),
    ("a_proxy_fails_over_between_the_controllers_replicas", Nobody, fails_over),
    ("the_injectors_certificate_is_renewed_and_the_ca_bundle_follows", Nobody, renewal),
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
    let namespace = pair(cluster, "plane-restart")?;
    let before = kept_by_ca(cluster)?;
    // Both at once: nobody is left who could tell a new one.
    let ours =
        ["-n", SYSTEM, "delete", "pods", "-l", "app.kubernetes.io/name=countersign-ca", "--force", "--grace-period=0"];
    cluster.kubectl(&ours)?;
    cluster.kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/countersign-ca", "--timeout=120s"])?;
    same(&before, &kept_by_ca(cluster)?)?;
    // It signs again: a sidecar that starts now gets its SVID before it is ready, and whoever has an older one takes it for what it is.
    namespace.apply(LATER)?;
    namespace.ready("pod/later")?;
    let answer = namespace.curl("pod/later", "http://server/")?;
    ensure!(answer.starts_with("hello from server"), "{answer}");
    same(&before, &kept_by_ca(cluster)?)
}

const LATER: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: later, labels: {app: later}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
";

/// A number out of the metrics of a pod of ours.
fn metric(cluster: &Cluster, pod: &str, port: u16, name: &str) -> Result<f64> {
    let text = cluster.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{pod}:{port}/proxy/metrics")])?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.split(' ').next()?.parse().ok()).with_context(|| format!("no {name} in:\n{text}"))
}

/// `NAMESPACE/pods/NAME` of all pods of ours with this name that are to stay.
pub fn pods_of(cluster: &Cluster, name: &str) -> Result<Vec<String>> {
    let pods = staying(cluster, name)?;
    Ok(pods.iter().filter_map(|pod| Some(format!("{SYSTEM}/pods/{}", pod["metadata"]["name"].as_str()?))).collect())
}

/// The same pods, whole.
pub fn staying(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let pods = cluster.object(&["-n", SYSTEM, "get", "pods", "-l", &format!("app.kubernetes.io/name={name}")])?;
    let pods = pods["items"].as_array().cloned().context("pods")?;
    Ok(pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
}

const NOBODY: &str = r"
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: server}}, action: Deny, rules: [{to: [{ports: [8080]}]}]}
";

fn fails_over(cluster: &Cluster) -> Result<()> {
    const CONTROLLER: &str = "countersign-controller";
    let namespace = pair(cluster, "plane-failover")?;
    let streams = |pod: &str| metric(cluster, pod, 15041, "countersign_controller_streams");
    let replicas = pods_of(cluster, CONTROLLER)?;
    ensure!(replicas.len() == 2, "{replicas:?}");
    let mut of = replicas.iter().map(|pod| Ok((streams(pod)?, pod.as_str()))).collect::<Result<Vec<_>>>()?;
    of.sort_by(|a, b| a.0.total_cmp(&b.0));
    let [(fewer, stays), (more, goes)] = of[..] else { anyhow::bail!("{of:?}") };
    ensure!(more >= 2.0 && fewer + more >= 3.0, "three sidecars, of which this one has most: {of:?}");
    // The one with most goes, and none comes in its place: deployments end the cheapest first.
    let name = goes.rsplit('/').next().context("its name")?;
    cluster.kubectl(&["-n", SYSTEM, "annotate", "pod", name, "controller.kubernetes.io/pod-deletion-cost=-100"])?;
    let load = namespace.load("load", "http://server/", LONGEST, false)?;
    let scale = |replicas: &str| {
        cluster.kubectl(&[
            "-n",
            SYSTEM,
            "scale",
            &format!("deployment/{CONTROLLER}"),
            &format!("--replicas={replicas}"),
        ])
    };
    scale("1")?;
    let over = (|| {
        until(Duration::from_secs(60), "the one that stays has them all", || {
            let left = pods_of(cluster, CONTROLLER)?;
            ensure!(left == [stays], "{left:?}");
            let (have, want) = (streams(stays)?, fewer + more);
            // And that of the load.
            ensure!(have > want, "{have} of {}", want + 1.0);
            Ok(())
        })?;
        let pods = namespace.object(&["get", "pods"])?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let pod = format!("{}/pods/{}", namespace.name, pod["metadata"]["name"].as_str().context("name")?);
            let connected = metric(cluster, &pod, 15020, "countersign_controller_connected")?;
            ensure!(connected == 1.0, "{pod} has no controller");
        }
        load.end()?;
        load.nothing_failed()?;
        // What is new comes by the one that stays.
        namespace.apply(NOBODY)?;
        until(Duration::from_secs(5), "a new rule bites", || namespace.refused("pod/client", "http://server/"))
    })();
    scale("2")?;
    cluster.kubectl(&["-n", SYSTEM, "rollout", "status", &format!("deployment/{CONTROLLER}"), "--timeout=120s"])?;
    over
}

/// One that comes into a labelled namespace, and is not kept.
const TRIED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: tried}
spec: {containers: [{name: app, image: 'localhost/app:1'}]}
";

fn renewal(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "plane-renewal")?;
    install_with(cluster, &["--set", "injector.certificateLife=1m"])?;
    let renewed = renewed(&namespace);
    install(cluster)?;
    renewed
}

fn renewed(namespace: &Namespace<'_>) -> Result<()> {
    let cluster = namespace.cluster;
    let (mut bundles, mut ends, mut last) = (Vec::new(), Vec::new(), Vec::new());
    // A new one each half minute. All the while pods get their sidecars, and bad rules are refused: the API server verifies each time.
    throughout(Duration::from_secs(100), "the webhooks are reached", || {
        let made = cluster
            .kubectl_with(&["-n", namespace.name, "create", "--dry-run=server", "-o", "json", "-f", "-"], TRIED)?;
        ensure!(made.contains("countersign-intercept"), "{made}");
        let Err(refusal) = cluster.kubectl_with(
            &["-n", namespace.name, "create", "--dry-run=server", "-f", "-"],
            &RULE.replace("action: Allow", "checkedField: true, action: Allow"),
        ) else {
            anyhow::bail!("a bad rule was taken");
        };
        ensure!(format!("{refusal:#}").contains("checkedField"), "{refusal:#}");
        let kept = kept(cluster)?;
        let of_webhooks: Vec<_> =
            kept.iter().filter(|(name, _)| name.starts_with("caBundle")).map(|(_, it)| it).collect();
        if of_webhooks.iter().all(|bundle| *bundle == of_webhooks[0]) {
            bundles.push(of_webhooks[0].to_string());
        }
        last.clear();
        for pod in pods_of(cluster, "countersign-injector")? {
            last.push(metric(cluster, &pod, 15051, CERTIFICATE_END)? as u64);
        }
        ends.extend(&last);
        Ok(())
    })?;
    bundles.dedup();
    ends.sort_unstable();
    ends.dedup();
    ensure!(bundles.len() >= 3, "the caBundle did not follow: {} of them", bundles.len());
    // At first a replica of before the change may still be there; what it serves is made for longer, and does not count.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let for_a_minute = |end: &u64| *end <= now + 61;
    ensure!(last.iter().all(for_a_minute), "{last:?}, now {now}");
    ends.retain(for_a_minute);
    ensure!(ends.len() >= 3, "not renewed: served certificates that end at {ends:?}");
    Ok(())
}

const CERTIFICATE_END: &str = "countersign_injector_certificate_expiration_timestamp_seconds";

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
    let labels = cluster.object(&["get", "namespace", SYSTEM])?["metadata"]["labels"].clone();
    ensure!(labels["pod-security.kubernetes.io/enforce"] == "restricted", "{labels}");
    // The API server names each pod that is there and does not hold a level that is new to the namespace: of another version, in our case.
    let said = |namespace: &str| -> Result<String> {
        let labels =
            ["pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/enforce-version=v1.34"];
        let args = [&["label", "namespace", namespace], &labels[..], &["--overwrite", "--dry-run=server"]].concat();
        let output = cluster.kubectl_command(&args).output().context("kubectl")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{said}");
        Ok(said)
    };
    let ours = said(SYSTEM)?;
    ensure!(!ours.contains("violate"), "{ours}");
    let others = said("kube-system")?;
    ensure!(others.contains("violate"), "it does not look: {others}");
    Ok(())
}
