//! Who talks to whom, and how it looks on the wire.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Others;
use countersign_cluster_tests::{Cluster, Promise, until};
use serde_json::Value;

use crate::mesh::{ALONE, addresses, meshed, pair, stranger, who_answers};

pub const PROMISES: &[Promise] = &[
    ("an_injected_pair_talks_over_tls_1_3_alone", Others, the_wire),
    ("a_pod_without_a_sidecar_is_refused", Others, unmeshed_is_refused),
    ("a_meshed_stranger_is_refused", Others, stranger_is_refused),
    ("a_pod_without_a_sidecar_is_let_in_where_a_rule_says_unauthenticated", Others, let_in),
    ("a_port_that_an_annotation_leaves_out_is_open_to_everybody_and_no_other_is", Others, left_out),
    ("two_endpoints_behind_a_cluster_ip_both_serve", Others, both_serve),
    ("the_pods_of_a_stateful_set_are_reached_by_their_own_names", Others, stateful_set),
    ("exec_logs_and_port_forward_work_on_a_meshed_pod", Others, people),
];

/// Listens on a node's link for some seconds and tells how each connection to port 8080 began.
const LISTENER: &str = include_str!("listener.py");

fn the_wire(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "talk-wire")?;
    let pods = namespace.object(&["get", "pods", "-l", "app=server"])?;
    let pods = pods["items"].as_array().context("pods")?;
    let far = pods.iter().find(|pod| pod["spec"]["nodeName"] == "node1").context("a server on node1")?;
    let address = far["status"]["podIP"].as_str().context("its address")?;
    // Who has asked before has a connection that is kept: how it began was to be heard then.
    namespace.apply(&ALONE.replace("spec:", "spec:\n  nodeName: node0"))?;
    namespace.ready("pod/alone")?;

    let mut listener = cluster.on_command("node0", &["python3", "-c", LISTENER, "cni0", "8080", address]);
    let mut listener = listener.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let heard = listened(&mut listener, || {
        (0..5).try_for_each(|_| {
            let answer = namespace.curl("pod/alone", &format!("http://{address}:8080/"))?;
            ensure!(answer.starts_with("hello from server"), "{answer}");
            Ok(())
        })
    });
    let _ = listener.kill();
    listener.wait()?;
    let heard = heard?;
    let flows = heard["flows"].as_array().context("flows")?;
    ensure!(!flows.is_empty(), "nothing was heard of the requests");
    for flow in flows {
        ensure!(flow["client"] == "1603" && flow["server"] == "1603", "not TLS: {heard}");
        ensure!(flow["version"] == "0304", "not TLS 1.3: {heard}");
    }
    ensure!(heard["plain"] == false, "words of the app were on the wire: {heard}");
    Ok(())
}

/// Runs `talk` while the listener listens; what it heard.
fn listened(listener: &mut Child, talk: impl FnOnce() -> Result<()>) -> Result<Value> {
    let mut output = BufReader::new(listener.stdout.take().context("its output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(line == "ready\n", "the listener: {line}");
    talk()?;
    drop(listener.stdin.take());
    let mut rest = String::new();
    output.read_to_string(&mut rest)?;
    serde_json::from_str(&rest).context("what the listener heard")
}

fn unmeshed_is_refused(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "talk-unmeshed")?;
    let outside = stranger(cluster, "talk-outside")?;
    // What is refused is this client, not everybody.
    namespace.curl("pod/client", "http://server/")?;
    direct_and_by_service(&namespace)?.iter().try_for_each(|url| outside.refused("pod/client", url))
}

fn direct_and_by_service(namespace: &countersign_cluster_tests::Namespace<'_>) -> Result<Vec<String>> {
    let mut urls: Vec<_> =
        addresses(namespace, "server")?.iter().map(|address| format!("http://{address}:8080/")).collect();
    urls.push(format!("http://server.{}/", namespace.name));
    Ok(urls)
}

fn stranger_is_refused(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "talk-known")?;
    let other = pair(cluster, "talk-stranger")?;
    namespace.curl("pod/client", "http://server/")?;
    other.curl("pod/client", "http://server/")?;
    direct_and_by_service(&namespace)?.iter().try_for_each(|url| other.refused("pod/client", url))
}

const UNAUTHENTICATED: &str = r"
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: from-outside}
spec:
  selector: {matchLabels: {app: server}}
  action: Allow
  rules:
  - from: [{unauthenticated: true, ipBlocks: [10.244.0.0/16]}]
    to: [{ports: [8080]}]
";

fn let_in(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "talk-open")?;
    let outside = stranger(cluster, "talk-guest")?;
    let url = "http://server.talk-open/";
    outside.refused("pod/client", url).context("without a rule")?;
    namespace.apply(UNAUTHENTICATED)?;
    until(Duration::from_secs(10), "the rule lets it in", || outside.curl("pod/client", url))?;
    // And who is meshed still comes by TLS.
    namespace.curl("pod/client", "http://server/").map(drop)
}

const LEFT_OUT: &str = r"
apiVersion: v1
kind: Pod
metadata:
  name: NAME
  labels: {app: NAME}
  annotations: {proxy.countersign.dev/SETTING: 'PORTS'}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', command: [/app, DOES]}]
";

fn left_out(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "talk-skip")?;
    let outside = stranger(cluster, "talk-skipper")?;
    let pods = [
        ("open", "skip-inbound-ports", "22, 8080", "serve"),
        ("shut", "skip-inbound-ports", "22, 9999", "serve"),
        ("beside", "skip-outbound-ports", "8080", "wait"),
    ];
    for (name, setting, ports, does) in pods {
        let pod = LEFT_OUT.replace("NAME", name).replace("SETTING", setting);
        namespace.apply(&pod.replace("PORTS", ports).replace("DOES", does))?;
    }
    for (name, ..) in pods {
        namespace.ready(&format!("pod/{name}"))?;
    }
    let (open, shut) = (namespace.address("open")?, namespace.address("shut")?);
    // The app sees who comes, as there is no sidecar between: otherwise it sees an address of its own pod.
    let asked = |from: &countersign_cluster_tests::Namespace<'_>, client: &str| {
        let answer = from.curl(&format!("pod/{client}"), &format!("http://{open}:8080/"))?;
        let guest = from.address(client)?;
        ensure!(answer.starts_with("hello from open ") && answer.trim().ends_with(&format!(" to {guest}")), "{answer}");
        Ok(())
    };
    until(Duration::from_secs(20), "it listens", || asked(&outside, "client"))?;
    // That port alone: where others are left out it is shut as ever, and so it is without an annotation.
    outside.refused("pod/client", &format!("http://{shut}:8080/"))?;
    let server = namespace.address("server")?;
    outside.refused("pod/client", &format!("http://{server}:8080/"))?;
    // A meshed caller has to leave it out too; all else that such a one says goes through its sidecar.
    asked(&namespace, "beside")?;
    let answer = namespace.curl("pod/beside", "http://server/")?;
    ensure!(answer.starts_with("hello from server"), "{answer}");
    Ok(())
}

fn both_serve(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "talk-both")?;
    // One that did not answer at first is left alone for ten seconds.
    until(Duration::from_secs(30), "both serve", || {
        let names = who_answers(&namespace, "http://server/", 20)?;
        ensure!(names.len() == 2, "{names:?}");
        Ok(())
    })
    .map_err(|error| namespace.accounted(error))
}

const STATEFUL: &str = r"
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: client-to-web}
spec:
  selector: {matchLabels: {app: web}}
  action: Allow
  rules: [{from: [{namespaces: [NAMESPACE]}], to: [{ports: [8080]}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  replicas: 2
  serviceName: web
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: app, image: 'localhost/app:1', args: [serve], readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
";

fn stateful_set(cluster: &Cluster) -> Result<()> {
    let namespace = meshed(cluster, "talk-stateful")?;
    namespace.apply(&STATEFUL.replace("NAMESPACE", namespace.name))?;
    namespace.rolled_out("statefulset/web")?;
    namespace.ready("pod/client")?;
    for name in ["web-0", "web-1"] {
        let answer = until(Duration::from_secs(20), "it is reached by its name", || {
            namespace.curl("pod/client", &format!("http://{name}.web:8080/"))
        })?;
        ensure!(answer.starts_with(&format!("hello from {name} ")), "{answer}");
    }
    Ok(())
}

fn people(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "talk-people")?;
    ensure!(namespace.exec("pod/client", &["echo", "a word"])? == "a word\n");
    ensure!(namespace.kubectl(&["logs", "deployment/server", "-c", "app"])?.contains("serving"));
    ensure!(crate::bed::forwarded(&namespace)?.starts_with("hello from server"));
    Ok(())
}
