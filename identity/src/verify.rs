//! The one verifier: a chain of certificates becomes an identity here, or nowhere.
//!
//! Called by the TLS verifiers (credentials) during a handshake, again for stored chains when a bundle loses a root, and
//! for our own credentials before they are published. [`VerifiedId`] has no other source. It never looks at names other
//! than the SPIFFE id, never at roots of another trust domain, and keeps no state: same input, same answer.

use crate::bundle::{RootLimits, TrustBundle};
use crate::bundle_set::BundleSet;
use crate::certificate::{Certificate, CertificateError};
use crate::chain;
use crate::checked::{CheckedSignature, Sparing};
use crate::leaf::Leaf;
use crate::signer;
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::verify_error::{VerifyError, from_webpki};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use std::cell::RefCell;
use std::sync::Arc;
use webpki::aws_lc_rs as algorithms;
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage, RequiredEkuNotFoundContext,
    VerifiedPath,
};

/// Signatures accepted on certificates. RSA (2048 to 8192 bits) is there for CAs of others; there is no SHA-1.
pub(crate) static ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 11] = [
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
];

/// The part that the owner of the chain plays in the connection: which extended key usage its leaf needs, if it has any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// It accepted the connection: serverAuth.
    Server,
    /// It opened the connection: clientAuth.
    Client,
}

/// An identity that [`verify_svid`] established: the proof that later steps demand. Cloning copies a pointer.
///
/// It says who the chain's key belongs to at the moment of verification. That the peer holds the key is the handshake's
/// proof; that the identity is the expected one, or may do something, is for the caller to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedId(Arc<Verified>);

#[derive(Debug, PartialEq, Eq)]
struct Verified {
    id: SpiffeId,
    not_after: UnixTime,
    path_not_after: UnixTime,
    spki_sha256: [u8; 32],
    anchor_sha256: [u8; 32],
}

impl VerifiedId {
    /// Who it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// When the leaf ends (that second included).
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.0.not_after
    }

    /// When the first of leaf, intermediates and root on the verified path ends (that second included): how long a
    /// remembered verification may stand.
    #[must_use]
    pub fn path_not_after(&self) -> UnixTime {
        self.0.path_not_after
    }

    /// SHA-256 of the leaf's SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki_sha256(&self) -> &[u8; 32] {
        &self.0.spki_sha256
    }

    /// SHA-256 of the DER of the root that vouched for it; see [`TrustBundle::contains_root`].
    #[must_use]
    pub fn anchor_sha256(&self) -> &[u8; 32] {
        &self.0.anchor_sha256
    }
}

/// Verifies a chain (leaf first) as an X509-SVID: form first, then time, then the path to a root of the leaf's own trust
/// domain. Which check comes from where: SPIFFE X509-SVID section 5 and RFC 5280 section 6.1.
///
/// # Errors
/// The first check that failed. Nothing about a refused chain may be used but for logs.
pub fn verify_svid(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    purpose: Purpose,
    now: UnixTime,
) -> Result<VerifiedId, VerifyError> {
    match purpose {
        Purpose::Server => verify(chain, bundles, &ALGORITHMS, KeyUsage::server_auth(), now),
        Purpose::Client => verify(chain, bundles, &ALGORITHMS, KeyUsage::client_auth(), now),
    }
}

/// The same for a chain that must serve at both ends, as a CA asks of what it has just signed: accepted only where
/// [`verify_svid`] accepts it for each [`Purpose`], with each signature checked once, and those not again that are `known`. (Of all the
/// checks only the one of extended key usages looks at the purpose.)
///
/// # Errors
/// The first check that failed.
pub fn verify_svid_at_both_ends(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    known: &[CheckedSignature],
    now: UnixTime,
) -> Result<VerifiedId, VerifyError> {
    let sparing = ALGORITHMS.map(|algorithm| Sparing { algorithm, known });
    let algorithms = sparing.each_ref().map(|one| one as &dyn SignatureVerificationAlgorithm);
    verify(chain, bundles, &algorithms, BothEnds, now)
}

fn verify(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    usage: impl ExtendedKeyUsageValidator,
    now: UnixTime,
) -> Result<VerifiedId, VerifyError> {
    let certificates = read(chain)?;
    let leaf = Leaf::check(certificates.first().ok_or(chain::ChainError::Empty)?)?;
    check_validity(&leaf, now)?;
    let trust_domain = leaf.id.trust_domain();
    let bundle = bundle_of(&trust_domain, bundles)?;
    let (anchor, path_not_after) = verify_path(chain, &certificates, bundle, algorithms, usage, now)?;
    Ok(VerifiedId(Arc::new(Verified {
        id: leaf.id,
        not_after: leaf.not_after,
        path_not_after: path_not_after.min(leaf.not_after),
        spki_sha256: leaf.spki_sha256,
        anchor_sha256: anchor.sha256,
    })))
}

fn read<'a>(chain: &'a [CertificateDer<'_>]) -> Result<Vec<Certificate<'a>>, VerifyError> {
    chain::check_size(chain)?;
    let read_one = |(index, der): (usize, &'a CertificateDer<'_>)| {
        Certificate::read(der).map_err(|reason| VerifyError::Certificate { index, reason })
    };
    chain.iter().enumerate().map(read_one).collect()
}

/// Asked again by path validation, of every certificate; here so that a stale leaf costs no signature.
fn check_validity(leaf: &Leaf, now: UnixTime) -> Result<(), VerifyError> {
    if now < leaf.not_before {
        return Err(VerifyError::NotYetValid { not_before: leaf.not_before, now });
    }
    if now > leaf.not_after {
        return Err(VerifyError::Expired { not_after: leaf.not_after, now });
    }
    Ok(())
}

fn bundle_of<'a>(trust_domain: &TrustDomain, bundles: &'a BundleSet) -> Result<&'a TrustBundle, VerifyError> {
    let bundle = bundles.get(trust_domain).ok_or_else(|| VerifyError::UnknownTrustDomain(trust_domain.clone()))?;
    if bundle.is_empty() {
        return Err(VerifyError::NoRoots(trust_domain.clone()));
    }
    Ok(bundle)
}

/// Builds and checks a path to one of the bundle's roots; what webpki leaves out is asked of every complete path, and a
/// path refused by us makes it look for another.
fn verify_path<'a>(
    chain: &[CertificateDer<'_>],
    certificates: &[Certificate<'_>],
    bundle: &'a TrustBundle,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    usage: impl ExtendedKeyUsageValidator,
    now: UnixTime,
) -> Result<(&'a RootLimits, UnixTime), VerifyError> {
    let malformed = VerifyError::Certificate { index: 0, reason: CertificateError::NotDer };
    let (leaf, intermediates) = chain.split_first().ok_or(chain::ChainError::Empty)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| malformed)?;
    let refused = RefCell::new(None);
    let found = RefCell::new(None);
    let check = |path: &VerifiedPath<'_>| match check_path(path, certificates, bundle, now) {
        Ok(limits) => {
            found.replace(Some(limits));
            Ok(())
        }
        Err(reason) => {
            refused.replace(Some(reason));
            Err(webpki::Error::UnknownIssuer)
        }
    };
    leaf.verify_for_usage(algorithms, bundle.anchors(), intermediates, now, usage, None, Some(&check))
        .map_err(|error| refused.take().unwrap_or_else(|| from_webpki(error, now)))?;
    found.take().ok_or(VerifyError::UnknownIssuer)
}

/// The checks of a complete path that webpki does not make; and when the first of its signers ends.
fn check_path<'a>(
    path: &VerifiedPath<'_>,
    certificates: &[Certificate<'_>],
    bundle: &'a TrustBundle,
    now: UnixTime,
) -> Result<(&'a RootLimits, UnixTime), VerifyError> {
    let root = bundle.limits_of(path.anchor()).ok_or(VerifyError::UnknownIssuer)?;
    if now > root.not_after {
        return Err(VerifyError::RootExpired { not_after: root.not_after, now });
    }
    let mut below = 0;
    let mut ends = root.not_after;
    for intermediate in path.intermediate_certificates() {
        let der = intermediate.der();
        let read = certificates.iter().find(|c| c.der == &*der);
        let read = read.ok_or(VerifyError::UnknownIssuer)?;
        signer::check_intermediate(read, bundle.trust_domain())?;
        ends = ends.min(read.not_after);
        below += 1;
    }
    if root.path_len.is_some_and(|most| below > u32::from(most)) {
        return Err(VerifyError::PathTooLong);
    }
    Ok((root, ends))
}

/// serverAuth and clientAuth, where there is any extended key usage: what [`KeyUsage`] asks for one of them.
struct BothEnds;

/// 1.3.6.1.5.5.7.3.1, as encoded.
const SERVER_AUTH: KeyPurposeId<'static> = KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 1]);
/// 1.3.6.1.5.5.7.3.2, as encoded.
const CLIENT_AUTH: KeyPurposeId<'static> = KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 2]);

impl ExtendedKeyUsageValidator for BothEnds {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let (mut any, mut server, mut client) = (false, false, false);
        for purpose in purposes {
            let purpose = purpose?;
            any = true;
            server |= purpose == SERVER_AUTH;
            client |= purpose == CLIENT_AUTH;
            if server && client {
                return Ok(());
            }
        }
        if !any {
            return Ok(());
        }
        let required = if server { KeyUsage::client_auth() } else { KeyUsage::server_auth() };
        Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present: Vec::new() }))
    }
}
