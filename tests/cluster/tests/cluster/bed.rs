//! What the mesh relies on is so on this cluster, without the mesh.
//!
//! When one of these fails, the cluster is at fault and not the mesh.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Others;
use countersign_cluster_tests::{Cluster, Namespace, Promise, until};
use serde_json::{Value, json};

pub const PROMISES: &[Promise] = &[
    ("the_bed_a_service_by_its_name_reaches_pods_on_both_nodes", Others, a_service),
    ("the_bed_a_server_sees_the_address_of_the_client_pod", Others, source_address),
    ("the_bed_exec_logs_and_port_forward_work", Others, people),
    ("the_bed_a_native_sidecar_holds_the_app_back_until_its_startup_probe_passes", Others, native_sidecar),
    ("the_bed_token_review_accepts_a_token_for_its_audience_alone_and_while_its_pod_is_there", Others, token_review),
    ("the_bed_a_pod_with_a_read_only_root_and_no_capability_runs_a_static_image", Others, restricted),
];

const SERVERS: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: server}
spec:
  replicas: 2
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: server}}}
      containers:
      - name: app
        image: localhost/app:1
        args: [serve]
        readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
";

fn servers<'a>(cluster: &'a Cluster, name: &'static str) -> Result<Namespace<'a>> {
    let namespace = Namespace::new(cluster, name, &[])?;
    namespace.apply(SERVERS)?;
    namespace.rolled_out("deployment/server")?;
    namespace.ready("pod/client")?;
    Ok(namespace)
}

fn a_service(cluster: &Cluster) -> Result<()> {
    let namespace = servers(cluster, "bed-service")?;
    for host in ["server", "server.bed-service.svc.cluster.local"] {
        let mut seen: Vec<String> = Vec::new();
        until(Duration::from_secs(20), "both servers answer", || {
            seen.push(namespace.curl("pod/client", &format!("http://{host}/"))?);
            seen.sort();
            seen.dedup();
            ensure!(seen.len() == 2, "{host}: {seen:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn source_address(cluster: &Cluster) -> Result<()> {
    let namespace = servers(cluster, "bed-source")?;
    let own = namespace.address("client")?;
    let pods = namespace.object(&["get", "pods", "-l", "app=server"])?;
    let addresses: Vec<_> =
        pods["items"].as_array().into_iter().flatten().filter_map(|pod| pod["status"]["podIP"].as_str()).collect();
    ensure!(addresses.len() == 2);
    for address in addresses {
        let answer = namespace.curl("pod/client", &format!("http://{address}:8080/"))?;
        ensure!(answer.trim().ends_with(&format!("to {own}")), "{answer}");
    }
    Ok(())
}

fn people(cluster: &Cluster) -> Result<()> {
    let namespace = servers(cluster, "bed-people")?;
    ensure!(namespace.exec("pod/client", &["echo", "a word"])? == "a word\n");
    ensure!(namespace.kubectl(&["logs", "deployment/server"])?.contains("serving"));
    ensure!(forwarded(&namespace)?.starts_with("hello from server"));
    Ok(())
}

/// The answer of a server that is reached through `kubectl port-forward`.
pub fn forwarded(namespace: &Namespace<'_>) -> Result<String> {
    let args = ["-n", namespace.name, "port-forward", "deployment/server", ":8080"];
    let mut forward = namespace.cluster.kubectl_command(&args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let answer = through(&mut forward);
    // The one that bounds its time hands this on.
    let told = Command::new("kill").arg(forward.id().to_string()).status();
    forward.wait()?;
    ensure!(told?.success(), "kubectl port-forward ended by itself");
    answer
}

/// kubectl says where it listens; a request there reaches the pod.
fn through(forward: &mut Child) -> Result<String> {
    let mut line = String::new();
    // It writes a line for each connection, and dies when nobody holds the other end.
    let mut output = BufReader::new(forward.stdout.take().context("its output")?);
    output.read_line(&mut line)?;
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
    let url = format!("http://127.0.0.1:{}/", port.with_context(|| line.clone())?);
    let curl = Command::new("curl").args(["-sS", "-m8", &url]).output()?;
    ensure!(curl.status.success(), "{}", String::from_utf8_lossy(&curl.stderr));
    Ok(String::from_utf8(curl.stdout)?)
}

const SIDECAR: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: held, labels: {app: held}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: sidecar
    restartPolicy: Always
    image: localhost/app:1
    command: [sh, -c, 'mkfifo /shared/go; cat /shared/go; exec httpd -f -p 15006 -h /shared']
    startupProbe: {tcpSocket: {port: 15006}, periodSeconds: 1, failureThreshold: 60}
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
  volumes: [{name: shared, emptyDir: {}}]
";

fn native_sidecar(cluster: &Cluster) -> Result<()> {
    let namespace = Namespace::new(cluster, "bed-sidecar", &[])?;
    namespace.apply(SIDECAR)?;
    let state = || namespace.object(&["get", "pod", "held"]).map(|pod| pod["status"].clone());
    until(Duration::from_secs(60), "the sidecar runs", || {
        let status = state()?;
        ensure!(status["initContainerStatuses"][0]["state"]["running"] != Value::Null, "{status}");
        Ok(())
    })?;
    let status = state()?;
    ensure!(status["initContainerStatuses"][0]["started"] == false, "{status}");
    ensure!(status["containerStatuses"][0]["state"]["waiting"] != Value::Null, "the app started: {status}");
    until(Duration::from_secs(20), "the sidecar is let go", || {
        namespace.exec_in("pod/held", "sidecar", &["sh", "-c", "echo go >/shared/go"])
    })?;
    namespace.ready("pod/held")
}

const TOKEN: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: holder, labels: {app: holder}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: localhost/app:1
    command: [/app, wait]
    volumeMounts: [{name: token, mountPath: /token}]
  volumes:
  - name: token
    projected: {sources: [{serviceAccountToken: {audience: countersign-ca, path: token, expirationSeconds: 3600}}]}
";

fn token_review(cluster: &Cluster) -> Result<()> {
    let namespace = Namespace::new(cluster, "bed-token", &[])?;
    namespace.apply(TOKEN)?;
    namespace.ready("pod/holder")?;
    let token = namespace.exec("pod/holder", &["cat", "/token/token"])?;
    let review = |audience: &str| -> Result<Value> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [audience] },
        });
        let answer = cluster.kubectl_with(&["create", "-f", "-", "-o", "json"], &review.to_string())?;
        Ok(serde_json::from_str::<Value>(&answer)?["status"].clone())
    };
    let own = review("countersign-ca")?;
    ensure!(own["authenticated"] == true, "{own}");
    ensure!(own["user"]["username"] == "system:serviceaccount:bed-token:default", "{own}");
    ensure!(own["user"]["extra"]["authentication.kubernetes.io/pod-name"] == json!(["holder"]), "{own}");
    let other = review("https://kubernetes.default.svc.cluster.local")?;
    ensure!(other["authenticated"] != true, "{other}");
    namespace.kubectl(&["delete", "pod", "holder"])?;
    // It remembers good ones for 10 s.
    until(Duration::from_secs(30), "the token ends with its pod", || {
        let gone = review("countersign-ca")?;
        ensure!(gone["authenticated"] != true, "{gone}");
        Ok(())
    })
}

const RESTRICTED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: small, labels: {app: small}}
spec:
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: app
    image: localhost/countersign-proxy:VERSION
    args: [version]
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
  restartPolicy: Never
";

fn restricted(cluster: &Cluster) -> Result<()> {
    let profile = "pod-security.kubernetes.io/enforce=restricted";
    let namespace = Namespace::new(cluster, "bed-restricted", &[profile])?;
    namespace.apply(&RESTRICTED.replace("VERSION", env!("CARGO_PKG_VERSION")))?;
    let args = ["wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "pod/small"];
    namespace.kubectl(&args).map_err(|error| namespace.explained(error))?;
    let said = namespace.kubectl(&["logs", "pod/small"])?;
    ensure!(said.trim() == format!("countersign-proxy {}", env!("CARGO_PKG_VERSION")), "{said}");
    Ok(())
}
