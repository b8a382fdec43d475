//! What the CA does by itself: renews its issuer, renews its own SVID, reads the key set again. Run by `run` as one task, a
//! step at a time. A failed step keeps what is in force and is tried again.

use std::sync::Arc;
use std::time::Duration;

use countersign_credentials::SharedClock;

use crate::attest::Jwks;
use crate::audit::{Audit, AuditError, Entry, Event, GRANTED, Recorded, SUPERSEDED};
use crate::clock::millis;
use crate::metrics::Metrics;
use crate::own::{Own, OwnError};
use crate::state::{Authority, Draft, Pair, Race, State, StateError, hex};

/// Why a step failed. All our own fault, or the disk's.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum UpkeepError {
    #[error("the issuer was not renewed: {0}")]
    Issuer(#[from] StateError),
    #[error("the issuer was not renewed: {0}")]
    Audit(#[from] AuditError),
    #[error("the own SVID was not renewed: {0}")]
    Own(#[from] OwnError),
}

/// Half of the shortest leaf's life is 5 s: often enough for that.
const EVERY: Duration = Duration::from_secs(1);
/// After a failure: a full disk is not beaten every second.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// The parts that are looked after.
pub struct Upkeep {
    /// Root and issuer.
    pub state: Arc<State>,
    /// The CA's own SVID.
    pub own: Arc<Own>,
    /// The token issuer's keys, where tokens are verified by them.
    pub jwks: Option<Arc<Jwks>>,
    /// Where all that is signed is recorded.
    pub audit: Audit,
    /// Wall time.
    pub clock: SharedClock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Upkeep {
    /// Never ends.
    pub async fn run(self) {
        let mut told = None;
        loop {
            if let Some(jwks) = &self.jwks {
                self.refresh_keys(jwks, &mut told);
            }
            let pause = match self.renew().await {
                Ok(()) => EVERY,
                Err(error) => {
                    tracing::error!(%error, "upkeep failed; what is in force stays");
                    AFTER_FAILURE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Renews what is due: the issuer first, so that the own leaf comes from the newer one. An issuer that could not be stored
    /// does not keep the own leaf from being renewed by the one in force.
    pub async fn renew(&self) -> Result<(), UpkeepError> {
        let issuer = match self.state.draft_issuer(self.clock.now()) {
            Ok(Some(draft)) => self.renew_issuer(draft).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        };
        let authority = self.state.authority();
        let own = match self.own.due(&authority) {
            true => self.own.renew(&authority, &self.audit).await,
            false => Ok(()),
        };
        issuer?;
        Ok(own?)
    }

    /// Recorded, then stored, then in force. Where replicas share the state, one of them wins.
    async fn renew_issuer(&self, draft: Draft) -> Result<(), UpkeepError> {
        let made = draft.authority();
        let _recorded = record_ca(&self.audit, Event::Issuer, GRANTED, &made, millis(&*self.clock)).await?;
        let serial = made.issuer().serial();
        match self.state.commit(draft, self.clock.now()).await? {
            Race::Won => tracing::info!(serial, not_after = made.issuer().not_after().as_secs(), "issuer renewed"),
            Race::Lost => {
                let _ = record_ca(&self.audit, Event::Issuer, SUPERSEDED, &made, millis(&*self.clock)).await?;
                tracing::info!(serial, "another replica renewed the issuer first; this one was never used");
            }
        }
        Ok(())
    }

    /// A bad file is told once, not each second.
    fn refresh_keys(&self, jwks: &Jwks, told: &mut Option<String>) {
        match jwks.refresh() {
            Ok(changed) => {
                *told = None;
                if changed {
                    self.metrics.keys_reloaded(true);
                    tracing::info!(keys = ?jwks.key_ids(), "token keys reloaded");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    self.metrics.keys_reloaded(false);
                    tracing::error!(%error, "the token keys' file is bad; the last good keys stay");
                    *told = Some(text);
                }
            }
        }
    }
}

/// Records that a root or an issuer was made, before it is put in force; or that it never was.
pub async fn record_ca(
    audit: &Audit,
    event: Event,
    outcome: &'static str,
    authority: &Authority,
    now_ms: u64,
) -> Result<Recorded, AuditError> {
    let pair: &Pair = if event == Event::Root { authority.root() } else { authority.issuer() };
    let entry = Entry {
        serial: Some(pair.serial()),
        key_sha256: Some(hex(&pair.key_sha256())),
        not_after: Some(pair.not_after().as_secs()),
        bundle_generation: Some(authority.generation()),
        ..Entry::new(event, outcome)
    };
    audit.record(&entry, now_ms).await
}

#[cfg(test)]
mod tests;
