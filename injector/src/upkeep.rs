//! The serving certificate, kept: read from the Secret that the replicas share, renewed there when it is time, announced in the webhooks'
//! `caBundle`, and put in force.
//!
//! Started by `run`; ends never. Whatever fails, what is in force stays in force. The order is: read the webhooks, then the Secret, then
//! write; so what is written over a `caBundle` is never older than what it held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::certificate::MakeError;
use crate::keeper::{Ring, Terms};
use crate::kubernetes::{self, CallError, Cluster};
use crate::metrics::Metrics;
use crate::tls::{Serving, TlsError};

/// Seconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Looks that follow one another at once, when others write at the same time.
const TRIES: usize = 5;
/// Wait after a look that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum UpkeepError {
    #[error("the webhooks' configurations: {0}")]
    Webhooks(CallError),
    #[error("Secret countersign-injector-tls: {0}")]
    Secret(CallError),
    #[error("Secret countersign-injector-tls is not there, and is not ours to make: apply the mesh's manifest again")]
    NoSecret,
    #[error(transparent)]
    Make(#[from] MakeError),
    #[error("the serving certificate: {0}")]
    Tls(#[from] TlsError),
}

impl UpkeepError {
    /// A bounded word.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Webhooks(_) => "webhooks",
            Self::Secret(_) | Self::NoSecret => "secret",
            Self::Make(_) | Self::Tls(_) => "certificate",
        }
    }

    fn is_race(&self) -> bool {
        matches!(self, Self::Webhooks(CallError::Conflict) | Self::Secret(CallError::Conflict))
    }
}

fn of_the_secret(error: CallError) -> UpkeepError {
    match error {
        CallError::Missing => UpkeepError::NoSecret,
        other => UpkeepError::Secret(other),
    }
}

/// What keeps it.
pub struct Upkeep {
    /// The API server.
    pub cluster: Cluster,
    /// What is made.
    pub terms: Terms,
    /// Where it is put in force.
    pub serving: Serving,
    /// Wall time.
    pub clock: Clock,
    /// Counted.
    pub metrics: Arc<Metrics>,
    /// Whether the webhooks' `caBundle` was as it should be at the last look.
    pub published: Arc<AtomicBool>,
}

impl Upkeep {
    /// Looks again and again.
    pub async fn run(self) {
        let mut ring = Ring::default();
        let mut failing = false;
        loop {
            let result = self.look(&mut ring).await;
            self.published.store(result.is_ok(), Ordering::Relaxed);
            self.metrics.looked(result.as_ref().map_or_else(UpkeepError::label, |()| Self::good_label()));
            match &result {
                Ok(()) if failing => tracing::info!("the serving certificate is in order again"),
                Err(error) if !failing => tracing::warn!(%error, "the serving certificate is not in order; trying on"),
                _ => {}
            }
            failing = result.is_err();
            tokio::time::sleep(if failing { AGAIN } else { ring.next_look(&self.terms, (self.clock)()) }).await;
        }
    }

    fn good_label() -> &'static str {
        "good"
    }

    /// One look; others that write at the same time are given way. `ring`: what was seen last.
    ///
    /// # Errors
    /// What could not be done; what could be is done.
    pub async fn look(&self, ring: &mut Ring) -> Result<(), UpkeepError> {
        for _ in 1..TRIES {
            match self.once(ring).await {
                Err(error) if error.is_race() => {}
                result => return result,
            }
        }
        self.once(ring).await
    }

    async fn once(&self, ring: &mut Ring) -> Result<(), UpkeepError> {
        let webhooks = kubernetes::find(&self.cluster).await.map_err(UpkeepError::Webhooks)?;
        let (found, version) = kubernetes::read_ring(&self.cluster).await.map_err(of_the_secret)?;
        // A Secret that was emptied is filled again with what we have: nobody need notice.
        let before = found.clone().unwrap_or_else(|| ring.clone());
        let now = (self.clock)();
        let tended = before.tended(&self.terms, now)?;
        if found.as_ref() != Some(&tended) {
            kubernetes::write_ring(&self.cluster, &tended, version).await.map_err(of_the_secret)?;
            tracing::info!(certificates = tended.len(), "the ring of serving certificates was written");
        }
        *ring = tended;
        let published =
            kubernetes::publish(&self.cluster, &webhooks, &ring.bundle()).await.map_err(UpkeepError::Webhooks);
        // A leaf that nobody could verify yet is served only if there is no other.
        if (published.is_ok() || self.serving.ends().is_none_or(|ends| ends <= now))
            && let Some(pair) = ring.serving(now)
        {
            let name = self.terms.names.first().map(String::as_str).unwrap_or_default();
            if self.serving.put(pair, name, now)? {
                tracing::info!(ends = pair.ends, "another serving certificate is in force");
            }
        }
        let published = published?;
        if published.changed > 0 {
            tracing::info!(entries = published.changed, "the webhooks' caBundle was brought in step");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
