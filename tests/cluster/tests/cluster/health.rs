//! The app's own probes and lifecycle hooks, asked by the kubelet through the sidecar.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Others;
use countersign_cluster_tests::{Cluster, Namespace, Promise, throughout, until};
use serde_json::Value;

use crate::mesh::{meshed, stranger};

pub const PROMISES: &[Promise] = &[
    ("http_tcp_and_grpc_readiness_probes_turn_with_the_apps_health", Others, readiness),
    (
        "http_tcp_and_grpc_startup_and_liveness_probes_hold_back_and_restart_by_the_apps_health",
        Others,
        startup_and_liveness,
    ),
    ("http_hooks_work_and_nobody_but_the_kubelet_can_call_them", Others, hooks),
    ("a_hook_that_the_app_does_not_answer_fails_as_without_a_mesh", Others, failing_hook),
];

/// Each kind, and how it asks.
const KINDS: [(&str, &str); 3] = [
    ("http", "httpGet: {path: /health, port: 8080}"),
    ("tcp", "tcpSocket: {port: 7070}"),
    ("grpc", "grpc: {port: 9090}"),
];

const READINESS: &str = r"
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

fn readiness(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "health-ready")?;
    for (kind, probe) in KINDS {
        namespace.apply(&READINESS.replace("KIND", kind).replace("PROBE", probe))?;
    }
    for (kind, _) in KINDS {
        let pod = format!("pod/{kind}");
        namespace.ready(&pod)?;
        for (turn, state) in [("sick", "False"), ("well", "True")] {
            turned(&namespace, &pod, turn)?;
            let wait = ["wait", &format!("--for=condition=Ready={state}"), "--timeout=30s", &pod];
            namespace.kubectl(&wait).with_context(|| format!("the {kind} probe of an app that is {turn}"))?;
        }
    }
    Ok(())
}

fn turned(namespace: &Namespace<'_>, pod: &str, turn: &str) -> Result<()> {
    let put = ["curl", "-sSf", "-X", "PUT", &format!("http://127.0.0.1:8080/{turn}")];
    namespace.exec(pod, &put).map(drop)
}

/// Sick at first, so that each life of the container waits for somebody to turn it.
const STARTUP: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: KIND, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: localhost/app:1
    args: [serve, sick]
    startupProbe: {PROBE, periodSeconds: 1, failureThreshold: 300}
    livenessProbe: {PROBE, periodSeconds: 1, failureThreshold: 1}
";

fn startup_and_liveness(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "health-live")?;
    for (kind, probe) in KINDS {
        namespace.apply(&STARTUP.replace("KIND", kind).replace("PROBE", probe))?;
    }
    for (kind, _) in KINDS {
        started_and_restarted(&namespace, kind).with_context(|| format!("the {kind} probes"))?;
    }
    Ok(())
}

fn started_and_restarted(namespace: &Namespace<'_>, kind: &str) -> Result<()> {
    let pod = format!("pod/{kind}");
    let app =
        || -> Result<Value> { Ok(namespace.object(&["get", "pod", kind])?["status"]["containerStatuses"][0].clone()) };
    let is = |restarts: u64, started: bool| {
        until(Duration::from_secs(90), &format!("restarts: {restarts}, started: {started}"), || {
            let app = app()?;
            let runs = !app["state"]["running"].is_null();
            ensure!(runs && app["restartCount"] == restarts && app["started"] == started, "{app}");
            Ok(())
        })
        .map_err(|error| namespace.explained(error))
    };
    is(0, false)?;
    // The startup probe is asked each second, and its no is the app's.
    throughout(Duration::from_secs(3), "a sick app has not started, and is not restarted for it", || {
        let app = app()?;
        ensure!(app["started"] == false && app["restartCount"] == 0, "{app}");
        Ok(())
    })?;
    turned(namespace, &pod, "well")?;
    is(0, true)?;
    throughout(Duration::from_secs(3), "a well app is left alone", || {
        let app = app()?;
        ensure!(app["started"] == true && app["restartCount"] == 0, "{app}");
        Ok(())
    })?;
    turned(namespace, &pod, "sick")?;
    is(1, false)
}

const HOOKED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: hooked, labels: {app: hooked}}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: app
    image: localhost/app:1
    args: [serve]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 1}
    lifecycle:
      postStart: {httpGet: {path: /hook/started, port: http}}
      preStop: {httpGet: {path: /hook/stopping, port: http}}
";

fn hooks(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "health-hooks")?;
    let outside = stranger(cluster, "health-caller")?;
    namespace.apply(HOOKED)?;
    namespace.ready("pod/hooked")?;
    let log = || namespace.kubectl(&["logs", "hooked", "-c", "app"]);
    ensure!(log()?.matches("hook started\n").count() == 1, "{}", log()?);

    // The health port is open to all, and a probe answers there; the hooks do not, without the token, which the pod alone shows.
    let address = namespace.address("hooked")?;
    let asked = |path: &str| {
        let url = format!("http://{address}:15020{path}");
        outside.exec("pod/client", &["curl", "-sS", "--max-time", "8", "-o", "/dev/null", "-w", "%{http_code}", &url])
    };
    ensure!(asked("/app/app/readiness")? == "200");
    let pod = namespace.object(&["get", "pod", "hooked"])?;
    let path = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"].as_str().context("its path")?;
    let (known, token) = path.rsplit_once('/').context("a token")?;
    ensure!(known == "/app/app/preStop" && token.len() == 32, "{path}");
    let wrong = format!("{known}/{}", "0".repeat(32));
    for path in [known, wrong.as_str(), "/app/app/postStart", "/hook/stopping"] {
        let code = asked(path)?;
        ensure!(code == "404", "{path}: {code}");
    }
    ensure!(!log()?.contains("hook stopping"), "somebody called it");
    let sidecar = namespace.kubectl(&["logs", "hooked", "-c", "countersign-proxy"])?;
    ensure!(!sidecar.contains(token), "the sidecar's log shows the token");

    // The log is followed from before the end: it goes with the pod.
    let follow = ["-n", namespace.name, "logs", "--follow", "hooked", "-c", "app"];
    let mut follow = cluster.kubectl_command(&follow).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(follow.stdout.take().context("its output")?).lines();
    let first = lines.next().context("a first line")??;
    ensure!(first == "serving" || first == "hook started", "{first}");
    namespace.kubectl(&["delete", "pod", "hooked"])?;
    let last: Vec<String> = lines.collect::<Result<_, _>>()?;
    follow.wait()?;
    let at = |what: &str| last.iter().position(|line| line == what);
    let (stopping, asked) = (at("hook stopping"), at("asked to end"));
    ensure!(stopping.is_some() && stopping < asked, "the hook, and then SIGTERM: {last:?}");
    Ok(())
}

const UNANSWERED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: unanswered, labels: {app: unanswered}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: localhost/app:1
    args: [serve]
    lifecycle: {postStart: {httpGet: {path: /hook/started, port: 8099}}}
";

fn failing_hook(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "health-unanswered")?;
    namespace.apply(UNANSWERED)?;
    until(Duration::from_secs(60), "the kubelet says that the hook failed, and ends the container", || {
        let events = namespace.kubectl(&["get", "events", "--field-selector=involvedObject.name=unanswered"])?;
        ensure!(events.contains("FailedPostStartHook"), "{events}");
        let pod = namespace.object(&["get", "pod", "unanswered"])?;
        let app = &pod["status"]["containerStatuses"][0];
        ensure!(app["restartCount"].as_u64() > Some(0) && app["ready"] == false, "{app}");
        let log = namespace.kubectl(&["logs", "unanswered", "-c", "countersign-proxy"])?;
        ensure!(log.contains("the app's hook fails"), "{log}");
        Ok(())
    })
}
