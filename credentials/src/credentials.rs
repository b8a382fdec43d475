//! Who we are: an SVID that our own verifier accepted, and the bundles by which we judge others. Immutable: a renewal or a
//! new bundle makes new [`Credentials`].
//!
//! Made by `ca` (proxy, controller) and by the CA for itself. Must never hold an SVID that a peer with the same bundle would
//! refuse, except as [`Credentials::own_chain_trusted`] tells.

use std::fmt;
use std::sync::Arc;

use countersign_identity::{BundleSet, Purpose, SpiffeId, Svid, TrustDomain, VerifyError};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::clock::SharedClock;
use crate::config::Bases;
use crate::peer::PeerError;
use crate::provider::provider;
use crate::verify::Trust;

/// Our SVID, the bundles, and the TLS configurations' fixed parts, built once.
pub struct Credentials {
    svid: Arc<Svid>,
    generation: u64,
    own_chain_trusted: bool,
    anchor: Option<[u8; 32]>,
    clock: SharedClock,
    pub(crate) trust: Arc<Trust>,
    pub(crate) bases: Bases,
}

/// Why an SVID and bundles do not make credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// There is no bundle of our own trust domain.
    #[error("no trust bundle of our own trust domain {0}")]
    NoBundle(TrustDomain),
    /// Our own verifier refuses our own chain; every peer would.
    #[error("our own chain is refused as {role}: {source}")]
    OwnChain {
        /// `client` or `server`.
        role: &'static str,
        /// What the verifier found.
        #[source]
        source: VerifyError,
    },
    /// The private key does not belong to the leaf, or is of a kind that cannot sign here.
    #[error("our own key does not fit our own leaf: {0}")]
    Key(#[source] rustls::Error),
    /// The TLS library refused our algorithms. Never seen in a build whose tests passed.
    #[error("TLS configuration: {0}")]
    Tls(#[source] rustls::Error),
}

impl CredentialsError {
    /// A bounded word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoBundle(_) => "no_bundle",
            Self::OwnChain { source, .. } => source.label(),
            Self::Key(_) => "key_mismatch",
            Self::Tls(_) => "tls_config",
        }
    }
}

impl Credentials {
    /// Admits an SVID: our own verifier must accept its chain under `bundles`, now, as server and as client, and the key must
    /// be the leaf's.
    pub fn new(svid: Arc<Svid>, bundles: BundleSet, clock: SharedClock) -> Result<Self, CredentialsError> {
        let made = Self::assemble(svid, bundles, clock)?;
        let now = made.clock.now();
        let mut anchor = None;
        for (purpose, role) in [(Purpose::Server, "server"), (Purpose::Client, "client")] {
            let checked = made.trust.verify(made.svid.chain(), purpose, now);
            let checked = checked.map_err(|source| CredentialsError::OwnChain { role, source })?;
            anchor = Some(*checked.anchor_sha256());
        }
        Ok(Self { own_chain_trusted: true, anchor, ..made })
    }

    /// The same SVID under other bundles, even under bundles that no longer vouch for it: peers must be judged by the newest
    /// bundle at once, and our own SVID stays the best we have until it is renewed.
    pub(crate) fn with_bundles(&self, bundles: BundleSet) -> Result<Self, CredentialsError> {
        let made = Self::assemble(Arc::clone(&self.svid), bundles, Arc::clone(&self.clock))?;
        let now = made.clock.now();
        let verified =
            [Purpose::Server, Purpose::Client].map(|purpose| made.trust.verify(made.svid.chain(), purpose, now));
        let own_chain_trusted = verified.iter().all(Result::is_ok);
        let anchor = verified.into_iter().find_map(|verified| Some(*verified.ok()?.anchor_sha256()));
        Ok(Self { own_chain_trusted, anchor, ..made })
    }

    fn assemble(svid: Arc<Svid>, bundles: BundleSet, clock: SharedClock) -> Result<Self, CredentialsError> {
        let trust_domain = svid.id().trust_domain();
        let generation = match bundles.get(&trust_domain) {
            Some(bundle) => bundle.generation(),
            None => return Err(CredentialsError::NoBundle(trust_domain.clone())),
        };
        let key = CertifiedKey::from_der(svid.chain().to_vec(), svid.key().clone_key(), &provider())
            .map_err(CredentialsError::Key)?;
        // `from_der` lets a key pass whose public half is unknown.
        key.keys_match().map_err(CredentialsError::Key)?;
        let bases = Bases::new(Arc::new(SingleCertAndKey::from(key)), &clock).map_err(CredentialsError::Tls)?;
        let trust = Arc::new(Trust::new(bundles));
        Ok(Self { svid, generation, own_chain_trusted: false, anchor: None, clock, trust, bases })
    }

    /// Our SPIFFE id.
    pub fn id(&self) -> &SpiffeId {
        self.svid.id()
    }

    /// Our SVID.
    pub fn svid(&self) -> &Arc<Svid> {
        &self.svid
    }

    /// The bundles that peers are judged by.
    pub fn bundles(&self) -> &BundleSet {
        &self.trust.bundles
    }

    /// Generation of our own trust domain's bundle.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When our leaf ends. Nothing is published when that passes: whoever opens or keeps a connection asks.
    pub fn expires_at(&self) -> UnixTime {
        self.svid.not_after()
    }

    /// Whether our leaf has ended by the clock that these credentials were made with.
    pub fn expired(&self) -> bool {
        self.clock.now() > self.expires_at()
    }

    /// False when the newest bundle has dropped the root of our own chain: peers will refuse us until the renewal, which is
    /// already under way, succeeds.
    pub fn own_chain_trusted(&self) -> bool {
        self.own_chain_trusted
    }

    /// SHA-256 of the root that vouches for our own chain; none if none of the newest bundle does.
    pub fn anchor_sha256(&self) -> Option<&[u8; 32]> {
        self.anchor.as_ref()
    }

    /// The clock by which handshakes with these credentials are judged.
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// Judges a peer's chain again, as after a change of bundle: open and pooled connections whose chain fails must end.
    pub fn reverify(&self, chain: &[CertificateDer<'_>], purpose: Purpose) -> Result<(), PeerError> {
        let now = self.clock.now();
        self.trust.verify(chain, purpose, now).map(drop).map_err(PeerError::Refused)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("id", &self.id().as_str())
            .field("expires_at", &self.expires_at().as_secs())
            .field("generation", &self.generation)
            .field("own_chain_trusted", &self.own_chain_trusted)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
