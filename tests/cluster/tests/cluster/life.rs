//! A meshed pod's life: what runs before its app, how its health is told, and how it ends.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Others;
use countersign_cluster_tests::{Cluster, Namespace, Promise, until};
use serde_json::Value;

use crate::mesh::{meshed, pair};

pub const PROMISES: &[Promise] = &[
    ("a_job_completes", Others, job),
    ("an_init_container_reaches_the_network", Others, init_container),
    ("the_app_starts_only_after_the_sidecar_is_ready", Others, sidecar_first),
    ("the_app_does_not_start_where_the_redirect_rules_are_missing", Others, no_rules_no_app),
    ("http_tcp_and_grpc_probes_turn_with_the_apps_health", Others, probes),
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

fn sidecar_first(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "life-first")?;
    let pod = namespace.object(&["get", "pod", "client"])?;
    let names: Vec<_> = array(&pod["spec"]["initContainers"])?.iter().map(|it| it["name"].clone()).collect();
    ensure!(names == ["countersign-intercept", "countersign-proxy"], "{names:?}");
    let status = &pod["status"];
    let sidecar = array(&status["initContainerStatuses"])?.iter().find(|it| it["name"] == "countersign-proxy");
    let sidecar = sidecar.context("the sidecar's status")?;
    ensure!(sidecar["started"] == true && sidecar["ready"] == true, "{sidecar}");
    let started = |state: &Value| state["state"]["running"]["startedAt"].as_str().map(str::to_owned);
    let (first, second) = (started(sidecar), started(&status["containerStatuses"][0]));
    // RFC 3339 in UTC to whole seconds: the order of the texts is that of the times.
    ensure!(first.is_some() && first <= second, "{first:?} {second:?}");
    // The sidecar was asked by the kubelet before that, and by way of the inbound redirect alone.
    let spec = array(&pod["spec"]["initContainers"])?[1].clone();
    ensure!(spec["startupProbe"]["httpGet"]["port"] == 15021, "{spec}");
    Ok(())
}

const ALONE: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: alone, labels: {app: alone}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
";

/// The pod as the injector made it, but for the rules: an init container that sets none.
fn no_rules_no_app(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "life-norules")?;
    namespace.apply(ALONE)?;
    namespace.ready("pod/alone")?;
    let mut pod = namespace.object(&["get", "pod", "alone"])?;
    namespace.kubectl(&["delete", "pod", "alone"])?;
    pod["metadata"] = serde_json::json!({
        "name": "bare", "labels": { "app": "bare", "countersign.dev/inject": "disabled" }
    });
    pod["spec"].as_object_mut().context("spec")?.remove("nodeName");
    pod["spec"]["initContainers"][0]["args"] = serde_json::json!(["version"]);
    namespace.apply(&pod.to_string())?;
    // Long enough for the rules to have been there, had they been set: the pod above was ready sooner.
    let status = until(Duration::from_secs(60), "the sidecar has run and was asked in vain", || {
        let status = namespace.object(&["get", "pod", "bare"])?["status"].clone();
        let sidecar = &status["initContainerStatuses"][1];
        let ran = sidecar["restartCount"].as_u64() > Some(0) || failed_startup(&namespace)?;
        ensure!(ran, "{status}");
        Ok(status)
    })?;
    ensure!(status["containerStatuses"][0]["state"]["waiting"] != Value::Null, "the app started: {status}");
    // `countersign check` finds it, and says so.
    namespace.kubectl(&["delete", "pod", "bare", "--wait=false"]).map(drop)
}

fn failed_startup(namespace: &Namespace<'_>) -> Result<bool> {
    let events = namespace.kubectl(&["get", "events", "--field-selector=involvedObject.name=bare,reason=Unhealthy"])?;
    Ok(events.matches("Startup probe failed").count() > 0)
}

const PROBES: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: KIND, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: localhost/app:1
    args: [serve]
    readinessProbe: {PROBE, periodSeconds: 1, failureThreshold: 1}
";

fn probes(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "life-probes")?;
    let kinds = [
        ("http", "httpGet: {path: /health, port: 8080}"),
        ("tcp", "tcpSocket: {port: 7070}"),
        ("grpc", "grpc: {port: 9090}"),
    ];
    for (kind, probe) in kinds {
        namespace.apply(&PROBES.replace("KIND", kind).replace("PROBE", probe))?;
    }
    for (kind, _) in kinds {
        let pod = format!("pod/{kind}");
        namespace.ready(&pod)?;
        for (turn, state) in [("sick", "False"), ("well", "True")] {
            let put = ["curl", "-sSf", "-X", "PUT", &format!("http://127.0.0.1:8080/{turn}")];
            namespace.exec(&pod, &put)?;
            let wait = ["wait", &format!("--for=condition=Ready={state}"), "--timeout=30s", &pod];
            namespace.kubectl(&wait).with_context(|| format!("the {kind} probe of an app that is {turn}"))?;
        }
    }
    Ok(())
}

fn rolling_update(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "life-rolling")?;
    let (new, kept) = (
        namespace.load("load-new", "http://server/", 60, false)?,
        namespace.load("load-kept", "http://server/", 60, true)?,
    );
    namespace.kubectl(&["rollout", "restart", "deployment/server"])?;
    namespace.rolled_out("deployment/server")?;
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
        namespace.load("load-new", "http://server/", 40, false)?,
        namespace.load("load-kept", "http://server/", 40, true)?,
    );
    namespace.kubectl(&["scale", "deployment/server", "--replicas=1"])?;
    until(Duration::from_secs(60), "one server is left", || {
        ensure!(crate::mesh::addresses(&namespace, "server")?.len() == 1);
        Ok(())
    })?;
    for load in [new, kept] {
        load.nothing_failed()?;
    }
    Ok(())
}

fn array(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().with_context(|| format!("not a list: {value}"))
}
