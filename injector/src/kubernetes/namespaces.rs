//! Labels of namespaces, remembered for a few seconds, so that a thousand pods of one namespace are not a thousand questions.
//!
//! Called by `server`. The API server has matched the label before it asks us, so what we remember must never be what leaves a pod
//! out: before that it is asked for anew (see [`Namespaces::fresh`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Resource as _;
use kube::api::GetParams;
use kube::core::Request;
use tokio::time::Instant;

use super::{CallError, Cluster};

/// How long labels are remembered.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Namespaces remembered; all are forgotten when there are more.
const MOST: usize = 1024;

/// Labels of a namespace.
pub type Labels = BTreeMap<String, String>;

/// Asks, and remembers.
pub struct Namespaces {
    cluster: Cluster,
    known: Mutex<HashMap<String, (Instant, Labels)>>,
}

impl Namespaces {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, known: Mutex::default() }
    }

    /// As they were a moment ago, and whether they come from memory.
    ///
    /// # Errors
    /// They are not remembered, and the API server does not tell.
    pub async fn labels(&self, name: &str) -> Result<(Labels, bool), CallError> {
        if let Some((since, labels)) = self.known().get(name)
            && since.elapsed() < REMEMBERED
        {
            return Ok((labels.clone(), true));
        }
        Ok((self.fresh(name).await?, false))
    }

    /// As they are.
    ///
    /// # Errors
    /// The API server does not tell.
    pub async fn fresh(&self, name: &str) -> Result<Labels, CallError> {
        let request = Request::new(Namespace::url_path(&(), None)).get(name, &GetParams::default());
        let namespace: Namespace = self.cluster.ask(request).await?;
        let labels = namespace.metadata.labels.unwrap_or_default();
        let mut known = self.known();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(name.to_owned(), (Instant::now(), labels.clone()));
        Ok(labels)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, Labels)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
