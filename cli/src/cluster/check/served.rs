//! Whether the certificates that the mesh's own processes have in use are renewed in time: their leaves, the CA's issuer, the injector's serving
//! certificate; the root has a line of its own (`mesh::roots`). Called by `check`, after the install.
//!
//! Each process is asked itself, for its metrics, through the API server (`pods/proxy`): what a Secret holds is not yet what a process serves. It
//! must never call well what it did not see: a process that nobody asked, or one that told of a part only.

use countersign_api::{names, ports};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinSet;

use super::world::World;
use super::{Finding, State, some_of};
use crate::cluster::api::{Api, CallError};
use crate::cluster::meshed;
use crate::output::span;

/// The end of every metric's name that is the end of a certificate.
const ENDS: &str = "_expiration_timestamp_seconds";
/// What is left of a life when a renewal must have failed, as one part in so many: leaves and the injector's certificate are renewed at half,
/// the issuer at a third.
const LATE: i64 = 5;
/// Nothing is late with more than this left. Nobody tells when a certificate was made, and where an operator has made a life longer the one in force
/// is of the shorter: an issuer of a month is then no worse than it was.
const LATEST: i64 = 7 * 86_400;

/// A process of ours, and the certificates that it must tell of.
struct Process {
    account: &'static str,
    port: u16,
    certificates: &'static [Certificate],
}

/// One certificate.
struct Certificate {
    /// The label in the metric; empty where there is but one.
    label: &'static str,
    /// What it is called.
    called: &'static str,
    /// Whose flag says how long it lives; none where it is judged elsewhere.
    life: Option<(&'static str, &'static str)>,
}

const LEAF: Option<(&str, &str)> = Some((names::CA_ACCOUNT, "leaf-ttl"));

const PROCESSES: [Process; 3] = [
    Process {
        account: names::CA_ACCOUNT,
        port: ports::CA_HEALTH,
        certificates: &[
            Certificate { label: "root", called: "its root", life: None },
            Certificate { label: "issuer", called: "its issuer", life: Some((names::CA_ACCOUNT, "issuer-ttl")) },
            Certificate { label: "own", called: "its own", life: LEAF },
        ],
    },
    Process {
        account: names::CONTROLLER_ACCOUNT,
        port: ports::CONTROLLER_HEALTH,
        certificates: &[Certificate { label: "", called: "its certificate", life: LEAF }],
    },
    Process {
        account: names::INJECTOR_ACCOUNT,
        port: ports::INJECTOR_HEALTH,
        certificates: &[Certificate {
            label: "",
            called: "its certificate",
            life: Some((names::INJECTOR_ACCOUNT, "certificate-life")),
        }],
    },
];

/// What a process said of itself.
pub struct Served {
    /// Its account.
    pub process: &'static str,
    /// The pod.
    pub pod: String,
    /// Its metrics.
    pub metrics: Result<String, CallError>,
}

/// Asks each running pod of ours, all at once: where a NetworkPolicy drops what the API server sends, each takes as long as a call may.
pub async fn ask(api: &Api, namespace: &str, pods: &[Value]) -> Vec<Served> {
    let mut asked = JoinSet::new();
    for Process { account, port, .. } in &PROCESSES {
        for pod in pods.iter().filter(|pod| is_of(pod, namespace, account)) {
            let pod = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics");
            let api = api.clone();
            asked.spawn(async move { Served { process: account, pod, metrics: api.text(&path).await } });
        }
    }
    let mut served = asked.join_all().await;
    served.sort_by(|a, b| a.pod.cmp(&b.pod));
    served
}

/// Well only if every process told of each of its certificates, and none has ended or is about to.
pub fn finding(world: &World) -> Finding {
    const CHECK: &str = "certificates";
    if let Err(error) = &world.pods {
        return Finding::unknown(CHECK, error);
    }
    let now = world.server_time().unwrap_or_else(OffsetDateTime::now_utc).unix_timestamp();
    let (mut bad, mut unseen, mut next) = (Vec::new(), Vec::new(), None);
    for process in &PROCESSES {
        let mut pods = world.served.iter().filter(|served| served.process == process.account).peekable();
        if pods.peek().is_none() {
            unseen.push((format!("no {} runs", process.account), "look at the line `processes`".to_owned()));
        }
        for Served { pod, metrics, .. } in pods {
            match metrics {
                Ok(text) => judge(world, process, pod, text, now, &mut bad, &mut next),
                Err(error) => unseen.push((format!("{pod}: {error}"), way(world, process, error))),
            }
        }
    }
    match (unseen.first().cloned(), next) {
        _ if !bad.is_empty() => {
            let todo = format!("kubectl -n {} logs POD: why it gets no new one", world.namespace);
            Finding::problem(CHECK, some_of(&bad), todo)
        }
        (Some((_, todo)), _) => {
            let said: Vec<_> = unseen.into_iter().map(|(said, _)| said).collect();
            Finding { state: State::Unknown, ..Finding::problem(CHECK, some_of(&said), todo) }
        }
        (None, first) => {
            let first = first.map_or_else(String::new, |(_, said)| format!("; the first to end: {said}"));
            Finding::ok(CHECK, format!("{} processes have good ones{first}", world.served.len()))
        }
    }
}

/// What to do so that it can be looked at.
fn way(world: &World, process: &Process, error: &CallError) -> String {
    let (namespace, port) = (&world.namespace, process.port);
    match error {
        CallError::Forbidden(_) => format!("ask with an account that may `get pods/proxy` in {namespace}"),
        CallError::Unavailable(_) | CallError::Refused { .. } => format!(
            "let the API server in at port {port} (networkPolicies.metricsFrom, or the network's own rules), or look yourself: \
             kubectl -n {namespace} port-forward POD {port}, and /metrics there has {ENDS}"
        ),
    }
}

/// One pod's certificates: what is bad goes to `bad`, the first to end to `next`.
fn judge(
    world: &World,
    process: &Process,
    pod: &str,
    metrics: &str,
    now: i64,
    bad: &mut Vec<String>,
    next: &mut Option<(i64, String)>,
) {
    for Certificate { label, called, life } in process.certificates {
        let Some((_, end)) = ends(metrics).find(|(found, _)| found == label) else {
            bad.push(format!("{pod} does not tell of {called}"));
            continue;
        };
        let left = end - now;
        let said = format!("{pod}: {called} {}", span(left));
        let age = life.and_then(|(account, _)| age_of(world, account, now));
        let life = life.and_then(|(account, flag)| life_of(world, account, flag));
        if left <= 0 {
            bad.push(format!("ended: {said}"));
        } else if life.is_some_and(|life| is_late(life, left, age)) {
            bad.push(format!("not renewed in time: {said}, of a life of {}", life.map(length).unwrap_or_default()));
        } else if next.as_ref().is_none_or(|(first, _)| end < *first) {
            *next = Some((end, said));
        }
    }
}

/// Whether with so much left of a life a renewal must have failed. `age`: since when the flag that says the life is in force, if that is known: a
/// shorter one of before is over, or renewed, half of the new life later.
fn is_late(life: i64, left: i64, age: Option<i64>) -> bool {
    let settled = age.is_none_or(|age| age >= (life / 2).min(LATEST));
    settled && left < (life / LATE).min(LATEST)
}

/// Seconds since the youngest pod of a process was made: a change of its flags makes new ones.
fn age_of(world: &World, account: &str, now: i64) -> Option<i64> {
    let pods = world.pods.as_ref().ok()?.iter().filter(|pod| is_of(pod, &world.namespace, account));
    let made =
        pods.filter_map(|pod| OffsetDateTime::parse(pod["metadata"]["creationTimestamp"].as_str()?, &Rfc3339).ok());
    made.map(|made| now - made.unix_timestamp()).min()
}

/// Whether it is a running pod of this process.
fn is_of(pod: &Value, namespace: &str, account: &str) -> bool {
    let metadata = &pod["metadata"];
    meshed::is_running(pod)
        && metadata["namespace"] == namespace
        && metadata["labels"]["app.kubernetes.io/name"] == account
}

/// Seconds that a flag of an installed process says.
fn life_of(world: &World, account: &str, flag: &str) -> Option<i64> {
    let deployment = world.our("Deployment", account)?;
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array()?;
    let prefix = format!("--{flag}=");
    args.iter().find_map(|arg| seconds(arg.as_str()?.strip_prefix(&prefix)?))
}

/// `30d`, `1h`, `5m`, `60s`: as the processes take it.
fn seconds(text: &str) -> Option<i64> {
    let unit = text.chars().last()?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    text.strip_suffix(unit)?.parse::<i64>().ok()?.checked_mul(factor)
}

fn length(seconds: i64) -> String {
    span(seconds).trim_start_matches("in ").to_owned()
}

/// Ends of certificates in OpenMetrics text: the label's value, if there is one, and seconds since 1970. Zero is none.
fn ends(metrics: &str) -> impl Iterator<Item = (&str, i64)> {
    metrics.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        name.strip_suffix(ENDS)?;
        let end = value.parse::<f64>().ok().filter(|end| *end > 0.0)?;
        // Exact for any time that a certificate can have.
        Some((labels.split('"').nth(1).unwrap_or_default(), end as i64))
    })
}

#[cfg(test)]
#[path = "served_tests.rs"]
mod tests;
