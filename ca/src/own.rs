//! The CA's own SVID, which it signs for itself and serves TLS with. Called by `upkeep`: at the start, and then at half of
//! each leaf's life. The only way to the CA's identity; `issue` refuses it to everybody.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_credentials::{Credentials, CredentialsError, SharedClock};
use countersign_identity::{SpiffeId, Svid, SvidError};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use tokio::sync::watch;

use crate::audit::{Audit, AuditError, Entry, Event, GRANTED};
use crate::clock::{millis, seconds};
use crate::grant::{self, GrantError, Granter, Terms};
use crate::sign::{self, SignError};
use crate::state::{Authority, hex};

/// Why the CA has no SVID. All our own fault.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum OwnError {
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// The CA's identity, kept fresh.
pub struct Own {
    id: SpiffeId,
    terms: Terms,
    clock: SharedClock,
    publish: watch::Sender<Option<Arc<Credentials>>>,
}

impl Own {
    /// Nothing is published before the first [`Own::renew`].
    pub fn new(id: SpiffeId, terms: Terms, clock: SharedClock) -> Self {
        Self { id, terms, clock, publish: watch::Sender::new(None) }
    }

    /// The CA's SPIFFE id.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Follows the credentials, as `countersign_credentials::incoming` does.
    pub fn subscribe(&self) -> countersign_credentials::Watch {
        self.publish.subscribe()
    }

    /// End of the SVID in use.
    pub fn not_after(&self) -> Option<UnixTime> {
        self.publish.borrow().as_ref().map(|credentials| credentials.expires_at())
    }

    /// True when half of the leaf's life is over, when there is none, or when bundle or signing root are no longer those it was
    /// made under.
    pub fn due(&self, authority: &Authority) -> bool {
        let current = self.publish.borrow();
        let Some(credentials) = current.as_ref() else { return true };
        let (begin, end) = (credentials.svid().not_before().as_secs(), credentials.expires_at().as_secs());
        let half = begin + end.saturating_sub(begin) / 2;
        let root = authority.root().certificate_sha256();
        self.clock.now() >= seconds(half)
            || credentials.generation() != authority.generation()
            || credentials.anchor_sha256() != Some(&root)
    }

    /// A new key, a new leaf, recorded and verified, then published.
    pub async fn renew(&self, authority: &Authority, audit: &Audit) -> Result<(), OwnError> {
        let now_ms = millis(&*self.clock);
        let granter = Granter {
            trust_domain: authority.trust_domain(),
            issuer_end: authority.issuer().not_after(),
            own_id: &self.id,
            terms: self.terms,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let grant = grant::for_self(granter, now_ms)?;
        let signed = sign::leaf(authority, &grant, &key, seconds(now_ms / 1000))?;
        let entry = Entry {
            spiffe_id: Some(self.id.as_str()),
            serial: Some(signed.serial()),
            key_sha256: Some(hex(signed.verified().spki_sha256())),
            not_before: Some(grant.not_before().as_secs()),
            not_after: Some(grant.not_after().as_secs()),
            ..Entry::new(Event::OwnLeaf, GRANTED)
        };
        let _recorded = audit.record(&entry, now_ms).await?;
        let svid = Svid::new(signed.chain().to_vec(), PrivateKeyDer::from(key))?;
        let clock = SharedClock::clone(&self.clock);
        let credentials = Credentials::new(Arc::new(svid), authority.bundles().clone(), clock)?;
        self.publish.send_replace(Some(Arc::new(credentials)));
        tracing::info!(id = %self.id, serial = signed.serial(), "own SVID renewed");
        Ok(())
    }
}

/// Signs a text as the CA: ECDSA P-256 with SHA-256, ASN.1, as base64. Whoever has the bundle can check it.
///
/// # Errors
/// Why it cannot be signed; our own fault.
pub fn signature(signer: &Svid, text: &str) -> Result<String, &'static str> {
    let PrivateKeyDer::Pkcs8(key) = signer.key() else {
        return Err("the own SVID's key is of another form than ours");
    };
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_pkcs8_der())
        .map_err(|_| "the own SVID's key is no P-256 key")?;
    let signature = key.sign(&SystemRandom::new(), text.as_bytes()).map_err(|_| "the own SVID's key could not sign")?;
    Ok(STANDARD.encode(signature.as_ref()))
}
