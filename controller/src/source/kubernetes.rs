//! A Kubernetes cluster as the source of the picture: pods, services, endpoint slices, namespaces, rules, and the ranges of cluster
//! IPs. Nothing is answered before each was listed once; after that what was known goes on, whatever breaks.
//!
//! `run` is called by the binary. The order of travel: `watch` (the API server's words, cut down by `objects`) -> `world` (`held`,
//! `pods`, `services`, `nodes`, `ranges`, `policies`: what they mean) -> a snapshot, at most ten a second. `status` writes back whether rules are
//! understood. `kube` is named only here and below. It must never end because the API server does.

mod held;
mod nodes;
mod objects;
mod pods;
mod policies;
mod ranges;
mod services;
mod status;
mod watch;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::TrustDomain;
use kube::Client;
use tokio::sync::mpsc;
use tokio::sync::watch::Sender;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

pub use self::world::Ranges;
use crate::source::Snapshot;
use crate::source::kubernetes::objects::Key;
use crate::source::kubernetes::policies::Verdict;
use crate::source::kubernetes::world::{Change, Changed, World};

/// From a change to its picture: what belongs together (a pod and its slice) mostly comes within this.
const QUIET: Duration = Duration::from_millis(20);
/// Between two pictures: making one, and asking for each proxy whether it concerns it, has a price.
const GAP: Duration = Duration::from_millis(100);
/// Changes that wait; then the watches wait.
const WAITING: usize = 1024;
/// An API server that does not answer is tried again after this.
const CONNECT: Duration = Duration::from_secs(5);
/// Problems, and warnings, that are logged of one picture; all are in `/status`.
const LOGGED: usize = 20;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a service account's token.
    #[error("--source kubernetes: no way to the API server: {0}")]
    Config(String),
    /// The settings found make no client.
    #[error("--source kubernetes: no client: {0}")]
    Client(#[from] Box<kube::Error>),
}

/// A client by the kubeconfig (`KUBECONFIG`, or of the user) or else the pod's own service account. Does not dial.
///
/// # Errors
/// There is neither, or it is no good.
pub async fn client() -> Result<Client, ConnectError> {
    let mut config = kube::Config::infer().await.map_err(|error| ConnectError::Config(error.to_string()))?;
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
}

/// Follows the cluster for ever; publishes each change.
///
/// # Errors
/// Only when a part panicked: what was known is lost, and the process had better start anew.
pub async fn run(
    client: Client,
    trust_domain: TrustDomain,
    ranges: Ranges,
    publish: Sender<Arc<Snapshot>>,
) -> Result<(), JoinError> {
    let (out, changes) = mpsc::channel(WAITING);
    let mut tasks = watch::start(&client, &ranges, &out);
    drop(out);
    let (verdicts, wanted) = tokio::sync::watch::channel(Arc::default());
    let mut writer = JoinSet::new();
    writer.spawn(status::keep(client, wanted));
    tokio::select! {
        ended = follow(World::new(trust_domain, ranges), changes, publish, verdicts) => ended,
        Some(Err(error)) = tasks.join_next() => Err(error),
        Some(Err(error)) = writer.join_next() => Err(error),
    }
}

/// Takes changes in, and makes pictures of them.
async fn follow(
    mut world: World,
    mut changes: mpsc::Receiver<Change>,
    publish: Sender<Arc<Snapshot>>,
    verdicts: Sender<Arc<BTreeMap<Key, Verdict>>>,
) -> Result<(), JoinError> {
    let mut changed = Changed { picture: true, verdicts: false };
    let mut due = Instant::now();
    let mut batch = Vec::with_capacity(WAITING);
    loop {
        let is_due = changed != Changed::default();
        tokio::select! {
            taken = changes.recv_many(&mut batch, WAITING) => {
                if taken == 0 {
                    return Ok(());
                }
                for change in batch.drain(..) {
                    let more = world.take(change);
                    changed = Changed { picture: changed.picture | more.picture, verdicts: changed.verdicts | more.verdicts };
                }
                if !is_due {
                    due = due.max(Instant::now() + QUIET);
                }
            }
            () = sleep_until(due), if is_due => {
                if std::mem::take(&mut changed.picture) {
                    let snapshot;
                    (world, snapshot) = tokio::task::spawn_blocking(move || {
                        let snapshot = world.snapshot();
                        (world, snapshot)
                    })
                    .await?;
                    put_in_force(snapshot, &publish);
                }
                if std::mem::take(&mut changed.verdicts) {
                    verdicts.send_if_modified(|old| {
                        let new = world.verdicts();
                        let news = **old != new;
                        *old = Arc::new(new);
                        news
                    });
                }
                due = Instant::now() + GAP;
            }
        }
    }
}

fn put_in_force(snapshot: Snapshot, publish: &Sender<Arc<Snapshot>>) {
    let old = Arc::clone(&publish.borrow());
    let same_index = match (&old.index, &snapshot.index) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        (old, new) => old.is_none() && new.is_none(),
    };
    let same = same_index
        && old.problems == snapshot.problems
        && old.warnings == snapshot.warnings
        && old.withheld == snapshot.withheld
        && old.change > 0;
    if !same {
        log(&old, &snapshot);
        publish.send_replace(Arc::new(snapshot));
    }
}

fn log(old: &Snapshot, new: &Snapshot) {
    for problem in new.problems.iter().filter(|problem| !old.problems.contains(problem)).take(LOGGED) {
        if old.change > 0 {
            error!(object = problem.file, field = problem.field, "{problem}");
        }
    }
    let mended = old.problems.iter().filter(|old| !new.problems.iter().any(|new| new.file == old.file));
    // Before there was a picture, that one is there says it all.
    for problem in mended.take(LOGGED).filter(|_| old.index.is_some()) {
        info!(object = problem.file, "is good again");
    }
    for warning in new.warnings.iter().filter(|warning| !old.warnings.contains(warning)).take(LOGGED) {
        warn!("{warning}");
    }
    if !new.withheld.is_empty() && new.withheld != old.withheld {
        let some = &new.withheld[..new.withheld.len().min(LOGGED)];
        error!(policies = ?some, "rules of their namespaces are withheld until these were good once: nobody knows what they deny");
    }
    if old.index.is_none()
        && let Some(index) = &new.index
    {
        info!(revision = index.revision(), objects = ?index.counts(), "the cluster is known");
    }
}

#[cfg(test)]
#[path = "kubernetes/tests.rs"]
mod tests;
