//! The rules for the certificate that carries an identity (X509-SVID, sections 2, 4 and 5.2).
//!
//! Called by `Svid::new` for our own and by `verify_svid` for a peer's. It proves form only: whoever can write bytes can
//! write a leaf that passes. Nothing here may be taken for an authenticated identity.

use crate::certificate::{Certificate, CertificateError};
use crate::spiffe_id::{SpiffeId, SpiffeIdError};
use rustls_pki_types::UnixTime;

/// Why a certificate cannot be an SVID's leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeafError {
    /// It cannot be read at all.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// BasicConstraints is missing: nothing says that it is no CA (X509-SVID 5.2).
    #[error("the leaf has no basic constraints")]
    NoBasicConstraints,
    /// BasicConstraints says cA=true.
    #[error("the leaf is a CA certificate")]
    Ca,
    /// KeyUsage is missing (X509-SVID 4.3).
    #[error("the leaf has no key usage")]
    NoKeyUsage,
    /// KeyUsage does not allow digitalSignature, which a TLS handshake is (X509-SVID 4.3).
    #[error("the leaf's key usage has no digitalSignature")]
    NoDigitalSignature,
    /// KeyUsage allows keyCertSign or cRLSign (X509-SVID 5.2).
    #[error("the leaf's key usage allows signing certificates or revocation lists")]
    MaySign,
    /// No URI among its alternative names.
    #[error("the leaf has no URI name")]
    NoUri,
    /// More than one URI, malformed ones counted (X509-SVID 2).
    #[error("the leaf has {0} URI names; exactly one is allowed")]
    SeveralUris(usize),
    /// Its one URI is not text.
    #[error("the leaf's URI name is not text")]
    UriNotText,
    /// Its URI is not a SPIFFE id.
    #[error("the leaf's URI name is no SPIFFE id: {0}")]
    NoSpiffeId(#[from] SpiffeIdError),
    /// Its SPIFFE id names the trust domain, not a workload (X509-SVID 5.2).
    #[error("the leaf's SPIFFE id has no path")]
    NoPath,
}

impl LeafError {
    /// A word from a fixed list, for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "malformed_certificate",
            Self::NoBasicConstraints | Self::Ca => "leaf_basic_constraints",
            Self::NoKeyUsage | Self::NoDigitalSignature | Self::MaySign => "leaf_key_usage",
            Self::NoUri | Self::SeveralUris(_) | Self::UriNotText => "leaf_uri",
            Self::NoSpiffeId(_) | Self::NoPath => "leaf_spiffe_id",
        }
    }
}

/// What a well-formed leaf says about itself.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) spki_sha256: [u8; 32],
}

impl Leaf {
    /// All rules of form, none of which needs a signature.
    pub(crate) fn check(certificate: &Certificate<'_>) -> Result<Self, LeafError> {
        check_basic_constraints(certificate)?;
        check_key_usage(certificate)?;
        let id = spiffe_id(certificate)?;
        Ok(Self {
            id,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            spki_sha256: certificate.spki_sha256(),
        })
    }
}

fn check_basic_constraints(certificate: &Certificate<'_>) -> Result<(), LeafError> {
    match certificate.basic_constraints {
        None => Err(LeafError::NoBasicConstraints),
        Some(constraints) if constraints.ca => Err(LeafError::Ca),
        Some(_) => Ok(()),
    }
}

fn check_key_usage(certificate: &Certificate<'_>) -> Result<(), LeafError> {
    let usage = certificate.key_usage.ok_or(LeafError::NoKeyUsage)?;
    if usage.cert_sign || usage.crl_sign {
        return Err(LeafError::MaySign);
    }
    if !usage.digital_signature {
        return Err(LeafError::NoDigitalSignature);
    }
    Ok(())
}

fn spiffe_id(certificate: &Certificate<'_>) -> Result<SpiffeId, LeafError> {
    match certificate.uris.count {
        0 => return Err(LeafError::NoUri),
        1 => {}
        several => return Err(LeafError::SeveralUris(several)),
    }
    let id = SpiffeId::parse(certificate.uris.first.ok_or(LeafError::UriNotText)?)?;
    if id.path().is_empty() {
        return Err(LeafError::NoPath);
    }
    Ok(id)
}
