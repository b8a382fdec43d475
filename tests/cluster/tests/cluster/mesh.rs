//! The mesh on the cluster: installed once, by the command that operators type; and the apps that most promises are shown with.
//!
//! Called by every promise about the mesh.

use std::time::Duration;

use anyhow::{Result, ensure};
use countersign_cluster_tests::{Cluster, Namespace, until};

pub const SYSTEM: &str = "countersign-system";
pub const INJECT: &str = "countersign.dev/inject=enabled";
const DEPLOYMENTS: [&str; 3] = ["countersign-ca", "countersign-controller", "countersign-injector"];

/// Sees to it that the mesh is installed and ready.
pub fn installed(cluster: &Cluster) -> Result<()> {
    cluster.once(install)
}

/// `countersign install | kubectl apply -f -`, and waits for it.
pub fn install(cluster: &Cluster) -> Result<()> {
    install_with(cluster, &[])
}

/// The same, with settings.
pub fn install_with(cluster: &Cluster, settings: &[&str]) -> Result<()> {
    // Images are loaded, and there is nowhere to pull them from.
    let args: Vec<_> = ["install", "--set", "image.pullPolicy=Never"].iter().chain(settings).copied().collect();
    let manifest = cluster.countersign_says(&args)?;
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest)?;
    for deployment in DEPLOYMENTS {
        let name = format!("deployment/{deployment}");
        cluster
            .kubectl(&["-n", SYSTEM, "rollout", "status", &name, "--timeout=120s"])
            .map_err(|error| system_said(cluster, error))?;
    }
    until(Duration::from_secs(60), "the webhooks' caBundle is there", || {
        let webhooks = cluster.object(&["get", "mutatingwebhookconfiguration", "countersign-injector"])?;
        let bundle = webhooks["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default();
        ensure!(bundle.len() > 100, "{webhooks}");
        Ok(())
    })
    .map_err(|error| system_said(cluster, error))
}

/// Adds to an error what our own pods say.
pub fn system_said(cluster: &Cluster, error: anyhow::Error) -> anyhow::Error {
    let say = |args: &[&str]| cluster.kubectl(args).unwrap_or_else(|error| format!("{error:#}"));
    let pods = say(&["-n", SYSTEM, "get", "pods", "-o", "wide"]);
    let logs = say(&["-n", SYSTEM, "logs", "--selector=app.kubernetes.io/part-of=countersign", "--prefix", "--tail=8"]);
    error.context(format!("{SYSTEM}:\n{pods}\n{logs}\n"))
}

/// A server of two replicas behind a Service, one on each node, and a client; rules let in who may.
const PAIR: &str = r"
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: client-to-server}
spec:
  selector: {matchLabels: {app: server}}
  action: Allow
  rules:
  - from: [{serviceAccounts: [{namespace: NAMESPACE, name: default}]}]
    to: [{ports: [8080]}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: server}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server}
spec:
  replicas: 2
  selector: {matchLabels: {app: server}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: server}}
    spec:
      serviceAccountName: server
      terminationGracePeriodSeconds: 30
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: server}}}
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
  nodeName: node0
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
";

/// A namespace that is meshed, with `server` and `client` in it.
pub fn pair<'a>(cluster: &'a Cluster, name: &'static str) -> Result<Namespace<'a>> {
    let namespace = meshed(cluster, name)?;
    namespace.apply(&PAIR.replace("NAMESPACE", name))?;
    namespace.rolled_out("deployment/server").map_err(|error| system_said(cluster, error))?;
    namespace.ready("pod/client")?;
    answers(&namespace)?;
    Ok(namespace)
}

/// Waits until both servers are the Service's endpoints, and it answers. Pods may be ready long before: after an outage of the API server each watcher of it, the endpoint
/// controller's and our controller's too, comes back after a backoff of its own, of up to half a minute.
fn answers(namespace: &Namespace<'_>) -> Result<()> {
    until(Duration::from_secs(90), "the Service has both endpoints", || {
        let slices = namespace.object(&["get", "endpointslices", "-l", "kubernetes.io/service-name=server"])?;
        let slices = slices["items"].as_array().cloned().unwrap_or_default();
        let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count();
        ensure!(ready == 2, "{ready} ready endpoints");
        Ok(())
    })
    .and_then(|()| {
        until(Duration::from_secs(60), "the Service answers", || namespace.curl("pod/client", "http://server/"))
    })
    .map(drop)
    .map_err(|error| namespace.accounted(error))
}

/// A namespace that is meshed.
pub fn meshed<'a>(cluster: &'a Cluster, name: &'static str) -> Result<Namespace<'a>> {
    installed(cluster)?;
    Namespace::new(cluster, name, &[INJECT])
}

/// An un-meshed namespace, with a client in it.
pub fn stranger<'a>(cluster: &'a Cluster, name: &'static str) -> Result<Namespace<'a>> {
    let namespace = Namespace::new(cluster, name, &[])?;
    namespace.apply(STRANGER)?;
    namespace.ready("pod/client")?;
    Ok(namespace)
}

const STRANGER: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
";

/// Addresses of all pods with `app=NAME`.
pub fn addresses(namespace: &Namespace<'_>, app: &str) -> Result<Vec<String>> {
    let pods = namespace.object(&["get", "pods", "-l", &format!("app={app}")])?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    Ok(pods.iter().filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned)).collect())
}

/// Which servers answer at a URL, over several requests.
pub fn who_answers(namespace: &Namespace<'_>, url: &str, requests: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for _ in 0..requests {
        let answer = namespace.curl("pod/client", url)?;
        names.extend(answer.split_whitespace().nth(2).map(str::to_owned));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// One pod that waits.
pub const ALONE: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: alone, labels: {app: alone}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', command: [/app, wait]}]
";

/// The same, applied and ready.
pub fn alone(namespace: &Namespace<'_>) -> Result<()> {
    namespace.apply(ALONE)?;
    namespace.ready("pod/alone")
}
