//! The claims: each shows something with real programs, measures it, and fails where it does not hold.
//!
//! Called by `demo`, in order. A claim must never rest on one side's word: what a proxy logs stands beside what the
//! application, the client or the link saw.

pub mod encrypted;
pub mod latency;
pub mod outage;
pub mod refused;
pub mod rotation;
pub mod rules;
pub mod server_first;
mod traffic;

use std::time::Duration;

use anyhow::{Result, ensure};
use countersign_kit::mesh::MeshPod;
use countersign_kit::{PodCommand, wait_until};
use serde_json::Value;

use super::say::Say;
use super::stage::Stage;

/// Log lines follow the end of a connection within this.
const LOGGED: Duration = Duration::from_secs(5);

/// `countersign`, as an operator types it: said, and ready to run.
fn typed(stage: &Stage, say: &Say, args: &[&str]) -> Result<PodCommand> {
    say.command("system", &format!("countersign {}", args.join(" ")));
    stage.countersign(args)
}

/// The same to its end, well: what it says, each line of which is a fact.
fn answered(stage: &Stage, say: &mut Say, args: &[&str]) -> Result<String> {
    let text = typed(stage, say, args)?.succeed()?;
    text.lines().for_each(|line| say.fact(line));
    Ok(text)
}

/// Waits for `count` access-log lines of the pods' sidecars that `wanted` accepts.
fn wait_for_lines(pods: &[&MeshPod], count: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
    wait_until(LOGGED, || {
        let all = pods.iter().flat_map(|pod| pod.access_log());
        let found: Vec<Value> = all.filter(|line| wanted(line)).collect();
        if found.len() >= count { Ok(found) } else { Err(format!("{} of {count} log lines: {what}", found.len())) }
    })
}

/// A field of a log line as text; absent is empty.
fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

/// No server's log holds `path`: the application never saw it.
fn unseen(stage: &Stage, path: &str) -> Result<()> {
    for pod in &stage.backends {
        ensure!(!stage.nginx_log(pod)?.contains(path), "{} got the request all the same", pod.name());
    }
    Ok(())
}
