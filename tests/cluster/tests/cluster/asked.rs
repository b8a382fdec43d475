//! The CA and the controller, by what each replica answers for itself when it is asked on its admin socket.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::{Nobody, Others};
use countersign_cluster_tests::{Cluster, Promise, until};
use serde_json::Value;

use crate::mesh::{SYSTEM, installed};
use crate::plane::pods_of;

pub const PROMISES: &[Promise] = &[
    ("the_controller_knows_the_clusters_ranges", Others, ranges),
    ("of_two_replicas_of_the_ca_that_take_a_step_at_once_one_wins", Nobody, race),
];

/// Asks the process in a pod of ours by its own program, as `countersign status --kubectl` does: its exit code and what it printed.
fn ask(cluster: &Cluster, pod: &str, program: &str, words: &[&str]) -> Result<(Option<i32>, Value)> {
    let name = pod.rsplit('/').next().context("its name")?;
    let (container, path) = (format!("--container={program}"), format!("/{program}"));
    let args = [&["-n", SYSTEM, "exec", name, &container, "--", &path, "ask"], words].concat();
    let output = cluster.kubectl_command(&args).output().context("kubectl")?;
    let said = serde_json::from_slice(&output.stdout);
    let said = said.with_context(|| format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((output.status.code(), said))
}

fn ranges(cluster: &Cluster) -> Result<()> {
    installed(cluster)?;
    let known = cluster.object(&["get", "servicecidrs"])?;
    let mut known: Vec<_> = known["items"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|one| one["spec"]["cidrs"].as_array().into_iter().flatten())
        .collect();
    known.sort_by_key(|range| range.to_string());
    ensure!(!known.is_empty(), "the cluster has no ServiceCIDR");
    for pod in pods_of(cluster, "countersign-controller")? {
        let (_, status) = ask(cluster, &pod, "countersign-controller", &["/status"])?;
        let mut told: Vec<_> = status["service_ranges"].as_array().into_iter().flatten().collect();
        told.sort_by_key(|range| range.to_string());
        ensure!(told == known, "{pod}: {told:?} of {known:?}");
        let nodes = cluster.object(&["get", "nodes"])?;
        for node in nodes["items"].as_array().into_iter().flatten() {
            let range = &node["spec"]["podCIDR"];
            let pods = status["pod_ranges"].as_array().context("pod ranges")?;
            ensure!(pods.contains(range), "{pod}: {range} is not among {pods:?}");
        }
    }
    Ok(())
}

/// Until both have begun before either wrote. Whoever heard of the other's step first refuses, and has made nothing.
const ROUNDS: usize = 25;

fn race(cluster: &Cluster) -> Result<()> {
    const CA: &str = "countersign-ca";
    installed(cluster)?;
    let replicas = pods_of(cluster, CA)?;
    let [one, two] = &replicas[..] else { anyhow::bail!("{replicas:?}") };
    let follows = |pod: &str, under_way: bool| {
        until(Duration::from_secs(20), &format!("{pod} has heard of the last step"), || {
            let (_, at) = ask(cluster, pod, CA, &["/rotation"])?;
            ensure!(at["under_way"] == under_way, "{at}");
            Ok(at)
        })
    };
    for _ in 0..ROUNDS {
        let prepare = |pod: &str| ask(cluster, pod, CA, &["--post", "/rotation/prepare"]);
        let (first, second) = std::thread::scope(|scope| {
            let other = scope.spawn(|| prepare(two));
            (prepare(one), other.join())
        });
        let (first, second) = (first?, second.map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        let (won, lost, loser) = match (first.0, second.0) {
            (Some(0), Some(1)) => (first.1, second.1, two),
            (Some(1), Some(0)) => (second.1, first.1, one),
            _ => anyhow::bail!("one of two takes the step: {first:?} {second:?}"),
        };
        ensure!(lost["refused"].as_str().is_some_and(|why| why.contains("prepared already")), "{lost}");
        for pod in [one, two] {
            let at = follows(pod, true)?;
            ensure!(at["rotation"]["id"] == won["rotation"]["id"], "{pod} has another rotation: {at} {won}");
        }
        let log =
            cluster.kubectl(&["-n", SYSTEM, "logs", loser.rsplit('/').next().context("its name")?, "--tail=-1"])?;
        let met = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .any(|record| record["event"] == "rotation" && record["outcome"] == "superseded");
        let (code, back) = ask(cluster, one, CA, &["--post", "/rotation/abort"])?;
        ensure!(code == Some(0), "{back}");
        for pod in [one, two] {
            follows(pod, false)?;
        }
        if met {
            return Ok(());
        }
    }
    anyhow::bail!("in {ROUNDS} rounds nobody was superseded: they never met")
}
