//! Something is away for a minute: what goes on, and what does not.
//!
//! These run alone: they take away what all others use, and give it back whatever becomes of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Nobody;
use countersign_cluster_tests::{Cluster, LONGEST, Namespace, Promise, throughout, until};
use serde_json::{Value, json};

use crate::guard::by_hand;
use crate::mesh::{SYSTEM, pair, stranger};

pub const PROMISES: &[Promise] = &[
    ("the_api_server_down_for_a_minute_fails_no_request", Nobody, api_server),
    ("the_ca_down_for_a_minute_fails_no_request", Nobody, ca),
    ("the_controller_down_for_a_minute_fails_no_request", Nobody, controller),
    ("with_the_controller_down_addresses_that_are_not_meshed_are_reached_for_30_s", Nobody, unmeshed_for_a_while),
    ("with_the_injector_down_unlabelled_pods_start_and_labelled_ones_are_refused", Nobody, injector),
];

const MINUTE: Duration = Duration::from_secs(60);

/// Kept connections and new ones, longer than the minute.
pub fn under_load(namespace: &Namespace<'_>, minute: impl FnOnce() -> Result<()>) -> Result<()> {
    let new = namespace.load("load-new", "http://server/", LONGEST, false)?;
    let kept = namespace.load("load-kept", "http://server/", LONGEST, true)?;
    minute()?;
    for load in [new, kept] {
        load.end()?;
    }
    for load in [new, kept] {
        load.nothing_failed()?;
    }
    Ok(())
}

/// The same, and new connections that need a TLS handshake each: the sidecar of their load keeps no link for the next.
fn under_load_of_handshakes_too(namespace: &Namespace<'_>, minute: impl FnOnce() -> Result<()>) -> Result<()> {
    const NAME: &str = "load-handshakes";
    let mut pod = by_hand(namespace, "client", NAME)?;
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["containers"][0]["command"] = json!(["/app", "load", "http://server/", LONGEST.to_string(), "new"]);
    let environment = pod["spec"]["initContainers"][1]["env"].as_array_mut().context("env")?;
    environment.push(json!({ "name": "COUNTERSIGN_POOL_SIZE", "value": "0" }));
    namespace.apply(&pod.to_string())?;
    let load = namespace.load_of(NAME, LONGEST)?;
    let done = under_load(namespace, minute);
    load.end()?;
    done?;
    let good = load.nothing_failed()?["good"].as_u64().context("good")?;
    let log = namespace.kubectl(&["logs", NAME, "-c", "countersign-proxy"])?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines = lines.filter(|line| line["direction"] == "outbound" && line["security"] == "mutual_tls");
    let (new, others): (Vec<_>, Vec<_>) = lines.partition(|line| line["reused"] == false);
    ensure!(others.is_empty(), "a link was used again: {}", others[0]);
    // Not as many to the last one: a line comes after its connection, and may be dropped.
    ensure!(new.len() as u64 * 2 > good, "{} connections in the log of {good}", new.len());
    Ok(())
}

/// The same, and new connections to a server that is not meshed, in a namespace of its own.
fn under_load_to_unmeshed_too(
    namespace: &Namespace<'_>,
    name: &'static str,
    minute: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (_outside, url) = unmeshed(namespace.cluster, name)?;
    let load = namespace.load("load-unmeshed", &url, LONGEST, false)?;
    let done = under_load_of_handshakes_too(namespace, minute);
    load.end()?;
    done?;
    load.nothing_failed().map(drop)
}

/// A server that is not meshed, in the mesh's own ranges; where it answers.
fn unmeshed<'c>(cluster: &'c Cluster, name: &'static str) -> Result<(Namespace<'c>, String)> {
    let outside = Namespace::new(cluster, name, &[])?;
    outside.apply(UNMESHED)?;
    outside.ready("pod/server")?;
    let url = format!("http://{}:8080/", outside.address("server")?);
    Ok((outside, url))
}

fn api_server(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "outage-api")?;
    let done = under_load_to_unmeshed_too(&namespace, "outage-api-plain", || {
        cluster.daemon("control", "apiserver", "kill")?;
        let away = throughout(MINUTE, "the API server is away", || {
            let asked = cluster.kubectl(&["--request-timeout=2s", "get", "--raw", "/readyz"]);
            ensure!(asked.is_err(), "it answers: {asked:?}");
            Ok(())
        });
        cluster.daemon("control", "apiserver", "start")?;
        until(Duration::from_secs(60), "the API server answers again", || {
            cluster.kubectl(&["get", "--raw", "/readyz"])
        })?;
        away
    });
    // The cluster's own controllers come back one by one, some after another minute. Begun anew they are there at once, for whoever comes next.
    cluster.daemon("control", "controller-manager", "kill")?;
    cluster.daemon("control", "controller-manager", "start")?;
    done
}

fn ca(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "outage-ca")?;
    under_load_to_unmeshed_too(&namespace, "outage-ca-plain", || {
        away(cluster, "countersign-ca", || stays_away(cluster, "countersign-ca"))?
    })
}

fn controller(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "outage-controller")?;
    under_load_of_handshakes_too(&namespace, || {
        away(cluster, "countersign-controller", || stays_away(cluster, "countersign-controller"))?
    })
}

/// For a minute no pod of one of our Deployments is there.
fn stays_away(cluster: &Cluster, name: &str) -> Result<()> {
    let selector = format!("app.kubernetes.io/name={name}");
    throughout(MINUTE, "it has no pod", || {
        let pods = cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-l", &selector, "-o", "name"])?;
        ensure!(pods.is_empty(), "{pods}");
        Ok(())
    })
}

/// Runs something while one of our Deployments has no pod.
fn away<T>(cluster: &Cluster, name: &str, meanwhile: impl FnOnce() -> T) -> Result<T> {
    let deployment = format!("deployment/{name}");
    let scale =
        |replicas: &str| cluster.kubectl(&["-n", SYSTEM, "scale", &deployment, &format!("--replicas={replicas}")]);
    let selector = format!("app.kubernetes.io/name={name}");
    scale("0")?;
    // At once, as when a node is lost: nobody is told that it goes.
    cluster.kubectl(&["-n", SYSTEM, "delete", "pods", "-l", &selector, "--force", "--grace-period=0"])?;
    let gone = until(Duration::from_secs(60), "its pods are gone", || {
        let pods = cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-l", &selector, "-o", "name"])?;
        ensure!(pods.is_empty(), "{pods}");
        Ok(())
    });
    let done = meanwhile();
    scale("2")?;
    cluster.kubectl(&["-n", SYSTEM, "rollout", "status", &deployment, "--timeout=120s"])?;
    gone.map(|()| done)
}

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: NAME LABEL}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
";

fn injector(cluster: &Cluster) -> Result<()> {
    crate::mesh::installed(cluster)?;
    let labelled = Namespace::new(cluster, "outage-labelled", &[crate::mesh::INJECT])?;
    let plain = stranger(cluster, "outage-plain")?;
    away(cluster, "countersign-injector", || {
        plain.apply(&POD.replace("LABEL", "").replace("NAME", "free"))?;
        plain.ready("pod/free").context("an unlabelled pod in an unlabelled namespace")?;
        cluster.kubectl(&["-n", "kube-system", "delete", "pod", "-l", "k8s-app=kube-dns"])?;
        cluster.kubectl(&["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s"])?;
        // Our own pods do not need it either.
        for ours in ["countersign-ca", "countersign-controller"] {
            cluster.kubectl(&["-n", SYSTEM, "rollout", "restart", &format!("deployment/{ours}")])?;
            cluster.kubectl(&["-n", SYSTEM, "rollout", "status", &format!("deployment/{ours}"), "--timeout=120s"])?;
        }
        let refused = |answer: Result<String>, webhook: &str| {
            let Err(error) = answer else { anyhow::bail!("it came in without a sidecar, passing by {webhook}") };
            let why = format!("{error:#}");
            ensure!(why.contains(&format!("failed calling webhook \"{webhook}\"")), "{why}");
            Ok(())
        };
        // What the schema says of rules the API server judges by itself (CEL), before it asks anybody.
        for (spec, says) in [
            ("{action: Allow, rules: []}", "a policy needs at least one rule"),
            (
                "{action: Allow, selector: {matchLabels: {}}, rules: [{from: [{namespaces: [x]}]}]}",
                "leave `selector` out",
            ),
        ] {
            let rule = format!(
                "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: bad}}\nspec: {spec}\n"
            );
            let Err(why) = plain.apply(&rule) else { anyhow::bail!("it came in: {spec}") };
            let why = format!("{why:#}");
            ensure!(why.contains(says) && !why.contains("failed calling webhook"), "{why}");
        }
        let by_namespace = labelled.apply(&POD.replace("LABEL", "").replace("NAME", "held"));
        refused(by_namespace, "namespace.inject.countersign.dev")?;
        let by_itself = POD.replace("LABEL", ", countersign.dev/inject: enabled").replace("NAME", "held");
        refused(plain.apply(&by_itself), "pod.inject.countersign.dev")
    })?
}

const UNMESHED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', args: [serve]}]
";

/// How long answers hold without the controller, from the moment when it was lost.
const HOLDS: Duration = Duration::from_secs(30);

fn unmeshed_for_a_while(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "outage-known")?;
    let (_outside, url) = unmeshed(cluster, "outage-unmeshed")?;
    // Each request on a new connection, 20 a second, each load in a pod with a sidecar of its own.
    let plain = namespace.load("to-unmeshed", &url, 75, false)?;
    let meshed = namespace.load("to-meshed", "http://server/", 75, false)?;
    away(cluster, "countersign-controller", || {
        let report = plain.report();
        meshed.nothing_failed().context("who is meshed is reached all the while")?;
        let report = report?;
        let lost = lost_controller(&namespace, "to-unmeshed")?;
        let at = |key: &str| Some(report["began_ms"].as_u64()? + report[key].as_u64()?);
        let refused = at("failures_from_ms").with_context(|| format!("nothing was refused: {report}"))?;
        let last = at("last_good_ms").context("nothing was answered")?;
        let (held, over) = (refused.saturating_sub(lost), last.saturating_sub(lost));
        // A tenth of a second for two clocks' readings; some for a request under way.
        let (least, most) = (HOLDS.as_millis() as u64 - 100, HOLDS.as_millis() as u64 + 2000);
        ensure!(held >= least, "refused {held} ms after the controller was lost: {report}");
        ensure!(over <= most, "still answered {over} ms after the controller was lost: {report}");
        Ok(())
    })??;
    until(Duration::from_secs(30), "it is reached again", || namespace.curl("pod/client", &url)).map(drop)
}

/// When a pod's sidecar lost the controller, by its log: milliseconds since 1970.
fn lost_controller(namespace: &Namespace<'_>, pod: &str) -> Result<u64> {
    let log = namespace.kubectl(&["logs", pod, "-c", "countersign-proxy"])?;
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let says = |line: &Value, what: &str| line.to_string().contains(what);
    let up = lines.iter().position(|line| says(line, "controller: stream is up")).context("it never had one")?;
    let lost = lines[up..].iter().find(|line| says(line, "\"controller: ") && says(line, "\"reason\""));
    let lost = lost.with_context(|| format!("it never lost it:\n{log}"))?;
    let text = lost["timestamp"].as_str().with_context(|| format!("no time: {lost}"))?;
    let output = std::process::Command::new("date").args(["-d", text, "+%s%3N"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
