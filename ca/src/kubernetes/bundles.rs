//! The roots, where pods find them: a ConfigMap in our own namespace and in each meshed one. Run by `run` as one task, with
//! `--publish-bundle`.
//!
//! A pod that mounts it does not start before it is there, so it is made as soon as a namespace or a pod is labelled, and put
//! right as soon as roots change or somebody edits it. It is public, and only ever bootstraps: a running proxy follows the
//! CA's stream. It is never removed here: pods of a namespace that is no longer meshed may still start again.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::names;
use countersign_credentials::SharedClock;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{PartialObjectMeta, Request};
use kube::runtime::watcher;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

use super::watch::follow;
use super::{CALL_LIMIT, CallError, Cluster};
use crate::metrics::Metrics;
use crate::state::{Authority, State, sha256};

mod seen;
#[cfg(test)]
mod tests;

use seen::{Found, GENERATION, SYSTEM, Seen};

/// Writes at once.
const AT_ONCE: usize = 8;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Failures are told at most so often: a missing right concerns every namespace.
const TELL_EACH: Duration = Duration::from_secs(10);

/// What is done with.
pub struct Publisher {
    /// The API server.
    pub cluster: Cluster,
    /// Whose roots are published.
    pub state: Arc<State>,
    /// Wall time.
    pub clock: SharedClock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What is to be done, and what is being done.
struct Desk {
    publisher: Arc<Publisher>,
    seen: Seen,
    due: BTreeMap<String, Due>,
    running: JoinSet<(String, Result<Found, CallError>)>,
    busy: BTreeSet<String>,
    /// What was written lately: whoever undoes it at once must not make us write without end.
    lately: BTreeMap<String, Instant>,
    told: Option<Instant>,
}

struct Due {
    failures: u32,
    at: Instant,
}

impl Publisher {
    /// Never ends.
    pub async fn run(self) {
        let client = self.cluster.client.clone();
        let meshed = format!("{}=enabled", names::LABEL_INJECT);
        let labelled = || watcher::Config::default().labels(&meshed);
        // RBAC by name works on a watch only where it asks for that name.
        let named = watcher::Config::default().fields(&format!("metadata.name={}", names::BUNDLE_CONFIG_MAP));
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        let pods: Api<PartialObjectMeta<Pod>> = Api::all(client.clone());
        let maps: Api<ConfigMap> = Api::all(client);
        let mut namespaces = pin!(follow(namespaces, labelled()));
        let mut pods = pin!(follow(pods, labelled()));
        let mut maps = pin!(follow(maps, named));
        let mut authority = self.state.subscribe();
        let mut desk = Desk::new(self);
        loop {
            let next = desk.next_due();
            let touched = tokio::select! {
                Some(event) = namespaces.next() => desk.heard(event, Seen::namespace),
                Some(event) = pods.next() => desk.heard(event, Seen::pod),
                Some(event) = maps.next() => desk.heard(event, Seen::map),
                Ok(()) = authority.changed() => desk.seen.all_wanted(),
                Some(done) = desk.running.join_next(), if !desk.running.is_empty() => desk.done(done),
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => BTreeSet::new(),
            };
            desk.look_at(touched);
            desk.work();
        }
    }

    /// Writes the roots there, whatever is there, and says what is there then.
    async fn write(&self, namespace: &str, found: Option<&Found>) -> Result<Found, CallError> {
        // Another replica may know a newer bundle: then we are to learn it, and not to put the older one back.
        if found.and_then(|found| found.generation) > Some(self.state.authority().generation()) {
            let _ = self.state.refresh(self.clock.now()).await;
        }
        let authority = self.state.authority();
        if let Some(found) = found.filter(|found| found.is(&authority)) {
            return Ok(found.clone());
        }
        let name = names::BUNDLE_CONFIG_MAP;
        let labels = json!({ names::LABEL_MANAGED_BY: names::CA_ACCOUNT });
        let system = self.cluster.namespace();
        let annotations = json!({ GENERATION: authority.generation().to_string(), SYSTEM: system });
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": namespace, "labels": labels, "annotations": annotations },
            "data": { names::BUNDLE_KEY: authority.bundle_pem() },
        });
        let params = PatchParams::apply(names::CA_ACCOUNT).force();
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let request = Request::new(path).patch(name, &params, &Patch::Apply(map));
        let stored: ConfigMap = self.cluster.ask(request, CALL_LIMIT).await?;
        let found = Found::of(&stored, system);
        match found.is(&authority) {
            true => Ok(found),
            // Some admission webhook, or a controller that was quicker.
            false => Err(CallError::Refused("what is stored is not what was written".to_owned())),
        }
    }
}

impl Desk {
    fn new(publisher: Publisher) -> Self {
        let seen = Seen::new(publisher.cluster.namespace());
        Self {
            publisher: Arc::new(publisher),
            seen,
            due: BTreeMap::new(),
            running: JoinSet::new(),
            busy: BTreeSet::new(),
            lately: BTreeMap::new(),
            told: None,
        }
    }

    fn heard<E>(&mut self, event: Result<E, CallError>, take: impl Fn(&mut Seen, E) -> seen::Touched) -> seen::Touched {
        match event {
            Ok(event) => take(&mut self.seen, event),
            Err(error) => {
                self.tell("", &error);
                seen::Touched::new()
            }
        }
    }

    /// What is not as it should be becomes due.
    fn look_at(&mut self, touched: seen::Touched) {
        let (authority, now) = (self.publisher.state.authority(), Instant::now());
        self.lately.retain(|_, at| now.duration_since(*at) < FIRST_PAUSE);
        for namespace in touched {
            if self.seen.wanted(&namespace) && !self.is_in_step(&namespace, &authority) {
                let at = self.lately.get(&namespace).map_or(now, |written| *written + FIRST_PAUSE);
                self.due.entry(namespace).or_insert(Due { failures: 0, at });
            } else {
                self.due.remove(&namespace);
            }
        }
        // Before the first list our own namespace is touched by nothing.
        let own = self.publisher.cluster.namespace();
        if self.seen.complete() && !self.due.contains_key(own) && !self.is_in_step(own, &authority) {
            let at = self.lately.get(own).map_or(now, |written| *written + FIRST_PAUSE);
            self.due.insert(own.to_owned(), Due { failures: 0, at });
        }
        // Of what could not be listed yet, our own namespace at least may be behind.
        let unknown = usize::from(!self.seen.complete());
        self.publisher.metrics.bundles_behind(self.due.len() + unknown);
    }

    fn is_in_step(&self, namespace: &str, authority: &Authority) -> bool {
        self.seen.found(namespace).is_some_and(|found| found.is(authority))
    }

    fn work(&mut self) {
        if !self.seen.complete() {
            return;
        }
        let now = Instant::now();
        let free = AT_ONCE.saturating_sub(self.running.len());
        let ready = self.due.iter().filter(|(namespace, due)| due.at <= now && !self.busy.contains(*namespace));
        let ready: Vec<_> = ready.map(|(namespace, _)| namespace.clone()).take(free).collect();
        for namespace in ready {
            self.busy.insert(namespace.clone());
            let (publisher, found) = (Arc::clone(&self.publisher), self.seen.found(&namespace).cloned());
            self.running.spawn(async move {
                let result = publisher.write(&namespace, found.as_ref()).await;
                (namespace, result)
            });
        }
    }

    fn done(&mut self, done: Result<(String, Result<Found, CallError>), tokio::task::JoinError>) -> seen::Touched {
        let Ok((namespace, result)) = done else { return seen::Touched::new() };
        self.busy.remove(&namespace);
        self.publisher.metrics.bundle_write(result.is_ok());
        match result {
            Ok(found) => {
                self.due.remove(&namespace);
                self.lately.insert(namespace.clone(), Instant::now());
                self.seen.wrote(namespace.clone(), found);
            }
            Err(error) => {
                if !is_ending(&error) {
                    self.tell(&namespace, &error);
                }
                if let Some(due) = self.due.get_mut(&namespace) {
                    let pause = FIRST_PAUSE.saturating_mul(1 << due.failures.min(8)).min(LONGEST_PAUSE);
                    *due = Due { failures: due.failures + 1, at: Instant::now() + pause };
                }
            }
        }
        // It may have changed once more meanwhile.
        BTreeSet::from([namespace])
    }

    /// When the next is due that cannot be done at once.
    fn next_due(&self) -> Option<Instant> {
        let idle = self.due.iter().filter(|(namespace, _)| !self.busy.contains(*namespace));
        let waits = self.seen.complete() && self.running.len() < AT_ONCE;
        idle.map(|(_, due)| due.at).min().filter(|_| waits)
    }

    fn tell(&mut self, namespace: &str, error: &CallError) {
        let now = Instant::now();
        if self.told.is_none_or(|told| now.duration_since(told) >= TELL_EACH) {
            self.told = Some(now);
            let behind = self.due.len();
            tracing::error!(%error, namespace, behind, "the roots of namespaces are not kept in step; trying again");
        }
    }
}

/// The namespace is on its way out, and pods in it are not gone yet.
fn is_ending(error: &CallError) -> bool {
    matches!(error, CallError::Forbidden(why) if why.contains("because it is being terminated"))
}

impl Found {
    /// Exactly these roots, and marked as ours.
    fn is(&self, authority: &Authority) -> bool {
        self.ours
            && self.generation == Some(authority.generation())
            && self.text_sha256 == Some(sha256(authority.bundle_pem().as_bytes()))
    }
}
