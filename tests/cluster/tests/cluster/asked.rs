//! The CA and the controller, by what each replica answers for itself when it is asked on its admin socket.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_cluster_tests::Beside::{Nobody, Others};
use countersign_cluster_tests::{Cluster, Promise, until};
use serde_json::Value;

use crate::mesh::{SYSTEM, installed, pair};
use crate::plane::pods_of;

pub const PROMISES: &[Promise] = &[
    ("the_controller_knows_the_clusters_ranges", Others, ranges),
    ("of_two_replicas_of_the_ca_that_take_a_step_at_once_one_wins", Nobody, race),
    ("an_abort_under_way_is_ended_by_the_line_of_the_operators_page", Nobody, forced),
];

const CA: &str = "countersign-ca";

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
            let range = node["spec"]["podCIDR"].as_str().context("a node's range")?;
            let pods = status["pod_ranges"].as_array().context("pod ranges")?;
            // Neighbours are told as one.
            let known = pods.iter().filter_map(Value::as_str).any(|known| holds(known, range).unwrap_or(false));
            ensure!(known, "{pod}: {range} is in none of {pods:?}");
        }
    }
    Ok(())
}

/// Whether an IPv4 range holds another.
fn holds(range: &str, other: &str) -> Option<bool> {
    let read = |text: &str| {
        let (address, bits) = text.split_once('/')?;
        Some((u32::from(address.parse::<Ipv4Addr>().ok()?), bits.parse::<u32>().ok()?))
    };
    let ((range, bits), (other, more)) = (read(range)?, read(other)?);
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    Some(bits <= more && range & mask == other & mask)
}

/// Until both have begun before either wrote; whoever heard of the other's step first refuses, and has made nothing. Whether they ever meet is chance.
const ROUNDS: usize = 12;

fn race(cluster: &Cluster) -> Result<()> {
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
    let superseded = |pod: &str| -> Result<usize> {
        let log = cluster.kubectl(&["-n", SYSTEM, "logs", pod.rsplit('/').next().context("its name")?, "--tail=-1"])?;
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(records.filter(|it| it["event"] == "rotation" && it["outcome"] == "superseded").count())
    };
    let round = || -> Result<bool> {
        let before = (superseded(one)?, superseded(two)?);
        let prepare = |pod: &str| ask(cluster, pod, CA, &["--post", "/rotation/prepare"]);
        let (first, second) = std::thread::scope(|scope| {
            let other = scope.spawn(|| prepare(two));
            (prepare(one), other.join())
        });
        let (first, second) = (first?, second.map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        let (won, lost) = match (first.0, second.0) {
            (Some(0), Some(1)) => (first.1, second.1),
            (Some(1), Some(0)) => (second.1, first.1),
            _ => anyhow::bail!("one of two takes the step: {first:?} {second:?}"),
        };
        ensure!(lost["refused"].as_str().is_some_and(|why| why.contains("prepared already")), "{lost}");
        for pod in [one, two] {
            let at = follows(pod, true)?;
            ensure!(at["rotation"]["id"] == won["rotation"]["id"], "{pod} has another rotation: {at} {won}");
        }
        Ok((superseded(one)?, superseded(two)?) != before)
    };
    for _ in 0..ROUNDS {
        let met = round();
        // Whatever came of it: nobody else finds a rotation under way.
        let (code, back) = ask(cluster, one, CA, &["--post", "/rotation/abort"])?;
        let met = met?;
        ensure!(code == Some(0), "{back}");
        for pod in [one, two] {
            follows(pod, false)?;
        }
        if met {
            return Ok(());
        }
    }
    println!("in {ROUNDS} rounds they never met: each time one had heard of the other's step");
    Ok(())
}

fn forced(cluster: &Cluster) -> Result<()> {
    let namespace = pair(cluster, "asked-forced")?;
    let replicas = pods_of(cluster, CA)?;
    let first = replicas.first().context("no replica")?;
    let (_, before) = ask(cluster, first, CA, &["/rotation"])?;
    let step = |step: &str| -> Result<()> {
        let (code, said) = ask(cluster, first, CA, &["--post", &format!("/rotation/{step}")])?;
        ensure!(code == Some(0), "{step}: {said}");
        Ok(())
    };
    let all_at = |stage: &str| {
        until(Duration::from_secs(20), &format!("all replicas are at {stage}"), || {
            for pod in &replicas {
                let (_, seen) = ask(cluster, pod, CA, &["/rotation"])?;
                ensure!(seen["rotation"]["stage"] == stage, "{pod}: {seen}");
            }
            Ok(())
        })
    };
    let done = (|| {
        for one in ["prepare", "activate/forced", "abort"] {
            step(one)?;
        }
        // Whichever of them it comes to.
        all_at("returning")?;
        let line = line_of_the_page()?;
        let words: Vec<&str> = line.split_whitespace().collect();
        cluster.kubectl(&words)
    })();
    if done.is_err() {
        // Nobody else finds a rotation under way.
        for last in ["abort", "retire/forced"] {
            let _ = step(last);
        }
    }
    let said: Value = serde_json::from_str(&done?)?;
    ensure!(said["rotation"]["stage"] == "aborted" && said["signing_root"] == before["signing_root"], "{said}");
    all_at("aborted")?;
    // Whoever stood on the root that went is back by itself.
    until(Duration::from_secs(60), "they talk again", || namespace.curl("pod/client", "http://server/"))?;
    let retire = cluster.countersign(&["ca", "retire", "--kubectl"]).output().context("countersign")?;
    let said = String::from_utf8_lossy(&retire.stdout);
    ensure!(retire.status.code() == Some(1) && said.contains("no rotation is under way"), "{said}");
    Ok(())
}

/// What docs/operations.md says to type, word for word, behind `kubectl`. Its indented lines are not run with its blocks.
fn line_of_the_page() -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let page = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mut indented = page.lines().filter_map(|line| line.strip_prefix("    kubectl "));
    let line = indented.find(|line| line.ends_with("/rotation/retire/forced"));
    Ok(line.context("the page has no such line")?.to_owned())
}
