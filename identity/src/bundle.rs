//! Trust bundles: which roots speak for which trust domain.
//!
//! Built by whoever receives roots (credentials, the CA, the CLI), read by `verify_svid`. One bundle belongs to one trust
//! domain, and there is no way to get at roots without naming it: a pooled store, in which any domain's CA could vouch for
//! any other's identities, cannot be expressed. Everything is immutable; a new bundle is a new value.

use crate::certificate::{Certificate, sha256};
use crate::signer::{self, SignerError};
use crate::spiffe_id::TrustDomain;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::fmt;
use std::sync::Arc;

/// Most roots in one bundle.
pub const MAX_ROOTS: usize = 32;

/// Why roots do not make a bundle, or bundles not a set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// A certificate that must not be trusted as a root; `index` counts from 0.
    #[error("bundle of {trust_domain}, root {index}: {reason}")]
    Root {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// Which of the roots given, from 0.
        index: usize,
        /// What is wrong with it.
        reason: SignerError,
    },
    /// A root past its own end.
    #[error(
        "bundle of {trust_domain}, root {index}: expired at {} (Unix seconds)",
        not_after.as_secs()
    )]
    Expired {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// Which of the roots given, from 0.
        index: usize,
        /// When it ended.
        not_after: UnixTime,
    },
    /// More than [`MAX_ROOTS`].
    #[error("bundle of {trust_domain}: {count} roots, more than {MAX_ROOTS}")]
    TooManyRoots {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// How many were given.
        count: usize,
    },
    /// Two bundles of one trust domain in a set.
    #[error("two bundles of {0}")]
    TwoBundles(TrustDomain),
}

/// The roots of one trust domain. Cloning copies a pointer.
///
/// Equal bundles have the same trust domain, generation and roots in the same order.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustBundle(Arc<Inner>);

#[derive(PartialEq, Eq)]
struct Inner {
    trust_domain: TrustDomain,
    generation: u64,
    /// `roots`, `limits` and `anchors` run in step.
    roots: Vec<CertificateDer<'static>>,
    limits: Vec<RootLimits>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// What a `TrustAnchor` forgets of its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootLimits {
    pub(crate) sha256: [u8; 32],
    pub(crate) not_after: UnixTime,
    pub(crate) path_len: Option<u8>,
}

impl TrustBundle {
    /// Checks every root for use in `trust_domain` at `now`. Repeated roots are kept once. No roots at all is a valid
    /// bundle that trusts nobody: how a trust domain revokes everything (SPIFFE Trust Domain and Bundle 4.2).
    ///
    /// # Errors
    /// The first root that is expired, is no CA, may not sign, belongs to another trust domain, has name constraints that
    /// cannot be processed, or is no certificate. One bad root refuses the whole bundle: keep the last good one.
    pub fn new(
        trust_domain: TrustDomain,
        generation: u64,
        roots: Vec<CertificateDer<'static>>,
        now: UnixTime,
    ) -> Result<Self, BundleError> {
        let mut inner = Inner {
            trust_domain,
            generation,
            roots: Vec::with_capacity(roots.len()),
            limits: Vec::with_capacity(roots.len()),
            anchors: Vec::with_capacity(roots.len()),
        };
        if roots.len() > MAX_ROOTS {
            return Err(BundleError::TooManyRoots { trust_domain: inner.trust_domain, count: roots.len() });
        }
        for (index, root) in roots.into_iter().enumerate() {
            inner.add(index, root, now)?;
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Whose roots these are.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The number its publisher gave it; a later one is higher.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation
    }

    /// The root certificates, each once.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.0.roots
    }

    /// SHA-256 of each root's DER, in the order of [`roots`](Self::roots).
    pub fn root_sha256s(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.0.limits.iter().map(|limits| &limits.sha256)
    }

    /// Whether the root with this SHA-256 (of its DER, as in `VerifiedId::anchor_sha256`) is among them.
    #[must_use]
    pub fn contains_root(&self, sha256: &[u8; 32]) -> bool {
        self.root_sha256s().any(|own| own == sha256)
    }

    /// Whether it trusts nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.roots.is_empty()
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.0.anchors
    }

    /// The limits of the root behind one of our [`anchors`](Self::anchors): found by place, since two roots may share
    /// name and key, and differ in what they allow.
    pub(crate) fn limits_of(&self, anchor: &TrustAnchor<'_>) -> Option<&RootLimits> {
        let place = self.0.anchors.iter().position(|a| std::ptr::eq(a, anchor))?;
        self.0.limits.get(place)
    }
}

impl Inner {
    fn add(&mut self, index: usize, root: CertificateDer<'static>, now: UnixTime) -> Result<(), BundleError> {
        let refused = |reason| BundleError::Root { trust_domain: self.trust_domain.clone(), index, reason };
        let certificate = Certificate::read(&root).map_err(|e| refused(e.into()))?;
        signer::check_root(&certificate, &self.trust_domain).map_err(refused)?;
        if certificate.not_after < now {
            return Err(BundleError::Expired {
                trust_domain: self.trust_domain.clone(),
                index,
                not_after: certificate.not_after,
            });
        }
        let limits = RootLimits {
            sha256: sha256(&root),
            not_after: certificate.not_after,
            path_len: certificate.basic_constraints.and_then(|c| c.path_len),
        };
        if self.limits.contains(&limits) {
            return Ok(());
        }
        let anchor = webpki::anchor_from_trusted_cert(&root)
            .map_err(|_| refused(crate::CertificateError::NotDer.into()))?
            .to_owned();
        self.anchors.push(anchor);
        self.limits.push(limits);
        self.roots.push(root);
        Ok(())
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("trust_domain", self.trust_domain())
            .field("generation", &self.generation())
            .field("roots", &self.roots().len())
            .finish()
    }
}
