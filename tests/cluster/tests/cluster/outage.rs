//! Something is away for a minute: what goes on, and what does not.
//!
//! These run alone: they take away what all others use, and give it back whatever becomes of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::Nobody;
use countersign_cluster_tests::{Cluster, Namespace, Promise, until};

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
fn under_load(namespace: &Namespace<'_>, minute: impl FnOnce() -> Result<()>) -> Result<()> {
    let seconds = MINUTE.as_secs() + 25;
    let new = namespace.load("load-new", "http://server/", seconds, false)?;
    let kept = namespace.load("load-kept", "http://server/", seconds, true)?;
    minute()?;
    for load in [new, kept] {
        load.nothing_failed()?;
    }
    Ok(())
}

fn api_server(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "outage-api")?;
    under_load(&namespace, || {
        let signal = |word: &str| {
            let pid = "cat /var/tmp/countersign-cluster/control/run/apiserver.pid";
            cluster.on("control", &["sh", "-c", &format!("kill -{word} $({pid})")])
        };
        signal("STOP")?;
        std::thread::sleep(MINUTE);
        signal("CONT")?;
        until(Duration::from_secs(30), "the API server answers again", || {
            cluster.kubectl(&["get", "--raw", "/readyz"])
        })?;
        Ok(())
    })
}

fn ca(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "outage-ca")?;
    under_load(&namespace, || away(cluster, "countersign-ca", || std::thread::sleep(MINUTE)))
}

fn controller(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "outage-controller")?;
    under_load(&namespace, || away(cluster, "countersign-controller", || std::thread::sleep(MINUTE)))
}

/// Runs something while one of our Deployments has no pod.
fn away<T>(cluster: &Cluster, name: &str, meanwhile: impl FnOnce() -> T) -> Result<T> {
    let deployment = format!("deployment/{name}");
    let scale =
        |replicas: &str| cluster.kubectl(&["-n", SYSTEM, "scale", &deployment, &format!("--replicas={replicas}")]);
    let selector = format!("app.kubernetes.io/name={name}");
    scale("0")?;
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
        let by_namespace = labelled.apply(&POD.replace("LABEL", "").replace("NAME", "held"));
        ensure!(by_namespace.is_err(), "a pod of a labelled namespace came in without a sidecar");
        let by_itself = POD.replace("LABEL", ", countersign.dev/inject: enabled").replace("NAME", "held");
        ensure!(plain.apply(&by_itself).is_err(), "a labelled pod came in without a sidecar");
        Ok(())
    })?
}

/// A server that is not meshed, in the mesh's own ranges.
const UNMESHED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: 'localhost/app:1', args: [serve]}]
";

fn unmeshed_for_a_while(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "outage-known")?;
    let outside = Namespace::new(cluster, "outage-unmeshed", &[])?;
    outside.apply(UNMESHED)?;
    outside.ready("pod/server")?;
    let url = format!("http://{}:8080/", outside.address("server")?);
    until(Duration::from_secs(20), "it is reached", || namespace.curl("pod/client", &url))?;
    // Who is at an address that was never asked for cannot be learned while the controller is away.
    namespace.curl("pod/client", "http://server/")?;
    away(cluster, "countersign-controller", || {
        namespace.curl("pod/client", &url).context("right after the controller went")?;
        // 30 s, from when the sidecar lost the controller: at the latest when its last pod had gone.
        until(Duration::from_secs(40), "it is refused", || {
            ensure!(namespace.curl("pod/client", &url).is_err(), "still answered");
            Ok(())
        })?;
        // Who is meshed is still reached.
        namespace.curl("pod/client", "http://server/").context("a meshed server")
    })??;
    until(Duration::from_secs(30), "it is reached again", || namespace.curl("pod/client", &url)).map(drop)
}
