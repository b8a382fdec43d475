//! A meshed pod's life: what runs before its app, and how it ends.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Others;
use countersign_cluster_tests::{Cluster, LONGEST, Namespace, Promise, throughout, until};
use serde_json::{Value, json};

use crate::guard::by_hand;
use crate::mesh::{ALONE, SYSTEM, alone, installed, meshed, pair};

pub const PROMISES: &[Promise] = &[
    ("a_job_completes", Others, job),
    ("an_init_container_reaches_the_network", Others, init_container),
    ("a_pod_is_in_or_out_by_its_own_label", Others, own_label),
    ("the_app_starts_only_after_the_sidecar_is_ready", Others, sidecar_first),
    ("the_app_does_not_start_where_the_redirect_rules_are_missing", Others, no_rules_no_app),
    ("a_rolling_update_under_load_fails_no_request", Others, rolling_update),
    ("a_scale_down_under_load_fails_no_request", Others, scale_down),
];

const JOB: &str = r"
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {app: once}}
    spec:
      restartPolicy: Never
      containers: [{name: app, image: 'localhost/app:1', args: [get, 'http://server/']}]
";

fn job(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "life-job")?;
    namespace.apply(JOB)?;
    let wait = ["wait", "--for=condition=complete", "--timeout=90s", "job/once"];
    namespace.kubectl(&wait).map_err(|error| namespace.explained(error))?;
    let said = namespace.kubectl(&["logs", "job/once", "-c", "app"])?;
    ensure!(said.starts_with("hello from server"), "{said}");
    Ok(())
}

const INIT: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: early, labels: {app: early}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  initContainers: [{name: early, image: 'localhost/app:1', args: [get, 'http://server/']}]
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
";

fn init_container(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "life-init")?;
    namespace.apply(INIT)?;
    namespace.ready("pod/early")?;
    let said = namespace.kubectl(&["logs", "early", "-c", "early"])?;
    ensure!(said.starts_with("hello from server"), "{said}");
    Ok(())
}

fn own_label(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    let inits = |namespace: &Namespace<'_>| -> Result<Value> {
        namespace.ready("pod/alone")?;
        Ok(namespace.object(&["get", "pod", "alone"])?["spec"]["initContainers"].clone())
    };
    let labelled = |word: &str| ALONE.replace("app: alone", &format!("app: alone, countersign.dev/inject: {word}"));
    // Ready says that the roots have come into this namespace, too: the sidecar mounts them.
    let plain = Namespace::new(cluster, "life-label-in", &[])?;
    plain.apply(&labelled("enabled"))?;
    let names: Vec<_> = array(&inits(&plain)?)?.iter().map(|it| it["name"].clone()).collect();
    ensure!(names == ["countersign-intercept", "countersign-proxy"], "{names:?}");
    let roots = plain.object(&["get", "configmap", "countersign-bundle"])?;
    ensure!(roots["data"]["bundle.pem"].as_str().is_some_and(|pem| pem.contains("BEGIN CERTIFICATE")), "{roots}");

    let asking = meshed(cluster, "life-label-out")?;
    asking.apply(&labelled("disabled"))?;
    let none = inits(&asking)?;
    ensure!(none.is_null(), "{none}");
    Ok(())
}

/// A pod whose sidecar cannot be ready, for want of a CA, until somebody says where it is.
fn sidecar_first(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "life-first")?;
    let pod = namespace.object(&["get", "pod", "client"])?;
    let names: Vec<_> = array(&pod["spec"]["initContainers"])?.iter().map(|it| it["name"].clone()).collect();
    ensure!(names == ["countersign-intercept", "countersign-proxy"], "{names:?}");

    let mut pod = by_hand(&namespace, "client", "held")?;
    pod["spec"]["containers"][0]["command"] = json!(["/app", "get", "http://server/"]);
    pod["spec"]["restartPolicy"] = "Never".into();
    let environment = pod["spec"]["initContainers"][1]["env"].as_array_mut().context("env")?;
    let ca = environment.iter_mut().find(|it| it["name"] == "COUNTERSIGN_CA_ADDRESS").context("the CA's address")?;
    ca["value"] = format!("ca.{}.svc:15030", namespace.name).into();
    namespace.apply(CA_ELSEWHERE)?;
    namespace.apply(&pod.to_string())?;
    let status = || -> Result<Value> { Ok(namespace.object(&["get", "pod", "held"])?["status"].clone()) };
    let held = |status: &Value| {
        let sidecar = sidecar(status)?;
        ensure!(!sidecar["state"]["running"].is_null() && sidecar["started"] == false, "{sidecar}");
        ensure!(!status["containerStatuses"][0]["state"]["waiting"].is_null(), "the app started: {status}");
        Ok(())
    };
    until(Duration::from_secs(60), "the sidecar runs", || held(&status()?))
        .map_err(|error| namespace.explained(error))?;
    // Many times what it takes where nothing is missing.
    throughout(
        Duration::from_secs(20),
        "the sidecar is not ready, and so the app does not start",
        || held(&status()?),
    )?;

    let ours = ["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/name=countersign-ca"];
    let ours = cluster.object(&ours)?;
    let address = ours["items"][0]["status"]["podIP"].as_str().context("the CA's address")?;
    namespace.apply(&CA_FOUND.replace("ADDRESS", address))?;
    // Ready now, and the first request of the app, which is its first act, is answered. (The sidecar goes with the app: its own status is over too soon
    // to be looked at.)
    until(Duration::from_secs(60), "the app has ended", || {
        let status = status()?;
        ensure!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0, "{status}");
        Ok(())
    })
    .map_err(|error| namespace.explained(error))?;
    let said = namespace.kubectl(&["logs", "held", "-c", "app"])?;
    ensure!(said.starts_with("hello from server"), "{said}");
    Ok(())
}

fn sidecar(status: &Value) -> Result<Value> {
    let found = array(&status["initContainerStatuses"])?.iter().find(|it| it["name"] == "countersign-proxy");
    found.cloned().context("the sidecar's status")
}

/// Without endpoints, until there is a slice.
const CA_ELSEWHERE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: ca}
spec: {ports: [{name: grpc, port: 15030}]}
";

const CA_FOUND: &str = r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ca-found, labels: {kubernetes.io/service-name: ca}}
addressType: IPv4
ports: [{name: grpc, port: 15030, protocol: TCP}]
endpoints: [{addresses: ['ADDRESS'], conditions: {ready: true}}]
";

/// Two pods as the injector made them, applied at once; in one the init container sets no rules. All else is equal.
fn no_rules_no_app(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "life-norules")?;
    alone(&namespace)?;
    let whole = by_hand(&namespace, "alone", "whole")?;
    let mut bare = by_hand(&namespace, "alone", "bare")?;
    bare["spec"]["initContainers"][0]["args"] = json!(["version"]);
    namespace.apply(&bare.to_string())?;
    namespace.apply(&whole.to_string())?;
    namespace.ready("pod/whole")?;
    let status = || -> Result<Value> { Ok(namespace.object(&["get", "pod", "bare"])?["status"].clone()) };
    let held = |status: &Value| {
        ensure!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0, "{status}");
        let sidecar = sidecar(status)?;
        ensure!(!sidecar["state"]["running"].is_null() && sidecar["started"] == false, "{sidecar}");
        ensure!(!status["containerStatuses"][0]["state"]["waiting"].is_null(), "the app started: {status}");
        Ok(())
    };
    until(Duration::from_secs(30), "its sidecar runs", || held(&status()?))?;
    // Its sidecar has all else that it needs, and says what is missing.
    until(Duration::from_secs(30), "the sidecar says why", || {
        let log = namespace.kubectl(&["logs", "bare", "-c", "countersign-proxy"])?;
        ensure!(log.contains("new SVID in force"), "{log}");
        ensure!(log.contains("the outbound redirect is not in force yet"), "{log}");
        Ok(())
    })?;
    throughout(Duration::from_secs(20), "the app does not start", || held(&status()?))?;
    let events = namespace.kubectl(&["get", "events", "--field-selector=involvedObject.name=bare,reason=Unhealthy"])?;
    ensure!(events.contains("Startup probe failed") && events.contains("15021"), "{events}");
    namespace.kubectl(&["delete", "pod", "bare", "--wait=false"]).map(drop)
}

fn rolling_update(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "life-rolling")?;
    let (new, kept) = (
        namespace.load("load-new", "http://server/", LONGEST, false)?,
        namespace.load("load-kept", "http://server/", LONGEST, true)?,
    );
    namespace.kubectl(&["rollout", "restart", "deployment/server"])?;
    namespace.rolled_out("deployment/server")?;
    for load in [new, kept] {
        load.end()?;
    }
    for load in [new, kept] {
        let report = load.nothing_failed()?;
        let by = report["by"].as_object().context("who answered")?.len();
        ensure!(by > 2, "the update was over before the load, or after it: {report}");
    }
    Ok(())
}

fn scale_down(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "life-scale")?;
    let (new, kept) = (
        namespace.load("load-new", "http://server/", LONGEST, false)?,
        namespace.load("load-kept", "http://server/", LONGEST, true)?,
    );
    until(Duration::from_secs(20), "both loads are under way", || {
        let log = namespace.kubectl(&["logs", "--selector=app=server", "-c", "countersign-proxy", "--tail=200"])?;
        ensure!(log.contains("spiffe://"), "{log}");
        Ok(())
    })?;
    namespace.kubectl(&["scale", "deployment/server", "--replicas=1"])?;
    until(Duration::from_secs(60), "one server is left", || {
        ensure!(crate::mesh::addresses(&namespace, "server")?.len() == 1);
        Ok(())
    })?;
    let mut answered = Vec::new();
    for load in [new, kept] {
        load.end()?;
    }
    for load in [new, kept] {
        let report = load.nothing_failed()?;
        answered.extend(report["by"].as_object().context("who answered")?.keys().cloned());
    }
    answered.sort();
    answered.dedup();
    ensure!(answered.len() == 2, "the one that went had no part in it: {answered:?}");
    Ok(())
}

fn array(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().with_context(|| format!("not a list: {value}"))
}
