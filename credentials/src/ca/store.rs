//! What is in force: the one place where a new SVID and a new bundle meet, and where it is decided what is published.
//!
//! Called by `renew` and `follow`, which may finish in any order: the newer bundle wins, whoever brought it. Must never
//! publish an SVID that our verifier refuses under the bundle in force, and never give up a good bundle for a bad one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_api::ca as wire;
use countersign_identity::{BundleSet, SpiffeId, Svid, TrustBundle, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::{Notify, watch};

use super::error::CaError;
use super::status::{LastError, Status};
use crate::Watch;
use crate::clock::SharedClock;
use crate::credentials::Credentials;

/// A trust domain's name as sent, shown no longer than this.
const SHOWN_NAME: usize = 255;

pub(super) struct Store {
    trust_domain: TrustDomain,
    expected: SpiffeId,
    pub(super) clock: SharedClock,
    /// The bundle in force. Publishing happens under this lock, so that what is published never goes back.
    bundle: Mutex<Option<TrustBundle>>,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    status: watch::Sender<Status>,
    renew_now: Notify,
    /// The root that the CA was last told to sign under; all zero before the first word of it.
    signing_root: Mutex<[u8; 32]>,
    renew_soon: Notify,
}

impl Store {
    pub(super) fn new(
        trust_domain: TrustDomain,
        expected: SpiffeId,
        clock: SharedClock,
    ) -> (Self, Watch, watch::Receiver<Status>) {
        let (credentials, published) = watch::channel(None);
        let (status, told) = watch::channel(Status::default());
        let bundle = Mutex::new(None);
        let (renew_now, renew_soon) = (Notify::new(), Notify::new());
        let signing_root = Mutex::new([0; 32]);
        let store =
            Self { trust_domain, expected, clock, bundle, credentials, status, renew_now, signing_root, renew_soon };
        (store, published, told)
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The bundle in force.
    pub(super) fn bundle(&self) -> Option<TrustBundle> {
        self.held().clone()
    }

    /// Generation of the bundle in force; 0 before the first.
    pub(super) fn generation(&self) -> u64 {
        self.held().as_ref().map_or(0, TrustBundle::generation)
    }

    /// What an SVID is asked for with: 0 too once our own has ended. The stream of bundles is then closed to us, and the CA gives us the
    /// newest with the next SVID.
    pub(super) fn asking_generation(&self) -> u64 {
        if self.credentials().is_some_and(|credentials| credentials.expired()) { 0 } else { self.generation() }
    }

    /// Whether a root is being replaced: two or more are in force.
    pub(super) fn replacing(&self) -> bool {
        self.held().as_ref().is_some_and(|bundle| bundle.roots().len() > 1)
    }

    /// The CA says under which root it signs now. If our SVID stands on another, it is renewed soon: that root is to go.
    pub(super) fn signs_under(&self, root: &[u8]) {
        let Ok(root) = <[u8; 32]>::try_from(root) else { return }; // a CA of before does not say
        *self.signing_root.lock().unwrap_or_else(PoisonError::into_inner) = root;
        if self.is_superseded() {
            self.renew_soon.notify_one();
        }
    }

    /// Our SVID stands on a root under which the CA signs no longer.
    fn is_superseded(&self) -> bool {
        let root = *self.signing_root.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.held().as_ref().is_some_and(|bundle| bundle.contains_root(&root));
        let ours = self.credentials().and_then(|credentials| credentials.anchor_sha256().copied());
        known && ours.is_some_and(|ours| ours != root)
    }

    /// Returns when the CA signs under another root than the one that our SVID stands on.
    pub(super) async fn superseded(&self) {
        loop {
            self.renew_soon.notified().await;
            if self.is_superseded() {
                return;
            }
        }
    }

    pub(super) fn credentials(&self) -> Option<Arc<Credentials>> {
        self.credentials.borrow().clone()
    }

    /// Puts a new SVID in force, with the newer of the bundle that came with it and the one we hold. `anew`: the file vouched for the
    /// CA, as at the start, so that what we hold does not count.
    pub(super) fn take_svid(
        &self,
        svid: Svid,
        with: wire::TrustBundle,
        anew: bool,
    ) -> Result<Arc<Credentials>, CaError> {
        if svid.id() != &self.expected {
            return Err(CaError::WrongId { expected: self.expected.clone(), got: svid.id().clone() });
        }
        let came = self.parse(with)?;
        let mut held = self.held();
        let bundle = match newer(held.as_ref().filter(|_| !anew), came) {
            Ok(Some(bundle)) => bundle,
            // A replica of the CA that is a step behind: its SVID must do under what we hold.
            Ok(None) | Err(CaError::OlderBundle { .. }) => held.clone().ok_or(CaError::NoBundle)?,
            Err(error) => return Err(error),
        };
        let credentials = Credentials::new(Arc::new(svid), set(bundle.clone())?, SharedClock::clone(&self.clock))?;
        let credentials = Arc::new(credentials);
        *held = Some(bundle);
        self.publish(&held, Arc::clone(&credentials));
        Ok(credentials)
    }

    /// Puts a bundle in force that the CA sent on its stream; `false` when we hold it already. Refused bundles are counted
    /// and told, and change nothing.
    pub(super) fn take_bundle(&self, came: wire::TrustBundle) -> Result<bool, CaError> {
        let taken = self.try_bundle(came);
        if let Err(error) = &taken {
            let told = LastError::new(error, self.clock.now());
            self.status.send_modify(|status| {
                status.bundles_refused += 1;
                status.last_bundle_error = Some(told);
            });
        }
        taken
    }

    fn try_bundle(&self, came: wire::TrustBundle) -> Result<bool, CaError> {
        let came = self.parse(came)?;
        let mut held = self.held();
        let Some(bundle) = newer(held.as_ref(), came)? else { return Ok(false) };
        // Peers are judged by the new bundle from now on, even if it does not vouch for us any more.
        let credentials = match self.credentials() {
            Some(old) => Some(Arc::new(old.with_bundles(set(bundle.clone())?)?)),
            None => None,
        };
        *held = Some(bundle);
        if let Some(credentials) = credentials {
            let trusted = credentials.own_chain_trusted();
            self.publish(&held, credentials);
            if !trusted {
                self.renew_now.notify_one();
            }
        }
        Ok(true)
    }

    /// Returns when a bundle came that does not vouch for our own SVID.
    pub(super) async fn distrusted(&self) {
        loop {
            self.renew_now.notified().await;
            // A renewal that was under way may have cured it meanwhile.
            if self.credentials().is_some_and(|credentials| !credentials.own_chain_trusted()) {
                return;
            }
        }
    }

    pub(super) fn renewal_succeeded(&self, next: UnixTime) {
        let now = self.clock.now();
        self.status.send_modify(|status| {
            status.renewals += 1;
            status.failures_in_a_row = 0;
            status.last_renewal = Some(now);
            status.last_error = None;
            status.next_attempt = Some(next);
        });
    }

    pub(super) fn renewal_failed(&self, error: &CaError, delay: Duration) {
        let now = self.clock.now();
        let told = LastError::new(error, now);
        self.status.send_modify(|status| {
            status.failures += 1;
            status.failures_in_a_row = status.failures_in_a_row.saturating_add(1);
            status.last_error = Some(told);
            status.next_attempt = Some(UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + delay));
        });
    }

    /// The bundle stream opened, or ended for a reason.
    pub(super) fn following(&self, open: bool, ended: Option<&CaError>) {
        let told = ended.map(|error| LastError::new(error, self.clock.now()));
        self.status.send_modify(|status| {
            status.following = open;
            if told.is_some() {
                status.last_bundle_error = told;
            }
        });
    }

    fn publish(&self, held: &Option<TrustBundle>, credentials: Arc<Credentials>) {
        self.status.send_modify(|status| {
            status.expires_at = Some(credentials.expires_at());
            status.bundle_generation = held.as_ref().map(TrustBundle::generation);
            status.own_chain_trusted = credentials.own_chain_trusted();
        });
        self.credentials.send_replace(Some(credentials));
    }

    fn parse(&self, came: wire::TrustBundle) -> Result<TrustBundle, CaError> {
        if came.trust_domain != self.trust_domain.as_str() {
            let got = came.trust_domain.chars().take(SHOWN_NAME).collect();
            return Err(CaError::OtherTrustDomain { ours: self.trust_domain.clone(), got });
        }
        let roots = came.roots.into_iter().map(CertificateDer::from).collect();
        Ok(TrustBundle::new(self.trust_domain.clone(), came.generation, roots, self.clock.now())?)
    }

    fn held(&self) -> MutexGuard<'_, Option<TrustBundle>> {
        self.bundle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bundle that came if it is newer than the one held; `None` if it is the same one.
fn newer(held: Option<&TrustBundle>, came: TrustBundle) -> Result<Option<TrustBundle>, CaError> {
    let Some(held) = held else { return Ok(Some(came)) };
    match came.generation().cmp(&held.generation()) {
        std::cmp::Ordering::Greater => Ok(Some(came)),
        std::cmp::Ordering::Less => Err(CaError::OlderBundle { held: held.generation(), got: came.generation() }),
        std::cmp::Ordering::Equal if same_roots(held, &came) => Ok(None),
        std::cmp::Ordering::Equal => Err(CaError::ChangedBundle(came.generation())),
    }
}

fn same_roots(a: &TrustBundle, b: &TrustBundle) -> bool {
    a.roots().len() == b.roots().len() && a.roots().iter().all(|root| b.roots().contains(root))
}

/// The set of this one bundle.
pub(super) fn set(bundle: TrustBundle) -> Result<BundleSet, CaError> {
    Ok(BundleSet::new(vec![bundle])?)
}

#[cfg(test)]
mod tests;
